package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/policy"
)

// recordLog is a command of scripts: recordlog STATEDIR CONFIG full|masked ACCESSES. It
// writes the audit log of a sidecar that decides the accesses of a file, one METHOD URL a
// line and one a second, beginning at 2026-12-01T12:00:00Z. A line of the form
// "METHOD URL at ADDRESS" also has the address that the host resolves to.
func recordLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: recordlog STATEDIR CONFIG full|masked ACCESSES")
	}
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	accesses := strings.Split(strings.TrimSpace(ts.ReadFile(args[3])), "\n")
	ts.Check(recordedLog(ts.MkAbs(args[0]), ts.MkAbs(args[1]), args[2] == "full", now, accesses))
}

// recordedLog writes the audit log of the sidecar of a configuration that decides
// accesses, one a second from now on.
func recordedLog(stateDir, config string, full bool, now time.Time, accesses []string) error {
	subjects, err := policy.Load(now, policy.Options{}, config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	log, err := audit.Open(audit.Config{
		StateDir: stateDir, FullPaths: func() bool { return full }, Now: func() time.Time { return now },
	})
	if err != nil {
		return err
	}
	engine := &authz.Engine{}
	engine.Install(subjects[0].Policy)
	gate, err := authz.NewGate(authz.GateConfig{
		Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Credentials: anyCredential{}, Now: func() time.Time { return now },
	})
	if err != nil {
		return errors.Join(err, log.Close())
	}
	for _, line := range accesses {
		if err := recordAccess(gate, subjects[0].Plugin, strings.Fields(line)); err != nil {
			return errors.Join(err, log.Close())
		}
		now = now.Add(time.Second)
	}
	return log.Close()
}

// TestReplayInterrupted interrupts a replay of standard input that has not ended: what was
// replayed is printed and called partial, with status 1.
func TestReplayInterrupted(t *testing.T) {
	dir, at := t.TempDir(), time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	grant := filepath.Join(dir, "grant.yaml")
	testenv.Must(t, os.WriteFile(grant, []byte(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-02-01T00:00:00Z
  rules:
  - {id: read, reason: Tests, to: {hosts: [api.weather.example]}, methods: [GET], paths: ["/**"]}
`), 0o600))
	testenv.Must(t, recordedLog(dir, grant, true, at, slices.Repeat([]string{"GET https://api.weather.example/v1"}, 100)))
	lines := testenv.MustGet(os.ReadFile(filepath.Join(dir, audit.DefaultFile)))(t)
	in, out := io.Pipe()
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		_, _ = out.Write(lines) // returns once all of it was read; the pipe stays open
		interrupt()
	}()
	var stdout, stderr bytes.Buffer
	status := execute(ctx, []string{"policy", "replay", "--config", grant, "-"}, in, &stdout, &stderr)
	if status != exitFailure || !strings.Contains(stdout.String(), "unchanged: ") || !strings.Contains(stderr.String(), "replay interrupted: the result is that of a part of the log") {
		t.Errorf("got status %d, %q and %q, want 1, the result so far and that it is partial", status, stdout.String(), stderr.String())
	}
}

// sealed is the chaperone command in a process that the kernel kills when it makes a
// socket, starts a process or executes a program.
const sealed = "chaperone-sealed"

func runSealed() {
	if err := seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailure)
	}
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// seal installs a seccomp filter (seccomp(2)) for every thread of the process. clone is
// allowed for threads, which the runtime starts.
func seal() error {
	const nr, flags = 0, 16 // offsets in struct seccomp_data: of the call, and of its first argument
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr}}
	killed := []uint32{
		unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP,
	}
	for i, call := range killed { // to kill, which is the last but one
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jt: uint8(len(killed) - i + 2)})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLONE, Jf: 3},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: flags},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_THREAD, Jt: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}

// anyCredential leases an API key to everyone.
type anyCredential struct{}

func (anyCredential) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	return authz.Credential{Fields: map[string]authz.Secret{"api_key": authz.NewSecret("a-key")}, Generation: 1}, nil
}

// recordAccess has a gate decide METHOD URL [at ADDRESS...], as a proxy does.
func recordAccess(gate *authz.Gate, plugin string, words []string) error {
	req, err := policy.Request(authz.Principal(plugin), policy.Words{Method: words[0], URL: words[1], Upgrade: ""})
	if err != nil {
		return err
	}
	a, err := gate.Admit(context.Background(), req, authz.Source{Door: authz.DoorProxy, UID: -1})
	if err != nil || a.Refusal != nil {
		return err
	}
	var resolved []netip.Addr
	for _, word := range words[min(3, len(words)):] {
		resolved = append(resolved, netip.MustParseAddr(word))
	}
	a.Resolved(resolved)
	outcome := authz.Outcome{}
	allowed := func(addr netip.Addr) bool { return a.Decision.CheckAddress(addr) == authz.Granted }
	if i := slices.IndexFunc(resolved, allowed); i >= 0 {
		outcome.Address = netip.AddrPortFrom(resolved[i], req.Destination.Port()).String()
	} else if len(resolved) > 0 {
		a.RefuseAddress(resolved[len(resolved)-1])
	}
	return a.End(outcome)
}

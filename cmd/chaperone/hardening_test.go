package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// refusesClone3 as a command runs its arguments under a seccomp filter that
// answers clone3 with the error number of its first.
const refusesClone3 = "refuses-clone3"

func runWithoutClone3() {
	runtime.LockOSThread()
	errno := map[string]uint32{"ENOSYS": uint32(unix.ENOSYS), "EPERM": uint32(unix.EPERM)}[os.Args[1]]
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: unix.SYS_CLONE3},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | errno},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0)
	}
	if err == nil {
		err = syscall.Exec(os.Args[2], os.Args[2:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestRunHardened starts a plugin in surroundings that service managers,
// container runtimes and sudo make: none of them is a reason not to start.
func TestRunHardened(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("unshare"), testenv.Program("prlimit"), testenv.Program("setpriv"))
	chaperone := shipped(t) // the C library of a test with the race detector does not start without clone3
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Fatal("the filter's words are little-endian")
	}
	const noResource = "setpriv --bounding-set -sys_resource --inh-caps -sys_resource "
	for name, test := range map[string]struct{ prepare, prefix, warns string }{
		"a hard limit of no core dumps":            {prefix: "prlimit --core=0:0"},
		"which cannot be raised":                   {prefix: "prlimit --core=0:0 " + noResource},
		"a hard limit of one byte":                 {prefix: "prlimit --core=1:1 " + noResource},
		"no limit on core dumps":                   {prefix: "prlimit --core=unlimited"},
		"clone3 that is not there":                 {prefix: refusesClone3 + " ENOSYS"},
		"clone3 that is forbidden":                 {prefix: refusesClone3 + " EPERM"},
		"a runtime directory made by systemd":      {prepare: "mkdir -m 755 /run/chaperone; mkdir -m 700 /run/chaperone/weather"},
		"a runtime directory of an older sidecar":  {prepare: "mkdir -m 700 /run/chaperone"},
		"a runtime directory that is an empty one": {prepare: "mkdir /run/chaperone; chmod 777 /run/chaperone"},
		"a runtime directory of somebody else": {
			prepare: "mkdir /run/chaperone; chown 4242 /run/chaperone", warns: "can be replaced by uid 4242, which owns /run/chaperone",
		},
		"read-only /run": {
			prepare: "mount -o remount,ro /run", warns: "revoke --all reaches it by the host's revocations only",
		},
		"of /run only the instance's own": {
			prepare: "mkdir -p -m 700 /run/chaperone/weather; mount --bind /run/chaperone/weather /run/chaperone/weather; mount -o remount,ro,bind /run",
			prefix:  "env RUNTIME_DIRECTORY=/run/chaperone/weather", warns: "revoke --all reaches it by the host's revocations only",
		},
		"all of it": {
			prepare: "mkdir -p -m 700 /run/chaperone; mount -o remount,ro /run",
			prefix:  "prlimit --core=0:0 " + noResource + refusesClone3 + " ENOSYS", warns: "read-only file system",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := openDir(t)
			testenv.Must(t, os.WriteFile(filepath.Join(dir, "sidecar.yaml"), sleeper("state"), 0o600))
			testenv.Must(t, os.Mkdir(filepath.Join(dir, "grants"), 0o700))
			prefix := test.prefix
			if program, rest, ok := strings.Cut(prefix, refusesClone3); ok {
				prefix = program + testenv.MustGet(exec.LookPath(refusesClone3))(t) + rest
			}
			script := fmt.Sprintf("set -e; %s\nexec %s %s run --config sidecar.yaml -- echo started", test.prepare, prefix, chaperone)
			cmd := exec.Command("sh", "-c", script)
			if test.prepare != "" {
				cmd = exec.Command("unshare", "--mount", "sh", "-c", "mount -t tmpfs run /run && "+script)
			}
			cmd.Dir = dir
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil || stdout.String() != "started\n" {
				t.Fatalf("%v: %s%s", err, &stdout, &stderr)
			}
			if !strings.Contains(stderr.String(), test.warns) || (test.warns == "") != (stderr.Len() == 0) {
				t.Errorf("it printed %q, want something of %q", &stderr, test.warns)
			}
		})
	}
}

// shippedDir is removed after the tests.
var shippedDir string

// shippedOnce builds the binary that is shipped.
var shippedOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "chaperone-shipped-")
	if err != nil {
		return "", err
	}
	shippedDir = dir
	if err := testenv.BuildChaperone(context.Background(), filepath.Join(dir, "chaperone")); err != nil {
		return "", err
	}
	return filepath.Join(dir, "chaperone"), os.Chmod(dir, 0o755)
})

// shipped returns the path of a binary as it is shipped: without the C library,
// and without the tests.
func shipped(t *testing.T) string {
	t.Helper()
	return testenv.MustGet(shippedOnce())(t)
}

// openDir makes a directory that every user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testenv.Must(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)))
	return dir
}

// sleeper is the Sidecar of a plugin that is granted nothing.
func sleeper(stateDir string) []byte {
	return []byte(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec: {plugin: weather, grants: [grants], stateDir: ` + stateDir + `, kernel: required, listen: {proxy: "127.0.0.1:0"}}
`)
}

// TestStateDirOfTheCaller checks that a stateDir in a folder of another user's,
// whom the plugin runs as under sudo, is refused in words that help, and found by
// check and doctor beforehand.
func TestStateDirOfTheCaller(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("setpriv"))
	const uid = 54321
	dir := filepath.Join(t.TempDir(), "clone")
	file := filepath.Join(dir, "sidecar.yaml")
	testenv.Must(t, errors.Join(os.MkdirAll(filepath.Join(dir, "grants"), 0o755), os.WriteFile(file, sleeper("state"), 0o644)))
	testenv.Must(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755)))
	for _, path := range []string{dir, file, filepath.Join(dir, "grants")} {
		testenv.Must(t, os.Chown(path, uid, uid))
	}
	chaperone := shipped(t)
	asUser := []string{"setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups"}
	for _, test := range []struct {
		name    string
		command []string
		status  int
	}{
		{"run", []string{chaperone, "run", "--config", file, "--", "true"}, 125},
		{"check", []string{chaperone, "check", file}, 1},
		{"check as the user", append(asUser, chaperone, "check", file), 0},
		{"doctor", []string{chaperone, "doctor", "--config", file}, 1},
	} {
		cmd := exec.Command(test.command[0], test.command[1:]...)
		cmd.Env = append(os.Environ(), fmt.Sprintf("SUDO_UID=%d", uid), fmt.Sprintf("SUDO_GID=%d", uid))
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != test.status {
			t.Errorf("%s: status %d, %v: %s", test.name, got, err, out)
		}
		for _, want := range []string{"folder " + dir + " belongs to uid 54321", "write stateDir: /var/lib/chaperone/weather"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: it does not print %q:\n%s", test.name, want, out)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "state")); err == nil {
		t.Error("the stateDir was made")
	}
}

// TestStateDirOutOfSight checks what is printed to a user who may not look into the
// folder of a stateDir: neither that run refuses it, nor an error without a remedy.
func TestStateDirOutOfSight(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.Program("setpriv"))
	dir := openDir(t)
	file, state := filepath.Join(dir, "sidecar.yaml"), filepath.Join(dir, "closed", "weather")
	testenv.Must(t, errors.Join(os.Mkdir(filepath.Join(dir, "grants"), 0o755), os.MkdirAll(state, 0o700), os.WriteFile(file, sleeper(state), 0o644)))
	log := filepath.Join(dir, "audit.jsonl")
	testenv.Must(t, os.WriteFile(log, nil, 0o600))
	for _, test := range []struct {
		name, want string
		args       []string
		status     int
	}{
		{"check", state + " was not checked: uid 54321 may not look there; run check as root", []string{"check", file}, 0},
		{"audit verify", "run this as the sidecar's user, which is root unless kernel is off", []string{"audit", "verify", "--config", file, log}, 1},
	} {
		cmd := exec.Command("setpriv", append([]string{"--reuid=54321", "--regid=54321", "--clear-groups", shipped(t)}, test.args...)...)
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != test.status || !strings.Contains(string(out), test.want) || strings.Contains(string(out), "run refuses it") {
			t.Errorf("%s: status %d, %v, without %q: %s", test.name, got, err, test.want, out)
		}
	}
}

// TestRunAfterKill checks that a sidecar ends the processes that a killed sidecar
// left confined, logs it, and starts.
func TestRunAfterKill(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
	dir := openDir(t)
	file := filepath.Join(dir, "sidecar.yaml")
	testenv.Must(t, errors.Join(os.Mkdir(filepath.Join(dir, "grants"), 0o700), os.WriteFile(file, sleeper("state"), 0o600)))
	w := bareEnv(t, dir)
	for range 3 {
		b := w.Start("sh", "-c", "sleep 300 & sleep 300 & echo two; wait")
		testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(b.Output.String(), "two") })
		testenv.Must(t, b.Cmd.Process.Kill())
		b.Wait()
	}
	r := w.Run("echo", "started")
	if r.Status != 0 || r.Stdout != "started\n" {
		t.Fatalf("status %d: %s%s", r.Status, r.Stdout, r.Stderr)
	}
	if got := strings.Count(r.Stderr, "\n"); got != 1 || !strings.Contains(r.Stderr, "that an earlier sidecar of weather had left shut in (by hand: chaperone detach --config "+file+" --kill)") {
		t.Errorf("it printed %q", r.Stderr)
	}
	scenario.Contains(t, w.Chaperone("audit", "query", "--config", file).Stdout, "an earlier sidecar of weather had left")
	if d := w.Chaperone("detach", "--config", file); d.Status != 0 {
		t.Errorf("detach: %s", d.Stderr)
	}
}

// TestDoctorIsNamedWhereItHelps checks that an error which doctor does not find
// the cause of does not send anybody to it.
func TestDoctorIsNamedWhereItHelps(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("setpriv"))
	dir := t.TempDir()
	file := filepath.Join(dir, "sidecar.yaml")
	config := strings.Replace(string(sleeper("state")), "kernel:", "process: {user: nobody-of-that-name}, kernel:", 1)
	testenv.Must(t, errors.Join(os.Mkdir(filepath.Join(dir, "grants"), 0o700), os.WriteFile(file, []byte(config), 0o600)))
	w := bareEnv(t, dir)
	t.Setenv("CHAPERONE_REGISTRY", w.File("registry")) // not the host's
	if r := w.Run("true"); r.Status != exitSidecar || strings.Contains(r.Stderr, "doctor") {
		t.Errorf("an unknown user: status %d: %s", r.Status, r.Stderr)
	}
	testenv.Must(t, os.WriteFile(file, sleeper("state"), 0o600))
	cmd := exec.Command("setpriv", "--bounding-set", "-sys_admin,-bpf,-net_admin", "--inh-caps", "-sys_admin,-bpf,-net_admin", shipped(t), "run", "--config", file, "--", "true")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "chaperone doctor finds what is missing") {
		t.Errorf("missing capabilities: %v: %s", err, out)
	}
	testenv.Must(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Chmod(file, 0o644), os.Chmod(dir+"/grants", 0o755), os.RemoveAll(dir+"/state")))
	testenv.Must(t, os.Chown(dir, 54321, 54321))
	cmd = exec.Command("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", shipped(t), "run", "--config", file, "--", "true")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "kernel: required needs root") || strings.Contains(string(out), "doctor") {
		t.Errorf("an ordinary user: %v: %s", err, out)
	}
}

package main

import (
	"bytes"
	"encoding/binary"
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
		t.Skip("the filter's words are little-endian")
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
			prepare: "mkdir /run/chaperone; chown 4242 /run/chaperone", warns: "folder /run/chaperone belongs to uid 4242",
		},
		"nothing of /run that can be written": {
			prepare: "mount -o remount,ro /run", warns: "revoke --all will not reach this sidecar",
		},
		"of /run only the instance's own": {
			prepare: "mkdir -p -m 700 /run/chaperone/weather; mount --bind /run/chaperone/weather /run/chaperone/weather; mount -o remount,ro,bind /run",
			prefix:  "env RUNTIME_DIRECTORY=/run/chaperone/weather", warns: "revoke --all will not reach this sidecar",
		},
		"all of it": {
			prepare: "mkdir -p -m 700 /run/chaperone; mount -o remount,ro /run",
			prefix:  "prlimit --core=0:0 " + noResource + refusesClone3 + " ENOSYS", warns: "read-only file system",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			testenv.Must(t, os.WriteFile(filepath.Join(dir, "sidecar.yaml"), []byte(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec: {plugin: weather, grants: [grants], stateDir: state, kernel: required, listen: {proxy: "127.0.0.1:0"}}
`), 0o600))
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
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "chaperone"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build chaperone: %w\n%s", err, out)
	}
	return filepath.Join(dir, "chaperone"), os.Chmod(dir, 0o755)
})

// shipped returns the path of a binary as it is shipped: without the C library,
// and without the tests.
func shipped(t *testing.T) string {
	t.Helper()
	return testenv.MustGet(shippedOnce())(t)
}

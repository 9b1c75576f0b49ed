package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// first is a sidecar that is the first process of a PID namespace, as in a
// container.
type first struct {
	t       *testing.T
	dir     string
	unshare *exec.Cmd
	stdin   io.WriteCloser
	output  scenario.Buffer
	ended   chan struct{}
}

// newFirst starts a chaperone command as the first process of a PID namespace.
// Lines are added to the Sidecar's spec.
func newFirst(t *testing.T, spec string, args ...string) *first {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("unshare"))
	f := &first{t: t, dir: t.TempDir(), ended: make(chan struct{})}
	testenv.Must(t, os.Chmod(filepath.Dir(f.dir), 0o755)) // the plugin's user enters it
	testenv.Must(t, os.WriteFile(filepath.Join(f.dir, "grant.yaml"), fmt.Appendf(nil, `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: orphans}
spec: {plugin: orphans, notAfter: %s, rules: [{id: none, reason: Tests, to: {hosts: [api.test.example]}, methods: [GET], paths: [/]}]}
`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)), 0o600))
	testenv.Must(t, os.WriteFile(filepath.Join(f.dir, "sidecar.yaml"), []byte(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: orphans}
spec:
  plugin: orphans
  grants: [grant.yaml]
  stateDir: state
`+spec), 0o600))
	command := append([]string{"--pid", "--fork", "--kill-child", "--mount-proc", testenv.MustGet(exec.LookPath("chaperone"))(t)}, args...)
	f.unshare = exec.Command("unshare", command...)
	f.unshare.Dir = f.dir
	f.unshare.Env = append(os.Environ(), "CHAPERONE_REGISTRY="+filepath.Join(f.dir, "registry"))
	f.unshare.Stdout, f.unshare.Stderr = &f.output, &f.output
	f.unshare.WaitDelay = time.Second
	f.stdin = testenv.MustGet(f.unshare.StdinPipe())(t)
	testenv.Must(t, f.unshare.Start())
	go func() { _ = f.unshare.Wait(); close(f.ended) }()
	t.Cleanup(func() {
		_ = f.unshare.Process.Kill() // and the namespace with it
		<-f.ended
		if out, err := exec.Command(command[4], "detach", "--config", filepath.Join(f.dir, "sidecar.yaml"), "--kill").CombinedOutput(); err != nil {
			t.Errorf("detach: %v\n%s", err, out)
		}
	})
	return f
}

// sidecar returns the sidecar's id, as this process sees it.
func (f *first) sidecar() int {
	f.t.Helper()
	return testenv.Eventually(f.t, "the sidecar runs", func() (int, bool) {
		pids := childrenOf(f.unshare.Process.Pid)
		if len(pids) == 1 {
			return pids[0], true
		}
		return 0, false
	})
}

func (f *first) printed(text string) {
	f.t.Helper()
	testenv.Eventually(f.t, strconv.Quote(text)+" is printed", func() (int, bool) {
		select {
		case <-f.ended:
			f.t.Fatalf("the sidecar ended:\n%s", f.output.String())
		default:
		}
		return 0, strings.Contains(f.output.String(), text)
	})
}

// reaps waits until nothing is left that the sidecar has not waited for.
func (f *first) reaps() {
	f.t.Helper()
	sidecar := f.sidecar()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		n := zombiesOf(sidecar)
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%d orphans are left", n)
		}
	}
}

// childrenOf lists a process's children.
func childrenOf(pid int) (pids []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file) // empty for a thread that has ended
		for field := range bytes.FieldsSeq(text) {
			if child, err := strconv.Atoi(string(field)); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// zombiesOf counts the children of a process that it has not waited for.
func zombiesOf(pid int) (n int) {
	for _, child := range childrenOf(pid) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err == nil && bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" Z")) {
			n++
		}
	}
	return n
}

// TestRunReapsOrphans: whatever confines the plugin, a sidecar that is the first
// process of a container waits for the processes that the plugin left, and the
// plugin's exit status is its own.
func TestRunReapsOrphans(t *testing.T) {
	const proxy = "  listen: {proxy: \"127.0.0.1:0\"}\n"
	for name, spec := range map[string]string{
		"view own":     "  kernel: required\n",
		"view host":    "  kernel: required\n  process: {view: host}\n",
		"rootless":     "  kernel: \"off\"\n",
		"nothing":      "  kernel: \"off\"\n  process: {network: host}\n",
		"host network": "  kernel: required\n  process: {view: host, network: host}\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFirst(t, proxy+spec, "run", "--config", "sidecar.yaml", "--", "sh", "-c", `
for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 0.05 & exit 0'; sh -c '(exec true) & exit 0'; done
sleep 0.2; echo orphaned; read -r line; exit 37`)
			f.printed("orphaned")
			f.reaps()
			testenv.Must(t, f.stdin.Close())
			<-f.ended
			if status := f.unshare.ProcessState.ExitCode(); status != 37 {
				t.Errorf("status %d\n%s", status, f.output.String())
			}
		})
	}
}

// TestServeReapsOrphans: so does one that starts no process itself. Programs that are
// started in its container (kubectl exec) leave processes, too.
func TestServeReapsOrphans(t *testing.T) {
	testenv.Require(t, testenv.Program("nsenter"))
	f := newFirst(t, "  kernel: \"off\"\n  listen: {extAuthz: unix:ext_authz.sock}\n", "serve", "--config", "sidecar.yaml")
	f.printed(`"ready"`)
	enter := exec.Command("nsenter", "--pid", "--target", strconv.Itoa(f.sidecar()), "sh", "-c", "for i in 1 2 3; do sh -c '(exec sleep 0.1) & exit 0'; done; sleep 0.3")
	if out, err := enter.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.reaps()
}

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// isolated is the variable that names the cgroup of a test process that has
// /run, the BPF file system and a folder for temporary files to itself.
const isolated = "E2E_ISOLATED"

// times is how often something is done: long with CHAPERONE_LONG=1 (make
// test-long), short otherwise.
func times(short, long int) int {
	if os.Getenv("CHAPERONE_LONG") == "1" {
		return long
	}
	return short
}

// TestLeftovers looks for what runs, killed sidecars and many sidecars at once
// leave behind: in a process of its own, whose folders and cgroup no other test
// uses, so that all that is there is theirs.
func TestLeftovers(t *testing.T) {
	group := os.Getenv(isolated)
	if group == "" {
		isolate(t)
		return
	}
	e := newEnv(t, "{}")
	e.succeeds()
	before := survey(t, group)
	for _, c := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"runs", func(t *testing.T) { leaveByRuns(t, times(20, 100)) }},
		{"kills", func(t *testing.T) { leaveByKills(t, times(10, 30)) }},
		{"sidecars at once", func(t *testing.T) { leaveAtOnce(t, 20) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do(t)
			eventually(t, "the leftovers are gone", func() (int, error) { return 0, compare(before, survey(t, group)) })
		})
	}
}

// isolate runs the test that calls it in a process of its own.
func isolate(t *testing.T) {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("unshare"), testenv.Program("mount"))
	const set = `mount -t tmpfs -o mode=755 none /run && { ! mountpoint -q /sys/fs/bpf || mount -t bpf none /sys/fs/bpf; } && exec "$@"`
	self := testenv.MustGet(os.Executable())(t)
	group := testenv.MustCgroup(t)
	tmp := t.TempDir()
	testenv.Must(t, errors.Join(os.Chmod(filepath.Dir(tmp), 0o755), os.Chmod(tmp, 0o777|os.ModeSticky)))
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", set, "sh",
		self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), isolated+"="+group.Path, "TMPDIR="+tmp)
	cmd.SysProcAttr = group.SysProcAttr()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	testenv.Must(t, err)
}

// succeeds runs a program that does nothing, which must succeed.
func (e *env) succeeds() {
	e.t.Helper()
	if r := e.run("true"); r.status != 0 {
		e.t.Fatal(r)
	}
}

func leaveByRuns(t *testing.T, n int) {
	e := newEnv(t, "{}")
	for i := range n {
		if i%4 == 0 {
			e = newEnv(t, "{}")
		}
		if r := e.run("/bin/sh", "-c", "(sleep 300 &) ; mktemp >/dev/null; exit 7"); r.status != 7 {
			t.Fatalf("run %d: %v", i, r)
		}
	}
}

// leaveByKills kills sidecars, also while they start. The command that removes
// what one left, and the next start, must do that completely.
func leaveByKills(t *testing.T, n int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	e := newEnv(t, `{listen: ["unix:/tmp/e2eleft-*"]}`)
	for i := range n {
		b := e.start("/bin/sh", "-c", "mktemp >/dev/null; sleep 300 & exec "+systemPython+" "+staged("python", "listen.py"))
		time.Sleep(time.Duration(random.IntN(800)) * time.Millisecond) // any moment: that is the test
		b.Kill()
		if i%2 == 0 {
			if r := e.chaperone("detach", "--config", e.file("sidecar.yaml"), "--kill"); r.status != 0 {
				t.Fatalf("kill %d: %v", i, r)
			}
			continue
		}
		r := e.run("true")
		if r.status == 0 {
			continue
		}
		if !strings.Contains(r.stderr, "detach --config") || !strings.Contains(r.stderr, "--kill") {
			t.Errorf("kill %d: the next start fails and does not give the command that cleans up: %v", i, r)
		}
		if r := e.chaperone("detach", "--config", e.file("sidecar.yaml"), "--kill"); r.status != 0 {
			t.Fatalf("kill %d: %v", i, r)
		}
	}
	e.succeeds()
}

func leaveAtOnce(t *testing.T, n int) {
	var worlds []*env
	for range n {
		worlds = append(worlds, newEnv(t, "{}"))
	}
	var all sync.WaitGroup
	for i, e := range worlds {
		all.Go(func() {
			if r := e.run("curl", "-sS", e.origins.secure("/open/hello")); r.status != 0 || r.stdout != "hello GET\n" {
				t.Errorf("sidecar %d: %v", i, r)
			}
		})
	}
	all.Wait()
}

// survey lists what sidecars may have left: files below /run, the BPF file
// system and TMPDIR, mounts, cgroups, and processes in them.
func survey(t *testing.T, group string) []string {
	t.Helper()
	var found []string
	for _, root := range []string{"/run", "/sys/fs/bpf", group} {
		testenv.Must(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has just gone
			}
			if path == "/run/chaperone/bpf/programs" || path == "/sys/fs/bpf/chaperone/programs" {
				return fs.SkipDir // the cache of programs, which is bounded
			}
			if err == nil && (root != group || entry.IsDir()) {
				found = append(found, path)
			}
			return err
		}))
	}
	found = append(found, testenv.MustGet(filepath.Glob("/tmp/e2eleft-*"))(t)...) // sockets of process.listen
	entries := testenv.MustGet(os.ReadDir(os.TempDir()))(t)
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), "Test") && !strings.HasPrefix(entry.Name(), "e2e-") { // the tests' own
			found = append(found, filepath.Join(os.TempDir(), entry.Name()))
		}
	}
	// A mount's number differs when it is made again; its place does not.
	for line := range strings.Lines(string(testenv.MustGet(os.ReadFile("/proc/self/mountinfo"))(t))) {
		fields := strings.Fields(line)
		found = append(found, "mount "+strings.Join(fields[3:5], " "))
	}
	for pid := range strings.FieldsSeq(string(testenv.MustGet(os.ReadFile(filepath.Join(group, "cgroup.procs")))(t))) {
		if n, err := strconv.Atoi(pid); err != nil || n != os.Getpid() {
			name, _ := os.ReadFile("/proc/" + pid + "/comm") // it may have just gone
			found = append(found, "process "+pid+" "+strings.TrimSpace(string(name)))
		}
	}
	slices.Sort(found)
	return found
}

// compare returns what is in after and not in before.
func compare(before, after []string) error {
	var more []error
	for _, entry := range after {
		if !slices.Contains(before, entry) {
			more = append(more, fmt.Errorf("left behind: %s", entry))
		}
	}
	return errors.Join(more...)
}

package pilotrun

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestCgroup: a pilot takes a cgroup without processes alone, and kills what came afterwards.
func TestCgroup(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2())
	root := testenv.MustGet(testenv.CgroupRoot())(t)
	group := testenv.MustCgroup(t)
	inner := filepath.Join(group.Path, "inner")
	testenv.Must(t, os.Mkdir(inner, 0o755))
	start := func(folder string) *exec.Cmd {
		t.Helper()
		dir := testenv.MustGet(os.Open(folder))(t)
		defer dir.Close()
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		cmd.SysProcAttr = group.SysProcAttr()
		cmd.SysProcAttr.CgroupFD = int(dir.Fd())
		testenv.Must(t, cmd.Start())
		return cmd
	}
	there := start(inner)
	link := filepath.Join(t.TempDir(), "link")
	testenv.Must(t, os.Symlink(group.Path, link))
	plain := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(plain, "cgroup.events"), []byte("populated 0\n"), 0o600))
	threaded := filepath.Join(group.Path, "processes", "threads")
	testenv.Must(t, os.MkdirAll(threaded, 0o755))
	testenv.Must(t, os.WriteFile(filepath.Join(threaded, "cgroup.type"), []byte("threaded"), 0))
	for name, test := range map[string]struct{ dir, want string }{
		"threads":       {threaded, `is of type "threaded", and domain is required`},
		"threads below": {filepath.Dir(threaded), `is of type "domain threaded", and domain is required`},
		"process":       {inner, "has processes already"},
		"process below": {group.Path, "has processes already"},
		"link":          {link, "has processes already"},
		"root":          {root, "is the root of the hierarchy"},
		"other folder":  {plain, "is not a folder of cgroup v2"},
		"none":          {filepath.Join(group.Path, "none"), "no such file"},
	} {
		if _, err := openCgroup(test.dir); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
	// A sidecar that does not start kills nothing that was there before.
	if _, err := Start(ChildConfig{Chaperone: "/bin/false", Cgroup: group.Path, Exercise: "pilot"}); err == nil {
		t.Error("a pilot started in a cgroup with processes")
	}
	testenv.Must(t, there.Process.Kill())
	_ = there.Wait() // it was killed
	g, err := openCgroup(link)
	testenv.Must(t, err)
	defer g.folder.Close()
	plugin := start(inner)
	testenv.Must(t, g.kill())
	if err := plugin.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the plugin ended with %v", err)
	}
	removed(t, start)
}

// removed looks at a plugin with a thread in a cgroup below its own, and at a runtime that removes the cgroup.
func removed(t *testing.T, start func(folder string) *exec.Cmd) {
	t.Helper()
	group := testenv.MustCgroup(t)
	g, err := openCgroup(group.Path)
	testenv.Must(t, err)
	defer g.folder.Close()
	if err := g.running(); !errors.Is(err, errNoProcess) {
		t.Errorf("before the plugin: %v", err)
	}
	plugin := start(group.Path)
	threads := filepath.Join(group.Path, "threads")
	testenv.Must(t, os.Mkdir(threads, 0o755))
	testenv.Must(t, os.WriteFile(filepath.Join(threads, "cgroup.type"), []byte("threaded"), 0))
	testenv.Must(t, os.WriteFile(filepath.Join(threads, "cgroup.threads"), []byte(strconv.Itoa(plugin.Process.Pid)), 0))
	if rss, err := residentMemory(group.Path, false); rss == 0 || err != nil || g.running() != nil {
		t.Errorf("a plugin with a thread below: %d, %v, %v", rss, err, g.running())
	}
	testenv.Must(t, g.kill())
	_ = plugin.Wait() // it was killed
	testenv.Must(t, errors.Join(os.Remove(threads), os.Remove(group.Path)))
	testenv.Must(t, os.Mkdir(group.Path, 0o755))
	if err := g.running(); !errors.Is(err, errRemoved) {
		t.Errorf("after another cgroup took the name: %v", err)
	}
	testenv.Must(t, g.kill())
}

// TestOtherNetwork: the first process of a container runtime, which has yet to enter the container's
// network namespace, ends no pilot; a container that stays in another one does.
func TestOtherNetwork(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2())
	group := testenv.MustCgroup(t)
	g, err := openCgroup(group.Path)
	testenv.Must(t, err)
	defer g.folder.Close()
	start := func(flags uintptr) (wait func() error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		cmd.SysProcAttr = group.SysProcAttr()
		cmd.SysProcAttr.Cloneflags = flags
		testenv.Must(t, cmd.Start())
		return cmd.Wait
	}
	r := run{child: &Child{group: g}}
	first := start(syscall.CLONE_NEWNET)
	if err := r.lost(time.Hour); err != nil {
		t.Errorf("a process that is in another network for a moment: %v", err)
	}
	if err := r.lost(0); err == nil || !strings.Contains(err.Error(), "in another network namespace") {
		t.Errorf("at the end of the pilot: %v", err)
	}
	second := start(0)
	if err := r.lost(0); err != nil || !r.apart.IsZero() {
		t.Errorf("with a process in the network of the sidecar: %v", err)
	}
	testenv.Must(t, g.kill())
	_, _ = first(), second() // they were killed
}

// TestLimit reads the limits of a container below a cgroup without any.
func TestLimit(t *testing.T) {
	pod := t.TempDir()
	container := filepath.Join(pod, "container")
	testenv.Must(t, os.Mkdir(container, 0o755))
	for file, text := range map[string]string{"cpu.max": "max 100000\n", "memory.max": "1048576\n", "container/cpu.max": "50000 100000\n", "container/memory.max": "max\n"} {
		testenv.Must(t, os.WriteFile(filepath.Join(pod, file), []byte(text), 0o600))
	}
	if cpu, memory := limit(pod, "cpu.max"), limit(pod, "memory.max"); cpu != "50000 100000" || memory != "1048576" {
		t.Errorf("got %q and %q", cpu, memory)
	}
	testenv.Must(t, os.Mkdir(filepath.Join(pod, "another"), 0o755))
	if cpu := limit(pod, "cpu.max"); cpu != "max 100000" {
		t.Errorf("of two containers: got %q", cpu)
	}
}

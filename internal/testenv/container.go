package testenv

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ContainerConfig is a container to run.
type ContainerConfig struct {
	// Cgroup is the folder of its cgroup (v2), which the runtime makes if it is not there, and
	// removes.
	Cgroup string
	// Args are the program and its arguments, and Env its environment beside PATH.
	Args, Env []string
	// Files are mounted into it read-only: paths on the host by paths in the container.
	Files map[string]string
	// UID is the user and the group of the program.
	UID uint32
	// UserNamespace gives it a user namespace of its own, and OwnNetwork a network namespace.
	UserNamespace, OwnNetwork bool
}

// Container is a container that runc runs with the programs of this machine: with its default
// seccomp profile, no capability, a read-only root, and mount, PID, IPC, UTS and cgroup namespaces of its
// own. The network is the caller's, as in a pod that has the caller as a sidecar.
type Container struct {
	t     testing.TB
	dir   string // of the bundle and the runtime's state
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended

	mu     sync.Mutex
	output bytes.Buffer
}

// RunContainer runs a container for the length of a test. It needs [ContainerRuntime].
func RunContainer(t testing.TB, cfg ContainerConfig) *Container {
	t.Helper()
	c := &Container{t: t, dir: t.TempDir(), name: "chaperone-test-" + strings.ToLower(rand.Text()[:10]), ended: make(chan struct{})}
	for dir := c.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		Must(t, os.Chmod(dir, 0o755)) // another user enters its root
	}
	config := MustGet(json.Marshal(c.spec(cfg)))(t)
	Must(t, os.WriteFile(filepath.Join(c.dir, "config.json"), config, 0o600))
	c.cmd = c.runtime("run", "--bundle", c.dir, c.name)
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.WaitDelay = c, c, time.Second
	Must(t, c.cmd.Start())
	go func() { _ = c.cmd.Wait(); close(c.ended) }() // Wait returns the status
	t.Cleanup(func() {
		_ = c.runtime("delete", "--force", c.name).Run() // it is gone already, if all went well
		<-c.ended
	})
	return c
}

// ContainerRuntime needs what [RunContainer] needs.
func ContainerRuntime() Need {
	return Need{"runc", func() error {
		return Missing(Superuser(), CgroupV2(), Program("runc"), Program("unshare"))
	}}
}

// Write takes what the container and the runtime print.
func (c *Container) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output.Write(p)
}

// Output returns what the container and the runtime printed so far.
func (c *Container) Output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output.String()
}

// Wait waits for the end of the container, which the runtime deletes then, and returns the status
// that the runtime states.
func (c *Container) Wait() int {
	c.t.Helper()
	select {
	case <-c.ended:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(Patience):
		c.t.Fatalf("got the container running after %s, want its end:\n%s", Patience, c.Output())
		return 0
	}
}

// runtime is a command of runc, which takes the hierarchy at /sys/fs/cgroup. A hybrid layout has a tmpfs there.
func (c *Container) runtime(args ...string) *exec.Cmd {
	c.t.Helper()
	const script = `
if [ "$1" != /sys/fs/cgroup ]; then mount --bind "$1" /sys/fs/cgroup; fi
shift
exec runc --root "$@"`
	root := MustGet(CgroupRoot())(c.t)
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh", root, filepath.Join(c.dir, "runc")}, args...)...)
}

// spec is what a CRI runtime would make of the container.
func (c *Container) spec(cfg ContainerConfig) *specs.Spec {
	c.t.Helper()
	group := MustGet(filepath.Rel(MustGet(CgroupRoot())(c.t), cfg.Cgroup))(c.t)
	const first, users = 100_000, 65_536
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: users}}
	s := &specs.Spec{
		Version: specs.Version, Hostname: "plugin-0",
		Root: &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			User: specs.User{UID: cfg.UID, GID: cfg.UID}, Cwd: "/", Args: cfg.Args, NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{},
			Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, cfg.Env...),
		},
		Mounts: c.mounts(cfg),
		Linux: &specs.Linux{
			CgroupsPath: "/" + group,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if cfg.OwnNetwork {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if cfg.UserNamespace {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
		Must(c.t, os.Chown(filepath.Join(c.dir, "rootfs"), first, first))
	}
	s.Linux.Seccomp = MustGet(seccomp.GetDefaultProfile(s))(c.t)
	return s
}

// mounts makes the root of the container, and returns what is mounted there: the programs and
// libraries of this machine, and the files.
func (c *Container) mounts(cfg ContainerConfig) []specs.Mount {
	c.t.Helper()
	root := filepath.Join(c.dir, "rootfs")
	for _, dir := range []string{"proc", "dev", "tmp", "etc", "sys"} {
		Must(c.t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"nosuid", "nodev", "mode=1777", "size=65536k"}},
	}
	bind := func(at, from string) {
		mounts = append(mounts, specs.Mount{Destination: at, Type: "bind", Source: from, Options: []string{"rbind", "rprivate", "ro"}})
	}
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		target, err := os.Readlink(dir)
		switch {
		case err == nil: // the layout with everything below /usr
			Must(c.t, os.Symlink(target, filepath.Join(root, dir)))
		case !errors.Is(err, os.ErrNotExist):
			bind(dir, dir)
		}
	}
	for at, from := range cfg.Files {
		file := filepath.Join(root, at)
		Must(c.t, os.MkdirAll(filepath.Dir(file), 0o755))
		Must(c.t, os.WriteFile(file, nil, 0o644)) // root of a user namespace may not make it
		bind(at, from)
	}
	return mounts
}

package pilotrun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pluginCgroup is the cgroup of a plugin that something else starts. It had no process before
// the sidecar started, so that everything that is killed in it at the end came with the plugin.
type pluginCgroup struct {
	// path is its folder, without links.
	path string
	// folder is the folder as it was examined: another cgroup of its name is not killed.
	folder *os.Root
	// used is the CPU time that its processes used before, in microseconds.
	used int64
}

// openCgroup opens a cgroup in which a plugin is going to be started. It refuses one that has
// processes, in itself or below it, and the root of the hierarchy: everything in it is killed
// at the end (Linux Documentation/admin-guide/cgroup-v2.rst: cgroup.events and cgroup.type are
// in every cgroup but the root; populated counts the cgroups below).
func openCgroup(dir string) (*pluginCgroup, error) {
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the plugin's cgroup: %w", err)
	}
	folder, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the plugin's cgroup: %w", err)
	}
	g := &pluginCgroup{path: path, folder: folder}
	if err := g.examine(); err != nil {
		return nil, errors.Join(fmt.Errorf("the plugin's cgroup %s %w", path, err), folder.Close())
	}
	g.used = g.usage()
	return g, nil
}

// usage returns the CPU time that the processes of the cgroup used, in microseconds.
func (g *pluginCgroup) usage() int64 {
	text, err := g.folder.ReadFile("cpu.stat")
	if err != nil {
		return 0
	}
	return keyed(text)["usage_usec"]
}

// examine returns why a plugin must not be started in the cgroup.
func (g *pluginCgroup) examine() error {
	const fix = "make a cgroup for the plugin alone, as in mkdir /sys/fs/cgroup/pilot"
	var system unix.Statfs_t
	if err := unix.Statfs(g.path, &system); err != nil || system.Type != unix.CGROUP2_SUPER_MAGIC {
		return errors.New("is not a folder of cgroup v2; " + fix)
	}
	kind, err := g.folder.ReadFile("cgroup.type")
	if err != nil {
		return errors.New("is the root of the hierarchy, in which every process of the host is; " + fix)
	}
	if text := strings.TrimSpace(string(kind)); text != "domain" {
		return fmt.Errorf("is of type %q, and domain is required; %s", text, fix)
	}
	populated, err := g.populated()
	switch {
	case err != nil:
		return err
	case populated:
		return errors.New("has processes already, which would be killed at the end; " + fix)
	}
	return nil
}

// The states in which no plugin runs in the cgroup.
var (
	errNoProcess = errors.New("has no process")
	// errRemoved is of a cgroup that was removed, as a container runtime does with that of a
	// container that ended. A later one of its name is not confined.
	errRemoved = errors.New("was removed")
)

// running returns why no plugin runs in the cgroup, nil if one does.
func (g *pluginCgroup) running() error {
	populated, err := g.populated()
	if err == nil && !populated {
		err = errNoProcess
	}
	if err != nil {
		return fmt.Errorf("its cgroup %s %w", g.path, err)
	}
	return nil
}

// populated reports whether the cgroup, or one below it, has a process.
func (g *pluginCgroup) populated() (bool, error) {
	text, err := g.folder.ReadFile("cgroup.events")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // the latter if it is removed in between
		return false, errRemoved
	}
	if err != nil {
		return false, err
	}
	n, stated := keyed(text)["populated"]
	if !stated {
		return false, errors.New("does not state in cgroup.events whether it has processes")
	}
	return n != 0, nil
}

// reachable returns an error if the plugin runs, and no process of it is in the network
// namespace of this process and of the sidecar, which refuses calls from another. Single
// processes may be, as those that a browser confines.
func (g *pluginCgroup) reachable() error {
	const network = "/proc/%s/ns/net"
	own, err := os.Readlink(fmt.Sprintf(network, "self"))
	if err != nil {
		return fmt.Errorf("read the network namespace of the pilot: %w", err)
	}
	elsewhere := false
	for _, pid := range processes(g.path) {
		other, err := os.Readlink(fmt.Sprintf(network, pid))
		if err == nil && other == own {
			return nil
		}
		elsewhere = elsewhere || err == nil
	}
	if elsewhere {
		return errors.New("the plugin runs in another network namespace than the sidecar, which refuses its accesses; start the container in that of the pilot, or the pilot in that of the container (nsenter --net)")
	}
	return nil
}

// kill kills the processes of the cgroup and waits until it has none (cgroup.kill since Linux 5.14).
// The container runtime may remove the cgroup at once: a cgroup is removed only without processes.
func (g *pluginCgroup) kill() error {
	const pause = 5 * time.Millisecond
	for deadline := time.Now().Add(endPatience); ; time.Sleep(pause) {
		err := g.write("cgroup.kill", "1")
		running := g.running()
		switch {
		case errors.Is(running, errRemoved):
			return nil
		case err != nil:
			return fmt.Errorf("end the plugin: %w", err)
		case errors.Is(running, errNoProcess):
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("end the plugin: %s has processes %s after they were killed", g.path, endPatience)
		}
	}
}

func (g *pluginCgroup) write(file, text string) error {
	f, err := g.folder.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

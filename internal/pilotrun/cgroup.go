package pilotrun

import (
	"errors"
	"fmt"
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
	g := &pluginCgroup{path, folder}
	if err := g.examine(); err != nil {
		return nil, errors.Join(fmt.Errorf("the plugin's cgroup %s %w", path, err), folder.Close())
	}
	return g, nil
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

// populated reports whether the cgroup, or one below it, has a process.
func (g *pluginCgroup) populated() (bool, error) {
	text, err := g.folder.ReadFile("cgroup.events")
	if err != nil {
		return false, err
	}
	n, stated := keyed(text)["populated"]
	if !stated {
		return false, errors.New("does not state in cgroup.events whether it has processes")
	}
	return n != 0, nil
}

// kill kills the processes of the cgroup and waits until it has none (cgroup.kill since Linux 5.14).
func (g *pluginCgroup) kill() error {
	const pause = 5 * time.Millisecond
	for deadline := time.Now().Add(endPatience); ; time.Sleep(pause) {
		if err := g.write("cgroup.kill", "1"); err != nil {
			return fmt.Errorf("end the plugin: %w", err)
		}
		if populated, err := g.populated(); err == nil && !populated {
			return nil
		}
		if time.Now().After(deadline) {
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

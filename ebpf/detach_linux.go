package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// linkPrefix distinguishes pinned links from pinned maps.
const linkPrefix = "link_"

// Detach removes what a sidecar that is gone left behind for a state directory:
// the programs, their pins and the cgroup. While processes live in that cgroup
// it is [ErrPopulated], unless force is set: then they are ended first. A
// sidecar that still runs is [ErrBusy]. If there is nothing, that is no error.
//
// On a cgroup that was given ([Config.CgroupPath]) the programs stay until they
// are removed here: only with force while anything runs in it, and nothing there
// is ended.
func Detach(stateDir string, force bool) (err error) {
	p, err := sandbox.FindPaths(stateDir)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	held, err := p.LockStateDir()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	h, err := p.FindCgroupMount()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	groups, err := h.Find(cgroupPrefix + p.ID)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	pins, err := existingPins(p)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	linked, err := linkedCgroups(h, pins)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	for _, path := range linked {
		if filepath.Base(path) == cgroupPrefix+p.ID || force {
			continue
		}
		if err := ensureEmpty(path); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	for _, path := range groups {
		if _, err := removeCgroup(path, force); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	if err := unpin(pins); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// removeCgroup removes a cgroup that was left behind, after ending the processes in it
// if forced, and returns how many there were.
func removeCgroup(path string, force bool) (ended int, err error) {
	g, err := sandbox.OpenCgroup(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = g.Close() }()
	populated, err := g.Populated()
	if err != nil {
		return 0, err
	}
	if populated && !force {
		return 0, fmt.Errorf("%w, shut in (%s)", ErrPopulated, path)
	}
	if populated {
		ended = max(g.Processes(), 1) // one that ends just now may not be listed
		if err := g.Kill(); err != nil {
			return 0, err
		}
	}
	return ended, g.Remove()
}

// existingPins is where a confinement's pins are, if there are any, without mounting
// anything.
func existingPins(p sandbox.Paths) (string, error) {
	roots := []string{filepath.Join(systemBPF, "chaperone")}
	for _, dir := range runtimedir.All(p.State) {
		roots = append(roots, filepath.Join(dir, "bpf"))
	}
	for _, root := range roots {
		dir := filepath.Join(root, p.ID)
		names, err := pinned(dir)
		if err != nil {
			return "", err
		}
		if names != nil {
			return dir, sandbox.EnsurePrivate(root)
		}
	}
	return filepath.Join(p.Dir, "bpf", p.ID), nil
}

// leftCgroups finds what an earlier sidecar may have left without a walk through
// the whole hierarchy: a cgroup beside the one to be made, and those that pinned
// links are on. A process that is called for another cgroup takes the programs off one
// that was given, unless anything runs in it.
func leftCgroups(h sandbox.CgroupMount, name, pins string) ([]string, error) {
	parent, err := h.OwnGroup()
	if err != nil {
		return nil, err
	}
	var left []string
	if path := filepath.Join(parent, name); exists(path) {
		left = append(left, path)
	}
	held, err := linkedCgroups(h, pins)
	if err != nil {
		return nil, err
	}
	for _, path := range held {
		switch {
		case filepath.Base(path) != name:
			if err := ensureEmpty(path); err != nil {
				return nil, err
			}
		case !slices.Contains(left, path):
			left = append(left, path)
		}
	}
	return left, nil
}

// ensureOthersEmpty refuses to take programs off any cgroup but one while something
// runs in it: the sidecar was given another cgroup before.
func ensureOthersEmpty(h sandbox.CgroupMount, pins string, but uint64) error {
	held, err := linkedCgroups(h, pins)
	if err != nil {
		return err
	}
	for _, path := range held {
		var stat unix.Stat_t
		if unix.Stat(path, &stat) == nil && stat.Ino == but {
			continue
		}
		if err := ensureEmpty(path); err != nil {
			return err
		}
	}
	return nil
}

// ensureEmpty refuses to take programs off a cgroup while something runs in it.
func ensureEmpty(path string) error {
	g, err := sandbox.OpenCgroup(path)
	if err != nil {
		return err
	}
	populated, err := g.Populated()
	if err = errors.Join(err, g.Close()); err != nil {
		return err
	}
	if populated {
		return fmt.Errorf("%w, shut in (%s)", ErrPopulated, path)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// linkedCgroups are the cgroups that pinned links are on.
func linkedCgroups(h sandbox.CgroupMount, pins string) ([]string, error) {
	names, err := pinned(pins)
	if err != nil {
		return nil, err
	}
	ids := make(map[uint64]bool)
	for _, name := range names {
		if id := pinnedTo(filepath.Join(pins, name)); id != 0 {
			ids[id] = true
		}
	}
	var held []string
	for id := range ids {
		path, err := h.ByID(id)
		if err != nil {
			return nil, err
		}
		held = append(held, path)
	}
	return held, nil
}

// pinnedTo is the id of the cgroup that a pinned link is on; 0 for a map, and
// for a link whose cgroup is gone.
func pinnedTo(pin string) uint64 {
	if !strings.HasPrefix(filepath.Base(pin), linkPrefix) {
		return 0
	}
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return 0
	}
	defer func() { _ = l.Close() }()
	return linkedTo(l)
}

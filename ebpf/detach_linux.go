package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// linkPrefix tells pinned links from pinned maps.
const linkPrefix = "link_"

// Detach removes what a sidecar that is gone left behind for a state directory:
// the programs, their pins and the cgroup. While processes live in that cgroup
// it is [ErrPopulated], unless force is set: then they are ended first. A
// sidecar that still runs is [ErrBusy]. If there is nothing, that is no error.
//
// On a cgroup that was given ([Config.CgroupPath]) the programs are removed only
// with force while anything runs in it, and nothing there is ended.
func Detach(stateDir string, force bool) error {
	id, err := cageID(stateDir)
	if err != nil {
		return err
	}
	lock, err := lockCage(id)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer func() { _ = lock.Close() }()
	h, err := findHierarchy()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	groups, err := h.findGroups(cgroupPrefix + id)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	pins, err := existingPins(id)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	if len(groups) == 0 {
		if err := h.heldElsewhere(pins, force); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	for _, path := range groups {
		if err := sweep(path, force); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	if err := unpin(pins); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// sweep removes a cgroup that was left behind, after ending what is in it if
// forced.
func sweep(path string, force bool) error {
	g, err := openGroup(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = g.close() }()
	populated, err := g.populated()
	if err != nil {
		return err
	}
	if populated && !force {
		return fmt.Errorf("%w, shut in (%s)", ErrPopulated, path)
	}
	if populated {
		if err := g.kill(); err != nil {
			return err
		}
	}
	return g.remove()
}

// existingPins is where a cage's pins are, if there are any, without mounting
// anything.
func existingPins(id string) (string, error) {
	for _, root := range []string{filepath.Join(systemBPF, "chaperone"), filepath.Join(runDir, "bpf")} {
		dir := filepath.Join(root, id)
		names, err := pinned(dir)
		if err != nil {
			return "", err
		}
		if names != nil {
			return dir, ensurePrivate(root)
		}
	}
	return filepath.Join(runDir, "bpf", id), nil
}

// heldElsewhere refuses to take programs off a cgroup that was given while
// something runs in it.
func (h hierarchy) heldElsewhere(pins string, force bool) error {
	names, err := pinned(pins)
	if err != nil || force {
		return err
	}
	for _, name := range names {
		id := pinnedTo(filepath.Join(pins, name))
		if id == 0 {
			continue // a map, or a link whose cgroup is gone
		}
		path, err := h.groupByID(id)
		if err != nil {
			return err
		}
		g, err := openGroup(path)
		if err != nil {
			return err
		}
		populated, err := g.populated()
		if err = errors.Join(err, g.close()); err != nil {
			return err
		}
		if populated {
			return fmt.Errorf("%w, shut in (%s)", ErrPopulated, path)
		}
	}
	return nil
}

// pinnedTo is the id of the cgroup that a pinned link is on; 0 for none.
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

// groupByID finds the directory of a cgroup.
func (h hierarchy) groupByID(id uint64) (string, error) {
	found := ""
	err := filepath.WalkDir(h.mount, func(path string, d fs.DirEntry, err error) error {
		var stat unix.Stat_t
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && unix.Stat(path, &stat) == nil && stat.Ino == id:
			found = path
			return filepath.SkipAll
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("search cgroups: %w", err)
	}
	if found == "" {
		return "", fmt.Errorf("search cgroups: the programs are on cgroup %d, which is not below %s; run this in the namespace in which the sidecar ran", id, h.mount)
	}
	return found, nil
}

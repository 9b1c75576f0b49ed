package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// linkPrefix tells pinned links from pinned maps.
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
	p, err := findPlaces(stateDir)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	held, err := p.lockCage()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer func() { err = errors.Join(err, held.release()) }()
	h, err := p.findHierarchy()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	groups, err := h.findGroups(cgroupPrefix + p.id)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	pins, err := p.existingPins()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	linked, err := h.heldGroups(pins)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	for _, path := range linked {
		if filepath.Base(path) == cgroupPrefix+p.id || force {
			continue
		}
		if err := leave(path); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	for _, path := range groups {
		if _, err := sweep(path, force); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	if err := unpin(pins); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// sweep removes a cgroup that was left behind, after ending the processes in it
// if forced, and returns how many there were.
func sweep(path string, force bool) (ended int, err error) {
	g, err := openGroup(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = g.close() }()
	populated, err := g.populated()
	if err != nil {
		return 0, err
	}
	if populated && !force {
		return 0, fmt.Errorf("%w, shut in (%s)", ErrPopulated, path)
	}
	if populated {
		ended = max(g.processes(), 1) // one that ends just now may not be listed
		if err := g.kill(); err != nil {
			return 0, err
		}
	}
	return ended, g.remove()
}

// existingPins is where a cage's pins are, if there are any, without mounting
// anything.
func (p places) existingPins() (string, error) {
	roots := []string{filepath.Join(systemBPF, "chaperone")}
	for _, dir := range runtimedir.All(p.state) {
		roots = append(roots, filepath.Join(dir, "bpf"))
	}
	for _, root := range roots {
		dir := filepath.Join(root, p.id)
		names, err := pinned(dir)
		if err != nil {
			return "", err
		}
		if names != nil {
			return dir, ensurePrivate(root)
		}
	}
	return filepath.Join(p.dir, "bpf", p.id), nil
}

// leftGroups finds what an earlier sidecar may have left without a walk through
// the whole hierarchy: a cgroup beside the one to be made, and those that pinned
// links are on. Whoever is told of another cgroup takes the programs off one
// that was given, unless anything runs in it.
func (h hierarchy) leftGroups(name, pins string) ([]string, error) {
	parent, err := h.ownGroup()
	if err != nil {
		return nil, err
	}
	var left []string
	if path := filepath.Join(parent, name); exists(path) {
		left = append(left, path)
	}
	held, err := h.heldGroups(pins)
	if err != nil {
		return nil, err
	}
	for _, path := range held {
		switch {
		case filepath.Base(path) != name:
			if err := leave(path); err != nil {
				return nil, err
			}
		case !slices.Contains(left, path):
			left = append(left, path)
		}
	}
	return left, nil
}

// leaveOthers refuses to take programs off any cgroup but one while something
// runs in it: the sidecar was told of another cgroup before.
func (h hierarchy) leaveOthers(pins string, but uint64) error {
	held, err := h.heldGroups(pins)
	if err != nil {
		return err
	}
	for _, path := range held {
		var stat unix.Stat_t
		if unix.Stat(path, &stat) == nil && stat.Ino == but {
			continue
		}
		if err := leave(path); err != nil {
			return err
		}
	}
	return nil
}

// leave refuses to take programs off a cgroup while something runs in it.
func leave(path string) error {
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
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// heldGroups are the cgroups that pinned links are on.
func (h hierarchy) heldGroups(pins string) ([]string, error) {
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
		path, err := h.groupByID(id)
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

// walkTo finds the directory of a cgroup without CAP_DAC_READ_SEARCH, which would
// also have every file of the host read: a cgroup's id is its inode.
func (h hierarchy) walkTo(id uint64) (string, error) {
	found := ""
	err := filepath.WalkDir(h.mount, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		var stat unix.Stat_t
		if unix.Lstat(path, &stat) == nil && stat.Ino == id {
			found = path
			return filepath.SkipAll
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("find cgroup %d: %w", id, err)
	}
	if found == "" {
		return "", fmt.Errorf("find cgroup %d: it is not below %s; run this in the namespaces in which the sidecar ran", id, h.mount)
	}
	return found, nil
}

// kernfsHandle is the type of file handle that holds a cgroup's id
// (FILEID_KERNFS, enum fid_type of the kernel).
const kernfsHandle = 0xfe

// groupByID finds the directory of a cgroup.
func (h hierarchy) groupByID(id uint64) (string, error) {
	mount, err := unix.Open(h.mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("find cgroup %d: %w", id, err)
	}
	defer func() { _ = unix.Close(mount) }()
	handle := unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(mount, handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if errors.Is(err, unix.EPERM) {
		return h.walkTo(id)
	}
	if err != nil {
		return "", fmt.Errorf("find cgroup %d: %w", id, err)
	}
	defer func() { _ = unix.Close(fd) }()
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", fmt.Errorf("find cgroup %d: %w", id, err)
	}
	if path != h.mount && !strings.HasPrefix(path, h.mount+"/") {
		return "", fmt.Errorf("find cgroup %d: %s is not below %s; run this in the namespaces in which the sidecar ran", id, path, h.mount)
	}
	return path, nil
}

package launcher

import (
	"errors"
	"fmt"
	"os"
	slash "path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// plainFlags are the mount flags of everything that the program may fill: it
// needs neither set-user-ID programs nor devices there.
const plainFlags = unix.MS_NOSUID | unix.MS_NODEV

// cloneTree returns a descriptor of a copy of the mount tree at a path, to be
// attached by attach after the path has been covered.
func cloneTree(path string) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_NO_AUTOMOUNT)
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, fmt.Errorf("copy mount of %s: %w", path, err)
	}
	return fd, nil
}

// attach mounts a copied tree on an open directory or file.
func attach(tree, target int) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	return unix.MoveMount(tree, "", target, "", flags)
}

// AttachAt mounts a copied tree on a path of the host's.
func AttachAt(tree int, path string) error {
	return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// restrict adds attributes (MOUNT_ATTR_*) to the mount of a copied tree.
func restrict(tree int, attributes uint64) error {
	attr := unix.MountAttr{Attr_set: attributes}
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
}

// bind mounts one path on another.
func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, 0, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// openBelow opens a path below a tree for a mount, and makes what is missing of
// it. It follows no symbolic link: a tree that is kept from one run to the next
// holds what the program left there, and following its links with root's
// privileges would lead out of the tree.
func openBelow(tree, path string, directory bool) (int, error) {
	at, err := unix.Open(tree, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tree, err)
	}
	names := strings.Split(strings.TrimPrefix(strings.TrimPrefix(path, tree), "/"), "/")
	for i, name := range names {
		next, err := openEntry(at, name, directory || i < len(names)-1)
		if err := errors.Join(err, unix.Close(at)); err != nil {
			return -1, fmt.Errorf("make %s in the view: %w", path, err)
		}
		at = next
	}
	return at, nil
}

// openEntry opens one name in a directory, and makes it if it is missing.
func openEntry(at int, name string, directory bool) (int, error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if directory {
		flags |= unix.O_DIRECTORY
	}
	fd, err := unix.Openat(at, name, flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if directory {
		err = unix.Mkdirat(at, name, 0o755)
	} else {
		err = unix.Mknodat(at, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return -1, err
	}
	return unix.Openat(at, name, flags, 0)
}

// mountsBelow lists the mount points below a directory, as proc(5) mountinfo has
// them, outermost first.
func mountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") && !strings.Contains(fields[4], `\`) {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

// within reports whether a path is a directory or lies in it. Both are clean.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// resolve returns an absolute path without links for one that exists, as
// [path/filepath.EvalSymlinks] does; that package is initialised late.
func resolve(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", path, err)
	}
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return "", fmt.Errorf("resolve %s: %w", path, err)
	}
	if !slash.IsAbs(name) { // a pipe or a socket has no place in the file tree
		return "", fmt.Errorf("resolve %s: %w", path, unix.ENOENT)
	}
	return name, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isDirectory reports what an open path stands for.
func isDirectory(fd int) (bool, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return false, fmt.Errorf("inspect path: %w", err)
	}
	return stat.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// makeViewDir makes a directory below [Own] and returns its path.
func makeViewDir(names ...string) (string, error) {
	path := slash.Join(append([]string{Own}, names...)...)
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // the program reads it
		return "", fmt.Errorf("make directory of the view: %w", err)
	}
	return path, nil
}

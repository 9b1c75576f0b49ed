package launcher

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	slash "path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// copied is a mount tree that was copied before something covered it.
type copied struct {
	fd   int
	path string
	dir  bool
}

// Build makes the view in the mount, PID and IPC namespaces of the calling
// thread, which have to be the program's own. It changes nothing outside them.
func (v *View) Build() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from leaving the view: %w", err)
	}
	kept, err := v.copyKept()
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		v.mountTrees, v.makeRuntimeDirectories, func() error { return v.attachKept(kept) },
		mountProcesses, mountDevices, v.replaceFiles, v.replaceTrust, v.mountTwins, v.enter,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("make view: %w", err)
		}
	}
	return nil
}

// Shows reports whether a path of the host's is visible in the view: no tree
// covers it, or it is kept.
func (v *View) Shows(path string) bool {
	_, covered := v.covering(path)
	return !covered || slices.ContainsFunc(v.Kept, func(kept Kept) bool { return within(path, slash.Clean(kept.Path)) })
}

// covering returns the tree that covers a path, if any.
func (v *View) covering(path string) (Tree, bool) {
	var found Tree
	ok := false
	for _, tree := range v.Trees {
		if path != tree.Path && within(path, tree.Path) && exists(tree.Path) {
			found, ok = tree, true // the innermost comes last
		}
	}
	return found, ok
}

// copyKept copies the mounts of what stays visible, and of the sources of the
// trees, which another tree may cover.
func (v *View) copyKept() ([]copied, error) {
	var out []copied
	for _, kept := range v.outermost() {
		path := kept.Path
		fd, err := cloneTree(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		dir, err := isDirectory(fd)
		if err == nil && kept.ReadOnly {
			err = restrict(fd, unix.MOUNT_ATTR_RDONLY)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("keep %s: %w", path, err), unix.Close(fd))
		}
		out = append(out, copied{fd, path, dir})
	}
	return out, nil
}

// outermost returns what is kept and covered, without what a kept directory
// above it shows anyway.
func (v *View) outermost() []Kept {
	var out []Kept
	for _, kept := range slices.SortedFunc(slices.Values(v.Kept), func(a, b Kept) int { return cmp.Compare(len(a.Path), len(b.Path)) }) {
		kept.Path = slash.Clean(kept.Path)
		shown := func(outer Kept) bool { return within(kept.Path, outer.Path) && kept.ReadOnly == outer.ReadOnly }
		if _, covered := v.covering(kept.Path); covered && !slices.ContainsFunc(out, shown) {
			out = append(out, kept)
		}
	}
	return out
}

// attachKept mounts what stays visible at its place in the trees.
func (v *View) attachKept(kept []copied) error {
	for _, k := range kept {
		tree, ok := v.covering(k.path)
		if !ok {
			continue
		}
		place, err := openBelow(tree.Path, k.path, k.dir)
		if err != nil {
			return err
		}
		if err := attach(k.fd, place); err != nil {
			return fmt.Errorf("keep %s: %w", k.path, err)
		}
		if err := errors.Join(unix.Close(k.fd), unix.Close(place)); err != nil {
			return fmt.Errorf("keep %s: %w", k.path, err)
		}
	}
	return nil
}

// mountTrees puts the private directories over the host's.
func (v *View) mountTrees() error {
	sources := make([]int, len(v.Trees))
	for i, tree := range v.Trees { // all of them first: a tree may cover a source
		if tree.Source == "" {
			continue
		}
		fd, err := cloneTree(tree.Source)
		if err != nil {
			return err
		}
		sources[i] = fd
	}
	for i, tree := range v.Trees {
		if err := v.mountTree(tree, sources[i]); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) mountTree(tree Tree, source int) error {
	if _, below := v.covering(tree.Path); below {
		if err := os.MkdirAll(tree.Path, 0o755); err != nil { //nolint:gosec // it is covered at once
			return fmt.Errorf("make %s: %w", tree.Path, err)
		}
	}
	if info, err := os.Lstat(tree.Path); err != nil || !info.IsDir() {
		return nil //nolint:nilerr // the host has no such directory, or a link to another tree
	}
	if tree.Source == "" {
		options := "mode=0" + strconv.FormatUint(uint64(tree.Mode), 8)
		if err := unix.Mount("tmpfs", tree.Path, "tmpfs", plainFlags, options); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", tree.Path, err)
		}
		return nil
	}
	if err := restrict(source, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
		return fmt.Errorf("mount %s on %s: %w", tree.Source, tree.Path, err)
	}
	if err := AttachAt(source, tree.Path); err != nil {
		return fmt.Errorf("mount %s on %s: %w", tree.Source, tree.Path, err)
	}
	return unix.Close(source)
}

// makeRuntimeDirectories makes the directories in /run that programs expect.
func (v *View) makeRuntimeDirectories() error {
	own := slash.Join(RuntimeRoot, strconv.Itoa(v.UID))
	for _, dir := range []struct {
		path string
		mode os.FileMode
		uid  int
		gid  int
	}{
		{Own, 0o755, 0, 0},
		{"/run/lock", 0o777 | os.ModeSticky, 0, 0},
		{RuntimeRoot, 0o755, 0, 0},
		{own, 0o700, v.UID, v.GID},
	} {
		if err := os.MkdirAll(dir.path, 0o755); err != nil { //nolint:gosec // its mode follows
			return fmt.Errorf("make %s: %w", dir.path, err)
		}
		// The mode first: without CAP_FOWNER, as under a hardened service manager,
		// it is the owner's to change.
		if err := os.Chmod(dir.path, dir.mode); err != nil {
			return fmt.Errorf("make %s: %w", dir.path, err)
		}
		if err := os.Lchown(dir.path, dir.uid, dir.gid); err != nil {
			return fmt.Errorf("make %s: %w", dir.path, err)
		}
	}
	return nil
}

// mountProcesses mounts the process table of the PID namespace. Paths that a container
// runtime had masked in the old one stay masked.
func mountProcesses() error {
	points, err := mountsBelow("/proc")
	if err != nil {
		return err
	}
	var masks []copied
	for _, point := range points {
		fd, err := cloneTree(point)
		if err != nil {
			return err
		}
		masks = append(masks, copied{fd: fd, path: point})
	}
	if err := unix.Mount("proc", "/proc", "proc", plainFlags|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount process table: %w", err)
	}
	for _, mask := range masks {
		if err := AttachAt(mask.fd, mask.path); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", mask.path, err)
		}
		if err := unix.Close(mask.fd); err != nil {
			return fmt.Errorf("mask %s: %w", mask.path, err)
		}
	}
	return nil
}

// mountDevices gives the view terminals and message queues of its own.
func mountDevices() error {
	if exists("/dev/pts") {
		// Group 5 is tty on every distribution that mounts devpts itself.
		if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
			return fmt.Errorf("mount terminals: %w", err)
		}
		if info, err := os.Lstat("/dev/ptmx"); err == nil && info.Mode()&os.ModeSymlink == 0 {
			if err := bind("/dev/pts/ptmx", "/dev/ptmx", false); err != nil {
				return err
			}
		}
	}
	if exists("/dev/mqueue") {
		if err := unix.Mount("mqueue", "/dev/mqueue", "mqueue", plainFlags|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount message queues: %w", err)
		}
	}
	return nil
}

// replaceFiles mounts files of the view's own over the host's.
func (v *View) replaceFiles() error {
	dir, err := makeViewDir("files")
	if err != nil {
		return err
	}
	for i, file := range v.Files {
		target, err := v.mountTarget(file.Path)
		if err != nil || target == "" {
			return err
		}
		source := slash.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(source, file.Content, 0o644); err != nil { //nolint:gosec // the program reads it
			return fmt.Errorf("write %s of the view: %w", file.Path, err)
		}
		if err := bind(source, target, true); err != nil {
			return err
		}
	}
	return nil
}

// mountTarget returns the path to mount a replaced file on: the target of the path. A
// link into /run has no target in the view, and the file that it names is made there.
// Empty: there is no such file and no place for one.
func (v *View) mountTarget(path string) (string, error) {
	target, err := resolve(path)
	if err == nil {
		return target, nil
	}
	link, err := os.Readlink(path)
	if err != nil {
		return "", nil //nolint:nilerr // the host has no such file
	}
	if !slash.IsAbs(link) {
		link = slash.Join(slash.Dir(path), link)
	}
	tree, ok := v.covering(slash.Clean(link))
	if !ok {
		return "", nil
	}
	fd, err := openBelow(tree.Path, slash.Clean(link), false)
	if err != nil {
		return "", err
	}
	return slash.Clean(link), unix.Close(fd)
}

// mountTwins mounts trees a second time without following links: see
// [Tree.Twin]. It comes last, so that no twin holds another.
func (v *View) mountTwins() error {
	for _, tree := range v.Trees {
		if tree.Twin == "" || !exists(tree.Path) {
			continue
		}
		if err := os.MkdirAll(tree.Twin, 0o755); err != nil { //nolint:gosec // it is covered at once
			return fmt.Errorf("make twin of %s: %w", tree.Path, err)
		}
		if err := bind(tree.Path, tree.Twin, false); err != nil {
			return err
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
		if err := unix.MountSetattr(unix.AT_FDCWD, tree.Twin, 0, &attr); err != nil {
			return fmt.Errorf("mount twin of %s: %w", tree.Path, err)
		}
	}
	return nil
}

// enter enters the working directory by its name: the inherited one may lie
// below a directory that is covered now, and would lead out of the view.
func (v *View) enter() error {
	if err := os.Chdir(v.Directory); err != nil {
		return fmt.Errorf("enter working directory: %w", err)
	}
	return nil
}

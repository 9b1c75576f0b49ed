package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout bounds how long a killed cgroup may take to empty. Processes in
// an uninterruptible wait can exceed it; the hooks then stay.
const killTimeout = 10 * time.Second

// Cgroup is one directory of the cgroup v2 hierarchy.
type Cgroup struct {
	Path string
	Dir  *os.File
	ID   uint64 // its inode, which is what the kernel's cgroup id is
	Own  bool   // made by us, to be removed by us
}

// CgroupMount is where the cgroup v2 tree is mounted, and which part of it.
type CgroupMount struct {
	mount string
	root  string

	mountErr error // why none could be mounted for this process, where this one is not writable
}

// FindCgroupMount looks in the mount table, since the place differs: with the
// hybrid layout it is /sys/fs/cgroup/unified. Where there are several, as in a
// container that mounted its own, it is one that shows this process's cgroup.
// Containers are commonly given none that they may write to, and then it is one
// of our own, where that may be mounted.
func (p Paths) FindCgroupMount() (CgroupMount, error) {
	h, err := mountedHierarchy()
	if err == nil && h.canMakeCgroups() {
		return h, nil
	}
	own, failed := p.mountHierarchy()
	if failed == nil {
		return own, nil
	}
	h.mountErr = failed
	return h, err // for a cgroup that is given by its path, or to say what is missing
}

// canMakeCgroups reports whether cgroups can be made below this process's own.
func (h CgroupMount) canMakeCgroups() bool {
	var system unix.Statfs_t
	own, err := h.OwnGroup()
	return err == nil && unix.Statfs(own, &system) == nil && system.Type == unix.CGROUP2_SUPER_MAGIC && unix.Access(own, unix.W_OK) == nil
}

// mountHierarchy mounts the hierarchy, as far as this cgroup namespace sees it,
// where nobody else looks.
func (p Paths) mountHierarchy() (CgroupMount, error) {
	mounting, err := p.Take("mount.lock", true)
	if err != nil {
		return CgroupMount{}, err
	}
	defer func() { _ = mounting.Release() }()
	// The root of the mounted tree is open to all: what is above it is not.
	h := CgroupMount{mount: filepath.Join(p.Dir, "mounts", "cgroup"), root: "/"}
	if err := EnsurePrivate(filepath.Dir(h.mount)); err != nil {
		return CgroupMount{}, err
	}
	if h.canMakeCgroups() { // mounted by another sidecar
		return h, nil
	}
	if err := EnsurePrivate(h.mount); err != nil {
		return CgroupMount{}, err
	}
	if err := unix.Mount("cgroup2", h.mount, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return CgroupMount{}, fmt.Errorf("mount cgroup v2 at %s: %w", h.mount, err)
	}
	if !h.canMakeCgroups() {
		return CgroupMount{}, errors.Join(fmt.Errorf("mount cgroup v2 at %s: no cgroup can be made in it", h.mount), unix.Unmount(h.mount, unix.MNT_DETACH))
	}
	return h, nil
}

func mountedHierarchy() (CgroupMount, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return CgroupMount{}, fmt.Errorf("read mount table: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return CgroupMount{}, fmt.Errorf("read own cgroup: %w", err)
	}
	return parseHierarchy(string(table), string(own))
}

// parseHierarchy reads proc(5) mountinfo: "ID parent major:minor root mount
// options [optional fields] - type source super-options".
func parseHierarchy(table, own string) (CgroupMount, error) {
	var first CgroupMount
	for line := range strings.Lines(table) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		if !ok || !strings.HasPrefix(right, "cgroup2 ") {
			continue
		}
		fields := strings.Fields(left)
		if len(fields) < 6 {
			continue
		}
		h := CgroupMount{mount: unescapeMount(fields[4]), root: unescapeMount(fields[3])}
		if _, err := h.parseOwnGroup(own); err == nil {
			return h, nil
		}
		if first.mount == "" {
			first = h
		}
	}
	if first.mount == "" {
		return first, errors.New("find cgroup v2 mount: not mounted; mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return first, nil // for a cgroup that is given by its path
}

// Mounted reports whether a file system of a type is mounted at a path.
func Mounted(path, kind string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(table)) {
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if ok && strings.HasPrefix(right, kind+" ") && len(fields) > 4 && unescapeMount(fields[4]) == path {
			return true
		}
	}
	return false
}

// unescapeMount undoes the octal escapes of mountinfo (space, tab, newline and
// backslash).
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// OwnGroup is the directory of the cgroup this process is in.
func (h CgroupMount) OwnGroup() (string, error) {
	table, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("read own cgroup: %w", err)
	}
	return h.parseOwnGroup(string(table))
}

func (h CgroupMount) parseOwnGroup(table string) (string, error) {
	for line := range strings.Lines(table) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if h.root != "/" {
			rest, inside := strings.CutPrefix(path, h.root)
			if !inside {
				return "", fmt.Errorf("locate own cgroup: %s is outside the mounted part %s; mount this cgroup namespace's own part (mount -t cgroup2 none %s) or the whole hierarchy, or use the host's cgroup namespace", path, h.root, h.mount)
			}
			path = rest
		}
		if strings.Contains(path, "..") || strings.HasSuffix(path, " (deleted)") {
			return "", fmt.Errorf("locate own cgroup: %q is not below %s; use the host's cgroup namespace", path, h.mount)
		}
		return filepath.Join(h.mount, path), nil
	}
	return "", errors.New("locate own cgroup: /proc/self/cgroup has no cgroup v2 line")
}

// Find walks the hierarchy for directories called name. Cgroups below a
// plugin's are not looked into.
func (h CgroupMount) Find(name string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(h.mount, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case d.Name() == name:
			found = append(found, path)
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("search cgroups: %w", err)
	}
	return found, nil
}

// walkTo finds the directory of a cgroup without CAP_DAC_READ_SEARCH, which would
// also have every file of the host read: a cgroup's id is its inode.
func (h CgroupMount) walkTo(id uint64) (string, error) {
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

// ByID finds the directory of a cgroup.
func (h CgroupMount) ByID(id uint64) (string, error) {
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

// MakeCgroup makes the cgroup called name below the one this process is in.
func MakeCgroup(h CgroupMount, name string) (*Cgroup, error) {
	parent, err := h.OwnGroup()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(parent, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make cgroup: %w%s", err, delegationHint(err)), h.mountErr)
	}
	g, err := OpenCgroup(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	g.Own = true
	// Processes of a descendant cgroup would still pass the hooks, but not be counted
	// by an exact comparison, nor be listed in one file.
	if err := g.Set("cgroup.max.descendants", "0"); err != nil {
		return nil, errors.Join(err, g.Close(), os.Remove(path))
	}
	return g, nil
}

// delegationHint returns how a service manager delegates a subtree.
func delegationHint(err error) string {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return " (the subtree is not delegated to this process: set Delegate=yes in the systemd unit, or mount the cgroup file system writable)"
	}
	return ""
}

// OpenCgroup opens an existing cgroup directory.
func OpenCgroup(path string) (*Cgroup, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	var system unix.Statfs_t
	var stat unix.Stat_t
	if err := unix.Fstatfs(int(dir.Fd()), &system); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect cgroup %s: %w", path, err), dir.Close())
	}
	if system.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, errors.Join(fmt.Errorf("open cgroup: %s is not on a cgroup v2 file system", path), dir.Close())
	}
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect cgroup %s: %w", path, err), dir.Close())
	}
	return &Cgroup{Path: path, Dir: dir, ID: stat.Ino}, nil
}

// Set writes a value to one of the cgroup's files.
func (g *Cgroup) Set(file, value string) error {
	// Without O_CREAT, with which the kernel reports a missing file as EACCES.
	f, err := os.OpenFile(filepath.Join(g.Path, file), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w%s", file, err, delegationHint(err))
	}
	return nil
}

// Current reports whether the directory at the path is still the one opened.
func (g *Cgroup) Current() bool {
	var stat unix.Stat_t
	return unix.Stat(g.Path, &stat) == nil && stat.Ino == g.ID
}

// event reads one of the two keys of cgroup.events: populated, frozen.
func (g *Cgroup) event(key string) (bool, error) {
	text, err := os.ReadFile(filepath.Join(g.Path, "cgroup.events"))
	if err != nil {
		return false, fmt.Errorf("read cgroup.events: %w", err)
	}
	return eventValue(string(text), key)
}

// eventValue returns one of the keys of cgroup.events.
func eventValue(text, key string) (bool, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return strings.TrimSpace(value) == "1", nil
		}
	}
	return false, fmt.Errorf("read cgroup.events: no %s", key)
}

// Populated reports whether any process lives in the cgroup or below it.
func (g *Cgroup) Populated() (bool, error) { return g.event("populated") }

// Processes is how many processes the cgroup lists, those included that this process
// namespace does not show. An unreadable list counts as empty.
func (g *Cgroup) Processes() int {
	text, err := os.ReadFile(filepath.Join(g.Path, "cgroup.procs"))
	if err != nil {
		return 0
	}
	return strings.Count(string(text), "\n")
}

// Kill ends every process in the cgroup and waits until there does not exist.
func (g *Cgroup) Kill() error {
	err := g.BeginKill()
	if err == nil {
		return g.AwaitEmpty(killTimeout)
	}
	if populated, perr := g.Populated(); perr != nil || !populated {
		return perr
	}
	if errors.Is(err, fs.ErrNotExist) { // before Linux 5.14
		return g.killEach()
	}
	return err
}

// BeginKill has the kernel end every process in the cgroup, and does not wait
// (cgroup.kill, Linux 5.14).
func (g *Cgroup) BeginKill() error { return g.Set("cgroup.kill", "1") }

// killEach is kill for kernels without cgroup.kill: frozen first, so that
// nothing forks away while the list is read.
func (g *Cgroup) killEach() error {
	if err := g.Freeze(true); err != nil {
		return err
	}
	deadline := time.Now().Add(killTimeout)
	for {
		text, err := os.ReadFile(filepath.Join(g.Path, "cgroup.procs"))
		if err != nil {
			return fmt.Errorf("read cgroup.procs: %w", err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 0 {
				return fmt.Errorf("kill cgroup: %q is not a process of this namespace", field)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if err := g.AwaitEmpty(100 * time.Millisecond); err == nil || time.Now().After(deadline) {
			return errors.Join(err, g.Freeze(false))
		}
	}
}

// CPUTime is the CPU time that the processes in the cgroup and below it have used, ended
// ones included, to the microsecond. The last tick of a thread that runs may be missing.
func (g *Cgroup) CPUTime() (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(g.Path, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read cpu.stat: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec ")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read cpu.stat: %w", err)
		}
		return time.Duration(n) * time.Microsecond, nil
	}
	return 0, errors.New("read cpu.stat: no usage_usec")
}

// Freeze stops every process of the cgroup, or lets them run again.
func (g *Cgroup) Freeze(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return g.Set("cgroup.freeze", value)
}

// AwaitEmpty waits until no process lives in the cgroup. The kernel reports each
// change of cgroup.events as POLLPRI, on a descriptor that has read the file since
// the change before.
func (g *Cgroup) AwaitEmpty(timeout time.Duration) error {
	events, err := unix.Open(filepath.Join(g.Path, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cgroup.events of %s: %w", g.Path, err)
	}
	defer func() { _ = unix.Close(events) }()
	deadline := time.Now().Add(timeout)
	text := make([]byte, 256)
	for {
		n, err := unix.Pread(events, text, 0)
		if errors.Is(err, unix.ENODEV) { // removed, and so empty
			return nil
		}
		if err != nil {
			return fmt.Errorf("read cgroup.events of %s: %w", g.Path, err)
		}
		if populated, err := eventValue(string(text[:n]), "populated"); err != nil || !populated {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("wait for cgroup %s to empty: processes still live after %v", g.Path, timeout)
		}
		poll := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll cgroup.events: %w", err)
		}
	}
}

// Close closes the directory of the cgroup, which stays.
func (g *Cgroup) Close() error {
	if err := g.Dir.Close(); err != nil {
		return fmt.Errorf("close cgroup: %w", err)
	}
	return nil
}

// Remove removes the cgroup's directory. The kernel may still hold a task that
// is past its last instruction, hence the retries.
func (g *Cgroup) Remove() error {
	deadline := time.Now().Add(time.Second)
	for {
		err := unix.Rmdir(g.Path)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", g.Path, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// Frozen reports whether every process of the cgroup stands still.
func (g *Cgroup) Frozen() (bool, error) { return g.event("frozen") }

// AwaitFrozen waits until every process of the cgroup stands still, or for no
// longer than the time given.
func (g *Cgroup) AwaitFrozen(timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if frozen, err := g.Frozen(); err != nil || frozen {
			return err
		}
	}
	return nil
}

// Signal sends a signal to every process in the cgroup and below it.
func (g *Cgroup) Signal(signal unix.Signal) error {
	err := filepath.WalkDir(g.Path, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 0 {
				continue // a process that is not of our namespace
			}
			if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("signal the plugin: %w", err)
	}
	return nil
}

package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// Places on the host, which are ours alone.
const (
	systemBPF     = "/sys/fs/bpf"
	bpfMagic      = unix.BPF_FS_MAGIC
	cgroupPrefix  = "chaperone-"
	privateAccess = 0o700
)

// ensurePrivate makes a directory for us alone, and refuses one that somebody
// else could have prepared. An empty one of ours that is open to others, as a
// volume is that was just mounted, is closed to them first.
func ensurePrivate(path string) error {
	if err := os.Mkdir(path, privateAccess); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make private directory: %w%s", err, directoryHint(path, err))
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return fmt.Errorf("inspect private directory: %w", err)
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR && stat.Mode&0o077 != 0 && int(stat.Uid) == os.Geteuid() {
		runtimedir.CloseEmpty(path)
		if err := unix.Lstat(path, &stat); err != nil {
			return fmt.Errorf("inspect private directory: %w", err)
		}
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("use private directory: %s is not a directory", path)
	case int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("use private directory: %s belongs to uid %d", path, stat.Uid)
	case stat.Mode&0o077 != 0:
		return fmt.Errorf("use private directory: %s is open to others (mode %04o); make it 0700", path, stat.Mode&0o7777)
	}
	return nil
}

// directoryHint says what to do where a directory cannot be made.
func directoryHint(path string, err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "; make " + filepath.Dir(path) + " writable (in a systemd unit: ReadWritePaths=" + filepath.Dir(path) + ")"
	case errors.Is(err, fs.ErrPermission):
		return "; run it as root"
	}
	return ""
}

// places are the runtime directory of a sidecar, and its state directory, which
// names its cage.
type places struct {
	dir   string
	state string
	id    string
}

// findPlaces finds the runtime directory, and makes it if it is missing.
func findPlaces(stateDir string) (places, error) {
	id, err := runtimedir.ID(stateDir)
	if err != nil {
		return places{}, err
	}
	dir, err := runtimedir.Find(stateDir)
	return places{dir: dir.Path, state: stateDir, id: id}, err
}

// lock holds a name under the runtime directory until it is released or the process
// ends, however that happens: it is the kernel's lock on the open file.
type lock struct {
	file  *os.File
	path  string
	state *os.File // the state directory, of a cage's lock
}

// take takes a name. The error is EWOULDBLOCK when somebody else has it, unless
// it is to wait.
func (p places) take(name string, wait bool) (*lock, error) {
	path := filepath.Join(p.dir, name)
	if dir := filepath.Dir(path); dir != p.dir {
		if err := ensurePrivate(dir); err != nil {
			return nil, err
		}
	}
	how := unix.LOCK_EX | unix.LOCK_NB
	if wait {
		how = unix.LOCK_EX
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), how); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		// Whoever had it may have removed the file after we opened it.
		var ours, there unix.Stat_t
		if unix.Fstat(int(f.Fd()), &ours) == nil && unix.Stat(path, &there) == nil && ours.Ino == there.Ino {
			return &lock{file: f, path: path}, nil
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
	}
}

// release gives the name back. A nil lock has none.
func (l *lock) release() error {
	if l == nil {
		return nil
	}
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, l.file.Close())
	if l.state != nil {
		err = errors.Join(err, l.state.Close())
	}
	if err != nil {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}

// lockCage makes this process the only one that handles the cage. The state
// directory is locked as well, if it exists: a process that may write to another
// part of /run than this one has another runtime directory.
func (p places) lockCage() (*lock, error) {
	l, err := p.take("cages/"+p.id, false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	l.state, err = os.Open(p.state)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = unix.Flock(int(l.state.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		return l, nil
	}
	if released := l.release(); released != nil || !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("lock state directory: %w", err), released)
	}
	return nil, ErrBusy
}

// bpfRoot is the directory on a BPF file system below which cages pin: the
// system's if it is mounted, else one of our own.
func (p places) bpfRoot() (string, error) {
	if isBPF(systemBPF) {
		path := filepath.Join(systemBPF, "chaperone")
		return path, ensurePrivate(path)
	}
	// Two sidecars that mount at once would hide the pins of one below the mount
	// of the other.
	mounting, err := p.take("mount.lock", true)
	if err != nil {
		return "", err
	}
	defer func() { _ = mounting.release() }()
	path := filepath.Join(p.dir, "bpf")
	if err := ensurePrivate(path); err != nil {
		return "", err
	}
	if !isBPF(path) {
		if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return "", fmt.Errorf("mount BPF file system at %s: %w (mount one at %s instead, or grant CAP_SYS_ADMIN)", path, err, systemBPF)
		}
	}
	return path, ensurePrivate(path)
}

// isBPF asks the mount table as well: statfs of a place inside a BPF file
// system would do, of a directory that hides one would not.
func isBPF(path string) bool {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil || stat.Type != bpfMagic {
		return false
	}
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer func() { _ = table.Close() }()
	for scan := bufio.NewScanner(table); scan.Scan(); {
		left, right, ok := strings.Cut(scan.Text(), " - ")
		fields := strings.Fields(left)
		if ok && strings.HasPrefix(right, "bpf ") && len(fields) > 4 && unescapeMount(fields[4]) == path {
			return true
		}
	}
	return false
}

// pinDir makes the directory in which one cage pins its links and maps.
func (p places) pinDir() (string, error) {
	root, err := p.bpfRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, p.id)
	return path, ensurePrivate(path)
}

// renewal ends the name of a pin that is about to take the place of another.
const renewal = "_new"

// pinner is what can be pinned: a link or a map.
type pinner interface{ Pin(path string) error }

// repin pins something in the place of what may be pinned there. There is
// always one of the two.
func repin(p pinner, path string) error {
	if err := os.Remove(path + renewal); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove unfinished pin: %w", err)
	}
	if err := p.Pin(path + renewal); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	if err := os.Rename(path+renewal, path); err != nil {
		return fmt.Errorf("replace pin: %w", err)
	}
	return nil
}

// pinned lists what is pinned in a cage's directory.
func pinned(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, nil
}

// unpin removes a cage's pins and their directory. A program comes off the
// cgroup when its link is closed, too.
func unpin(dir string) error {
	names, err := pinned(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove pin: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pin directory: %w", err)
	}
	return nil
}

package ebpf

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Places on the host. Both directories are ours alone.
const (
	runDir        = "/run/chaperone"
	systemBPF     = "/sys/fs/bpf"
	bpfMagic      = unix.BPF_FS_MAGIC
	idLength      = 16
	cgroupPrefix  = "chaperone-"
	privateAccess = 0o700
)

// cageID names a cage after its state directory.
func cageID(stateDir string) (string, error) {
	if stateDir == "" {
		return "", errors.New("name the cage: no state directory given")
	}
	path, err := filepath.Abs(stateDir)
	if err != nil {
		return "", fmt.Errorf("name the cage: %w", err)
	}
	// A state directory that is a link names the same cage as its target. One
	// that does not exist (detach after a clean-up) is named by its path.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:])[:idLength], nil
}

// ensurePrivate makes a directory for us alone, and refuses one that somebody
// else could have prepared. An empty one of ours that is open to others, as a
// volume is that was just mounted, is closed to them first.
func ensurePrivate(path string) error {
	if err := os.Mkdir(path, privateAccess); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make private directory: %w (run as root, or let systemd make %s: RuntimeDirectory=chaperone, RuntimeDirectoryMode=0700)", err, runDir)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return fmt.Errorf("inspect private directory: %w", err)
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR && stat.Mode&0o077 != 0 && int(stat.Uid) == os.Geteuid() {
		closeEmpty(path, &stat)
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

// closeEmpty closes an empty directory of ours to others and sees that it is empty
// still, when nobody else can put anything into it any more.
func closeEmpty(path string, stat *unix.Stat_t) {
	empty := func() bool {
		entries, err := os.ReadDir(path)
		return err == nil && len(entries) == 0
	}
	if !empty() || os.Chmod(path, privateAccess) != nil {
		return
	}
	if !empty() {
		_ = unix.Chmod(path, stat.Mode&0o7777) // as it was: it is refused
		return
	}
	stat.Mode &^= 0o077
}

// lock holds a name under the run directory until it is released or the process
// ends, however that happens: it is the kernel's lock on the open file.
type lock struct {
	file *os.File
	path string
}

// take takes a name. The error is EWOULDBLOCK when somebody else has it, unless
// it is to wait.
func take(name string, wait bool) (*lock, error) {
	path := filepath.Join(runDir, name)
	for _, dir := range []string{runDir, filepath.Dir(path)} {
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
			return &lock{f, path}, nil
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
	if err := errors.Join(err, l.file.Close()); err != nil {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}

// lockCage makes this process the only one that handles the cage.
func lockCage(id string) (*lock, error) {
	l, err := take("cages/"+id, false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrBusy
	}
	return l, err
}

// bpfRoot is the directory on a BPF file system below which cages pin: the
// system's if it is mounted, else one of our own.
func bpfRoot() (string, error) {
	if isBPF(systemBPF) {
		path := filepath.Join(systemBPF, "chaperone")
		return path, ensurePrivate(path)
	}
	// Two sidecars that mount at once would hide the pins of one below the mount
	// of the other.
	mounting, err := take("mount.lock", true)
	if err != nil {
		return "", err
	}
	defer func() { _ = mounting.release() }()
	path := filepath.Join(runDir, "bpf")
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
func pinDir(id string) (string, error) {
	root, err := bpfRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, id)
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

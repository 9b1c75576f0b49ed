package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// Places on the host, which are ours alone.
const (
	systemBPF    = "/sys/fs/bpf"
	bpfMagic     = unix.BPF_FS_MAGIC
	cgroupPrefix = "chaperone-"
)

// bpfRoot is the directory on a BPF file system below which confinements pin: the
// system's if it is mounted, else one of our own.
func bpfRoot(p sandbox.Paths) (string, error) {
	if isBPF(systemBPF) {
		path := filepath.Join(systemBPF, "chaperone")
		return path, sandbox.EnsurePrivate(path)
	}
	// Two sidecars that mount at once would hide the pins of one below the mount
	// of the other.
	mounting, err := p.Take("mount.lock", true)
	if err != nil {
		return "", err
	}
	defer func() { _ = mounting.Release() }()
	path := filepath.Join(p.Dir, "bpf")
	if err := sandbox.EnsurePrivate(path); err != nil {
		return "", err
	}
	if !isBPF(path) {
		if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return "", fmt.Errorf("mount BPF file system at %s: %w (mount one at %s instead, or grant CAP_SYS_ADMIN)", path, err, systemBPF)
		}
	}
	return path, sandbox.EnsurePrivate(path)
}

// isBPF asks the mount table as well: statfs of a place inside a BPF file
// system would do, of a directory that hides one would not.
func isBPF(path string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && stat.Type == bpfMagic && sandbox.Mounted(path, "bpf")
}

// pinDir makes the directory in which one confinement pins its links and maps.
func pinDir(p sandbox.Paths) (string, error) {
	root, err := bpfRoot(p)
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, p.ID)
	return path, sandbox.EnsurePrivate(path)
}

// pendingSuffix ends the name of a pin that is about to take the place of another.
const pendingSuffix = "_new"

// pinner is what can be pinned: a link or a map.
type pinner interface{ Pin(path string) error }

// repin pins something in the place of what may be pinned there. There is
// always one of the two.
func repin(p pinner, path string) error {
	if err := os.Remove(path + pendingSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove unfinished pin: %w", err)
	}
	if err := p.Pin(path + pendingSuffix); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	if err := os.Rename(path+pendingSuffix, path); err != nil {
		return fmt.Errorf("replace pin: %w", err)
	}
	return nil
}

// pinned lists what is pinned in a confinement's directory.
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

// unpin removes a confinement's pins and their directory. A program comes off the
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

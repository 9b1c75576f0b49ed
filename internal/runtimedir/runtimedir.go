// Package runtimedir decides where a sidecar keeps what lasts as long as the
// machine runs (locks, mounts, certificates, its entry in the list of sidecars),
// and who may replace a folder.
package runtimedir

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// Default is the runtime directory that all sidecars of a host share.
const Default = "/run/chaperone"

const (
	// sharedMode lets the user of a plugin pass to what is meant for it (its
	// certificates), and list nothing.
	sharedMode = 0o711
	ownMode    = 0o700
	idLength   = 16
)

// Dir is the runtime directory of one sidecar.
type Dir struct {
	Path string
	// Alone is why the sidecar does not share Default with the others of its
	// host; nil if it does. Such a sidecar is not in the list of sidecars, and
	// reserves nothing that the others would respect.
	Alone error
}

// Find returns the runtime directory of the sidecar with the state directory
// stateDir, and makes it if it is missing: Default where that can be written to
// and replaced by nobody else; otherwise the directory that a service manager
// gave (RUNTIME_DIRECTORY, systemd.exec(5)); otherwise one in stateDir. An
// error means that not even that can be used.
func Find(stateDir string) (Dir, error) {
	err := Shared()
	if err == nil {
		return Dir{Path: Default}, nil
	}
	for _, path := range others(stateDir) {
		other := usable(path, ownMode)
		if other == nil {
			return Dir{Path: path, Alone: err}, nil
		}
		err = errors.Join(err, other)
	}
	return Dir{}, fmt.Errorf("find runtime directory: %w", err)
}

// Shared makes Default if it is missing, and reports why this process cannot
// use it.
func Shared() error { return usable(Default, sharedMode) }

// All returns every directory that Find may have returned to an earlier sidecar
// of the state directory, whether it exists or not.
func All(stateDir string) []string { return append([]string{Default}, others(stateDir)...) }

func others(stateDir string) []string {
	var paths []string
	for _, path := range filepath.SplitList(os.Getenv("RUNTIME_DIRECTORY")) {
		if filepath.IsAbs(path) && filepath.Clean(path) != Default {
			paths = append(paths, filepath.Clean(path))
		}
	}
	if stateDir != "" {
		paths = append(paths, filepath.Join(stateDir, "run"))
	}
	return paths
}

// ID names a sidecar after its state directory: hexadecimal digits of a hash. A
// state directory that is a link has the ID of its target, one that does not
// exist that of its path.
func ID(stateDir string) (string, error) {
	if stateDir == "" {
		return "", errors.New("name the sidecar: no state directory given")
	}
	path, err := filepath.Abs(stateDir)
	if err != nil {
		return "", fmt.Errorf("name the sidecar: %w", err)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:])[:idLength], nil
}

// usable makes a directory with the mode if it is missing, and reports why it
// cannot be the runtime directory. An empty folder that others may write to, such
// as a volume that was just mounted, is closed to them.
func usable(path string, mode uint32) error {
	if err := os.MkdirAll(filepath.Dir(path), ownMode); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	err := unix.Mkdir(path, mode)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make runtime directory %s: %w", path, err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return fmt.Errorf("inspect runtime directory %s: %w", path, err)
	}
	ours := int(stat.Uid) == os.Geteuid() && stat.Mode&unix.S_IFMT == unix.S_IFDIR
	if ours && stat.Mode&0o022 != 0 {
		unixsock.CloseEmpty(path)
		stat.Mode &^= 0o777 // as far as that is known; Check looks at what it is
	}
	if err := unixsock.CheckDir(path); err != nil {
		return fmt.Errorf("use runtime directory: %w", err)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("write to runtime directory %s: %w", path, err)
	}
	if ours && stat.Mode&mode&0o011 != mode&0o011 {
		if err := os.Chmod(path, fs.FileMode(stat.Mode&0o755|mode)); err != nil {
			return fmt.Errorf("open runtime directory to plugins: %w", err)
		}
	}
	return nil
}

// CloseEmpty closes an empty directory of the caller's to others (mode 0700),
// and sees that it is empty still when nobody else can put anything into it any
// more. One that is not empty stays as it was.
func CloseEmpty(path string) {
	empty := func() bool {
		entries, err := os.ReadDir(path)
		return err == nil && len(entries) == 0
	}
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) != nil || !empty() || os.Chmod(path, ownMode) != nil {
		return
	}
	if !empty() {
		_ = unix.Chmod(path, stat.Mode&0o7777) // as it was: its user refuses it
	}
}

// maxLinks bounds the symbolic links of one path, as the kernel does (path_resolution(7)).
const maxLinks = 40

// ReplaceableError says by whom a path could be replaced.
type ReplaceableError struct {
	Path   string // that was asked about
	Folder string // above it, or itself
	Owner  int    // uid of Folder's owner, if that is who may replace the path; otherwise -1
	Mode   fs.FileMode
}

// Error names the folder, and who may change it.
func (e *ReplaceableError) Error() string {
	if e.Owner >= 0 {
		return fmt.Sprintf("%s can be replaced: folder %s belongs to uid %d, neither root nor the sidecar's user", e.Path, e.Folder, e.Owner)
	}
	return fmt.Sprintf("%s can be replaced: folder %s may be written by others (mode %04o)", e.Path, e.Folder, e.Mode.Perm())
}

// Check returns a [*ReplaceableError] if anybody but root and the caller's
// effective user can put something else in the place of path or into it: each
// folder and symbolic link on the way has to belong to one of the two, and no
// folder may be written by others, unless it is sticky and not path itself. What
// does not exist yet is not looked at.
func Check(path string) error { return check(path, os.Geteuid(), true) }

// CheckAbove is [Check] for a sidecar that will run as uid, of a directory which
// its caller closes to others: the mode of path itself may be any.
func CheckAbove(path string, uid int) error { return check(path, uid, false) }

func check(path string, uid int, itself bool) error {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	at, links := "/", 0
	rest := strings.FieldsFunc(absolute, func(r rune) bool { return r == '/' })
	if err := checkFolder(absolute, at, uid, len(rest) == 0, itself); err != nil {
		return err
	}
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == "." || name == ".." {
			if name == ".." {
				at = filepath.Dir(at) // which holds no link, and was looked at
			}
			continue
		}
		next := filepath.Join(at, name)
		target, err := os.Readlink(next)
		if err != nil { // no link
			at = next
			err := checkFolder(absolute, at, uid, len(rest) == 0, itself)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			continue
		}
		if links++; links > maxLinks {
			return fmt.Errorf("check %s: %w", path, unix.ELOOP)
		}
		if err := checkOwner(absolute, next, uid); err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), rest...)
	}
	return nil
}

func checkOwner(path, at string, uid int) error {
	var stat unix.Stat_t
	if err := unix.Lstat(at, &stat); err != nil {
		return fmt.Errorf("check %s: inspect %s: %w", path, at, err)
	}
	if stat.Uid != 0 && int(stat.Uid) != uid {
		return &ReplaceableError{Path: path, Folder: at, Owner: int(stat.Uid), Mode: fs.FileMode(stat.Mode & 0o7777)}
	}
	return nil
}

func checkFolder(path, at string, uid int, last, itself bool) error {
	if err := checkOwner(path, at, uid); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Lstat(at, &stat); err != nil {
		return fmt.Errorf("check %s: inspect %s: %w", path, at, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("check %s: %s is not a directory", path, at)
	}
	if last && !itself {
		return nil
	}
	if sticky := stat.Mode&unix.S_ISVTX != 0 && !last; stat.Mode&0o022 != 0 && !sticky {
		return &ReplaceableError{Path: path, Folder: at, Owner: -1, Mode: fs.FileMode(stat.Mode & 0o7777)}
	}
	return nil
}

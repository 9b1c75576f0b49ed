// Package runtimedir decides where a sidecar keeps what lasts as long as the
// machine runs: locks, mounts, certificates, its entry in the list of sidecars.
package runtimedir

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
		stat.Mode &^= 0o777 // CheckDir reads the actual mode
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

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// aliases is the directory of the aliases, for short: a Unix socket's path has at
// most 107 bytes.
const aliases = launcher.Own + "/s"

// Alias mounts one file of a view a second time at a path that only this file can
// be reached by: whatever is renamed or linked later, the path stays the file's.
// The file is open with O_PATH from within the view, whose mount namespace is
// open as a file. Alias moves the calling thread into that namespace, from which
// it does not come back: the caller ends the thread.
func Alias(namespace, file *os.File, number uint64) (path string, err error) {
	if err := enterView(namespace); err != nil {
		return "", fmt.Errorf("make alias: %w", err)
	}
	path = AliasPath(number)
	if err := os.MkdirAll(aliases, 0o755); err != nil { //nolint:gosec // the program looks up a path in it
		return "", fmt.Errorf("make alias: %w", err)
	}
	place, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("make alias: %w", err)
	}
	if err := place.Close(); err != nil {
		return "", fmt.Errorf("make alias: %w", err)
	}
	copied, err := unix.OpenTree(int(file.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err == nil {
		err = errors.Join(launcher.AttachAt(copied, path), unix.Close(copied))
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("make alias: %w", err), os.Remove(path))
	}
	return path, nil
}

// AliasPath returns the path of an alias.
func AliasPath(number uint64) string { return filepath.Join(aliases, strconv.FormatUint(number, 36)) }

// RemoveAlias removes an alias from a view. The caller ends the thread, as after
// [Alias].
func RemoveAlias(namespace *os.File, number uint64) error {
	if err := enterView(namespace); err != nil {
		return fmt.Errorf("remove alias: %w", err)
	}
	path := AliasPath(number)
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("remove alias: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove alias: %w", err)
	}
	return nil
}

// errNoView is what a namespace is that is the caller's own.
var errNoView = errors.New("the program shares the mount namespace of the caller")

// enterView moves the calling thread into a mount namespace, unless it is the
// thread's own.
func enterView(namespace *os.File) error {
	own, err := os.Stat("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	view, err := namespace.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(own, view) {
		return errNoView
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave shared directory: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the view: %w", err)
	}
	return nil
}

package launcher

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Show makes a path of the host's visible in a view that was built before, whose
// mount namespace is open as a file. A path that no tree covers is visible
// already. It moves the calling thread into that namespace, from which it does
// not come back: the caller ends the thread.
func (v *View) Show(namespace *os.File, path string) error {
	tree, covered := v.covering(path)
	if !covered {
		return nil
	}
	copied, err := cloneTree(path)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(copied) }()
	dir, err := isDirectory(copied)
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("show %s: leave shared directory: %w", path, err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("show %s: enter the view: %w", path, err)
	}
	place, err := openBelow(tree.Path, path, dir)
	if err != nil {
		return err
	}
	if err := errors.Join(attach(copied, place), unix.Close(place)); err != nil {
		return fmt.Errorf("show %s: %w", path, err)
	}
	return nil
}

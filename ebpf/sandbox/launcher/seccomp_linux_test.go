package launcher

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilterWithoutListener installs the filter in the form that a container
// gets in which every system call is reported elsewhere already, and makes
// sockets under it.
func TestFilterWithoutListener(t *testing.T) {
	err := onThread(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		if err := installFilterUnreported(filter(false, false)); err != nil {
			return err
		}
		if _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("make a Unix socket: got %v, want EPERM", err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		t.Error(err)
	}
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

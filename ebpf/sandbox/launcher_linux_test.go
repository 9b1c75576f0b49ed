package sandbox

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoClone3 checks after which errors of a start the launcher walks into its
// cgroup.
func TestNoClone3(t *testing.T) {
	start := func(errno unix.Errno) error {
		return fmt.Errorf("start launcher: %w", &os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: errno})
	}
	for _, test := range []struct {
		err  error
		want bool
	}{
		{start(unix.ENOSYS), true},
		{start(unix.EPERM), true},
		{start(unix.EINVAL), true},
		{start(unix.E2BIG), true},
		{start(unix.EAGAIN), false},
		{start(unix.ENOMEM), false},
		{&os.PathError{Op: "open", Path: "/dev/null", Err: unix.EPERM}, false},
		{errors.New("any other"), false},
		{nil, false},
	} {
		if got := noClone3(test.err); got != test.want {
			t.Errorf("%v: %t", test.err, got)
		}
	}
}

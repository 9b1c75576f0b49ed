package terminal

import (
	"fmt"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stopPatience bounds the wait for the end of a stop, which does not come where
// the kernel has not stopped the process: nobody could continue it, since its
// process group is orphaned.
const stopPatience = 200 * time.Millisecond

// StopJob stops this process and its process group as Ctrl-Z would, whether the
// process handles SIGTSTP or not, and returns when it is continued.
func StopJob() error {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, unix.SIGCONT)
	defer signal.Stop(continued)
	// signal.Reset keeps the handler of the Go runtime, which then drops the signal.
	var byDefault, handled sigaction
	if err := setAction(unix.SIGTSTP, &byDefault, &handled); err != nil {
		return err
	}
	err := unix.Kill(0, unix.SIGTSTP)
	select {
	case <-continued:
	case <-time.After(stopPatience):
	}
	if again := setAction(unix.SIGTSTP, &handled, nil); again != nil {
		return again
	}
	if err != nil {
		return fmt.Errorf("stop the job: %w", err)
	}
	return nil
}

// sigaction has room for the kernel's struct sigaction on any architecture; all
// zero is SIG_DFL.
type sigaction [4]uint64

func setAction(number unix.Signal, action, old *sigaction) error {
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(number), uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(old)), maskSize, 0, 0) //nolint:gosec // struct sigaction
	if errno != 0 {
		return fmt.Errorf("set action of signal %d: %w", number, errno)
	}
	return nil
}

package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Operator is the terminal that a command was started on.
type Operator struct {
	fd          int
	controlling bool // of this process
	foreign     bool // of another session
}

// OpenOperator opens the terminal that file is, apart from file: what is set on
// the open file is not set for the shell that shares it.
func OpenOperator(file *os.File) (*Operator, error) {
	var stat unix.Stat_t
	fd, err := control(file, func(fd int) (int, error) {
		if err := unix.Fstat(fd, &stat); err != nil {
			return -1, err
		}
		const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC
		own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0)
		if err == nil {
			return own, nil
		}
		// Another user's, as after su: the descriptor that is there has to do.
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	o := &Operator{fd: fd}
	// The kernel answers for the controlling terminal only (ioctl_tty(2)).
	_, err = unix.IoctlGetInt(fd, unix.TIOCGSID)
	o.controlling = err == nil
	o.foreign = !o.controlling && isControlling(stat.Rdev)
	return o, nil
}

// OpenControlling opens the controlling terminal of the process, whatever its
// standard streams are; nil if it has none.
func OpenControlling() *Operator {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return &Operator{fd: fd, controlling: true}
}

// isControlling reports whether a terminal is the controlling one of any process
// that can be seen (proc_pid_stat(5), tty_nr).
func isControlling(device uint64) bool {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, process := range processes {
		text, err := os.ReadFile("/proc/" + process.Name() + "/stat")
		if err != nil {
			continue // it has ended, or is no process
		}
		_, rest, _ := bytes.Cut(text, []byte(") ")) // a name may hold spaces, and no later field does
		for cut := true; cut; {
			var later []byte
			if _, later, cut = bytes.Cut(rest, []byte(") ")); cut {
				rest = later
			}
		}
		const number = 4 // after state, ppid, pgrp and session
		if fields := bytes.Fields(rest); len(fields) > number {
			if n, err := strconv.ParseUint(string(fields[number]), 10, 32); err == nil && n == device&0xffffffff {
				return true
			}
		}
	}
	return false
}

// Controlling reports whether it is the controlling terminal of the process.
func (o *Operator) Controlling() bool { return o.controlling }

// Gone reports whether the terminal was hung up (tty_vhangup in the kernel: every
// call on it fails with EIO).
func (o *Operator) Gone() bool {
	_, err := unix.IoctlGetTermios(o.fd, unix.TCGETS)
	return errors.Is(err, unix.EIO)
}

// foreground reports whether what is typed is for this process.
func (o *Operator) foreground() bool {
	if !o.controlling {
		return !o.foreign
	}
	group, err := unix.IoctlGetInt(o.fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// makeRaw has the terminal pass on everything typed as it is, and what is written
// unless that is kept, and returns how it was.
func (o *Operator) makeRaw(keepOutput bool) (*term.State, error) {
	modes, err := unix.IoctlGetTermios(o.fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	state, err := term.MakeRaw(o.fd)
	if err != nil || !keepOutput {
		return state, err
	}
	raw, err := unix.IoctlGetTermios(o.fd, unix.TCGETS)
	if err == nil {
		raw.Oflag = modes.Oflag
		err = unix.IoctlSetTermios(o.fd, unix.TCSETS, raw)
	}
	return state, err
}

func (o *Operator) restore(state *term.State) error { return term.Restore(o.fd, state) }

// write writes all of p, and waits while the terminal is slow.
func (o *Operator) write(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(o.fd, p)
		switch {
		case err == nil:
			p = p[n:]
		case errors.Is(err, unix.EAGAIN):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLOUT}}, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
	return nil
}

// Close closes it.
func (o *Operator) Close() error {
	if o == nil {
		return nil
	}
	return unix.Close(o.fd)
}

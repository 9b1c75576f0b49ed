package terminal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Multiplexer is the device that makes pseudoterminals (pts(4)).
const Multiplexer = "/dev/ptmx"

// Open makes a pseudoterminal whose slave belongs to a user, so that the user can
// open it by name, and which nobody else can open: write(1) does not reach it.
// The slave does not become anybody's controlling terminal.
func Open(multiplexer string, uid int, settings Settings) (master, slave *os.File, err error) {
	master, err = os.OpenFile(multiplexer, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open pseudoterminal: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, master.Close())
		}
	}()
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("open pseudoterminal: %w", err)
	}
	var peer uintptr
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed != nil {
			return
		}
		var errno unix.Errno
		// By descriptor: the slave's name is that of another mount of devpts.
		if peer, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC); errno != 0 {
			failed = errno
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, nil, fmt.Errorf("open pseudoterminal: %w", err)
	}
	slave = os.NewFile(peer, "pseudoterminal")
	if err := errors.Join(settings.apply(int(peer)), unix.Fchown(int(peer), uid, -1), unix.Fchmod(int(peer), 0o600)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("give pseudoterminal to user %d: %w", uid, err), slave.Close())
	}
	return master, slave, nil
}

// Settings are the modes and the size of a terminal. The zero value has neither.
type Settings struct {
	Modes *unix.Termios
	Size  *unix.Winsize
}

// SettingsOf returns the settings of a terminal. While another job is in its
// foreground the modes are that job's, and left out.
func SettingsOf(file *os.File) (s Settings, err error) {
	_, err = control(file, func(fd int) (_ int, err error) {
		group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		if err != nil || group == unix.Getpgrp() { // an error: it is no session's of ours
			if s.Modes, err = unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
				return 0, err
			}
		}
		s.Size, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		return 0, err
	})
	if err != nil {
		return Settings{}, fmt.Errorf("read settings of terminal: %w", err)
	}
	return s, nil
}

func (s Settings) apply(fd int) error {
	if s.Modes != nil {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, s.Modes); err != nil {
			return err
		}
	}
	if s.Size != nil {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, s.Size)
	}
	return nil
}

// Is reports whether a file is a terminal.
func Is(file *os.File) bool {
	if file == nil {
		return false
	}
	_, err := control(file, func(fd int) (int, error) {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		return 0, err
	})
	return err == nil
}

// Same reports whether two files are one device.
func Same(a, b *os.File) bool {
	device := func(file *os.File) (uint64, error) {
		var stat unix.Stat_t
		_, err := control(file, func(fd int) (int, error) { return 0, unix.Fstat(fd, &stat) })
		return stat.Rdev, err
	}
	x, err := device(a)
	if err != nil {
		return false
	}
	y, err := device(b)
	return err == nil && x == y
}

// control calls f with the descriptor of a file, which stays as it is:
// [os.File.Fd] would make it block.
func control(file *os.File, f func(fd int) (int, error)) (value int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = f(int(fd)) }); err != nil {
		return 0, err
	}
	return value, failed
}

package launcher

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/terminal"
)

// StreamOf is the number of the first stream of a set that is not empty.
func StreamOf(set uint8) int {
	for i := range 3 {
		if set&(1<<i) != 0 {
			return i
		}
	}
	return -1
}

// openTerminal is the launcher's: it opens a pseudoterminal among those of the
// view, so that its name is right there, makes it the streams of a set, and sends
// the master to the sidecar.
func openTerminal(set uint8, uid int, settings terminal.Settings) error {
	master, slave, err := terminal.Open("/dev/pts/ptmx", uid, settings)
	if err != nil {
		return err
	}
	for i := range 3 {
		if set&(1<<i) == 0 {
			continue
		}
		if err := unix.Dup3(int(slave.Fd()), i, 0); err != nil {
			return fmt.Errorf("open pseudoterminal: %w", err)
		}
	}
	reply([]byte{ReplyTerminal}, int(master.Fd()))
	return errors.Join(master.Close(), slave.Close())
}

// setControllingTerminal makes a stream the controlling terminal of the first process of a
// view, which leads a session. The program is then a job of that session, as it
// would be under a shell: were it the leader, the kernel would not stop it by
// SIGTSTP (its process group would be orphaned).
func setControllingTerminal(stream int) error {
	if err := unix.IoctlSetInt(stream, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("take controlling terminal: %w", err)
	}
	return nil
}

// foregroundJob puts a process group in the foreground of the terminal, and
// continues it. SIGTTOU is blocked: this process is in the background then.
func foregroundJob(stream, group int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	set := unix.Sigset_t{}
	set.Val[0] = 1 << (unix.SIGTTOU - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &set, &before) != nil {
		return
	}
	_ = unix.IoctlSetPointerInt(stream, unix.TIOCSPGRP, group) // fails if the terminal is gone
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	_ = unix.Kill(-group, unix.SIGCONT) // it may have ended
}

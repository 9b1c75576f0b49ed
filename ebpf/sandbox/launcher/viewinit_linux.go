package launcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// buildView is the launcher's work where the plugin gets a view of its own: it is
// the first process of the plugin's PID namespace, still with root's privileges.
// It makes the view, gives the privileges up, and executes this binary again,
// since only that takes credentials from every thread of a process.
func buildView(o *Spec, file *os.File) error {
	if err := dropInherited(); err != nil {
		return err
	}
	if err := o.View.Build(); err != nil {
		return err
	}
	if o.Program.Terminal != 0 {
		if err := openTerminal(o.Program.Terminal, o.Program.UID, o.Program.Settings); err != nil {
			return err
		}
	}
	if err := dropToUser(o); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read order again: %w", err)
	}
	return fmt.Errorf("start first process: %w", syscall.Exec("/proc/self/exe", []string{initName}, []string{}))
}

// dropToUser changes to the plugin's user, and keeps one capability until the next
// exec, which takes it: to execute this binary, which the plugin's user may not
// be permitted to.
func dropToUser(o *Spec) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := setCredentials(o.Program.UID, o.Program.GID, o.Program.Groups); err != nil {
		return err
	}
	if err := setCapabilities(execCapability | 1<<unix.CAP_SETPCAP); err != nil {
		return err
	}
	if err := DropBoundingSet(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	return setCapabilities(execCapability)
}

// setCapabilities drops every capability but those of a set, and puts into
// effect those of the set that the thread has.
func setCapabilities(set uint32) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had, sets [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	sets[0].Permitted = had[0].Permitted & set
	sets[0].Effective = sets[0].Permitted
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// runViewInit is the first process of a view once it has no privileges left: the
// plugin's user, without capabilities. It puts itself under the rules that the
// program inherits, starts it, and collects what ends until the program has
// ended. With it ends everything in the view.
func runViewInit(o *Spec) error {
	if err := os.WriteFile("/proc/self/comm", []byte(initName), 0); err != nil { // ps(1) shows it
		return fmt.Errorf("name first process: %w", err)
	}
	if err := DropCapabilities(); err != nil {
		return err
	}
	if !o.Limits.Files {
		if err := checkUnreadable(o.Limits.Unreadable); err != nil {
			return err
		}
	}
	if err := enterViewLandlock(o); err != nil {
		return err
	}
	if err := filterCalls(o); err != nil {
		return err
	}
	if err := closeOnExec(); err != nil {
		return err
	}
	program, pidfd, err := startProgram(o)
	if err != nil {
		return err
	}
	if err := defaultSignals(); err != nil {
		return err
	}
	reply([]byte{ReplyStarted}, pidfd)
	if err := unix.Close(pidfd); err != nil {
		return fmt.Errorf("close pidfd: %w", err)
	}
	status := reap(program, StreamOf(o.Program.Terminal))
	reply(binary.NativeEndian.AppendUint32([]byte{ReplyEnded}, uint32(status)), -1)
	os.Exit(0) //nolint:forbidigo // the kernel ends everything in the namespace with its first process
	return nil
}

// defaultSignals removes the signal handlers that the Go runtime installed. The
// kernel then keeps from the first process of a PID namespace every signal that
// would end or stop it and comes from inside (pid_namespaces(7)), so that a
// program which signals every process does not end its own view. It comes after
// the program was started: while a thread forks, its signals are blocked, and the
// kernel does not keep a blocked one off.
func defaultSignals() error {
	var byDefault [4]uint64 // struct sigaction of the kernel: all zero is SIG_DFL
	for number := unix.Signal(1); number <= 64; number++ {
		unhandled := number == unix.SIGKILL || number == unix.SIGSTOP
		fault := number == unix.SIGSEGV || number == unix.SIGBUS || number == unix.SIGFPE // the runtime's own
		if unhandled || fault {
			continue
		}
		const maskSize = 8
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(number), uintptr(unsafe.Pointer(&byDefault)), 0, maskSize, 0, 0) //nolint:gosec // struct sigaction
		if errno != 0 {
			return fmt.Errorf("reset handler of signal %d: %w", number, errno)
		}
	}
	return nil
}

// enterViewLandlock puts the thread under Landlock rules, made here since they are for
// the files that the view shows.
func enterViewLandlock(o *Spec) error {
	files := o.ViewFiles
	if files != nil {
		files = &Files{Read: append(viewPaths(), files.Read...), Write: append(viewWritable(o.Program.Env), files.Write...)}
	}
	r, err := NewRuleset(files, o.Limits.AllowAbstract, o.Limits.Private)
	if err != nil || r == nil {
		return err
	}
	if files != nil {
		for _, path := range Candidates(o.Program.Path, o.Program.Env) {
			if err := r.allowProgram(path, o.Limits.Private, 1); err != nil {
				return err
			}
		}
	}
	return r.enter()
}

// startProgram starts the program as a child that leads a session of its own, or
// a job of this process's session where it has a terminal.
func startProgram(o *Spec) (pid, pidfd int, err error) {
	// The plugin has the same user: it is not to look into this process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, -1, fmt.Errorf("hide memory: %w", err)
	}
	attributes := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if stream := StreamOf(o.Program.Terminal); stream >= 0 {
		if err := setControllingTerminal(stream); err != nil {
			return 0, -1, err
		}
		attributes = &syscall.SysProcAttr{Setpgid: true, Foreground: !o.Program.Background, Ctty: stream, PidFD: &pidfd}
	}
	err = searchProgram(o, func(path string, args []string) error {
		// A process is not started to find that there is no such file, or that this
		// user may not execute it: access(2) fails as execve(2) would.
		if err := unix.Access(path, unix.X_OK); err != nil {
			return err
		}
		var err error
		pid, err = syscall.ForkExec(path, args, &syscall.ProcAttr{
			Dir: o.Program.Dir, Env: o.Program.Env, Files: []uintptr{0, 1, 2},
			Sys: attributes,
		})
		return err
	})
	if err != nil {
		return 0, -1, err
	}
	return pid, pidfd, nil
}

// reap collects processes that ended until the program has, and returns how it
// ended. It reports that the program was stopped. One that was stopped for using
// its terminal in the background is put in the foreground: there is no other job
// that could be.
func reap(program, stream int) syscall.WaitStatus {
	options := 0
	if stream >= 0 {
		options = syscall.WUNTRACED
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0 // never: the program has not been collected
		case pid == program && status.Stopped():
			signal := status.StopSignal()
			if signal == unix.SIGTTIN || signal == unix.SIGTTOU {
				foregroundJob(stream, program)
			}
			reply(binary.NativeEndian.AppendUint32([]byte{ReplyStopped}, uint32(signal)), -1)
		case pid == program:
			return status
		}
	}
}

// execCapability is the capability that lets the plugin's user execute the
// sidecar's own file, whatever its mode: the first process of the view is that
// file, and has no capability from then on.
const execCapability = 1 << unix.CAP_DAC_OVERRIDE

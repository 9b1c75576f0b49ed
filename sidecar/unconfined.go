package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"

	"github.com/chaperone-proxy/chaperone/internal/reaper"
	"github.com/chaperone-proxy/chaperone/internal/terminal"
)

// unconfined is the plugin while the kernel is off: an ordinary process in a
// session of its own, which its environment points to the proxy and which
// can bypass it.
type unconfined struct {
	cmd      *exec.Cmd
	reaper   *reaper.Reaper
	terminal *os.File
}

func startUnconfined(command *sandbox.Command, children *reaper.Reaper) (*unconfined, error) {
	u := &unconfined{reaper: children}
	attributes := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if command.Terminal {
		operator := operatorStream()
		settings, err := terminal.SettingsOf(operator)
		if err != nil {
			return nil, err
		}
		master, slave, err := terminal.Open(terminal.Multiplexer, os.Getuid(), settings)
		if err != nil {
			return nil, err
		}
		defer func() { _ = slave.Close() }()
		u.terminal = master
		attributes.Setctty = true
		for i, stream := range []**os.File{&command.Stderr, &command.Stdout, &command.Stdin} {
			if terminal.Is(*stream) && terminal.Same(operator, *stream) {
				*stream, attributes.Ctty = slave, 2-i
			}
		}
	}
	args := command.Args
	err := u.start(command, args, attributes)
	if errors.Is(err, syscall.ENOEXEC) && command.Digest == "" { // a script without #!, as execvp(3)
		err = u.start(command, append([]string{"/bin/sh", u.cmd.Path}, args[1:]...), attributes)
	}
	if err == nil {
		return u, nil
	}
	if u.terminal != nil {
		err = errors.Join(err, u.terminal.Close())
	}
	if _, other := errors.AsType[*launcher.DigestError](err); other {
		return nil, err
	}
	status := 126
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		status = 127
	}
	return nil, &sandbox.ExecError{Path: args[0], Status: status, Err: fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "exec: "))}
}

func (u *unconfined) start(command *sandbox.Command, args []string, attributes *syscall.SysProcAttr) error {
	u.cmd = exec.Command(args[0], args[1:]...) //nolint:noctx // the program to run is what the user says, and outlives no context
	u.cmd.Env, u.cmd.Stdin, u.cmd.Stdout, u.cmd.Stderr = command.Env, command.Stdin, command.Stdout, command.Stderr
	u.cmd.SysProcAttr = attributes
	if command.Digest != "" {
		file, descriptor, err := launcher.OpenVerified(command.Path, command.Digest)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // the child has its own
		u.cmd.Path, u.cmd.Err = descriptor, nil
	}
	_, err := u.reaper.Start(func() (*os.Process, error) {
		err := u.cmd.Start()
		return u.cmd.Process, err
	})
	return err
}

// Terminal returns the master of the plugin's pseudoterminal; nil if it has none.
func (u *unconfined) Terminal() *os.File { return u.terminal }

// PID returns the plugin's process id.
func (u *unconfined) PID() int { return u.cmd.Process.Pid }

// Signal sends sig to the plugin's process group.
func (u *unconfined) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("send signal: %v is none", sig)
	}
	return syscall.Kill(-u.cmd.Process.Pid, number)
}

// Wait waits for the plugin's end and ends what it left in its group.
func (u *unconfined) Wait() (int, error) {
	err := u.cmd.Wait()
	u.reaper.Done(u.cmd.Process.Pid)
	_ = syscall.Kill(-u.cmd.Process.Pid, syscall.SIGKILL) // no process of it may be left
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, fmt.Errorf("wait for the plugin: %w", err)
	}
	status, ok := u.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return u.cmd.ProcessState.ExitCode(), nil
}

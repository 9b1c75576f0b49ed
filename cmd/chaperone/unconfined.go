package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/reaper"
)

// unconfined is the plugin while the kernel is off: an ordinary process in a
// session of its own, which its environment leads to the proxy and nothing
// holds there.
type unconfined struct {
	cmd    *exec.Cmd
	reaper *reaper.Reaper
}

func startUnconfined(args, env []string, children *reaper.Reaper) (*unconfined, error) {
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // the program to run is what the user says, and outlives no context
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	_, err := children.Start(func() (*os.Process, error) {
		err := cmd.Start()
		return cmd.Process, err
	})
	if err != nil {
		status := 126
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			status = 127
		}
		return nil, &ebpf.ExecError{Path: args[0], Status: status, Err: fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "exec: "))}
	}
	return &unconfined{cmd, children}, nil
}

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
	_ = syscall.Kill(-u.cmd.Process.Pid, syscall.SIGKILL) // nothing may be left
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return exitFailure, fmt.Errorf("wait for the plugin: %w", err)
	}
	status, ok := u.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return u.cmd.ProcessState.ExitCode(), nil
}

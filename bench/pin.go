package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// cores returns the CPU for what is measured and the one for what loads it and
// answers it: the last and the first of those that this process may use. On a
// machine with one CPU they are the same.
func cores() (server, load int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, 0, fmt.Errorf("see which CPUs there are: %w", err)
	}
	server, load = -1, -1
	for cpu := range len(set) * strconv.IntSize {
		if !set.IsSet(cpu) {
			continue
		}
		if load < 0 {
			load = cpu
		}
		server = cpu
	}
	return server, load, nil
}

func single(cpu int) *unix.CPUSet {
	var set unix.CPUSet
	set.Set(cpu)
	return &set
}

// startOn starts a command that has one CPU from its first instruction, which
// is also what Go's runtime then takes for the number of CPUs.
func startOn(cpu int, cmd *exec.Cmd) error {
	if cpu == anyCPU {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, single(cpu)); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	// A new process inherits the CPUs of the thread that makes it.
	return errors.Join(cmd.Start(), unix.SchedSetaffinity(0, &before))
}

// pin moves a running process and all its threads to one CPU.
func pin(pid, cpu int) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, single(cpu))
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin thread %s to CPU %d: %w", task.Name(), cpu, err)
		}
	}
	return nil
}

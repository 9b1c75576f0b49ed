package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidOffset is where siginfo_t has si_pid: behind si_signo, si_errno and
// si_code, aligned to a pointer (include/uapi/asm-generic/siginfo.h).
const (
	pointerSize = unsafe.Sizeof(uintptr(0))
	pidOffset   = (3*4 + pointerSize - 1) / pointerSize * pointerSize
)

// Adopts reports whether orphans become children of this process.
func Adopts() (bool, error) {
	if os.Getpid() == 1 {
		return true, nil
	}
	var subreaper int32
	if err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&subreaper)), 0, 0, 0); err != nil { //nolint:gosec // an int that the kernel writes
		return false, fmt.Errorf("read child subreaper attribute: %w", err)
	}
	return subreaper != 0, nil
}

// Run collects orphans until the context ends. Where none become children of
// this process, it returns at once.
func (r *Reaper) Run(ctx context.Context) error {
	if adopts, err := Adopts(); err != nil || !adopts {
		return err
	}
	ended := make(chan os.Signal, 1) // one that is not taken yet stands for all
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		if err := r.collect(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
		case <-r.poke:
		}
	}
}

// collect waits for every orphan that has ended. The kernel shows one child that
// has ended at a time, always the same one: once that is a child of our own, the
// others are looked for in /proc. Orphans that are missed there are collected when our
// own child is waited for.
func (r *Reaper) collect() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		pid, err := peek()
		if err != nil || pid == 0 {
			return err
		}
		if r.own[pid] {
			break
		}
		if err := take(pid); err != nil {
			return err
		}
	}
	children, err := children()
	if err != nil {
		return err
	}
	for _, pid := range children {
		if r.own[pid] {
			continue
		}
		if err := take(pid); err != nil { // a running one is not affected
			return err
		}
	}
	return nil
}

// peek returns the id of a child that has ended, without waiting for it, or 0.
func peek() (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("look for orphans: %w", err)
		}
		return int(siginfoPID(&info)), nil
	}
}

// take waits for a child, if it has ended.
func take(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.ECHILD):
			return nil
		}
		return fmt.Errorf("collect orphan %d: %w", pid, err)
	}
}

// siginfoPID is si_pid of a siginfo_t that waitid(2) filled.
func siginfoPID(info *unix.Siginfo) int32 {
	return *(*int32)(unsafe.Add(unsafe.Pointer(info), pidOffset)) //nolint:gosec // within the structure
}

// children lists the children of every thread of this process (proc(5)); none
// on a kernel without CONFIG_PROC_CHILDREN.
func children() ([]int, error) {
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, fmt.Errorf("list children: %w", err)
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended; its children are another's now
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func lockMemoryFlag(cmd *cobra.Command, lock *bool) {
	cmd.Flags().BoolVar(lock, "mlock", false, "never swap the sidecar's memory out; takes CAP_IPC_LOCK")
}

// hideMemory keeps what is in the sidecar's memory there: no other process of
// its user looks into it (ptrace(2), process_vm_readv(2), /proc/PID/mem), and no
// core is dumped. It comes after the parts are made: the fence maps the plugin's
// user by files of /proc that belong to root from here on (prctl(2),
// PR_SET_DUMPABLE). locked also keeps it from being swapped out.
func hideMemory(locked bool) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide the sidecar's memory: %w", err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	core.Cur = min(core.Max, 1) // a core_pattern that starts a handler ignores every limit but this (core(5))
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if !locked {
		return nil
	}
	// Go reserves far more addresses than it ever uses: only what is used is kept.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock the sidecar's memory: %w; it takes CAP_IPC_LOCK, or LimitMEMLOCK=infinity", err)
	}
	return nil
}

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// pidNamespace returns the inode of this process's PID namespace, by which the
// programs find the id that a process has in it. It is an error when /proc shows
// another namespace: a process that is named by its id would be a stranger there.
func pidNamespace() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("find PID namespace: %w; /proc has to show the sidecar's own PID namespace: mount -t proc proc /proc", err)
	}
	if err := ownProc(string(status)); err != nil {
		return 0, fmt.Errorf("find PID namespace: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &stat); err != nil {
		return 0, fmt.Errorf("find PID namespace: %w", err)
	}
	return uint32(stat.Ino), nil
}

// ownProc reports whether a process's own /proc/PID/status comes from a procfs
// of the process's own PID namespace: NSpid has an id for each namespace from
// that of the procfs down to the process's (proc(5)).
func ownProc(status string) error {
	for line := range strings.Lines(status) {
		ids, ok := strings.CutPrefix(line, "NSpid:")
		if !ok {
			continue
		}
		if n := len(strings.Fields(ids)); n != 1 {
			return fmt.Errorf("/proc shows a PID namespace %d above the sidecar's own; mount -t proc proc /proc (unshare: --mount-proc)", n-1)
		}
		return nil
	}
	return errors.New("/proc/self/status has no line NSpid; mount -t proc proc /proc")
}

package sidecar

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// garbageAllowance is how much garbage, in percent of what lives, is let be before
// it is collected, where GOGC does not say. Little lives in a sidecar, so that the
// default of 100 collects a few megabytes again and again: twice as much costs as
// little and takes a tenth off a check.
const garbageAllowance = 200

// softLimit is the memory of the Go runtime beyond which garbage is collected
// however little there is, in bytes, where GOMEMLIMIT does not say. The memory
// that the plugin can cause to be held is bounded by a budget of 72 MiB; without this limit three times as
// much would be resident until the garbage is collected.
const softLimit = 120 << 20

// TuneGC sets when the process collects garbage, unless GOGC and GOMEMLIMIT do. During
// uncollected only the soft limit has it collected: the start makes some 15 MiB, of which
// little is garbage, and two collections took a twentieth of its time.
func TuneGC() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(-1)
		time.AfterFunc(uncollected, func() { debug.SetGCPercent(garbageAllowance) })
	}
}

// uncollected is how long no garbage is collected, from the start of the process on. It
// is above what a start takes on an idle host, and short enough that the first requests
// of a plugin do not leave their garbage resident.
const uncollected = 250 * time.Millisecond

// startupTime is how long the start of a plugin still uses the memory of the sidecar's
// own start after it became ready, and settledTime how much later everything has run once
// that an idle sidecar does at intervals.
const (
	startupTime = 2 * time.Second
	settledTime = 10 * time.Second
)

// releaseStartupMemory gives back what only the start needed, once startupTime has
// passed, and again after settledTime, unless ctx ends. The heap holds three times as much
// at the end of the start as an idle sidecar lives on, and without a collection the Go
// runtime keeps all of it: an idle sidecar that does little collects garbage every two
// minutes and returns pages later still (runtime/debug.FreeOSMemory).
func releaseStartupMemory(ctx context.Context) {
	for _, wait := range []time.Duration{startupTime, settledTime} {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			debug.FreeOSMemory()
			releaseStartupPages()
		}
	}
}

// releaseStartupPages gives back the pages of the program's file that only its start
// needed: the descriptors of all messages that Envoy and Vault may send are read once.
// An idle sidecar has 11 MiB of the file resident with it, and 28 MiB without: what it does
// each second is in few pages, and the kernel maps 64 KiB around each (fault_around_bytes).
// The pages are mapped from the file and never written, so that the kernel reads them again
// when they are needed (madvise(2), MADV_DONTNEED). A failure is ignored.
func releaseStartupPages() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[5] != program || strings.Contains(fields[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err := strconv.ParseUint(from, 16, 64)
		end, failed := strconv.ParseUint(to, 16, 64)
		if err == nil && failed == nil && end > begin {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED)
		}
	}
}

// HideMemory keeps what is in the sidecar's memory there: no other process of
// its user looks into it (ptrace(2), process_vm_readv(2), /proc/PID/mem), and no
// core is dumped. It comes after the parts are made: the rootless sandbox maps the plugin's
// user by files of /proc that belong to root from here on (prctl(2),
// PR_SET_DUMPABLE). locked also keeps it from being swapped out.
func HideMemory(locked bool) error {
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

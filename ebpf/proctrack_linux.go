package ebpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// stillAlive marks the report of an escape that the kernel could not end
// (bpf/proctrack.bpf.c).
const stillAlive = 1

// proctrackFindings returns what an older kernel lacks for following processes and
// ending sockets. The programs load without: they look for each function by its
// name in the kernel's own types, as is done here.
func proctrackFindings() []Finding {
	has := func(function string) error {
		types, err := btf.LoadKernelSpec()
		if err != nil {
			return fmt.Errorf("read the kernel's types: %w", err)
		}
		var f *btf.Func
		if err := types.TypeByName(function, &f); err != nil {
			return fmt.Errorf("the kernel has no %s: %w", function, err)
		}
		return nil
	}
	return []Finding{{
		Name: "signals to other processes", Err: has("bpf_send_signal_task"),
		Lost:   "the instant in which a process that leaves the cgroup ends: the sidecar ends it some milliseconds later, and not while it is away",
		Remedy: "use Linux 6.13 or later",
	}, {
		Name: "ending of sockets", Err: has("bpf_sock_destroy"),
		Lost:   "connections that end without their holder: a process that keeps one made outside the cgroup is killed a second later",
		Remedy: "use Linux 6.5 or later",
	}}
}

// setTarget sets the plugin's cgroup, unless it is nil, in programs that follow tasks.
// In one of our own there are no cgroups below it.
func setTarget(spec *ebpf.CollectionSpec, group *sandbox.Cgroup, own bool) error {
	if _, ok := spec.Variables["cgroup_id"]; !ok {
		return nil // they follow none
	}
	descendants := uint32(1)
	if own {
		descendants = 0
	}
	errs := []error{spec.Variables["descendants"].Set(descendants)}
	if group != nil {
		errs = append(errs, spec.Variables["cgroup_id"].Set(group.ID))
	}
	if v, ok := spec.Variables["may_signal"]; ok { // programs that follow tasks always may
		errs = append(errs, v.Set(uint32(1)))
	}
	return errors.Join(errs...)
}

// attachProctrack puts the process programs in place and pins them, then marks the
// processes that are there already. A link on a tracepoint cannot be given
// another program: the new one is attached before the old one goes, and both
// run for a moment.
func (w *collection) attachProctrack(dir string) error {
	for _, name := range []string{"born", "moved"} {
		l, err := link.AttachTracing(link.TracingOptions{Program: w.proctrack.Programs[name]})
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		w.traces[name] = l
		if err := repin(l, filepath.Join(dir, linkPrefix+name)); err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
	}
	if err := iterate(w.proctrack.Programs["mark_present"]); err != nil {
		return fmt.Errorf("mark the plugin's processes: %w", err)
	}
	return nil
}

// iterate runs an iterator over everything it is for.
func iterate(program *ebpf.Program) error {
	l, err := link.AttachIter(link.IterOptions{Program: program})
	if err != nil {
		return err
	}
	walk, err := l.Open()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	_, err = io.Copy(io.Discard, walk)
	return errors.Join(err, walk.Close(), l.Close())
}

// endEscaped ends a process that left the cgroup where the kernel could not do
// it itself (before Linux 6.13). The id is one of the sidecar's PID namespace; it
// may have passed to another process since: one that is younger than the report
// is not the one.
func endEscaped(pid uint32, reported uint64) error {
	if pid == 0 {
		return errors.New("end escaped process: it is not visible in the sidecar's PID namespace; run the sidecar in the host's")
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end escaped process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	born, err := startTime(pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || err == nil && born > reported {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end escaped process %d: %w", pid, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end escaped process %d: %w", pid, err)
	}
	return nil
}

// startTime is when a process started, in ns of CLOCK_BOOTTIME, rounded down to
// the hundredth of a second in which proc(5) gives it.
func startTime(pid uint32) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything, so count from its end: what
	// follows is field 3, and the start is field 22.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("read start time: %d fields", len(fields))
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read start time: %w", err)
	}
	const perTick = 1e9 / 100 // USER_HZ, which is 100 on every Linux that Go runs on
	return ticks * perTick, nil
}

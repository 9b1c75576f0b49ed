package pilotrun

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// sample looks at the plugin once. It fails while the sidecar does not answer.
func (r *run) sample(ctx context.Context, cgroup string) (pilot.Sample, error) {
	s := pilot.Sample{At: time.Now()}
	var err error
	if s.RSSBytes, err = residentMemory(cgroup, r.cfg.Cgroup == ""); err != nil {
		return s, err
	}
	s.CgroupBytes = number(readFile(cgroup, "memory.current"))
	stat := keyed(readFile(cgroup, "cpu.stat"))
	s.CPU.TotalUS, s.CPU.ThrottledUS = stat["usage_usec"], stat["throttled_usec"]
	s.Pressure = pilot.Pressure{CPU: stall(cgroup, "cpu.pressure"), Memory: stall(cgroup, "memory.pressure"), IO: stall(cgroup, "io.pressure")}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	usage, err := r.child.client.Usage(ctx)
	if err != nil {
		return s, fmt.Errorf("read usage: %w", err)
	}
	status, err := r.child.client.Status(ctx)
	if err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	s.Syscalls, s.Network = counters(usage.Counters)
	if m := status.Mediation; m != nil {
		s.Mediation = pilot.Mediation{Known: true, Admitted: m.Admitted, Handled: m.Handled, Abandoned: m.Abandoned, Unmediated: m.Unmediated, Ended: m.Ended}
	}
	return s, nil
}

func counters(c *admin.Counters) (pilot.Syscalls, pilot.Network) {
	if c == nil {
		return pilot.Syscalls{}, pilot.Network{}
	}
	return pilot.Syscalls{Total: c.Syscalls, Uncounted: c.UncountedSyscalls, Classes: c.SyscallClasses}, pilot.Network{
		Connections: c.Connections, Refused: c.RefusedConnections, Limited: c.LimitedConnections,
		SentBytes: c.SentBytes, ReceivedBytes: c.ReceivedBytes, DNSQueries: c.DNSQueries,
	}
}

// maxSmall bounds the files of /proc and of cgroups that are read.
const maxSmall = 1 << 20

// readFile returns a small file, nil if it cannot be read.
func readFile(elem ...string) []byte {
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil || len(data) > maxSmall {
		return nil
	}
	return data
}

func number(text []byte) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keyed reads lines of a key and a number, as in cpu.stat (cgroups(7)).
func keyed(text []byte) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			out[key] = number([]byte(value))
		}
	}
	return out
}

// stall reads the totals of a file of pressure stall information:
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=0
func stall(cgroup, name string) *pilot.Stall {
	text := readFile(cgroup, name)
	if text == nil {
		return nil
	}
	totals := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		if kind, rest, ok := strings.Cut(line, " "); ok {
			if _, total, ok := strings.Cut(rest, "total="); ok {
				totals[kind] = number([]byte(total))
			}
		}
	}
	return &pilot.Stall{SomeUS: totals["some"], FullUS: totals["full"]}
}

// residentMemory returns the resident memory of all processes of a cgroup and of those
// below it, in bytes. The first process of a PID namespace does not count if the sidecar
// started the plugin: it is the sidecar's. In a container it is the plugin's.
func residentMemory(cgroup string, bySidecar bool) (int64, error) {
	total := int64(0)
	for _, pid := range processes(cgroup) {
		if rss, first := processMemory(pid); !first || !bySidecar {
			total += rss
		}
	}
	if total == 0 {
		return 0, fmt.Errorf("read cgroup %s: no process of it has resident memory", cgroup)
	}
	return total, nil
}

// processes returns the ids of the processes of a cgroup and of those below it.
func processes(cgroup string) (pids []string) {
	_ = filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error { // the function returns no error
		if err == nil && d.IsDir() { // a cgroup below it that is gone has no processes
			pids = append(pids, strings.Fields(string(readFile(path, "cgroup.procs")))...)
		}
		return nil
	})
	return pids
}

// processMemory returns VmRSS of a process, 0 for one that is gone, and whether it is the
// first one of a PID namespace other than the host's (proc(5)).
func processMemory(pid string) (rss int64, first bool) {
	for line := range strings.Lines(string(readFile("/proc", pid, "status"))) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case key == "NSpid" && len(fields) > 1 && fields[len(fields)-1] == "1":
			first = true
		case key == "VmRSS" && len(fields) > 0:
			const kibibyte = 1024
			rss = number([]byte(fields[0])) * kibibyte
		}
	}
	return rss, first
}

// environment describes the host.
func environment(version string) pilot.Environment {
	e := pilot.Environment{Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Sidecar: version}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		e.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	for line := range strings.Lines(string(readFile("/proc/cpuinfo"))) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			e.CPU = strings.TrimSpace(value)
			break
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		e.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	return e
}

// limit returns the limit of a cgroup in a file, as in cpu.max. A container runtime may make
// the container's cgroup below the given one and limit that: if a cgroup has no limit, that
// of the only one below it counts.
func limit(cgroup, file string) string {
	text := strings.TrimSpace(string(readFile(cgroup, file)))
	if text != "" && !strings.HasPrefix(text, "max") {
		return text
	}
	entries, err := os.ReadDir(cgroup)
	below := slices.DeleteFunc(entries, func(d fs.DirEntry) bool { return !d.IsDir() })
	if err != nil || len(below) != 1 {
		return text
	}
	return cmp.Or(limit(filepath.Join(cgroup, below[0].Name()), file), text)
}

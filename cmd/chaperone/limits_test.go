package main

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunLimit checks that limits of each kind act, each with one record.
func TestRunLimit(t *testing.T) {
	// Bytes beyond a limit are dropped, so that curl hangs until its own limit, which a
	// busy machine must not reach before the first is served.
	const codes = `-s -o /dev/null -w '%{http_code} '`
	for _, c := range []struct {
		name, limit, script, wants, says string
	}{
		{"requests", "requests: 2/1h", `for i in 1 2 3; do curl CODES URL; done`, "200 200 429", "requests exceeded: 2/1h; requests are refused"},
		{"requests in all", "requests: 1", `for i in 1 2; do curl CODES URL; done`, "200 429", "requests exceeded: 1; requests are refused"},
		{"connections", "connections: 2/1h", `for i in 1 2 3; do curl CODES URL; done`, "200 200 000", "connections exceeded: 2/1h; further use is refused"},
		{"bytes sent", "sentBytes: 20KiB/1h", `while [ "$got" != 000 ]; do got=$(curl -m 6 CODES URL | tr -d " "); echo $got; done`, "200 ... 000", "sentBytes exceeded: 20KiB/1h; further use is refused"},
		{"bytes received", "receivedBytes: 30KiB/1h", `while [ "$got" != 000 ]; do got=$(curl -m 6 CODES URL | tr -d " "); echo $got; done`, "200 ... 000", "receivedBytes exceeded: 30KiB/1h; further use is refused"},
		{"system calls", "syscalls: 3000/1h", `for i in $(seq 60); do ls / > /dev/null; done; curl CODES URL`, "000", "syscalls exceeded: 3000/1h; further use is refused"},
		{"processes", "processes: 5/1h", `for i in $(seq 9); do /bin/echo one; done`, "one one one one", "processes exceeded: 5/1h; further processes are ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newEnv(t, "required", "  limits: {"+c.limit+"}\n")
			r := w.Run("sh", "-c", strings.NewReplacer("CODES", codes, "URL", w.URL("/v1/forecast")).Replace(c.script))
			first, last, many := strings.Cut(c.wants, " ... ")
			if got := strings.Join(strings.Fields(r.Stdout), " "); got != c.wants && !(many && strings.HasPrefix(got, first) && strings.HasSuffix(got, last)) {
				t.Errorf("got %q, want %q\n%s", got, c.wants, r.Stderr)
			}
			log := w.audit()
			scenario.Contains(t, log, c.says)
			if n := strings.Count(log, `"kind":"limit"`); n != 1 {
				t.Errorf("%d records of kind limit, not 1", n)
			}
		})
	}
	t.Run("a total survives a restart", func(t *testing.T) {
		w := newEnv(t, "off", "  limits: {requests: 1}\n")
		for i, wants := range []string{"200", "429"} {
			if r := w.Run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast")); r.Stdout != wants {
				t.Errorf("run %d: got %q, want %q\n%s", i, r.Stdout, wants, r.Stderr)
			}
		}
	})
	t.Run("a total of the kernel's survives a restart", func(t *testing.T) {
		w := newEnv(t, "required", "  limits: {connections: 1}\n")
		for i, wants := range []string{"200", "000"} {
			r := w.Run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast"))
			if r.Stdout != wants {
				t.Errorf("run %d: got %q, want %q\n%s", i, r.Stdout, wants, r.Stderr)
			}
			if wants == "000" {
				scenario.Contains(t, r.Stderr, "quota_exceeded: weather may use connections: 1, and has", "ask for a higher limits.connections in grant weather")
			}
		}
	})
}

// TestRunLimitKill ends a plugin at its limit.
func TestRunLimitKill(t *testing.T) {
	w := newEnv(t, "required", "  limits: {syscalls: 5000/1h, onExceeded: kill}\n")
	if r := w.Run("sh", "-c", "while :; do ls / > /dev/null; done"); r.Status != 128+int(syscall.SIGKILL) {
		t.Errorf("status %d\n%s", r.Status, r.Stderr)
	}
	scenario.Contains(t, w.audit(), "syscalls exceeded: 5000/1h; the plugin is ended")
}

// TestRunLimitStop stops a plugin at its limit, prints that, and continues it.
func TestRunLimitStop(t *testing.T) {
	w := newEnv(t, "required", "  limits: {syscalls: 20000/20s, onExceeded: stop}\n")
	w.Start("sh", "-c", "while :; do ls / > /dev/null; done")
	client := admin.Dial(w.File("state/admin.sock"))
	status := testenv.Eventually(t, "the plugin is stopped", func() (admin.Status, bool) {
		s, err := client.Status(t.Context())
		return s, err == nil && s.Process != nil && s.Process.State == "stopped"
	})
	if status.Process.StoppedBy != "weather syscalls" || status.Process.StoppedUntil.Before(time.Now()) {
		t.Errorf("stopped by %q until %s", status.Process.StoppedBy, status.Process.StoppedUntil)
	}
	usage, err := client.Usage(t.Context())
	if err != nil || len(usage.Limits) != 1 || usage.Limits[0].State != "stopped" || usage.Limits[0].OnExceeded != "stop" {
		t.Errorf("usage: %+v, %v", usage.Limits, err)
	}
	scenario.Contains(t, w.Chaperone("status", "--config", w.File("sidecar.yaml")).Stdout, "stopped by limit weather syscalls until ")
	scenario.Contains(t, w.Chaperone("usage", "--config", w.File("sidecar.yaml")).Stdout, "stopped until ")
	testenv.Eventually(t, "it goes on", func() (int, bool) {
		s, err := client.Status(t.Context())
		return 0, err == nil && s.Process.State == "running"
	})
	scenario.Contains(t, w.audit(), "the plugin is stopped until a tenth of it is free")
}

// TestRunLimitCounting has system calls counted only where the limit is near or the grant
// asks for it, and shows which.
func TestRunLimitCounting(t *testing.T) {
	for _, test := range []struct {
		name, limits string
		counted      bool
		status       string
	}{
		{"far", "syscalls: 1000000000000", false, "system calls are bounded by CPU time"},
		{"near", "syscalls: 100000", true, "system calls are counted one by one"},
		{"exact", "syscalls: 1000000000000, countSyscalls: exact", true, "system calls are counted one by one"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newEnv(t, "required", "  limits: {"+test.limits+"}\n")
			w.Start("sh", "-c", "while :; do sleep 0.1; done")
			client := admin.Dial(w.File("state/admin.sock"))
			testenv.Eventually(t, "calls are metered", func() (admin.Usage, bool) {
				s, err := client.Status(t.Context())
				if err != nil || s.Kernel.Syscalls == nil || s.Kernel.Syscalls.Counted != test.counted {
					return admin.Usage{}, false
				}
				u, err := client.Usage(t.Context())
				return u, err == nil && u.Counters != nil && u.Counters.Syscalls > 0 && (u.Counters.UncountedSyscalls > 0) == !test.counted
			})
			scenario.Contains(t, w.Chaperone("status", "--config", w.File("sidecar.yaml")).Stdout, test.status)
			if !test.counted {
				scenario.Contains(t, w.Chaperone("usage", "--config", w.File("sidecar.yaml")).Stdout, "estimated from CPU time")
			}
		})
	}
}

// TestRunLimitReload puts a first limit on system calls in force while the
// plugin runs, and removes it again.
func TestRunLimitReload(t *testing.T) {
	w := newEnv(t, "required", "")
	w.Start("sh", "-c", "while :; do ls / > /dev/null; sleep 0.01; done")
	w.Ready()
	w.Grant(time.Now().Add(time.Hour), "  limits: {syscalls: 2000/1h}\n")
	if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
		t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	testenv.Eventually(t, "it is exceeded", func() (int, bool) {
		return 0, strings.Contains(w.audit(), "syscalls exceeded: 2000/1h")
	})
	w.Grant(time.Now().Add(time.Hour), "")
	if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
		t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	usage, err := admin.Dial(w.File("state/admin.sock")).Usage(t.Context())
	if err != nil || len(usage.Limits) != 0 {
		t.Errorf("usage: %+v, %v", usage.Limits, err)
	}
}

// TestRunLimitFold records the first of the crossings that follow one another
// as the plugin is stopped and resumed, and then how many there were.
func TestRunLimitFold(t *testing.T) {
	w := newEnv(t, "required", "  limits: {syscalls: 2000/200ms, onExceeded: stop}\n")
	r := w.Run("python3", "-c", "import os, time\nend = time.time() + 1.5\nwhile time.time() < end: os.getppid()")
	if r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	var counts []string
	for line := range strings.Lines(w.audit()) {
		if strings.Contains(line, `"kind":"limit"`) {
			_, count, _ := strings.Cut(line, `"count":`)
			count, _, _ = strings.Cut(count, ",")
			counts = append(counts, count)
		}
	}
	if len(counts) != 2 || counts[0] != "" || counts[1] == "" {
		t.Errorf("recorded with the counts %q", counts)
	}
}

// TestRunLimitRefusedCalls ends a plugin that makes system calls which the filter
// refuses, as for any others: answered by the kernel, reported to the sidecar,
// unknown.
func TestRunLimitRefusedCalls(t *testing.T) {
	first := newEnv(t, "required", "")
	for name, number := range map[string]int{"getppid": unix.SYS_GETPPID, "clone3": unix.SYS_CLONE3, "ptrace": unix.SYS_PTRACE, "unshare": unix.SYS_UNSHARE, "none": 9999} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := first.another(t, "  limits: {syscalls: 20000/1h, onExceeded: kill}\n")
			r := w.Run("python3", "-S", "-c", "import ctypes\nc = ctypes.CDLL(None).syscall\nfor _ in range(200000): c("+strconv.Itoa(number)+", 0, 0, 0, 0, 0, 0)\nprint('made')")
			if r.Status != 128+int(syscall.SIGKILL) || r.Stdout != "" {
				t.Errorf("status %d, %q\n%s", r.Status, r.Stdout, r.Stderr)
			}
			scenario.Contains(t, r.Stderr, "limit syscalls of grant weather exceeded: 20000/1h; the plugin is ended")
		})
	}
}

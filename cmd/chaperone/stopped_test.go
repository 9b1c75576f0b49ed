package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// stopped waits until a limit has stopped the plugin.
func (w *env) stopped() admin.Process {
	w.T.Helper()
	client := admin.Dial(w.File("state/admin.sock"))
	return testenv.Eventually(w.T, "a limit stops the plugin", func() (admin.Process, bool) {
		s, err := client.Status(w.T.Context())
		if err != nil || s.Process == nil || s.Process.StoppedBy == "" {
			return admin.Process{}, false
		}
		return *s.Process, true
	})
}

// TestRunStoppedEnds checks that a plugin which a limit has stopped, and which
// handles signals, can be ended.
func TestRunStoppedEnds(t *testing.T) {
	const busy = `trap 'exit 9' TERM INT QUIT; while :; do ls / >/dev/null; done`
	for _, c := range []struct {
		name, limit string
		signals     []os.Signal
		status      int
	}{
		{"a total, SIGTERM", "syscalls: 50000", []os.Signal{syscall.SIGTERM}, 137},
		{"a total, SIGINT", "syscalls: 50000", []os.Signal{syscall.SIGINT}, 137},
		{"a total, SIGQUIT", "syscalls: 50000", []os.Signal{syscall.SIGQUIT}, 137},
		{"a rate that recovers later than the drain", "syscalls: 50000/10m", []os.Signal{syscall.SIGTERM}, 137},
		{"a rate that recovers within the drain", "syscalls: 50000/15s", []os.Signal{syscall.SIGTERM}, 9},
		{"asked twice", "syscalls: 50000/15s", []os.Signal{syscall.SIGTERM, syscall.SIGTERM}, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEnv(t, "required", "  limits: {"+c.limit+", onExceeded: stop}\n")
			b := w.Start("bash", "-c", busy)
			w.stopped()
			for _, sig := range c.signals {
				if err := b.Cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond) // two of a kind would be one
			}
			began := time.Now()
			if got := b.Wait(); got != c.status {
				t.Errorf("got status %d, want %d", got, c.status)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %s", took)
			}
			output := b.Output.String()
			scenario.Contains(t, output, "chaperone: limit syscalls of grant weather exceeded: ", "ask for a higher limits.syscalls in grant weather")
			if killed := strings.Contains(output, "is killed"); killed != (c.status == 137) {
				t.Errorf("printed\n%s", output)
			}
		})
	}
}

// TestRunLimitPrinted checks that each act of a limit is printed once, with its
// name and what to ask for.
func TestRunLimitPrinted(t *testing.T) {
	const fetch = `curl -s -m 60 -o /dev/null URL`
	for _, c := range []struct{ name, limits, script, says string }{
		{"connections refused", "connections: 1/1h", `for i in 1 2 3; do ` + fetch + `; done`, "refused connect to the proxy, for which no destination was named yet: quota_exceeded: weather may use connections: 1/1h"},
		{"processes", "processes: 30/1h", `for i in $(seq 40); do /bin/true; done`, "limit processes of grant weather exceeded: 30/1h; further processes are ended"},
		{"processes throttled", "processes: 30/1h, onExceeded: throttle", `for i in $(seq 40); do /bin/true; done`, "limit processes of grant weather exceeded: 30/1h; further processes are ended"},
		{"processes killed", "processes: 30/1h, onExceeded: kill", `for i in $(seq 40); do /bin/true; done`, "limit processes of grant weather exceeded: 30/1h; the plugin is ended"},
		{"bytes", "receivedBytes: 20KiB", `while curl -s -m 6 -o /dev/null URL; do :; done`, "limit receivedBytes of grant weather exceeded: 20KiB; further use is refused permanently"},
		{"bytes killed", "sentBytes: 20KiB, onExceeded: kill", `for i in $(seq 50); do ` + fetch + `; done`, "limit sentBytes of grant weather exceeded: 20KiB; the plugin is ended"},
		{"system calls throttled", "syscalls: 20000/1s, onExceeded: throttle", `python3 -c "import os; [os.getppid() for _ in range(100000)]"`, "limit syscalls of grant weather exceeded: 20000/1s; the plugin is slowed down to it"},
		{"system calls killed", "syscalls: 20000, onExceeded: kill", `while :; do ls / >/dev/null; done`, "limit syscalls of grant weather exceeded: 20000; the plugin is ended"},
		{"requests killed", "requests: 1/1h, onExceeded: kill", `for i in 1 2 3; do ` + fetch + `; done; sleep 5`, "limit requests of grant weather exceeded: 1/1h; the plugin is ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEnv(t, "required", "  limits: {"+c.limits+"}\n")
			r := w.Run("bash", "-c", strings.ReplaceAll(c.script, "URL", w.URL("/v1/forecast")))
			if n := strings.Count(r.Stderr, "chaperone: "+c.says); n != 1 {
				t.Errorf("printed %d times, not once: %q in\n%s", n, c.says, r.Stderr)
			}
			scenario.Contains(t, r.Stderr, "ask for a higher limits.")
		})
	}
}

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRestartUnderEveryLimit uses a limit up and starts the plugin again at once:
// after its orderly end and after a kill of its sidecar, nothing is free again.
func TestRestartUnderEveryLimit(t *testing.T) {
	const fetch = `curl -s -m 60 -o /dev/null -w '%{http_code} ' URL; true`
	// Bytes beyond a limit are dropped, so that curl hangs until its own limit.
	const hang = `curl -s -m 6 -o /dev/null -w '%{http_code} ' URL; true`
	const untilHang = `until curl -s -m 6 -o /dev/null -w '%{http_code} ' URL | grep -q 000; do :; done; echo used`
	first := newEnv(t, "required", "")
	for _, c := range []struct {
		name, limit string
		use         string // uses the limit up, and prints something
		again       string // the command of the second plugin
		wants       string // its output
		status      int    // and its status
		says        string // on stderr
	}{
		{"requests", "requests: 2/1h", fetch + `; ` + fetch, fetch, "429", 0, "quota_exceeded"},
		{"requests in all", "requests: 2", fetch + `; ` + fetch, fetch, "429", 0, "quota_exceeded"},
		{"requests, kill", "requests: 2/1h, onExceeded: kill", fetch + `; ` + fetch, fetch + `; sleep 20`, "", 137, "requests exceeded: 2/1h"},
		{"connections", "connections: 2/1h", fetch + `; ` + fetch, fetch, "000", 0, "connections: 2/1h, and has"},
		{"connections in all", "connections: 2", fetch + `; ` + fetch, fetch, "000", 0, "connections: 2, and has"},
		{"connections, kill", "connections: 2/1h, onExceeded: kill", fetch + `; ` + fetch, fetch + `; sleep 20`, "", 137, "limit connections of grant weather exceeded: 2/1h"},
		{"bytes sent", "sentBytes: 20KiB/30d", untilHang, hang, "000", 0, "sentBytes"},
		{"bytes received", "receivedBytes: 30KiB/1h", untilHang, hang, "000", 0, "receivedBytes exceeded: 30KiB/1h"},
		{"system calls", "syscalls: 3000/1h", `for i in $(seq 60); do ls / > /dev/null; done; echo used`, fetch, "000", 0, "syscalls: 3000/1h, and has"},
		{"system calls, kill", "syscalls: 9000/1h, onExceeded: kill", `echo used; for i in $(seq 400); do ls / > /dev/null; done`, "echo ran", "", 125, "limit syscalls of grant weather is used up: 9000/1h"},
		{"processes", "processes: 5/1h", `for i in $(seq 9); do /bin/echo one; done`, "/bin/echo one; echo", "", 0, "limit processes of grant weather exceeded: 5/1h"},
	} {
		for _, killed := range []bool{false, true} {
			name := c.name + " after an orderly end"
			if killed {
				name = c.name + " after a kill"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := first.another(t, "  limits: {"+c.limit+"}\n")
				script := func(s string) string { return strings.ReplaceAll(s, "URL", w.URL("/v1/forecast")) }
				if killed {
					b := w.Start("sh", "-c", script(c.use)+"; echo everything; sleep 60")
					testenv.Eventually(t, "it is used up", func() (int, bool) {
						ended := false
						select {
						case <-b.Ended: // by the limit
							ended = true
						default:
						}
						return 0, ended || strings.Contains(b.Output.String(), "everything") // "all" is in syscalls
					})
					_ = b.Cmd.Process.Kill() // it may have ended
					<-b.Ended
				} else {
					w.Run("sh", "-c", script(c.use))
				}
				r := w.Run("sh", "-c", script(c.again))
				if got := strings.TrimSpace(r.Stdout); got != c.wants || r.Status != c.status {
					t.Errorf("got %q with status %d, want %q with %d\n%s", got, r.Status, c.wants, c.status, r.Stderr)
				}
				if c.name == "bytes sent" {
					// The room that is left decides whether the connect is refused, or the packet after it.
					scenario.Contains(t, r.Stderr, c.says)
					return
				}
				scenario.Contains(t, r.Stderr+w.audit(), c.says)
			})
		}
	}
}

// TestRestartWithinARate lets a plugin use what an earlier run has left of a rate.
func TestRestartWithinARate(t *testing.T) {
	w := newEnv(t, "required", "  limits: {requests: 3/1h, connections: 3/1h}\n")
	var got []string
	for range 5 {
		got = append(got, strings.TrimSpace(w.Run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast")).Stdout))
	}
	if want := []string{"200", "200", "200", "000", "000"}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRatesWithoutRoom refuses requests under a limit while the stateDir cannot be
// written to.
func TestRatesWithoutRoom(t *testing.T) {
	w := newEnv(t, "off", "  limits: {requests: 2/1h}\n")
	testenv.Require(t, testenv.Superuser()) // for the mount
	kept, rates := w.File("kept.json"), w.File("state/rates.json")
	testenv.Must(t, os.MkdirAll(w.File("state"), 0o700))
	testenv.Must(t, os.WriteFile(kept, []byte("{}"), 0o600))
	testenv.Must(t, os.WriteFile(rates, nil, 0o600))
	testenv.Must(t, unix.Mount(kept, rates, "", unix.MS_BIND, "")) // a mount point cannot be replaced: EBUSY (rename(2))
	t.Cleanup(func() { testenv.Must(t, unix.Unmount(rates, 0)) })
	r := w.Run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast"))
	if r.Stdout != "503" {
		t.Errorf("got %q\n%s", r.Stdout, r.Stderr)
	}
	scenario.Contains(t, r.Stderr, "usage_unknown")
}

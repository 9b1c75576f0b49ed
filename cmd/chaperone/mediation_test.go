package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestRunMediation accounts for every connection of a plugin's.
func TestRunMediation(t *testing.T) {
	w := newWorld(t, "required", "")
	w.start("sh", "-c", fmt.Sprintf("for i in 1 2 3; do curl -sS -o /dev/null %s; done; sleep 60", w.url("/v1/forecast")))
	eventually(t, "three connections are handled", func() (string, bool) {
		m := w.ready().Mediation
		return fmt.Sprintf("%+v", m), m != nil && m.Admitted == 3 && m.Handled == 3 && m.Unmediated == 0 && len(m.Strays) == 0
	})
	r := w.chaperone("status", "--config", w.file("sidecar.yaml"))
	contains(t, r.stdout, "3 connections admitted, 3 handled, 0 abandoned, 0 pending, 0 UNMEDIATED")
}

// TestRunStray lets the sidecar run out of files, so that it takes no more
// connections: each that waits is named, and recorded once.
func TestRunStray(t *testing.T) {
	w := newWorld(t, "required", "")
	const hoard = `
import os, socket, time, urllib.parse
at = urllib.parse.urlparse(os.environ["http_proxy"])
os.fork(), os.fork() # each has the sidecar's own bound on files
held = [socket.create_connection((at.hostname, at.port)) for _ in range(100)]
time.sleep(60)`
	binary := testenv.MustGet(exec.LookPath("chaperone"))(t)
	b := w.startProgram("sh", "-c", `ulimit -n 240; exec "$0" "$@"`, binary, "run", "--config", w.file("sidecar.yaml"), "--", "python3", "-c", hoard)
	eventually(t, "strays are recorded", func() (int, bool) {
		n := strings.Count(w.audit(), `"kind":"stray"`)
		return n, n > 50
	})
	_ = b.cmd.Process.Signal(os.Interrupt)
	b.wait()
	seen := map[string]bool{}
	for line := range strings.Lines(w.audit()) {
		if !strings.Contains(line, `"kind":"stray"`) {
			continue
		}
		contains(t, line, `"exe":"python3"`, `"pid":`, `"port":`)
		_, since, _ := strings.Cut(line, `"detail":"`)
		if seen[since] {
			t.Errorf("recorded twice: %s", line)
		}
		seen[since] = true
	}
}

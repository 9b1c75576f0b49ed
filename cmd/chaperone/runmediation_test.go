package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunMediation accounts for every connection of a plugin's.
func TestRunMediation(t *testing.T) {
	w := newEnv(t, "required", "")
	w.Start("sh", "-c", fmt.Sprintf("for i in 1 2 3; do curl -sS -o /dev/null %s; done; sleep 60", w.URL("/v1/forecast")))
	testenv.Eventually(t, "three connections are handled", func() (string, bool) {
		m := w.Ready().Mediation
		return fmt.Sprintf("%+v", m), m != nil && m.Admitted == 3 && m.Handled == 3 && m.Unmediated == 0 && len(m.UnmediatedConnections) == 0
	})
	r := w.Chaperone("status", "--config", w.File("sidecar.yaml"))
	scenario.Contains(t, r.Stdout, "3 connections admitted, 3 handled, 0 abandoned, 0 pending, 0 UNMEDIATED")
}

// TestRunStray holds the sidecar up while its plugin connects: what waits for
// longer than a second is named, recorded once, and handled after all.
func TestRunStray(t *testing.T) {
	w := newEnv(t, "required", "")
	const crowd = `
import os, socket, time, urllib.parse
at = urllib.parse.urlparse(os.environ["http_proxy"])
while True:
    held = [socket.create_connection((at.hostname, at.port)) for _ in range(1000)]
    time.sleep(1)`
	b := w.Start("python3", "-c", crowd)
	w.Ready()
	testenv.Eventually(t, "a stray is recorded", func() (int, bool) {
		testenv.Must(t, b.Cmd.Process.Signal(syscall.SIGSTOP))
		time.Sleep(1500 * time.Millisecond) // a connection counts as unmediated after a second
		testenv.Must(t, b.Cmd.Process.Signal(syscall.SIGCONT))
		time.Sleep(200 * time.Millisecond)
		return 0, strings.Contains(w.audit(), `"kind":"stray"`)
	})
	testenv.Eventually(t, "none is left", func() (int, bool) {
		m := w.Ready().Mediation
		return 0, len(m.UnmediatedConnections) == 0 && m.Unmediated == 0
	})
	_ = b.Cmd.Process.Signal(os.Interrupt)
	b.Wait()
	seen := map[string]bool{}
	for line := range strings.Lines(w.audit()) {
		if !strings.Contains(line, `"kind":"stray"`) {
			continue
		}
		scenario.Contains(t, line, `"exe":"python3"`, `"pid":`, `"port":`)
		_, since, _ := strings.Cut(line, `"detail":"`)
		since, _, _ = strings.Cut(since, `"`)
		if seen[since] {
			t.Errorf("recorded twice: %s", line)
		}
		seen[since] = true
	}
}

package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestReloadAll reloads the sidecars of a host, first all with files that load,
// then with those of one broken.
func TestReloadAll(t *testing.T) {
	h := newHost(t, "one", "two")
	h.start("one", "two")
	got := h.Chaperone("reload", "--all")
	if got.Status != 0 || !strings.HasSuffix(got.Stdout, "2 of 2 sidecars: in force\n") {
		t.Errorf("status %d:\n%s%s", got.Status, got.Stdout, got.Stderr)
	}
	grant := string(testenv.MustGet(os.ReadFile(h.File("two/grant.yaml")))(t))
	h.Write("two/grant.yaml", strings.Replace(grant, "methods", "method", 1))
	got = h.Chaperone("reload", "--all")
	if got.Status != 1 || !strings.HasSuffix(got.Stdout, "1 of 2 sidecars: in force\n") || !strings.Contains(got.Stdout, `NOT IN FORCE`) {
		t.Errorf("status %d:\n%s%s", got.Status, got.Stdout, got.Stderr)
	}
	if got := h.Chaperone("reload", "--all", "--plugin", "one"); got.Status != 2 {
		t.Errorf("status %d with --plugin", got.Status)
	}
}

// TestPrintCurl runs what --print-curl prints, and gets the answer of the command.
func TestPrintCurl(t *testing.T) {
	testenv.Require(t, testenv.Program("curl"))
	h := newHost(t, "one")
	h.start("one")
	for _, command := range []string{"status", "usage", "reload"} {
		printed := h.Chaperone(command, "--plugin", "one", "--print-curl")
		if printed.Status != 0 || !strings.HasPrefix(printed.Stdout, "curl --unix-socket ") {
			t.Fatalf("%s: status %d: %s%s", command, printed.Status, printed.Stdout, printed.Stderr)
		}
		shell := exec.Command("sh", "-c", strings.Replace(printed.Stdout, "curl", "curl -sS", 1))
		answer := testenv.MustGet(shell.Output())(t)
		if !json.Valid(answer) || !strings.Contains(string(answer), `"generation"`) && command != "usage" {
			t.Errorf("%s: curl got %s", command, answer)
		}
	}
	if got := h.Chaperone("reload", "--all", "--print-curl"); got.Status != 2 {
		t.Errorf("status %d with --all", got.Status)
	}
}

func TestStatusWatch(t *testing.T) {
	h := newHost(t, "one")
	h.start("one")
	b := h.StartCommand("status", "--plugin", "one", "--watch", "--output", "json")
	testenv.Eventually(t, "two readings", func() (int, bool) {
		n := strings.Count(b.Output.String(), `"plugin": "one"`)
		return n, n >= 2
	})
	testenv.Must(t, b.Cmd.Process.Signal(os.Interrupt))
	<-b.Ended
	if status := b.Cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("status %d after an interrupt", status)
	}
}

// TestHealthListener serves health and no metrics on the listener of its own.
func TestHealthListener(t *testing.T) {
	h := newHost(t, "one")
	address := testenv.FreeAddress(t)
	spec := string(testenv.MustGet(os.ReadFile(h.config("one")))(t))
	h.Write("one/sidecar.yaml", strings.Replace(spec, "listen: {", "listen: {health: \""+address+"\", ", 1))
	h.start("one")
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/readyz?verbose": 200, "/metrics": 404} {
		answer := testenv.MustGet(http.Get("http://" + address + path))(t)
		_ = answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, answer.StatusCode, want)
		}
	}
}

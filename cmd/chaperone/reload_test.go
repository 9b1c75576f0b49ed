package main

import (
	"encoding/json"
	"net"
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
	got := h.chaperone("reload", "--all")
	if got.status != 0 || !strings.HasSuffix(got.stdout, "2 of 2 sidecars: in force\n") {
		t.Errorf("status %d:\n%s%s", got.status, got.stdout, got.stderr)
	}
	grant := string(testenv.MustGet(os.ReadFile(h.file("two/grant.yaml")))(t))
	h.write("two/grant.yaml", strings.Replace(grant, "methods", "method", 1))
	got = h.chaperone("reload", "--all")
	if got.status != 1 || !strings.HasSuffix(got.stdout, "1 of 2 sidecars: in force\n") || !strings.Contains(got.stdout, `NOT IN FORCE`) {
		t.Errorf("status %d:\n%s%s", got.status, got.stdout, got.stderr)
	}
	if got := h.chaperone("reload", "--all", "--plugin", "one"); got.status != 2 {
		t.Errorf("status %d with --plugin", got.status)
	}
}

// TestPrintCurl runs what --print-curl prints, and gets the answer of the command.
func TestPrintCurl(t *testing.T) {
	testenv.Require(t, testenv.Program("curl"))
	h := newHost(t, "one")
	h.start("one")
	for _, command := range []string{"status", "usage", "reload"} {
		printed := h.chaperone(command, "--plugin", "one", "--print-curl")
		if printed.status != 0 || !strings.HasPrefix(printed.stdout, "curl --unix-socket ") {
			t.Fatalf("%s: status %d: %s%s", command, printed.status, printed.stdout, printed.stderr)
		}
		shell := exec.Command("sh", "-c", strings.Replace(printed.stdout, "curl", "curl -sS", 1))
		answer := testenv.MustGet(shell.Output())(t)
		if !json.Valid(answer) || !strings.Contains(string(answer), `"generation"`) && command != "usage" {
			t.Errorf("%s: curl got %s", command, answer)
		}
	}
	if got := h.chaperone("reload", "--all", "--print-curl"); got.status != 2 {
		t.Errorf("status %d with --all", got.status)
	}
}

func TestStatusWatch(t *testing.T) {
	h := newHost(t, "one")
	h.start("one")
	b := h.startCommand("status", "--plugin", "one", "--watch", "--output", "json")
	eventually(t, "two readings", func() (int, bool) {
		n := strings.Count(b.output.String(), `"plugin": "one"`)
		return n, n >= 2
	})
	testenv.Must(t, b.cmd.Process.Signal(os.Interrupt))
	<-b.ended
	if status := b.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("status %d after an interrupt", status)
	}
}

// TestHealthListener serves health and no metrics on the listener of its own.
func TestHealthListener(t *testing.T) {
	h := newHost(t, "one")
	free := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	address := free.Addr().String()
	testenv.Must(t, free.Close())
	spec := string(testenv.MustGet(os.ReadFile(h.config("one")))(t))
	h.write("one/sidecar.yaml", strings.Replace(spec, "listen: {", "listen: {health: \""+address+"\", ", 1))
	h.start("one")
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/readyz?verbose": 200, "/metrics": 404} {
		answer := testenv.MustGet(http.Get("http://" + address + path))(t)
		_ = answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, answer.StatusCode, want)
		}
	}
}

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunRootless checks what holds a plugin while the kernel half is off: it
// reaches the sidecar and nothing else, and what is missing is printed.
func TestRunRootless(t *testing.T) {
	w := newEnv(t, "off", "")
	past := w.API.URL("localhost", "/open")
	r := w.Run("sh", "-c", fmt.Sprintf(`curl -sS -o /dev/null -w '%%{http_code}\n' %s
curl -sS -k -m 5 --noproxy '*' -o /dev/null -w 'past: %%{http_code}\n' %s
cat %s; ls %s`, w.URL("/v1/forecast"), past, w.File("secret-id"), w.File("state")))
	scenario.Contains(t, r.Stdout, "200\n", "past: 000")
	if strings.Contains(r.Stdout, w.Read("secret-id")) || strings.Contains(r.Stdout, "audit.jsonl") {
		t.Errorf("the sidecar's own files can be seen:\n%s", r.Stdout)
	}
	if n := strings.Count(r.Stderr, "chaperone: kernel off: usage is not metered"); n != 1 {
		t.Errorf("got the limitations printed %d times, want once:\n%s", n, r.Stderr)
	}
	scenario.Contains(t, w.audit(), "confined without the kernel half")
}

// TestRunRootlessRelative hides the sidecar's own files however they are named.
func TestRunRootlessRelative(t *testing.T) {
	w := newEnv(t, "off", "")
	cmd := w.Command("run", "--config", "sidecar.yaml", "--", "sh", "-c", "cat secret-id; ls state; echo end")
	cmd.Dir = w.Dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "end") {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), w.Read("secret-id")) || strings.Contains(string(out), "audit.jsonl") {
		t.Errorf("the sidecar's own files can be seen:\n%s", out)
	}
}

// TestRunRootlessHalt ends a plugin in the rootless sandbox, and one that nothing holds.
func TestRunRootlessHalt(t *testing.T) {
	for _, network := range []string{"own", "host"} {
		t.Run("network "+network, func(t *testing.T) {
			w := newEnv(t, "off", "")
			w.spec("  process: {network: " + network + "}\n")
			b := w.Start("sleep", "60")
			testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(w.audit(), `"started`) })
			s := w.Ready()
			scenario.Contains(t, strings.Join(s.Warnings, "\n"), "usage is not metered")
			if r := w.Revoke("--level", string(authz.LevelHalt)); len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			if got := b.Wait(); got != exitSidecar {
				t.Errorf("got status %d, want %d", got, exitSidecar)
			}
			scenario.Contains(t, b.Output.String(), "was halted")
		})
	}
}

// TestRunRootlessListen reaches a plugin in the rootless sandbox.
func TestRunRootlessListen(t *testing.T) {
	w := newEnv(t, "off", "")
	port := testenv.FreePort(t)
	w.spec(fmt.Sprintf("  process: {listen: [%d]}\n", port))
	w.Start("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/usr/share", fmt.Sprint(port))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testenv.Patience}
	body := testenv.Eventually(t, "the plugin answers", func() (string, bool) {
		answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return "", false
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		return string(data), err == nil
	})
	scenario.Contains(t, body, "Directory listing")
}

// TestRunRootlessFiles starts nothing where what is stated cannot be kept.
func TestRunRootlessFiles(t *testing.T) {
	w := newEnv(t, "off", "")
	w.spec("  process: {network: host, files: {read: [/usr]}}\n")
	r := w.Run("true")
	if r.Status == 0 {
		t.Error("a plugin runs without the rules that its files were to have")
	}
}

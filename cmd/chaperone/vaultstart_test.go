package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestStartWithoutVault has a start that cannot log in to Vault log one line with
// the cause and end with it: at once where waiting changes nothing.
func TestStartWithoutVault(t *testing.T) {
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html>not a Vault</html>") }))
	t.Cleanup(html.Close)
	closed := "http://" + testenv.FreeAddress(t)
	for _, c := range []struct {
		name      string
		change    func(*env)
		want      string
		permanent bool
	}{
		{"a wrong secret id", func(w *env) { w.Write("secret-id", "00000000-0000-0000-0000-000000000000") }, "invalid role or secret ID", true},
		{"an empty file", func(w *env) { w.Write("secret-id", "") }, "does not hold one word", true},
		{"no Vault", func(w *env) {
			w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), w.Vault.Address, html.URL, 1))
		}, "", true},
		{"down", func(w *env) {
			w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), w.Vault.Address, closed, 1))
		}, "connection refused", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEnv(t, "off", "")
			c.change(w)
			r := w.Run("true")
			lines := strings.Split(strings.TrimSpace(r.Stderr), "\n")
			last := lines[len(lines)-1]
			if r.Status != exitSidecar || !strings.Contains(last, "vault: not logged in: ") || !strings.Contains(last, c.want) {
				t.Errorf("status %d, and the last line is %q, without %q", r.Status, last, c.want)
			}
			if waited := strings.Contains(last, "not ready after"); waited == c.permanent {
				t.Errorf("got %q, waited %t, want %t", last, waited, !c.permanent)
			}
			if n := strings.Count(r.Stderr, `"msg":"vault login failed"`); n != 1 {
				t.Errorf("%d lines of the log, not one:\n%s", n, r.Stderr)
			}
			if n := strings.Count(r.Stderr, `{"level"`); n > 2 {
				t.Errorf("%d lines of the log:\n%s", n, r.Stderr)
			}
		})
	}
}

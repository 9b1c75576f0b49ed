package main

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const testToken = "a-token-of-the-tests"

// serve starts chaperone serve with the kernel off and returns its status.
func (w *world) serve() (*background, admin.Status) {
	w.t.Helper()
	w.write("proxy-token", testToken+"\n")
	b := w.startCommand("serve", "--config", w.file("sidecar.yaml"), "--proxy-token-file", w.file("proxy-token"))
	return b, w.ready()
}

func door(s admin.Status, name string) string {
	for _, d := range s.Doors {
		if d.Name == name {
			return d.Address
		}
	}
	return ""
}

// request sends one request through the proxy, as a plugin that uses TLS and
// trusts whatever the sidecar shows.
func (w *world) request(proxy, token, method, target string) (status int, body string) {
	w.t.Helper()
	via := &url.URL{Scheme: "http", Host: proxy}
	if token != "" {
		via.User = url.UserPassword("chaperone", token)
	}
	var refused string
	transport := &http.Transport{
		Proxy:           http.ProxyURL(via),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
			if answer.StatusCode != http.StatusOK {
				refused = answer.Header.Get("x-chaperone-reason")
				status = answer.StatusCode
			}
			return nil
		},
	}
	defer transport.CloseIdleConnections()
	req := testenv.MustGet(http.NewRequestWithContext(w.t.Context(), method, target, nil))(w.t)
	answer, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return status, refused
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(data)
}

func TestServe(t *testing.T) {
	w := newWorld(t, "off", "")
	b, status := w.serve()
	proxy, target := door(status, "proxy"), w.url("/v1/forecast")

	if got, reason := w.request(proxy, "", "GET", target); got != http.StatusProxyAuthRequired || reason != "identity_unknown" {
		t.Errorf("without a token: %d %s", got, reason)
	}
	if got, reason := w.request(proxy, "another-token-than-that", "GET", target); got != http.StatusForbidden || reason != "identity_unknown" {
		t.Errorf("with another token: %d %s", got, reason)
	}
	if got, body := w.request(proxy, testToken, "GET", target); got != http.StatusOK {
		t.Errorf("with the token: %d %s", got, body)
	}

	t.Run("reload by SIGHUP puts changes in force", func(t *testing.T) {
		if got, _ := w.request(proxy, testToken, "DELETE", target); got != http.StatusForbidden {
			t.Fatalf("before: %d", got)
		}
		w.write("grant.yaml", strings.Replace(w.read("grant.yaml"), "[GET, POST]", "[GET, POST, DELETE]", 1))
		testenv.Must(t, b.cmd.Process.Signal(syscall.SIGHUP))
		eventually(t, "the new rule is in force", func() (int, bool) {
			got, _ := w.request(proxy, testToken, "DELETE", target)
			return got, got == http.StatusOK
		})
	})
	t.Run("a reload of wrong files changes nothing", func(t *testing.T) {
		right := w.read("grant.yaml")
		w.write("grant.yaml", strings.Replace(right, "methods:", "mehtods:", 1))
		r := w.chaperone("reload", "--config", w.file("sidecar.yaml"))
		if r.status != exitFailure || !strings.Contains(r.stderr, "did you mean methods?") {
			t.Errorf("reload: %d %s%s", r.status, r.stdout, r.stderr)
		}
		if got, _ := w.request(proxy, testToken, "DELETE", target); got != http.StatusOK {
			t.Errorf("after a refused reload: %d", got)
		}
		w.write("grant.yaml", right)
		if r := w.chaperone("reload", "--config", w.file("sidecar.yaml")); r.status != 0 {
			t.Errorf("reload: %s", r.stderr)
		}
	})
	t.Run("commands read it", func(t *testing.T) {
		for _, c := range []struct {
			args  []string
			wants string
		}{
			{[]string{"status"}, "door proxy"},
			{[]string{"status", "--output", "json"}, `"plugin": "weather"`},
			{[]string{"usage"}, "not counted by the kernel"},
			{[]string{"audit", "verify"}, "verified: "},
			{[]string{"explain", "GET", target}, "granted"},
			{[]string{"doctor"}, "kernel: off"},
		} {
			args := append(c.args[:1:1], append([]string{"--config", w.file("sidecar.yaml")}, c.args[1:]...)...)
			if c.args[0] == "audit" {
				args = append(c.args[:2:2], "--config", w.file("sidecar.yaml"))
			}
			if r := w.chaperone(args...); r.status != 0 || !strings.Contains(r.stdout, c.wants) {
				t.Errorf("%v: status %d, %q is missing in:\n%s%s", c.args, r.status, c.wants, r.stdout, r.stderr)
			}
		}
	})
	t.Run("revoke --all reaches it", func(t *testing.T) {
		testenv.Require(t, testenv.Superuser())
		r := w.chaperone("revoke", "--all", "--reason", "a test", "--level", "pause")
		if !strings.Contains(r.stdout, "weather: pause in force") {
			t.Errorf("%s%s", r.stdout, r.stderr)
		}
		if got, body := w.request(proxy, testToken, "GET", target); got != http.StatusForbidden {
			t.Errorf("after revoke: %d %s", got, body)
		}
	})
}

// TestServeMetrics checks the names of the metrics, and that no secret is among them.
func TestServeMetrics(t *testing.T) {
	w := newWorld(t, "off", "  limits: {requests: 1000/1m}\n")
	b, status := w.serve()
	w.request(door(status, "proxy"), testToken, "GET", w.url("/v1/forecast"))
	address := eventually(t, "address of metrics in the log", func() (string, bool) {
		found := regexp.MustCompile(`"metrics":"([^"]+)"`).FindStringSubmatch(b.output.String())
		if found == nil {
			return "", false
		}
		return found[1], true
	})
	get := func(path string) (int, string) {
		req := testenv.MustGet(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil))(t)
		answer := testenv.MustGet(http.DefaultClient.Do(req))(t)
		defer answer.Body.Close()
		return answer.StatusCode, string(testenv.MustGet(io.ReadAll(answer.Body))(t))
	}
	text := eventually(t, "the end of the request is counted", func() (string, bool) {
		_, text := get("/metrics")
		return text, strings.Contains(text, "chaperone_request_duration_seconds")
	})
	for _, name := range []string{
		"chaperone_decisions_total", "chaperone_decision_duration_seconds", "chaperone_request_duration_seconds",
		"chaperone_credential_leases", "chaperone_credential_fetch_seconds", "chaperone_revocation_seconds", "chaperone_tunnels_open",
		"chaperone_policy_generation", "chaperone_config_last_reload_successful 1", "chaperone_grant_expiry_seconds",
		"chaperone_limit_usage_ratio", "chaperone_audit_records_total",
		`chaperone_decisions_total{door="proxy",plugin="weather",reason="granted"} 1`,
	} {
		if !strings.Contains(text, name) {
			t.Errorf("%s is missing", name)
		}
	}
	for _, secret := range []string{w.api.Token(), testToken, w.read("secret-id")} {
		if strings.Contains(text, secret) || strings.Contains(b.output.String(), secret) {
			t.Error("a secret is among the metrics or in the log")
		}
	}
	if code, body := get("/readyz?verbose"); code != http.StatusOK || !strings.Contains(body, "[+]vault ok") {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d", code)
	}
}

// TestServeFullDisk fills the disk of the stateDir: access that cannot be recorded is
// refused, and access can still be revoked.
func TestServeFullDisk(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	w := newWorld(t, "off", "")
	testenv.Must(t, os.Mkdir(w.file("state"), 0o700))
	testenv.Must(t, syscall.Mount("tmpfs", w.file("state"), "tmpfs", 0, "size=256k,mode=0700"))
	t.Cleanup(func() { testenv.Must(t, syscall.Unmount(w.file("state"), syscall.MNT_DETACH)) })
	_, status := w.serve()
	proxy := door(status, "proxy")
	if got, body := w.request(proxy, testToken, "GET", w.url("/v1/forecast")); got != http.StatusOK {
		t.Fatalf("before: %d %s", got, body)
	}
	filler := strings.Repeat("x", 512<<10)
	if err := os.WriteFile(w.file("state/filler"), []byte(filler), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	refusal := eventually(t, "refusal of access that cannot be recorded", func() (string, bool) {
		got, body := w.request(proxy, testToken, "GET", w.url("/v1/forecast"))
		return body, got == http.StatusServiceUnavailable
	})
	if !strings.Contains(refusal, "audit_unavailable") {
		t.Errorf("refused for another reason: %s", refusal)
	}
	r := w.revoke()
	if r.ID == "" || len(r.Failed) == 0 {
		t.Errorf("revoke on a full disk: %+v", r)
	}
	testenv.Must(t, os.Remove(w.file("state/filler")))
	if got, body := w.request(proxy, testToken, "GET", w.url("/v1/forecast")); got == http.StatusOK {
		t.Errorf("after the revocation: %d %s", got, body)
	}
	if v := w.chaperone("audit", "verify", "--config", w.file("sidecar.yaml")); v.status != 0 {
		t.Errorf("audit verify after a full disk: %s%s", v.stdout, v.stderr)
	}
}

// TestServeDeadVault kills Vault under a sidecar: what is leased serves, what
// is not is refused, and a revocation does not wait.
func TestServeDeadVault(t *testing.T) {
	w := newWorld(t, "off", "")
	_, status := w.serve()
	proxy := door(status, "proxy")
	if got, body := w.request(proxy, testToken, "GET", w.url("/v1/forecast")); got != http.StatusOK {
		t.Fatalf("before: %d %s", got, body)
	}
	testenv.Must(t, w.vault.Kill())
	if got, body := w.request(proxy, testToken, "GET", w.url("/v1/forecast")); got != http.StatusOK {
		t.Errorf("a credential that is held: %d %s", got, body)
	}
	r := w.revoke("--level", string(authz.LevelQuarantine))
	if r.MS > 5000 {
		t.Errorf("the revocation waited for Vault: %.0f ms", r.MS)
	}
	if got, _ := w.request(proxy, testToken, "GET", w.url("/v1/forecast")); got != http.StatusForbidden {
		t.Errorf("after the revocation: %d", got)
	}
	if back := w.chaperone("restore", r.ID, "--config", w.file("sidecar.yaml"), "--reason", "a test"); back.status != 0 {
		t.Fatal(back.stderr)
	}
	if got, body := w.request(proxy, testToken, "GET", w.url("/v1/forecast")); got != http.StatusServiceUnavailable || !strings.Contains(body, "credential_unavailable") {
		t.Errorf("a credential that is not held: %d %s", got, body)
	}
}

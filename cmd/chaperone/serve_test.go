package main

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

func TestServe(t *testing.T) {
	w := newEnv(t, "off", "")
	b, status := w.Serve()
	proxy, target := scenario.Address(status, "proxy"), w.URL("/v1/forecast")

	if got, reason := w.Request(proxy, "", "GET", target); got != http.StatusProxyAuthRequired || reason != "identity_unknown" {
		t.Errorf("without a token: %d %s", got, reason)
	}
	if got, reason := w.Request(proxy, "another-token-than-that", "GET", target); got != http.StatusForbidden || reason != "identity_unknown" {
		t.Errorf("with another token: %d %s", got, reason)
	}
	if got, body := w.Request(proxy, scenario.Token, "GET", target); got != http.StatusOK {
		t.Errorf("with the token: %d %s", got, body)
	}

	t.Run("reload by SIGHUP puts changes in force", func(t *testing.T) {
		if got, _ := w.Request(proxy, scenario.Token, "DELETE", target); got != http.StatusForbidden {
			t.Fatalf("before: %d", got)
		}
		w.Write("grant.yaml", strings.Replace(w.Read("grant.yaml"), "[GET, POST]", "[GET, POST, DELETE]", 1))
		testenv.Must(t, b.Cmd.Process.Signal(syscall.SIGHUP))
		testenv.Eventually(t, "the new rule is in force", func() (int, bool) {
			got, _ := w.Request(proxy, scenario.Token, "DELETE", target)
			return got, got == http.StatusOK
		})
	})
	t.Run("a reload of wrong files changes nothing", func(t *testing.T) {
		right := w.Read("grant.yaml")
		w.Write("grant.yaml", strings.Replace(right, "methods:", "mehtods:", 1))
		r := w.Chaperone("reload", "--config", w.File("sidecar.yaml"))
		if r.Status != exitFailure || !strings.Contains(r.Stderr, "did you mean methods?") {
			t.Errorf("reload: %d %s%s", r.Status, r.Stdout, r.Stderr)
		}
		if got, _ := w.Request(proxy, scenario.Token, "DELETE", target); got != http.StatusOK {
			t.Errorf("after a refused reload: %d", got)
		}
		w.Write("grant.yaml", right)
		if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
			t.Errorf("reload: %s", r.Stderr)
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
			args := append(c.args[:1:1], append([]string{"--config", w.File("sidecar.yaml")}, c.args[1:]...)...)
			if c.args[0] == "audit" {
				args = append(c.args[:2:2], "--config", w.File("sidecar.yaml"))
			}
			if r := w.Chaperone(args...); r.Status != 0 || !strings.Contains(r.Stdout, c.wants) {
				t.Errorf("%v: status %d, %q is missing in:\n%s%s", c.args, r.Status, c.wants, r.Stdout, r.Stderr)
			}
		}
	})
	t.Run("revoke --all reaches it", func(t *testing.T) {
		testenv.Require(t, testenv.Superuser())
		r := w.Chaperone("revoke", "--all", "--reason", "a test", "--level", "pause")
		if !strings.Contains(r.Stdout, "weather: pause in force") {
			t.Errorf("%s%s", r.Stdout, r.Stderr)
		}
		if got, body := w.Request(proxy, scenario.Token, "GET", target); got != http.StatusForbidden {
			t.Errorf("after revoke: %d %s", got, body)
		}
	})
}

// TestServeMetrics checks the names of the metrics, and that no secret is among them.
func TestServeMetrics(t *testing.T) {
	w := newEnv(t, "off", "  limits: {requests: 1000/1m}\n")
	b, status := w.Serve()
	w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", w.URL("/v1/forecast"))
	address := testenv.Eventually(t, "address of metrics in the log", func() (string, bool) {
		found := regexp.MustCompile(`"metrics":"([^"]+)"`).FindStringSubmatch(b.Output.String())
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
	text := testenv.Eventually(t, "the end of the request is counted", func() (string, bool) {
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
	for _, secret := range []string{w.API.Token(), scenario.Token, w.Read("secret-id")} {
		if strings.Contains(text, secret) || strings.Contains(b.Output.String(), secret) {
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
	w := newEnv(t, "off", "")
	testenv.Must(t, os.Mkdir(w.File("state"), 0o700))
	testenv.Must(t, syscall.Mount("tmpfs", w.File("state"), "tmpfs", 0, "size=256k,mode=0700"))
	t.Cleanup(func() { testenv.Must(t, syscall.Unmount(w.File("state"), syscall.MNT_DETACH)) })
	_, status := w.Serve()
	proxy := scenario.Address(status, "proxy")
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
		t.Fatalf("before: %d %s", got, body)
	}
	filler := strings.Repeat("x", 512<<10)
	if err := os.WriteFile(w.File("state/filler"), []byte(filler), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	refusal := testenv.Eventually(t, "refusal of access that cannot be recorded", func() (string, bool) {
		got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast"))
		return body, got == http.StatusServiceUnavailable
	})
	if !strings.Contains(refusal, "audit_unavailable") {
		t.Errorf("refused for another reason: %s", refusal)
	}
	r := w.Revoke()
	if r.ID == "" || len(r.Failed) == 0 {
		t.Errorf("revoke on a full disk: %+v", r)
	}
	testenv.Must(t, os.Remove(w.File("state/filler")))
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got == http.StatusOK {
		t.Errorf("after the revocation: %d %s", got, body)
	}
	if v := w.Chaperone("audit", "verify", "--config", w.File("sidecar.yaml")); v.Status != 0 {
		t.Errorf("audit verify after a full disk: %s%s", v.Stdout, v.Stderr)
	}
}

// TestServeDeadVault kills Vault under a sidecar: what is leased serves, what
// is not is refused, and a revocation does not wait.
func TestServeDeadVault(t *testing.T) {
	w := newEnv(t, "off", "")
	_, status := w.Serve()
	proxy := scenario.Address(status, "proxy")
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
		t.Fatalf("before: %d %s", got, body)
	}
	testenv.Must(t, w.Vault.Kill())
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
		t.Errorf("a credential that is held: %d %s", got, body)
	}
	r := w.Revoke("--level", string(authz.LevelQuarantine))
	if r.MS > 5000 {
		t.Errorf("the revocation waited for Vault: %.0f ms", r.MS)
	}
	if got, _ := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusForbidden {
		t.Errorf("after the revocation: %d", got)
	}
	if back := w.Chaperone("restore", r.ID, "--config", w.File("sidecar.yaml"), "--reason", "a test"); back.Status != 0 {
		t.Fatal(back.Stderr)
	}
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusServiceUnavailable || !strings.Contains(body, "credential_unavailable") {
		t.Errorf("a credential that is not held: %d %s", got, body)
	}
}

package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// both runs a test with the kernel half and without.
func both(t *testing.T, test func(t *testing.T, kernel string)) {
	for _, kernel := range []string{"required", "off"} {
		t.Run("kernel "+kernel, func(t *testing.T) { test(t, kernel) })
	}
}

func TestRunGranted(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		r := w.Run("curl", "-sS", "-w", "%{http_code}", w.URL("/v1/forecast"))
		if r.Status != 0 || !strings.HasSuffix(r.Stdout, "200") {
			t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		if got := w.API.Requests()[0].Header.Get("Authorization"); got != "Bearer "+w.API.Token() {
			t.Errorf("the API received %q", got)
		}
		log := w.Read("state/audit.jsonl")
		scenario.Contains(t, log, `"kind":"decision"`, `"kind":"end"`, `"reason":"granted"`, `"rule":"api"`, `"kind":"process"`)
		if kernel == "required" && !strings.Contains(log, `"exe":"/usr/bin/curl"`) {
			t.Errorf("the log does not say which program asked:\n%s", log)
		}
		if v := w.Chaperone("audit", "verify", "--config", w.File("sidecar.yaml")); v.Status != 0 {
			t.Errorf("audit verify: %s%s", v.Stdout, v.Stderr)
		}
	})
}

func TestRunRefused(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		r := w.Run("curl", "-sS", "-D", "-", "-X", "DELETE", w.URL("/v1/forecast"))
		scenario.Contains(t, r.Stdout, "HTTP/2 403", "application/problem+json", "x-chaperone-reason: method_not_granted", `"remedy":"ask for methods: [DELETE] on rule api of grant weather"`)
		scenario.Contains(t, r.Stderr, "chaperone: refused DELETE ", "ask for methods: [DELETE] on rule api of grant weather")
		if w.API.Total() != 0 {
			t.Error("the API was reached")
		}
		// explain prints the reason by the decision's id.
		_, after, _ := strings.Cut(r.Stdout, `"decision":"`)
		id, _, _ := strings.Cut(after, `"`)
		e := w.Chaperone("explain", "--config", w.File("sidecar.yaml"), id)
		scenario.Contains(t, e.Stdout, "method_not_granted", "ask for methods: [DELETE]")
		if e.Status != exitDenied {
			t.Errorf("explain exits with %d", e.Status)
		}
	})
}

// TestRunStatus is the table of exit statuses.
func TestRunStatus(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		script := w.File("script")
		testenv.Must(t, os.WriteFile(script, []byte("exit $((10 + $1))\n"), 0o755))
		for _, c := range []struct {
			name    string
			program []string
			status  int
		}{
			{"its own", []string{"sh", "-c", "exit 7"}, 7},
			{"after a signal", []string{"sh", "-c", "kill -USR1 $$"}, 128 + int(syscall.SIGUSR1)},
			{"no such program", []string{"no-such-program-here"}, 127},
			{"not a program", []string{"/etc/passwd"}, 126},
			{"a script without an interpreter", []string{script, "3"}, 13},
		} {
			if r := w.Run(c.program...); r.Status != c.status {
				t.Errorf("%s: got %d, want %d\n%s", c.name, r.Status, c.status, r.Stderr)
			}
		}
		w.Write("grant.yaml", "kind: Nothing\n")
		if r := w.Run("true"); r.Status != exitSidecar {
			t.Errorf("a sidecar that fails: got %d, want %d", r.Status, exitSidecar)
		}
	})
}

// TestRunSignal checks that signals are forwarded.
func TestRunSignal(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		b := w.Start("sh", "-c", `trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done`)
		testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(w.audit(), `"started`) })
		w.Ready()
		time.Sleep(300 * time.Millisecond) // the shell sets its trap; too early, the status is 143
		if err := b.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.Wait(); got != 5 {
			t.Errorf("status %d, not 5\n%s", got, b.Output.String())
		}
	})
}

// A plugin that received SIGTERM may use the network until it ends.
func TestRunSignalLate(t *testing.T) {
	w := newEnv(t, "required", "")
	b := w.Start("sh", "-c", fmt.Sprintf(`trap 'sleep 0.5; curl -sS -o /dev/null -w "last %%{http_code}\n" %s; exit 7' TERM; echo up; while :; do sleep 0.05; done`, w.URL("/v1/forecast")))
	w.Ready()
	testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(b.Output.String(), "up") })
	if err := b.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := b.Wait(); got != 7 {
		t.Errorf("status %d, not 7\n%s", got, b.Output.String())
	}
	scenario.Contains(t, b.Output.String(), "last 200")
}

// audit returns the log so far.
func (w *env) audit() string {
	data, err := os.ReadFile(w.File("state/audit.jsonl"))
	if err != nil {
		return ""
	}
	return string(data)
}

// TestRunSecrets looks for the credential, Vault's login and the sidecar's own
// variables in all that the plugin and the logs can see.
func TestRunSecrets(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		t.Setenv("VAULT_TOKEN", "canary-vault-token")
		t.Setenv("CHAPERONE_CANARY", "canary-of-the-sidecar")
		script := fmt.Sprintf(`env; cat /proc/self/environ | tr '\0' '\n'; ulimit -c; curl -sS -D - %[1]s; curl -sS -D - -X POST -d x %[1]s; curl -sS -D - %[2]s`,
			w.URL("/echo"), w.URL("/none"))
		r := w.Run("sh", "-c", script)
		seen := r.Stdout + r.Stderr + w.Read("state/audit.jsonl")
		scenario.Contains(t, r.Stdout, "SSL_CERT_FILE=", "JAVA_TOOL_OPTIONS=", "NODE_USE_ENV_PROXY=1", "200", "path_not_granted")
		token := w.API.Token()
		for name, secret := range map[string]string{
			"the credential": token, "the credential in base64": base64.StdEncoding.EncodeToString([]byte(token)),
			"the credential in hexadecimal": fmt.Sprintf("%x", token), "the secret id": w.Read("secret-id"),
			"a variable of Vault's": "canary-vault-token", "a variable of the sidecar's": "canary-of-the-sidecar",
		} {
			if strings.Contains(seen, secret) {
				t.Errorf("%s can be seen", name)
			}
		}
		if !strings.Contains(r.Stdout, `"Authorization":["Bearer ***`) {
			t.Errorf("the echoed credential was not redacted:\n%s", r.Stdout)
		}
		scenario.Contains(t, w.Read("state/audit.jsonl"), `"kind":"echo"`)
	})
}

// TestRunExpiry checks that a grant's end cuts what is live.
func TestRunExpiry(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		b := w.Start("curl", "-sSN", "-o", "/dev/null", w.URL("/stream"))
		w.WaitStreams(1)
		w.Grant(time.Now().Add(5*time.Second), "") // from now: a loaded machine may take longer to start
		if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
			t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		b.Wait()
		w.WaitStreams(0)
		scenario.Contains(t, w.audit(), `"reason":"grant_expired"`, `"detail":"cut: access was revoked"`)
	})
}

// TestRunRevoke checks the three levels against a plugin that downloads.
func TestRunRevoke(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		t.Run("pause spares what is in flight", func(t *testing.T) {
			w := newEnv(t, kernel, "")
			w.Start("sh", "-c", fmt.Sprintf("curl -sSN -o /dev/null %s & sleep 2; wait", w.URL("/stream")))
			w.WaitStreams(1)
			if r := w.Revoke("--level", "pause"); r.Cut != 0 || len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			if w.API.Streams() != 1 {
				t.Error("the download was cut")
			}
		})
		t.Run("quarantine cuts, and persists", func(t *testing.T) {
			w := newEnv(t, kernel, "")
			b := w.Start("curl", "-sSN", "-o", "/dev/null", w.URL("/stream"))
			w.WaitStreams(1)
			r := w.Revoke()
			if r.Cut != 1 || r.Level != authz.LevelQuarantine || len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			b.Wait()
			w.WaitStreams(0)
			again := w.Run("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast"))
			if strings.Contains(again.Stdout, "200") {
				t.Errorf("after a restart: %s%s", again.Stdout, again.Stderr)
			}
			if back := w.Chaperone("restore", r.ID, "--config", w.File("sidecar.yaml"), "--reason", "a test"); back.Status != 0 {
				t.Fatalf("restore: %s", back.Stderr)
			}
			if again := w.Run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast")); again.Stdout != "200" {
				t.Errorf("after restore: %s%s", again.Stdout, again.Stderr)
			}
		})
	})
	t.Run("halt ends the plugin, which does not start again", func(t *testing.T) {
		w := newEnv(t, "required", "")
		b := w.Start("sleep", "60")
		testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(w.audit(), `"started`) })
		r := w.Revoke("--level", "halt")
		if got := b.Wait(); got != exitSidecar {
			t.Errorf("got status %d, want %d", got, exitSidecar)
		}
		again := w.Run("true")
		if again.Status != exitSidecar {
			t.Errorf("got status %d, want %d", again.Status, exitSidecar)
		}
		scenario.Contains(t, again.Stderr, "chaperone restore "+r.ID)
	})
}

// TestRunKilled checks that a plugin whose sidecar was killed is shut in, and
// that detach cleans up behind it.
func TestRunKilled(t *testing.T) {
	w := newEnv(t, "required", "")
	out := t.TempDir()
	if err := os.Chmod(out, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(out), 0o711); err != nil { // the plugin's user enters it
		t.Fatal(err)
	}
	b := w.Start("sh", "-c", fmt.Sprintf(`while :; do curl -sS -m 2 -o /dev/null -w '%%{http_code}\n' %s >> %s/codes 2>/dev/null || echo refused >> %s/codes; sleep 0.05; done`, w.URL("/v1/forecast"), out, out))
	codes := func() string {
		data, _ := os.ReadFile(out + "/codes") // not there yet
		return string(data)
	}
	testenv.Eventually(t, "a request has passed", func() (int, bool) { return 0, strings.Contains(codes(), "200") })
	if err := b.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.Wait()
	total := w.API.Total()
	before := strings.Count(codes(), "refused")
	testenv.Eventually(t, "the orphan is refused, again and again", func() (int, bool) {
		return 0, strings.Count(codes(), "refused") > before+3
	})
	if w.API.Total() != total {
		t.Error("the API was reached while no sidecar lived")
	}
	if d := w.Chaperone("detach", "--config", w.File("sidecar.yaml")); d.Status != exitFailure {
		t.Errorf("detach under a living plugin: status %d: %s%s", d.Status, d.Stdout, d.Stderr)
	}
	if d := w.Chaperone("detach", "--config", w.File("sidecar.yaml"), "--kill"); d.Status != 0 {
		t.Errorf("detach --kill: %s%s", d.Stdout, d.Stderr)
	}
	if v := w.Chaperone("audit", "verify", "--config", w.File("sidecar.yaml")); v.Status != 0 {
		t.Errorf("audit verify after a kill: %s%s", v.Stdout, v.Stderr)
	}
}

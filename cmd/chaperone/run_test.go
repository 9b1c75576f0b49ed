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
)

// both runs a test with the kernel half and without.
func both(t *testing.T, test func(t *testing.T, kernel string)) {
	for _, kernel := range []string{"required", "off"} {
		t.Run("kernel "+kernel, func(t *testing.T) { test(t, kernel) })
	}
}

func TestRunGranted(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newWorld(t, kernel, "")
		r := w.run("curl", "-sS", "-w", "%{http_code}", w.url("/v1/forecast"))
		if r.status != 0 || !strings.HasSuffix(r.stdout, "200") {
			t.Fatalf("status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
		if got := w.api.Requests()[0].Header.Get("Authorization"); got != "Bearer "+w.api.Token() {
			t.Errorf("the API received %q", got)
		}
		log := w.read("state/audit.jsonl")
		contains(t, log, `"kind":"decision"`, `"kind":"end"`, `"reason":"granted"`, `"rule":"api"`, `"kind":"process"`)
		if kernel == "required" && !strings.Contains(log, `"exe":"/usr/bin/curl"`) {
			t.Errorf("the log does not say which program asked:\n%s", log)
		}
		if v := w.chaperone("audit", "verify", "--config", w.file("sidecar.yaml")); v.status != 0 {
			t.Errorf("audit verify: %s%s", v.stdout, v.stderr)
		}
	})
}

func TestRunRefused(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newWorld(t, kernel, "")
		r := w.run("curl", "-sS", "-D", "-", "-X", "DELETE", w.url("/v1/forecast"))
		contains(t, r.stdout, "HTTP/2 403", "application/problem+json", "x-chaperone-reason: method_not_granted", `"remedy":"ask for methods: [DELETE] on rule api of grant weather"`)
		contains(t, r.stderr, "chaperone: refused DELETE ", "ask for methods: [DELETE] on rule api of grant weather")
		if w.api.Total() != 0 {
			t.Error("the API was reached")
		}
		// explain prints the reason by the decision's id.
		_, after, _ := strings.Cut(r.stdout, `"decision":"`)
		id, _, _ := strings.Cut(after, `"`)
		e := w.chaperone("explain", "--config", w.file("sidecar.yaml"), id)
		contains(t, e.stdout, "method_not_granted", "ask for methods: [DELETE]")
		if e.status != exitDenied {
			t.Errorf("explain exits with %d", e.status)
		}
	})
}

// TestRunStatus is the table of exit statuses.
func TestRunStatus(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newWorld(t, kernel, "")
		script := w.file("script")
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
			if r := w.run(c.program...); r.status != c.status {
				t.Errorf("%s: %d, not %d\n%s", c.name, r.status, c.status, r.stderr)
			}
		}
		w.write("grant.yaml", "kind: Nothing\n")
		if r := w.run("true"); r.status != exitSidecar {
			t.Errorf("a sidecar that fails: %d, not %d", r.status, exitSidecar)
		}
	})
}

// TestRunSignal checks that signals are forwarded.
func TestRunSignal(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newWorld(t, kernel, "")
		b := w.start("sh", "-c", `trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done`)
		eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(w.audit(), `"started`) })
		w.ready()
		time.Sleep(300 * time.Millisecond) // the shell sets its trap; too early, the status is 143
		if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.wait(); got != 5 {
			t.Errorf("status %d, not 5\n%s", got, b.output.String())
		}
	})
}

// A plugin that received SIGTERM may use the network until it ends.
func TestRunSignalLate(t *testing.T) {
	w := newWorld(t, "required", "")
	b := w.start("sh", "-c", fmt.Sprintf(`trap 'sleep 0.5; curl -sS -o /dev/null -w "last %%{http_code}\n" %s; exit 7' TERM; echo up; while :; do sleep 0.05; done`, w.url("/v1/forecast")))
	w.ready()
	eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(b.output.String(), "up") })
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := b.wait(); got != 7 {
		t.Errorf("status %d, not 7\n%s", got, b.output.String())
	}
	contains(t, b.output.String(), "last 200")
}

// audit returns the log so far.
func (w *world) audit() string {
	data, err := os.ReadFile(w.file("state/audit.jsonl"))
	if err != nil {
		return ""
	}
	return string(data)
}

// TestRunSecrets looks for the credential, Vault's login and the sidecar's own
// variables in all that the plugin and the logs can see.
func TestRunSecrets(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newWorld(t, kernel, "")
		t.Setenv("VAULT_TOKEN", "canary-vault-token")
		t.Setenv("CHAPERONE_CANARY", "canary-of-the-sidecar")
		script := fmt.Sprintf(`env; cat /proc/self/environ | tr '\0' '\n'; ulimit -c; curl -sS -D - %[1]s; curl -sS -D - -X POST -d x %[1]s; curl -sS -D - %[2]s`,
			w.url("/echo"), w.url("/none"))
		r := w.run("sh", "-c", script)
		seen := r.stdout + r.stderr + w.read("state/audit.jsonl")
		contains(t, r.stdout, "SSL_CERT_FILE=", "JAVA_TOOL_OPTIONS=", "NODE_USE_ENV_PROXY=1", "200", "path_not_granted")
		token := w.api.Token()
		for name, secret := range map[string]string{
			"the credential": token, "the credential in base64": base64.StdEncoding.EncodeToString([]byte(token)),
			"the credential in hexadecimal": fmt.Sprintf("%x", token), "the secret id": w.read("secret-id"),
			"a variable of Vault's": "canary-vault-token", "a variable of the sidecar's": "canary-of-the-sidecar",
		} {
			if strings.Contains(seen, secret) {
				t.Errorf("%s can be seen", name)
			}
		}
		if !strings.Contains(r.stdout, `"Authorization":["Bearer ***`) {
			t.Errorf("the echoed credential was not redacted:\n%s", r.stdout)
		}
		contains(t, w.read("state/audit.jsonl"), `"kind":"echo"`)
	})
}

// TestRunExpiry checks that a grant's end cuts what is live.
func TestRunExpiry(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newWorld(t, kernel, "")
		w.grant(time.Now().Add(4*time.Second), "")
		b := w.start("curl", "-sSN", "-o", "/dev/null", w.url("/stream"))
		w.streaming(1)
		b.wait()
		w.streaming(0)
		contains(t, w.audit(), `"reason":"grant_expired"`, `"detail":"cut: access was revoked"`)
	})
}

// TestRunRevoke checks the three levels against a plugin that downloads.
func TestRunRevoke(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		t.Run("pause spares what is in flight", func(t *testing.T) {
			w := newWorld(t, kernel, "")
			w.start("sh", "-c", fmt.Sprintf("curl -sSN -o /dev/null %s & sleep 2; wait", w.url("/stream")))
			w.streaming(1)
			if r := w.revoke("--level", "pause"); r.Cut != 0 || len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			if w.api.Streams() != 1 {
				t.Error("the download was cut")
			}
		})
		t.Run("quarantine cuts, and persists", func(t *testing.T) {
			w := newWorld(t, kernel, "")
			b := w.start("curl", "-sSN", "-o", "/dev/null", w.url("/stream"))
			w.streaming(1)
			r := w.revoke()
			if r.Cut != 1 || r.Level != authz.LevelQuarantine || len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			b.wait()
			w.streaming(0)
			again := w.run("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", w.url("/v1/forecast"))
			if strings.Contains(again.stdout, "200") {
				t.Errorf("after a restart: %s%s", again.stdout, again.stderr)
			}
			if back := w.chaperone("restore", r.ID, "--config", w.file("sidecar.yaml"), "--reason", "a test"); back.status != 0 {
				t.Fatalf("restore: %s", back.stderr)
			}
			if again := w.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", w.url("/v1/forecast")); again.stdout != "200" {
				t.Errorf("after restore: %s%s", again.stdout, again.stderr)
			}
		})
	})
	t.Run("halt ends the plugin, which does not start again", func(t *testing.T) {
		w := newWorld(t, "required", "")
		b := w.start("sleep", "60")
		eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(w.audit(), `"started`) })
		r := w.revoke("--level", "halt")
		if got := b.wait(); got != exitSidecar {
			t.Errorf("status %d, not %d", got, exitSidecar)
		}
		again := w.run("true")
		if again.status != exitSidecar {
			t.Errorf("status %d, not %d", again.status, exitSidecar)
		}
		contains(t, again.stderr, "chaperone restore "+r.ID)
	})
}

// TestRunKilled checks that a plugin whose sidecar was killed is shut in, and
// that detach cleans up behind it.
func TestRunKilled(t *testing.T) {
	w := newWorld(t, "required", "")
	out := t.TempDir()
	if err := os.Chmod(out, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(out), 0o711); err != nil { // the plugin's user enters it
		t.Fatal(err)
	}
	b := w.start("sh", "-c", fmt.Sprintf(`while :; do curl -sS -m 2 -o /dev/null -w '%%{http_code}\n' %s >> %s/codes 2>/dev/null || echo refused >> %s/codes; sleep 0.05; done`, w.url("/v1/forecast"), out, out))
	codes := func() string {
		data, _ := os.ReadFile(out + "/codes") // not there yet
		return string(data)
	}
	eventually(t, "a request has passed", func() (int, bool) { return 0, strings.Contains(codes(), "200") })
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.wait()
	total := w.api.Total()
	before := strings.Count(codes(), "refused")
	eventually(t, "the orphan is refused, again and again", func() (int, bool) {
		return 0, strings.Count(codes(), "refused") > before+3
	})
	if w.api.Total() != total {
		t.Error("the API was reached while no sidecar lived")
	}
	if d := w.chaperone("detach", "--config", w.file("sidecar.yaml")); d.status != exitFailure {
		t.Errorf("detach under a living plugin: status %d: %s%s", d.status, d.stdout, d.stderr)
	}
	if d := w.chaperone("detach", "--config", w.file("sidecar.yaml"), "--kill"); d.status != 0 {
		t.Errorf("detach --kill: %s%s", d.stdout, d.stderr)
	}
	if v := w.chaperone("audit", "verify", "--config", w.file("sidecar.yaml")); v.status != 0 {
		t.Errorf("audit verify after a kill: %s%s", v.stdout, v.stderr)
	}
}

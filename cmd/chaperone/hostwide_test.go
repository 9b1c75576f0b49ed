package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/hostrevocations"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// host is a host with sidecars that share a registry. They answer an Envoy and
// confine nothing, which needs neither root nor a Vault.
type host struct {
	*env
	sidecars map[string]*scenario.Process
}

func newHost(t *testing.T, plugins ...string) *host {
	t.Helper()
	h := &host{bareEnv(t, t.TempDir()), map[string]*scenario.Process{}}
	for _, p := range plugins {
		testenv.Must(t, os.Mkdir(h.File(p), 0o700))
		h.Write(p+"/sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: %[1]s}
spec:
  plugin: %[1]s
  grants: [grant.yaml]
  stateDir: state
  kernel: "off"
  listen: {extAuthz: "unix:envoy/s"}
`, p))
		h.Write(p+"/grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: %[1]s}
spec:
  plugin: %[1]s
  notAfter: 2099-01-01T00:00:00Z
  rules:
  - {id: read, reason: Tests, to: {hosts: [api.weather.example]}, methods: [GET], paths: [/v1]}
`, p))
	}
	return h
}

func (h *host) config(plugin string) string { return h.File(plugin + "/sidecar.yaml") }

// start starts the sidecars of plugins and waits until they are ready and listed.
func (h *host) start(plugins ...string) {
	h.T.Helper()
	for _, p := range plugins {
		h.sidecars[p] = h.StartCommand("serve", "--config", h.config(p))
	}
	for _, p := range plugins {
		testenv.Eventually(h.T, p+" is ready", func() (int, bool) {
			s, err := h.status(p)
			return 0, err == nil && s.Ready && h.listed(p).PID == h.sidecars[p].Cmd.Process.Pid
		})
	}
}

func (h *host) listed(plugin string) admin.Sidecar {
	all, _ := admin.List(h.File("registry"))
	for _, s := range all {
		if s.Plugin == plugin && !s.Gone {
			return s
		}
	}
	return admin.Sidecar{}
}

func (h *host) status(plugin string) (admin.Status, error) {
	return admin.Dial(h.File(plugin + "/state/admin.sock")).Status(h.T.Context())
}

// level returns the level at which a plugin is revoked, "" for none.
func (h *host) level(plugin string) authz.Level {
	h.T.Helper()
	level, _ := hardest(testenv.MustGet(h.status(plugin))(h.T).Revocations)
	return level
}

func (h *host) signal(plugin string, sig syscall.Signal) {
	h.T.Helper()
	testenv.Must(h.T, h.sidecars[plugin].Cmd.Process.Signal(sig))
}

// end ends a sidecar with a signal and waits for it.
func (h *host) end(plugin string, sig syscall.Signal) {
	h.T.Helper()
	h.signal(plugin, sig)
	select {
	case <-h.sidecars[plugin].Ended:
	case <-time.After(2 * time.Minute):
		h.T.Fatalf("%s does not end", plugin)
	}
}

// rows decodes the answer of revoke --all.
func rows(t *testing.T, r scenario.Result) map[string]admin.RevokeResult {
	t.Helper()
	var all []admin.RevokeResult
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
		t.Fatalf("%v\n%s%s", err, r.Stdout, r.Stderr)
	}
	out := map[string]admin.RevokeResult{}
	for _, one := range all {
		out[one.Plugin] = one
	}
	return out
}

// TestRevokeAllPersists revokes while one sidecar runs, one was stopped and one was
// killed: all of them are revoked when they run again, and none that was restored.
func TestRevokeAllPersists(t *testing.T) {
	h := newHost(t, "runs", "stopped", "killed", "new")
	h.start("runs", "stopped", "killed")
	h.end("stopped", syscall.SIGTERM)
	h.end("killed", syscall.SIGKILL)

	r := h.Chaperone("revoke", "--all", "--reason", "a test", "--incident", "4711", "--output", "json")
	all := rows(t, r)
	if r.Status != exitFailure {
		t.Errorf("status %d, want %d: a sidecar is gone\n%s", r.Status, exitFailure, r.Stderr)
	}
	if one := all["runs"]; one.State != "" || one.ID == "" || len(one.Failed) != 0 {
		t.Errorf("the one that runs: %+v", one)
	}
	if one := all["killed"]; one.State != admin.StateNotRunning || len(one.Failed) == 0 || !strings.Contains(one.Failed[0], "NOT RUNNING") {
		t.Errorf("the one that was killed: %+v", one)
	}
	scenario.Contains(t, r.Stderr, "sidecars that are down or start later start with it", hostrevocations.FileName)
	h.start("stopped", "killed", "new")
	for _, p := range []string{"runs", "stopped", "killed", "new"} {
		if got := h.level(p); got != authz.LevelQuarantine {
			t.Errorf("%s is revoked at %q", p, got)
		}
		e := h.Chaperone("explain", "--config", h.config(p), "GET", "https://api.weather.example/v1")
		if e.Status != exitDenied || !strings.Contains(e.Stdout, "revoked") {
			t.Errorf("%s: explain: %d %s", p, e.Status, e.Stdout)
		}
		scenario.Contains(t, h.Read(p+"/state/audit.jsonl"), `"kind":"revocation"`, "quarantine: a test")
		scenario.Contains(t, h.Chaperone("status", "--plugin", p).Stdout, "the whole plugin (host-wide), quarantine by ", `incident "4711"`)
	}

	t.Run("one plugin is restored and stays so", func(t *testing.T) {
		if r := h.Chaperone("restore", all["runs"].ID, "--plugin", "new", "--reason", "cleared"); r.Status != 0 {
			t.Fatal(r.Stderr)
		}
		h.end("new", syscall.SIGTERM)
		h.start("new")
		if got := h.level("new"); got != "" {
			t.Errorf("revoked at %q after a restart", got)
		}
		if got := h.level("runs"); got != authz.LevelQuarantine {
			t.Errorf("another plugin is revoked at %q", got)
		}
	})
	t.Run("everything is restored, also what is down", func(t *testing.T) {
		h.end("stopped", syscall.SIGTERM)
		h.end("killed", syscall.SIGKILL)
		r := h.Chaperone("restore", "--incident", "4711", "--reason", "cleared")
		if r.Status != 0 {
			t.Fatalf("%s%s", r.Stdout, r.Stderr)
		}
		scenario.Contains(t, r.Stdout, "runs: restored (quarantine "+all["runs"].ID+": a test)", "killed: restored")
		h.start("stopped", "killed")
		for _, p := range []string{"runs", "stopped", "killed", "new"} {
			if got := h.level(p); got != "" {
				t.Errorf("%s is revoked at %q", p, got)
			}
		}
	})
}

// TestDetachByPlugin removes what a killed sidecar left by the plugin's name, and
// the sidecar from the list.
func TestDetachByPlugin(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2())
	h := newHost(t, "weather")
	h.start("weather")
	if r := h.Chaperone("detach", "--plugin", "weather"); r.Status == 0 {
		t.Errorf("a sidecar that runs is detached: %s", r.Stdout)
	}
	h.end("weather", syscall.SIGKILL)
	scenario.Contains(t, h.Chaperone("sidecars").Stdout, stateGone, "chaperone detach --plugin weather")
	if r := h.Chaperone("detach", "--plugin", "weather"); r.Status != 0 {
		t.Error(r.Stderr)
	}
	scenario.Contains(t, h.Chaperone("sidecars").Stdout, "no sidecar runs on this host")
}

// TestRevokeWithoutSidecars: nothing runs, and what starts is revoked.
func TestRevokeWithoutSidecars(t *testing.T) {
	h := newHost(t, "weather", "news")
	if r := h.Chaperone("revoke", "--all", "--reason", "a test", "--level", "pause"); r.Status != 0 || !strings.Contains(r.Stderr, "no sidecar runs on this host") {
		t.Errorf("%d %s", r.Status, r.Stderr)
	}
	if r := h.Chaperone("revoke", "--plugin", "weathre", "--reason", "a test"); r.Status != exitFailure || !strings.Contains(r.Stderr, "NOTHING THAT RUNS WAS REVOKED") {
		t.Errorf("a plugin that is not known: %d %s", r.Status, r.Stderr)
	}
	h.start("weather")
	if got := h.level("weather"); got != authz.LevelPause {
		t.Errorf("revoked at %q", got)
	}
	scenario.Contains(t, h.Chaperone("revoke", "--plugin", "weathre", "--reason", "a test").Stderr, "did you mean weather?")
	if r := h.Chaperone("restore", "--all", "--reason", "cleared"); r.Status != 0 {
		t.Errorf("%s%s", r.Stdout, r.Stderr)
	}
	if got := h.level("weather"); got != "" {
		t.Errorf("revoked at %q", got)
	}
}

// TestHostFileDamaged: a file that cannot be understood denies, at the start and
// while a sidecar runs, until it is repaired.
func TestHostFileDamaged(t *testing.T) {
	h := newHost(t, "early", "late")
	h.start("early")
	file := filepath.Join(h.File("registry"), hostrevocations.FileName)
	testenv.Must(t, os.WriteFile(file, []byte("{"), 0o600))
	h.start("late")
	for _, p := range []string{"late", "early"} {
		status := testenv.Eventually(t, p+" denies", func() (admin.Status, bool) {
			s, err := h.status(p)
			return s, err == nil && len(s.Revocations) == 1
		})
		if r := status.Revocations[0]; r.Level != authz.LevelQuarantine || !strings.Contains(r.Reason, file) {
			t.Errorf("%s: %+v", p, r)
		}
		scenario.Contains(t, h.Chaperone("status", "--plugin", p).Stdout, "cannot be read, so everything is denied", "damaged")
	}
	if r := h.Chaperone("restore", "host-revocations-unreadable", "--plugin", "late", "--reason", "x"); r.Status == 0 {
		t.Error("it is restored although the file is damaged")
	}
	if r := h.Chaperone("revoke", "--all", "--reason", "a test"); r.Status != exitFailure || !strings.Contains(r.Stderr, "damaged") {
		t.Errorf("revoke: %d %s", r.Status, r.Stderr)
	}
	own := h.level("late")
	if own == "" {
		t.Error("revoke --all did not reach a sidecar")
	}
	testenv.Must(t, os.Remove(file))
	for _, p := range []string{"late", "early"} {
		testenv.Eventually(t, p+" follows the repaired file", func() (int, bool) {
			s, err := h.status(p)
			return 0, err == nil && len(s.Revocations) == 1 && s.Revocations[0].ID != "host-revocations-unreadable"
		})
		if strings.Contains(h.Read(p+"/state/"+"revocations.json"), "host-revocations-unreadable") {
			t.Error("the denial of a damaged file is kept")
		}
	}
}

// TestRevokeHung stops a sidecar: the others are revoked and printed at once, it is
// named with its pid, and revokes when it goes on.
func TestRevokeHung(t *testing.T) {
	h := newHost(t, "a", "hung", "z")
	h.start("a", "hung", "z")
	h.signal("hung", syscall.SIGSTOP)
	t.Cleanup(func() { _ = h.sidecars["hung"].Cmd.Process.Signal(syscall.SIGCONT) }) // it may have ended

	b := h.StartCommand("revoke", "--all", "--reason", "a test")
	testenv.Eventually(t, "the others are printed", func() (int, bool) {
		out := b.Output.String()
		return 0, strings.Contains(out, "a: quarantine in force") && strings.Contains(out, "z: quarantine in force")
	})
	if strings.Contains(b.Output.String(), "hung:") {
		t.Error("the others are printed after the one that hangs")
	}
	if got := b.Wait(); got != exitFailure {
		t.Errorf("status %d", got)
	}
	pid := fmt.Sprint(h.sidecars["hung"].Cmd.Process.Pid)
	scenario.Contains(t, b.Output.String(), "hung: NOT CONFIRMED: the sidecar (pid "+pid+") has not answered for 2s", "--force, or kill -9 "+pid)
	scenario.Contains(t, h.Chaperone("sidecars").Stdout, "hung    "+pid+"  "+stateNoAnswer)
	for _, command := range []string{"status", "usage", "reload", "top"} {
		if r := h.Chaperone(command, "--plugin", "hung"); r.Status != exitFailure || !strings.Contains(r.Stderr, "the sidecar (pid "+pid+") has not answered for 2s") {
			t.Errorf("%s: %d %s%s", command, r.Status, r.Stdout, r.Stderr)
		}
	}

	h.signal("hung", syscall.SIGCONT)
	testenv.Eventually(t, "it revokes when it goes on", func() (int, bool) { return 0, h.level("hung") == authz.LevelQuarantine })
	if got := len(testenv.MustGet(h.status("hung"))(t).Revocations); got != 1 {
		t.Errorf("%d revocations, want one", got)
	}

	t.Run("force", func(t *testing.T) {
		h.signal("hung", syscall.SIGSTOP)
		r := h.Chaperone("revoke", "--config", h.config("hung"), "--reason", "a test", "--force", "--level", "pause", "--output", "json")
		var one admin.RevokeResult
		if err := json.Unmarshal([]byte(r.Stdout), &one); err != nil || one.State != admin.StateKilled || r.Status != 0 {
			t.Errorf("%v %d\n%s%s", err, r.Status, r.Stdout, r.Stderr)
		}
		if got := h.sidecars["hung"].Wait(); got != -1 {
			t.Errorf("the sidecar ends with %d, and was not killed", got)
		}
	})
}

// TestPlugin names sidecars by their plugins.
func TestPlugin(t *testing.T) {
	h := newHost(t, "weather", "news", "third")
	h.start("weather", "news")
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"status", "--plugin", "news"}, 0, "news, ready"},
		{[]string{"usage", "--plugin", "news"}, 0, "LIMIT"},
		{[]string{"reload", "--plugin", "news"}, 0, "in force"},
		{[]string{"status", "--plugin", "nwes"}, exitFailure, `no sidecar of the plugin "nwes" runs on this host; running here: news (--admin unix:` + h.File("news/state/admin.sock")},
		{[]string{"status", "--plugin", "nwes"}, exitFailure, "did you mean news?"},
		{[]string{"status", "--plugin", "\x1b[2J"}, exitFailure, `"\x1b[2J"`},
		{[]string{"status"}, exitUsage, "Say --plugin"},
		{[]string{"status", "--plugin", "news", "--config", h.config("news")}, exitUsage, "contradicts"},
		{[]string{"status", "news"}, exitUsage, "--plugin news"},
		{[]string{"revoke", "--all", "--plugin", "news", "--reason", "x"}, exitUsage, "contradicts"},
		{[]string{"restore", "--all", "--incident", "x", "--reason", "x"}, exitUsage, "takes one of"},
		{[]string{"restore", "--reason", "x"}, exitUsage, "takes one of"},
		{[]string{"restore", "no-such-id", "--reason", "x"}, exitFailure, `no revocation has the id "no-such-id"`},
		{[]string{"revoke", "--plugin", "news", "--rule", "news/raed", "--reason", "x"}, exitFailure, "there are: news/read"},
		{[]string{"revoke", "--plugin", "news", "--rule", "news/read", "--reason", "x"}, 0, "news/read of news: quarantine in force"},
		{[]string{"revoke", "--plugin", "weather", "--reason", "y"}, 0, "weather: quarantine in force"},
		{[]string{"sidecars"}, 0, "- + 1 rule"},
		{[]string{"list", "--output", "json"}, 0, `"revoked": "quarantine"`},
	} {
		r := h.Chaperone(c.args...)
		if r.Status != c.status || !strings.Contains(r.Stdout+r.Stderr, c.want) {
			t.Errorf("%q: status %d, want %d and %q:\n%s%s", c.args, r.Status, c.status, c.want, r.Stdout, r.Stderr)
		}
	}
	state := testenv.MustGet(hostrevocations.New(h.File("registry")).Read())(t)
	for _, r := range state.Revocations {
		if r.Rule == "raed" {
			t.Errorf("got an unknown rule revoked on the host: %+v", r)
		}
	}
	t.Run("everything is restored by one command", func(t *testing.T) {
		r := h.Chaperone("restore", "--all", "--reason", "cleared", "--output", "json")
		var all []lifted
		if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all) < 2 || r.Status != 0 {
			t.Errorf("%v %d\n%s%s", err, r.Status, r.Stdout, r.Stderr)
		}
		for _, p := range []string{"weather", "news"} {
			if s := testenv.MustGet(h.status(p))(t); len(s.Revocations) != 0 {
				t.Errorf("%s: %+v", p, s.Revocations)
			}
		}
	})
	t.Run("two sidecars of one plugin", func(t *testing.T) {
		h.Write("third/sidecar.yaml", strings.ReplaceAll(h.Read("third/sidecar.yaml"), "third", "news"))
		h.Write("third/grant.yaml", strings.ReplaceAll(h.Read("third/grant.yaml"), "third", "news"))
		h.sidecars["third"] = h.StartCommand("serve", "--config", h.config("third"))
		status := testenv.Eventually(t, "it is ready", func() (admin.Status, bool) { s, err := h.status("third"); return s, err == nil && s.Ready })
		scenario.Contains(t, strings.Join(status.Warnings, "\n"), "news has another sidecar")
		r := h.Chaperone("revoke", "--plugin", "news", "--reason", "x", "--output", "json")
		if r.Status != 0 || h.level("news") != authz.LevelQuarantine || h.level("third") != authz.LevelQuarantine {
			t.Errorf("revoke does not reach both: %s%s", r.Stdout, r.Stderr)
		}
	})
}

// TestRevokeBroken revokes although the files are broken.
func TestRevokeBroken(t *testing.T) {
	h := newHost(t, "weather")
	right := h.Read("weather/sidecar.yaml")
	restart := func(t *testing.T) {
		t.Helper()
		h.start("weather")
		if got := h.level("weather"); got != authz.LevelQuarantine {
			t.Errorf("revoked at %q", got)
		}
		if r := h.Chaperone("restore", "--all", "--config", h.config("weather"), "--reason", "x"); r.Status != 0 {
			t.Error(r.Stderr)
		}
		h.end("weather", syscall.SIGTERM)
	}
	for name, broken := range map[string]string{
		"an unknown field":   right + "  sockets: none\n",
		"a tab":              right + "\tx\n",
		"a duplicate key":    right + "  kernel: required\n",
		"an unclosed list":   right + "  guardrails: [a\n",
		"a wrong type":       right + "  drain: {}\n",
		"a line of nonsense": "}{\n" + right,
	} {
		t.Run(name, func(t *testing.T) {
			h.Write("weather/sidecar.yaml", broken)
			r := h.Chaperone("revoke", "--config", h.config("weather"), "--reason", "a test")
			h.Write("weather/sidecar.yaml", right)
			if r.Status != 0 {
				t.Fatalf("%d %s%s", r.Status, r.Stdout, r.Stderr)
			}
			restart(t)
		})
	}
	t.Run("broken grants", func(t *testing.T) {
		grant := h.Read("weather/grant.yaml")
		h.Write("weather/grant.yaml", "nonsense: [")
		r := h.Chaperone("revoke", "--config", h.config("weather"), "--reason", "a test")
		h.Write("weather/grant.yaml", grant)
		if r.Status != 0 {
			t.Fatalf("%d %s%s", r.Status, r.Stdout, r.Stderr)
		}
		restart(t)
	})
	t.Run("a broken file of a sidecar that runs", func(t *testing.T) {
		h.start("weather")
		h.Write("weather/sidecar.yaml", "spec: [\n")
		for _, args := range [][]string{{"status"}, {"revoke", "--reason", "x"}, {"restore", "--all", "--reason", "x"}} {
			if r := h.Chaperone(append(args, "--config", h.config("weather"))...); r.Status != 0 {
				t.Errorf("%q: %s", args, r.Stderr)
			}
		}
		h.end("weather", syscall.SIGTERM)
		r := h.Chaperone("revoke", "--config", h.config("weather"), "--reason", "x")
		if r.Status == 0 || !strings.Contains(r.Stderr, "--plugin NAME or --admin") {
			t.Errorf("%d %s", r.Status, r.Stderr)
		}
	})
}

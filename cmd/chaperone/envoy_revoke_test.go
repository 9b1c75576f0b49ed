package main

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestEnvoyGranted has the kernel redirect a plugin to Envoy, which answers its
// requests as the sidecar decides.
func TestEnvoyGranted(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.protect()
	w.ready()
	w.envoy()
	if got := g.curl(w.url("/v1/forecast")); !strings.HasSuffix(got, "\n200") {
		t.Fatalf("granted: %s", got)
	}
	if got := w.api.Requests()[0]; got.Header.Get("Authorization") != "Bearer "+w.api.Token() || got.SNI != apiHost {
		t.Errorf("the API received %+v", got)
	}
}

// held is a stream that a plugin holds.
type held struct {
	output *lockedBuffer
	t      *testing.T
}

// hold has a plugin in the cgroup open a stream and returns when it has begun.
func (g *group) hold(program, kind, target string) *held {
	g.w.t.Helper()
	h := &held{output: new(lockedBuffer), t: g.w.t}
	cmd := g.command(program, kind, target)
	cmd.Stdout, cmd.Stderr = h.output, h.output
	testenv.Must(g.w.t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // the test looks at its output
	g.w.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	eventually(g.w.t, kind+" has begun", func() (string, bool) {
		if strings.Contains(h.output.String(), "ended") {
			g.w.t.Fatalf("%s did not begin: %s", kind, h.output.String())
		}
		return "", strings.Contains(h.output.String(), "began")
	})
	return h
}

func (h *held) ended() bool { return strings.Contains(h.output.String(), "ended") }

// endedAt returns when the stream ended, as its plugin saw it.
func (h *held) endedAt() time.Time {
	h.t.Helper()
	_, after, _ := strings.Cut(h.output.String(), "ended ")
	ms, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	testenv.Must(h.t, err)
	return time.UnixMilli(ms)
}

// goesOn reports whether more arrives.
func (h *held) goesOn() {
	h.t.Helper()
	before := len(h.output.String())
	eventually(h.t, "the stream goes on", func() (int, bool) { return 0, len(h.output.String()) > before+2 })
	if h.ended() {
		h.t.Errorf("the stream has ended: %s", h.output.String())
	}
}

// TestEnvoyRevoke revokes a rule under streams of each kind that run through
// Envoy: they end, and that of the other rule goes on.
func TestEnvoyRevoke(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.protect()
	w.ready()
	w.envoy()
	program := w.streamerProgram()
	cut := map[string]*held{
		"http":      g.hold(program, "http", w.url("/stream")),
		"websocket": g.hold(program, "websocket", w.url("/ws")),
		"grpc":      g.hold(program, "grpc", w.url(testenv.EchoChat)),
	}
	other := g.hold(program, "http", w.url("/sse"))

	began := time.Now()
	r := w.revoke("--rule", "weather/api")
	if r.Cut == 0 {
		t.Errorf("got %+v, want the stream cut", r)
	}
	for kind, h := range cut {
		eventually(t, kind+" has ended", func() (int, bool) { return 0, h.ended() })
	}
	took := map[string]time.Duration{}
	for kind, h := range cut {
		took[kind] = h.endedAt().Sub(began)
	}
	t.Logf("revoke took %.1f ms by its own account; since its command was started, %v", r.MS, took)
	other.goesOn()
	w.streaming(1)
	if got := g.curl(w.url("/v1/forecast")); !strings.Contains(got, "revoked") {
		t.Errorf("after the revocation: %s", got)
	}
	if got := g.curl(w.url("/other/thing")); !strings.HasSuffix(got, "\n200") {
		t.Errorf("the other rule: %s", got)
	}

	if back := w.chaperone("restore", r.ID, "--config", w.file("sidecar.yaml"), "--reason", "a test"); back.status != 0 {
		t.Fatal(back.stderr)
	}
	eventually(t, "it is given back", func() (string, bool) {
		got := g.curl(w.url("/v1/forecast"))
		return got, strings.HasSuffix(got, "\n200")
	})

	if r := w.revoke(); r.Cut == 0 {
		t.Errorf("got %+v after everything was revoked, want the stream cut", r)
	}
	eventually(t, "the other rule's stream has ended too", func() (int, bool) { return 0, other.ended() })
	w.streaming(0)
}

// TestEnvoyRun runs a plugin in its own network, by the proxy of its environment
// and by what the kernel redirects: the certificates that Envoy shows are those
// of the authority that the plugin trusts.
func TestEnvoyRun(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	b := w.start("sh", "-c", `
until curl -sS -f -o /dev/null "$0" 2>/dev/null; do sleep 0.1; done
curl -sS -o /dev/null -w 'explicit %{http_code} %{ssl_verify_result}\n' "$0"
curl -sS --noproxy '*' -o /dev/null -w 'redirected %{http_code} %{ssl_verify_result}\n' "$0"
curl -sS --noproxy '*' -X DELETE "$0"`, w.url("/v1/forecast"))
	w.ready()
	w.envoy()
	b.wait()
	contains(t, b.output.String(), "explicit 200 0", "redirected 200 0", `"title":"Method not granted"`)
	log := w.read("state/audit.jsonl")
	contains(t, log, `"door":"ext_authz"`)
	for line := range strings.Lines(log) {
		// While there was no Envoy, the proxy refused.
		if strings.Contains(line, `"door":"proxy"`) && !strings.Contains(line, `"reason":"not_ready"`) {
			t.Errorf("not decided for Envoy: %s", line)
		}
	}
}

package envoy

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestEnvoyGranted has the kernel redirect a plugin to Envoy, which answers its
// requests as the sidecar decides.
func TestEnvoyGranted(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	g.Protect()
	e.Ready()
	e.startEnvoy()
	if got := g.curl(e.URL("/v1/forecast")); !strings.HasSuffix(got, "\n200") {
		t.Fatalf("granted: %s", got)
	}
	if got := e.API.Requests()[0]; got.Header.Get("Authorization") != "Bearer "+e.API.Token() || got.SNI != scenario.Host {
		t.Errorf("the API received %+v", got)
	}
}

// heldStream is a stream that a plugin holds.
type heldStream struct {
	output *scenario.Buffer
	t      *testing.T
}

// hold has a plugin in the cgroup open a stream and returns when it has begun.
func (g *group) hold(program, kind, target string) *heldStream {
	g.Env.T.Helper()
	h := &heldStream{output: new(scenario.Buffer), t: g.Env.T}
	cmd := g.Command(program, kind, target)
	cmd.Stdout, cmd.Stderr = h.output, h.output
	testenv.Must(g.Env.T, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // the test looks at its output
	g.Env.T.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	testenv.Eventually(g.Env.T, kind+" has begun", func() (string, bool) {
		if strings.Contains(h.output.String(), "ended") {
			g.Env.T.Fatalf("%s did not begin: %s", kind, h.output.String())
		}
		return "", strings.Contains(h.output.String(), "began")
	})
	return h
}

func (h *heldStream) ended() bool { return strings.Contains(h.output.String(), "ended") }

// endedAt returns when the stream ended, as its plugin saw it.
func (h *heldStream) endedAt() time.Time {
	h.t.Helper()
	_, after, _ := strings.Cut(h.output.String(), "ended ")
	ms, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	testenv.Must(h.t, err)
	return time.UnixMilli(ms)
}

// checkContinues reports whether more arrives.
func (h *heldStream) checkContinues() {
	h.t.Helper()
	before := len(h.output.String())
	testenv.Eventually(h.t, "the stream goes on", func() (int, bool) { return 0, len(h.output.String()) > before+2 })
	if h.ended() {
		h.t.Errorf("the stream has ended: %s", h.output.String())
	}
}

// TestEnvoyRevoke revokes a rule under streams of each kind that run through
// Envoy: they end, and that of the other rule goes on.
func TestEnvoyRevoke(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	g.Protect()
	e.Ready()
	e.startEnvoy()
	program := e.CopyProgram(streamer)
	cut := map[string]*heldStream{
		"http":      g.hold(program, "http", e.URL("/stream")),
		"websocket": g.hold(program, "websocket", e.URL("/ws")),
		"grpc":      g.hold(program, "grpc", e.URL(testenv.EchoChat)),
	}
	other := g.hold(program, "http", e.URL("/sse"))

	began := time.Now()
	r := e.Revoke("--rule", "weather/api")
	if r.Cut == 0 {
		t.Errorf("got %+v, want the stream cut", r)
	}
	for kind, h := range cut {
		testenv.Eventually(t, kind+" has ended", func() (int, bool) { return 0, h.ended() })
	}
	took := map[string]time.Duration{}
	for kind, h := range cut {
		took[kind] = h.endedAt().Sub(began)
	}
	t.Logf("revoke took %.1f ms by its own account; since its command was started, %v", r.MS, took)
	other.checkContinues()
	e.WaitStreams(1)
	if got := g.curl(e.URL("/v1/forecast")); !strings.Contains(got, "revoked") {
		t.Errorf("after the revocation: %s", got)
	}
	if got := g.curl(e.URL("/other/thing")); !strings.HasSuffix(got, "\n200") {
		t.Errorf("the other rule: %s", got)
	}

	if back := e.Chaperone("restore", r.ID, "--config", e.File("sidecar.yaml"), "--reason", "a test"); back.Status != 0 {
		t.Fatal(back.Stderr)
	}
	testenv.Eventually(t, "it is given back", func() (string, bool) {
		got := g.curl(e.URL("/v1/forecast"))
		return got, strings.HasSuffix(got, "\n200")
	})

	if r := e.Revoke(); r.Cut == 0 {
		t.Errorf("got %+v after everything was revoked, want the stream cut", r)
	}
	testenv.Eventually(t, "the other rule's stream has ended too", func() (int, bool) { return 0, other.ended() })
	e.WaitStreams(0)
}

// TestEnvoyRun runs a plugin in its own network, by the proxy of its environment
// and by what the kernel redirects: the certificates that Envoy shows are those
// of the authority that the plugin trusts.
func TestEnvoyRun(t *testing.T) {
	e := newEnv(t, "required")
	b := e.Start("sh", "-c", `
until curl -sS -f -o /dev/null "$0" 2>/dev/null; do sleep 0.1; done
curl -sS -o /dev/null -w 'explicit %{http_code} %{ssl_verify_result}\n' "$0"
curl -sS --noproxy '*' -o /dev/null -w 'redirected %{http_code} %{ssl_verify_result}\n' "$0"
curl -sS --noproxy '*' -X DELETE "$0"`, e.URL("/v1/forecast"))
	e.Ready()
	e.startEnvoy()
	b.Wait()
	scenario.Contains(t, b.Output.String(), "explicit 200 0", "redirected 200 0", `"title":"Method not granted"`)
	log := e.Read("state/audit.jsonl")
	scenario.Contains(t, log, `"door":"ext_authz"`)
	for line := range strings.Lines(log) {
		// While there was no Envoy, the proxy refused.
		if strings.Contains(line, `"door":"proxy"`) && !strings.Contains(line, `"reason":"not_ready"`) {
			t.Errorf("not decided for Envoy: %s", line)
		}
	}
}

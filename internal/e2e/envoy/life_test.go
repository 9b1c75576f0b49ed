package envoy

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// waitApplied waits until Envoy has applied its whole configuration, with so many exits.
func (e *env) waitApplied(exits int) admin.Status {
	e.T.Helper()
	return testenv.Eventually(e.T, fmt.Sprintf("Envoy has %d exits", exits), func() (admin.Status, bool) {
		s, err := admin.Dial(e.File("state/admin.sock")).Status(e.T.Context())
		return s, err == nil && s.Envoy.Exits == exits && len(s.Envoy.Connected) > 0 && s.Envoy.Connected[len(s.Envoy.Connected)-1].Current
	})
}

// checkEnforcement checks that Envoy allows exactly what is granted.
func (e *env) checkEnforcement(g *group) {
	e.T.Helper()
	if got := g.curl(e.URL("/v1/forecast")); !strings.HasSuffix(got, "\n200") {
		e.T.Errorf("granted: %s", got)
	}
	if got := g.curl(e.URL("/open")); !strings.Contains(got, "path_not_granted") {
		e.T.Errorf("not granted: %s", got)
	}
	for _, r := range e.API.Requests() {
		if r.Target == "/open" {
			e.T.Fatal("got a request at the API that is not granted, want it refused")
		}
	}
}

// TestEnvoyFollows changes the grants under streams: Envoy has what is granted,
// and no more, in each generation.
func TestEnvoyFollows(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	g.Protect()
	e.Ready()
	proxy := e.startEnvoy()
	e.waitApplied(2)
	program := e.CopyProgram(streamer)
	clusters := func() string { return testenv.MustGet(proxy.Admin(t.Context(), http.MethodGet, "/clusters"))(t) }
	scenario.Contains(t, clusters(), "weather/api/", "weather/other/")
	stream, kept := g.hold(program, "http", e.URL("/stream")), g.hold(program, "http", e.URL("/sse"))

	more := "\n  - {id: more, reason: Tests, TO, methods: [GET], paths: [/more], credential: key}"
	e.grantRules(time.Now().Add(time.Hour), envoyRules+more[1:]+"\n")
	e.Chaperone("reload", "--config", e.File("sidecar.yaml"))
	e.waitApplied(3)
	if got := g.curl(e.URL("/more")); !strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that was added: %s", got)
	}
	stream.checkContinues()

	_, other, _ := strings.Cut(envoyRules[1:], "\n")
	e.grantRules(time.Now().Add(time.Hour), "\n"+other)
	e.Chaperone("reload", "--config", e.File("sidecar.yaml"))
	testenv.Eventually(t, "the stream of a rule that was removed has ended", func() (int, bool) { return 0, stream.ended() })
	e.waitApplied(1)
	if got := clusters(); strings.Contains(got, "weather/api/") || strings.Contains(got, "weather/more/") {
		t.Errorf("Envoy still has what was removed:\n%s", got)
	}
	kept.checkContinues()
	if got := g.curl(e.URL("/v1/forecast")); strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that was removed: %s", got)
	}

	e.grantRules(time.Now().Add(3*time.Second), "\n"+other)
	e.Chaperone("reload", "--config", e.File("sidecar.yaml"))
	kept.checkContinues()
	testenv.Eventually(t, "the stream of a rule that has expired has ended", func() (int, bool) { return 0, kept.ended() })
	e.waitApplied(0)
	if got := clusters(); strings.Contains(got, "weather/") {
		t.Errorf("Envoy still has what has expired:\n%s", got)
	}
	if got := g.curl("--resolve", fmt.Sprintf("%s:%d:240.0.0.1", scenario.Host, e.API.Addr.Port()), e.URL("/other/thing")); strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that has expired: %s", got)
	}
}

// TestEnvoyKilled kills Envoy under a stream. There is no way past it while it
// is down, and the next one enforces the same.
func TestEnvoyKilled(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	g.Protect()
	e.Ready()
	proxy := e.startEnvoy()
	e.checkEnforcement(g)
	stream := g.hold(e.CopyProgram(streamer), "http", e.URL("/stream"))
	testenv.Must(t, proxy.Kill())
	testenv.Eventually(t, "the stream has ended", func() (int, bool) { return 0, stream.ended() })
	e.WaitStreams(0)
	before := e.API.Total()
	for range 5 {
		if got := g.curl(e.URL("/v1/forecast")); strings.HasSuffix(got, "\n200") || e.API.Total() != before {
			t.Errorf("without an Envoy: %s", got)
		}
	}
	scenario.Contains(t, g.curl("-k", e.URL("/v1/forecast")), "not_ready")
	e.startEnvoy()
	e.checkEnforcement(g)
}

// TestEnvoyHotRestart replaces Envoy under a stream as its operators do: by a
// second one, to which the first hands its listeners.
func TestEnvoyHotRestart(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	g.Protect()
	e.Ready()
	e.Write("envoy.yaml", e.bootstrap())
	base := e.File("base-id")
	first := e.startEpoch(0, "--use-dynamic-base-id", "--base-id-path", base)
	id := testenv.Eventually(t, "Envoy has chosen its base id", func() (string, bool) {
		data, err := os.ReadFile(base)
		return strings.TrimSpace(string(data)), err == nil && len(data) > 0
	})
	e.waitApplied(2)
	e.checkEnforcement(g)
	stream := g.hold(e.CopyProgram(streamer), "http", e.URL("/stream"))
	out := new(scenario.Buffer)
	loop := g.Command("sh", "-c", fmt.Sprintf(
		`while :; do curl -sS -k -m 5 --noproxy '*' -o /dev/null -w '<%%{http_code}>\n' %s %s 2>/dev/null; done`, e.URL("/v1/forecast"), e.URL("/open")+" -o /dev/null"))
	loop.Stdout = out
	testenv.Must(t, loop.Start())
	t.Cleanup(func() { _ = loop.Process.Kill(); _ = loop.Wait() })
	testenv.Eventually(t, "requests pass", func() (int, bool) { return 0, strings.Count(out.String(), "<200>") > 3 })

	e.startEpoch(1, "--base-id", id)
	testenv.Eventually(t, "the first Envoy has ended", func() (int, bool) {
		select {
		case <-first.Ended:
			return 0, true
		default:
			return 0, false
		}
	})
	e.waitApplied(2)
	testenv.Eventually(t, "the first one's stream has ended with it", func() (int, bool) { return 0, stream.ended() })
	before := strings.Count(out.String(), "<200>")
	testenv.Eventually(t, "requests pass", func() (int, bool) { return 0, strings.Count(out.String(), "<200>") > before+3 })
	e.checkEnforcement(g)
	again := g.hold(e.File(streamer), "http", e.URL("/stream"))
	e.Revoke("--rule", "weather/api")
	testenv.Eventually(t, "the second one's stream is cut", func() (int, bool) { return 0, again.ended() })
}

// startEpoch starts an Envoy of a hot restart.
func (e *env) startEpoch(n int, args ...string) *scenario.Process {
	e.T.Helper()
	program := testenv.MustGet(testenv.FetchEnvoy(e.T.Context(), nil))(e.T)
	cmd := exec.Command(program, append([]string{
		"--config-path", e.File("envoy.yaml"), "--restart-epoch", fmt.Sprint(n), "--concurrency", "1", "--log-level", "warning",
		"--drain-time-s", "1", "--parent-shutdown-time-s", "2",
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return e.StartProcess(cmd)
}

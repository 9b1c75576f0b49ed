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

// inForce waits until Envoy has applied its whole configuration, with so many exits.
func (w *envoyWorld) inForce(exits int) admin.Status {
	w.T.Helper()
	return testenv.Eventually(w.T, fmt.Sprintf("Envoy has %d exits", exits), func() (admin.Status, bool) {
		s, err := admin.Dial(w.File("state/admin.sock")).Status(w.T.Context())
		return s, err == nil && s.Envoy.Exits == exits && len(s.Envoy.Connected) > 0 && s.Envoy.Connected[len(s.Envoy.Connected)-1].Current
	})
}

// enforces checks that Envoy allows exactly what is granted.
func (w *envoyWorld) enforces(g *group) {
	w.T.Helper()
	if got := g.curl(w.URL("/v1/forecast")); !strings.HasSuffix(got, "\n200") {
		w.T.Errorf("granted: %s", got)
	}
	if got := g.curl(w.URL("/open")); !strings.Contains(got, "path_not_granted") {
		w.T.Errorf("not granted: %s", got)
	}
	for _, r := range w.API.Requests() {
		if r.Target == "/open" {
			w.T.Fatal("got a request at the API that is not granted, want it refused")
		}
	}
}

// TestEnvoyFollows changes the grants under streams: Envoy has what is granted,
// and no more, in each generation.
func TestEnvoyFollows(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.Protect()
	w.Ready()
	e := w.envoy()
	w.inForce(2)
	program := w.CopyProgram(streamer)
	clusters := func() string { return testenv.MustGet(e.Admin(t.Context(), http.MethodGet, "/clusters"))(t) }
	scenario.Contains(t, clusters(), "weather/api/", "weather/other/")
	stream, kept := g.hold(program, "http", w.URL("/stream")), g.hold(program, "http", w.URL("/sse"))

	more := "\n  - {id: more, reason: Tests, TO, methods: [GET], paths: [/more], credential: key}"
	w.rules(time.Now().Add(time.Hour), envoyRules+more[1:]+"\n")
	w.Chaperone("reload", "--config", w.File("sidecar.yaml"))
	w.inForce(3)
	if got := g.curl(w.URL("/more")); !strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that was added: %s", got)
	}
	stream.goesOn()

	_, other, _ := strings.Cut(envoyRules[1:], "\n")
	w.rules(time.Now().Add(time.Hour), "\n"+other)
	w.Chaperone("reload", "--config", w.File("sidecar.yaml"))
	testenv.Eventually(t, "the stream of a rule that was removed has ended", func() (int, bool) { return 0, stream.ended() })
	w.inForce(1)
	if got := clusters(); strings.Contains(got, "weather/api/") || strings.Contains(got, "weather/more/") {
		t.Errorf("Envoy still has what was removed:\n%s", got)
	}
	kept.goesOn()
	if got := g.curl(w.URL("/v1/forecast")); strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that was removed: %s", got)
	}

	w.rules(time.Now().Add(3*time.Second), "\n"+other)
	w.Chaperone("reload", "--config", w.File("sidecar.yaml"))
	kept.goesOn()
	testenv.Eventually(t, "the stream of a rule that has expired has ended", func() (int, bool) { return 0, kept.ended() })
	w.inForce(0)
	if got := clusters(); strings.Contains(got, "weather/") {
		t.Errorf("Envoy still has what has expired:\n%s", got)
	}
	if got := g.curl("--resolve", fmt.Sprintf("%s:%d:240.0.0.1", scenario.Host, w.API.Addr.Port()), w.URL("/other/thing")); strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that has expired: %s", got)
	}
}

// TestEnvoyKilled kills Envoy under a stream. There is no way past it while it
// is down, and the next one enforces the same.
func TestEnvoyKilled(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.Protect()
	w.Ready()
	e := w.envoy()
	w.enforces(g)
	stream := g.hold(w.CopyProgram(streamer), "http", w.URL("/stream"))
	testenv.Must(t, e.Kill())
	testenv.Eventually(t, "the stream has ended", func() (int, bool) { return 0, stream.ended() })
	w.WaitStreams(0)
	before := w.API.Total()
	for range 5 {
		if got := g.curl(w.URL("/v1/forecast")); strings.HasSuffix(got, "\n200") || w.API.Total() != before {
			t.Errorf("without an Envoy: %s", got)
		}
	}
	scenario.Contains(t, g.curl("-k", w.URL("/v1/forecast")), "not_ready")
	w.envoy()
	w.enforces(g)
}

// TestEnvoyHotRestart replaces Envoy under a stream as its operators do: by a
// second one, to which the first hands its listeners.
func TestEnvoyHotRestart(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.Protect()
	w.Ready()
	w.Write("envoy.yaml", w.bootstrap())
	base := w.File("base-id")
	first := w.epoch(0, "--use-dynamic-base-id", "--base-id-path", base)
	id := testenv.Eventually(t, "Envoy has chosen its base id", func() (string, bool) {
		data, err := os.ReadFile(base)
		return strings.TrimSpace(string(data)), err == nil && len(data) > 0
	})
	w.inForce(2)
	w.enforces(g)
	stream := g.hold(w.CopyProgram(streamer), "http", w.URL("/stream"))
	out := new(scenario.Buffer)
	loop := g.Command("sh", "-c", fmt.Sprintf(
		`while :; do curl -sS -k -m 5 --noproxy '*' -o /dev/null -w '<%%{http_code}>\n' %s %s 2>/dev/null; done`, w.URL("/v1/forecast"), w.URL("/open")+" -o /dev/null"))
	loop.Stdout = out
	testenv.Must(t, loop.Start())
	t.Cleanup(func() { _ = loop.Process.Kill(); _ = loop.Wait() })
	testenv.Eventually(t, "requests pass", func() (int, bool) { return 0, strings.Count(out.String(), "<200>") > 3 })

	w.epoch(1, "--base-id", id)
	testenv.Eventually(t, "the first Envoy has ended", func() (int, bool) {
		select {
		case <-first.Ended:
			return 0, true
		default:
			return 0, false
		}
	})
	w.inForce(2)
	testenv.Eventually(t, "the first one's stream has ended with it", func() (int, bool) { return 0, stream.ended() })
	before := strings.Count(out.String(), "<200>")
	testenv.Eventually(t, "requests pass", func() (int, bool) { return 0, strings.Count(out.String(), "<200>") > before+3 })
	w.enforces(g)
	again := g.hold(w.File(streamer), "http", w.URL("/stream"))
	w.Revoke("--rule", "weather/api")
	testenv.Eventually(t, "the second one's stream is cut", func() (int, bool) { return 0, again.ended() })
}

// epoch starts an Envoy of a hot restart.
func (w *envoyWorld) epoch(n int, args ...string) *scenario.Process {
	w.T.Helper()
	program := testenv.MustGet(testenv.FetchEnvoy(w.T.Context(), nil))(w.T)
	cmd := exec.Command(program, append([]string{
		"--config-path", w.File("envoy.yaml"), "--restart-epoch", fmt.Sprint(n), "--concurrency", "1", "--log-level", "warning",
		"--drain-time-s", "1", "--parent-shutdown-time-s", "2",
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return w.StartProcess(cmd)
}

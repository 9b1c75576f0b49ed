package main

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
)

// inForce waits until Envoy has applied its whole configuration, with so many exits.
func (w *envoyWorld) inForce(exits int) admin.Status {
	w.t.Helper()
	return eventually(w.t, fmt.Sprintf("Envoy has %d exits", exits), func() (admin.Status, bool) {
		s, err := admin.Dial(w.file("state/admin.sock")).Status(w.t.Context())
		return s, err == nil && s.Envoy.Exits == exits && len(s.Envoy.Connected) > 0 && s.Envoy.Connected[len(s.Envoy.Connected)-1].Current
	})
}

// enforces checks that Envoy allows exactly what is granted.
func (w *envoyWorld) enforces(g *group) {
	w.t.Helper()
	if got := g.curl(w.url("/v1/forecast")); !strings.HasSuffix(got, "\n200") {
		w.t.Errorf("granted: %s", got)
	}
	if got := g.curl(w.url("/open")); !strings.Contains(got, "path_not_granted") {
		w.t.Errorf("not granted: %s", got)
	}
	for _, r := range w.api.Requests() {
		if r.Target == "/open" {
			w.t.Fatal("got a request at the API that is not granted, want it refused")
		}
	}
}

// TestEnvoyFollows changes the grants under streams: Envoy has what is granted,
// and no more, in each generation.
func TestEnvoyFollows(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.protect()
	w.ready()
	e := w.envoy()
	w.inForce(2)
	program := w.streamerProgram()
	clusters := func() string { return testenv.MustGet(e.Admin(t.Context(), http.MethodGet, "/clusters"))(t) }
	contains(t, clusters(), "weather/api/", "weather/other/")
	stream, kept := g.hold(program, "http", w.url("/stream")), g.hold(program, "http", w.url("/sse"))

	more := "\n  - {id: more, reason: Tests, TO, methods: [GET], paths: [/more], credential: key}"
	w.rules(time.Now().Add(time.Hour), envoyRules+more[1:]+"\n")
	w.chaperone("reload", "--config", w.file("sidecar.yaml"))
	w.inForce(3)
	if got := g.curl(w.url("/more")); !strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that was added: %s", got)
	}
	stream.goesOn()

	_, other, _ := strings.Cut(envoyRules[1:], "\n")
	w.rules(time.Now().Add(time.Hour), "\n"+other)
	w.chaperone("reload", "--config", w.file("sidecar.yaml"))
	eventually(t, "the stream of a rule that was removed has ended", func() (int, bool) { return 0, stream.ended() })
	w.inForce(1)
	if got := clusters(); strings.Contains(got, "weather/api/") || strings.Contains(got, "weather/more/") {
		t.Errorf("Envoy still has what was removed:\n%s", got)
	}
	kept.goesOn()
	if got := g.curl(w.url("/v1/forecast")); strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that was removed: %s", got)
	}

	w.rules(time.Now().Add(3*time.Second), "\n"+other)
	w.chaperone("reload", "--config", w.file("sidecar.yaml"))
	kept.goesOn()
	eventually(t, "the stream of a rule that has expired has ended", func() (int, bool) { return 0, kept.ended() })
	w.inForce(0)
	if got := clusters(); strings.Contains(got, "weather/") {
		t.Errorf("Envoy still has what has expired:\n%s", got)
	}
	if got := g.curl("--resolve", fmt.Sprintf("%s:%d:240.0.0.1", apiHost, w.api.Addr.Port()), w.url("/other/thing")); strings.HasSuffix(got, "\n200") {
		t.Errorf("a rule that has expired: %s", got)
	}
}

// TestEnvoyKilled kills Envoy under a stream. There is no way past it while it
// is down, and the next one enforces the same.
func TestEnvoyKilled(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.protect()
	w.ready()
	e := w.envoy()
	w.enforces(g)
	stream := g.hold(w.streamerProgram(), "http", w.url("/stream"))
	testenv.Must(t, e.Kill())
	eventually(t, "the stream has ended", func() (int, bool) { return 0, stream.ended() })
	w.streaming(0)
	before := w.api.Total()
	for range 5 {
		if got := g.curl(w.url("/v1/forecast")); strings.HasSuffix(got, "\n200") || w.api.Total() != before {
			t.Errorf("without an Envoy: %s", got)
		}
	}
	contains(t, g.curl("-k", w.url("/v1/forecast")), "not_ready")
	w.envoy()
	w.enforces(g)
}

// TestEnvoyHotRestart replaces Envoy under a stream as its operators do: by a
// second one, to which the first hands its listeners.
func TestEnvoyHotRestart(t *testing.T) {
	w := newEnvoyWorld(t, "required")
	g := w.group()
	g.protect()
	w.ready()
	w.write("envoy.yaml", w.bootstrap())
	base := w.file("base-id")
	first := w.epoch(0, "--use-dynamic-base-id", "--base-id-path", base)
	id := eventually(t, "Envoy has chosen its base id", func() (string, bool) {
		data, err := os.ReadFile(base)
		return strings.TrimSpace(string(data)), err == nil && len(data) > 0
	})
	w.inForce(2)
	w.enforces(g)
	stream := g.hold(w.streamerProgram(), "http", w.url("/stream"))
	out := new(lockedBuffer)
	loop := g.command("sh", "-c", fmt.Sprintf(
		`while :; do curl -sS -k -m 5 --noproxy '*' -o /dev/null -w '<%%{http_code}>\n' %s %s 2>/dev/null; done`, w.url("/v1/forecast"), w.url("/open")+" -o /dev/null"))
	loop.Stdout = out
	testenv.Must(t, loop.Start())
	t.Cleanup(func() { _ = loop.Process.Kill(); _ = loop.Wait() })
	eventually(t, "requests pass", func() (int, bool) { return 0, strings.Count(out.String(), "<200>") > 3 })

	w.epoch(1, "--base-id", id)
	eventually(t, "the first Envoy has ended", func() (int, bool) {
		select {
		case <-first.ended:
			return 0, true
		default:
			return 0, false
		}
	})
	w.inForce(2)
	eventually(t, "the first one's stream has ended with it", func() (int, bool) { return 0, stream.ended() })
	before := strings.Count(out.String(), "<200>")
	eventually(t, "requests pass", func() (int, bool) { return 0, strings.Count(out.String(), "<200>") > before+3 })
	w.enforces(g)
	again := g.hold(w.file(streamer), "http", w.url("/stream"))
	w.revoke("--rule", "weather/api")
	eventually(t, "the second one's stream is cut", func() (int, bool) { return 0, again.ended() })
}

// epoch starts an Envoy of a hot restart.
func (w *envoyWorld) epoch(n int, args ...string) *background {
	w.t.Helper()
	program := testenv.MustGet(testenv.FetchEnvoy(w.t.Context(), nil))(w.t)
	cmd := exec.Command(program, append([]string{
		"--config-path", w.file("envoy.yaml"), "--restart-epoch", fmt.Sprint(n), "--concurrency", "1", "--log-level", "warning",
		"--drain-time-s", "1", "--parent-shutdown-time-s", "2",
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return w.background(cmd)
}

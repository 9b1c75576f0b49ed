package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestServeRestart kills the sidecar of a plugin that goes on: nothing passes
// until another takes over, and usage in between is charged once.
func TestServeRestart(t *testing.T) {
	w := newEnv(t, "required", "  limits: {connections: 1000000}\n")
	g := w.Cgroup()
	b := g.Protect()
	w.Ready()
	out := new(scenario.Buffer)
	loop := g.Command("sh", "-c", fmt.Sprintf(
		`while :; do curl -sS -k -m 5 --noproxy '*' -o /dev/null -w '%%{http_code}\n' %s 2>/dev/null || echo refused; sleep 0.05; done`, w.URL("/v1/forecast")))
	loop.Stdout = out
	testenv.Must(t, loop.Start())
	stop := func() { _ = loop.Process.Kill(); _ = loop.Wait() }
	defer stop()
	passed := func() int { return strings.Count(out.String(), "200") }
	testenv.Eventually(t, "a request has passed", func() (int, bool) { return 0, passed() > 2 })

	testenv.Must(t, b.Cmd.Process.Kill())
	b.Wait()
	total, refused := w.API.Total(), strings.Count(out.String(), "refused")
	testenv.Eventually(t, "it is refused, again and again", func() (int, bool) { return 0, strings.Count(out.String(), "refused") > refused+5 })
	if w.API.Total() != total {
		t.Error("the API was reached while no sidecar lived")
	}

	g.Protect()
	w.Ready()
	before := passed()
	testenv.Eventually(t, "requests pass again", func() (int, bool) { return 0, passed() > before+2 })
	stop()
	usage := testenv.Eventually(t, "usage charged once", func() (admin.Usage, bool) {
		u, err := admin.Dial(w.File("state/admin.sock")).Usage(t.Context())
		return u, err == nil && u.Counters != nil && u.Counters.Connections > 0 && u.Limits[0].Used >= u.Counters.Connections
	})
	if used, counted := usage.Limits[0].Used, usage.Counters.Connections; used != counted {
		t.Errorf("%d connections are charged, and the kernel counted %d", used, counted)
	}
}

// TestServeSevered removes the cgroup under its sidecar and makes another in
// its place, which is not taken for protected.
func TestServeSevered(t *testing.T) {
	w := newEnv(t, "required", "")
	g := w.Cgroup()
	b := g.Protect()
	w.Ready()
	testenv.Must(t, os.Remove(g.Dir))
	testenv.Must(t, os.Mkdir(g.Dir, 0o755))
	if status := b.Wait(); status != exitFailure {
		t.Errorf("got status %d, want %d", status, exitFailure)
	}
	scenario.Contains(t, b.Output.String(), "no longer on the cgroup")
}

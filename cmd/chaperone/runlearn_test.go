package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunLearn walks from nothing to an enforced grant: a plugin runs while a rule observes,
// the command that run prints proposes a grant, which check refuses until its reasons are
// stated, and then the same traffic passes and no other does.
func TestRunLearn(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		w.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: api
    reason: A test
    to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem}}
    methods: [HEAD]
    paths: [/]
    mode: observe
    observeUntil: %[1]s
`, until, scenario.Host, w.API.Addr.Port()))

		// The plugin asks for three ids, one fixed path, and posts.
		ask := func(requests ...string) scenario.Result {
			script := "set -e; "
			for _, request := range requests {
				method, path, _ := strings.Cut(request, " ")
				script += fmt.Sprintf("curl -sS -o /dev/null -w '%s %%{http_code} %%header{x-chaperone-reason}\\n' -X %s %s; ", request, method, w.URL(path))
			}
			return w.Run("sh", "-c", script)
		}
		traffic := []string{"GET /v1/forecast/1", "GET /v1/forecast/22", "GET /v1/forecast/333", "GET /v1/alerts", "POST /echo"}
		observed := ask(traffic...)
		_, command, ok := strings.Cut(observed.Stderr, "chaperone: propose a grant for what was observed: ")
		if observed.Status != 0 || !ok || strings.Contains(observed.Stdout, "_granted") {
			t.Fatalf("status %d, stdout\n%s\nstderr\n%s\nwant all requests to pass and the command that learns", observed.Status, observed.Stdout, observed.Stderr)
		}

		command = strings.TrimSpace(command) + " -o learned.yaml"
		sh := exec.Command("sh", "-c", command)
		sh.Dir, sh.Env = w.Dir, w.Command().Env
		if out, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		learned := w.Read("learned.yaml")
		scenario.Contains(t, learned, `- "/v1/forecast/*" # * for integers, as in "1", "22", "333"`, `- "/v1/alerts"`, `addresses: ["127.0.0.1/32"]`, "Becomes possible: ")
		if r := w.Chaperone("check", "learned.yaml"); r.Status != exitFailure || !strings.Contains(r.Stderr, "is still TODO") {
			t.Errorf("check of the proposal: status %d\n%s", r.Status, r.Stderr)
		}

		w.Write("learned.yaml", strings.ReplaceAll(learned, "reason: TODO", "reason: Shows the forecast"))
		w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), "grants: [grant.yaml]", "grants: [learned.yaml]", 1))
		if r := w.Chaperone("check", "sidecar.yaml"); r.Status != 0 {
			t.Fatalf("check of the grant with reasons: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		enforced := ask(append(traffic, "GET /v1/forecast/4444", "DELETE /v1/alerts", "GET /v1/other")...)
		want := observed.Stdout + "GET /v1/forecast/4444 " + strings.Fields(observed.Stdout)[2] + " \nDELETE /v1/alerts 403 method_not_granted\nGET /v1/other 403 path_not_granted\n"
		if enforced.Stdout != want {
			t.Errorf("enforced: got\n%s%s\nwant\n%s", enforced.Stdout, enforced.Stderr, want)
		}
		if strings.Contains(enforced.Stderr, "policy learn") {
			t.Errorf("run prints the command that learns although nothing observes:\n%s", enforced.Stderr)
		}
	})
}

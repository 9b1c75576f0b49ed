package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestObserveInternal walks from a sidecar that observes to the rule for an API at
// a private address with an authority of its own: each refusal gives the rule that
// is needed, and nothing but that rule opens the way.
func TestObserveInternal(t *testing.T) {
	w := newEnv(t, "off", "")
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	spec := strings.Replace(w.Read("sidecar.yaml"), "  audit: {paths: full}\n", "", 1)
	w.Write("sidecar.yaml", strings.Replace(spec, "spec:\n", "spec:\n  mode: observe\n  observeUntil: "+until+"\n", 1))
	grant := func(rules string) {
		w.Write("grant.yaml", fmt.Sprintf("apiVersion: chaperone.dev/v1alpha1\nkind: PluginGrant\nmetadata: {name: weather}\nspec:\n  plugin: weather\n  notAfter: %s\n  rules:\n%s", until, rules))
	}
	other := "  - {id: other, reason: A test, to: {hosts: [other.example]}, methods: [GET], paths: [/]}\n"
	grant(other)
	b, status := w.Serve()
	scenario.Contains(t, strings.Join(status.Warnings, "\n"), "observing: ", "audit.paths is full until "+until)
	target := w.URL("/v1/forecast/oslo")

	// explained returns what explain prints of the last access that was refused.
	explained := func(reason string) string {
		t.Helper()
		w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", target)
		id := testenv.Eventually(t, "the access has ended as "+reason, func() (string, bool) {
			for line := range strings.SplitSeq(w.Chaperone("audit", "query", "--config", w.File("sidecar.yaml"), "--kind", "end", "--reason", reason).Stdout, "\n") {
				if _, rest, ok := strings.Cut(line, `"decision":"`); ok {
					id, _, _ := strings.Cut(rest, `"`)
					return id, true
				}
			}
			return "", false
		})
		r := w.Chaperone("explain", "--config", w.File("sidecar.yaml"), id)
		if r.Status != 0 {
			t.Errorf("explain %s: status %d\n%s%s", id, r.Status, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	port := w.API.Addr.Port()
	text := explained("address_not_allowed")
	rule := fmt.Sprintf("to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32]}", scenario.Host, port)
	scenario.Contains(t, text, "observed", "address_not_allowed", rule, "methods: [GET]", "paths: [/v1/forecast/oslo]", "- id: get-api-weather-example-")
	scenario.Contains(t, w.Chaperone("audit", "query", "--config", w.File("sidecar.yaml"), "--reason", "observed").Stdout, `"path":"/v1/forecast/oslo"`)

	observing := func(to string) string {
		return other + "  - id: api\n    reason: A test\n    " + to + "\n    methods: [HEAD]\n    paths: [/]\n    mode: observe\n    observeUntil: " + until + "\n"
	}
	reload := func() {
		t.Helper()
		if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
			t.Fatalf("reload: %s%s", r.Stdout, r.Stderr)
		}
	}
	grant(observing(rule))
	reload()
	text = explained("upstream_unreachable")
	scenario.Contains(t, text, "authority that is not trusted", "addresses: [127.0.0.1/32], tls: {caFile: CA-OF-"+scenario.Host+".pem}")

	testenv.Must(t, w.API.CA.WriteFile(w.File("CA-OF-"+scenario.Host+".pem")))
	grant(observing(strings.TrimSuffix(rule, "}") + ", tls: {caFile: CA-OF-" + scenario.Host + ".pem}}"))
	reload()
	if got, body := w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", target); got == 0 || got == 403 || got == 502 {
		t.Errorf("with the rule: %d %s\n%s", got, body, b.Output.String())
	}
	// An enforcing sidecar masks again.
	w.Write("sidecar.yaml", spec)
	grant(other + "  - id: api\n    reason: A test\n    " + strings.TrimSuffix(rule, "}") + ", tls: {caFile: CA-OF-" + scenario.Host + ".pem}}\n    methods: [GET]\n    paths: [\"/v1/forecast/*\"]\n")
	reload()
	w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", w.URL("/v1/forecast/secret-place"))
	if strings.Contains(w.audit(), "secret-place") {
		t.Error("paths are recorded in full although nothing observes")
	}
}

package tighten

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

// TestIntended refuses an edit that loads and is narrower, but is not the intended one.
func TestIntended(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	load := func(hosts string) []policy.Subject {
		t.Helper()
		file := filepath.Join(t.TempDir(), "grant.yaml")
		text := strings.Replace(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-01-01T00:00:00Z
  rules: [{id: read, reason: a test, to: {hosts: HOSTS}, methods: [GET], paths: [/]}]
`, "HOSTS", hosts, 1)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		subjects, err := policy.Load(now, policy.Options{}, file)
		if err != nil {
			t.Fatal(err)
		}
		return subjects
	}
	p := &planner{before: load("[a.example, b.example, c.example]")}
	at, _ := p.before[0].Position("weather", "read")
	changes := []Change{{Grant: "weather", Rule: "read", Position: at, Field: usage.Hosts, Value: "b.example", index: 1}}
	if err := p.intended(load("[a.example, c.example]"), changes); err != nil {
		t.Errorf("got %v for the intended edit", err)
	}
	for _, other := range []string{"[a.example, b.example]", "[a.example]", "[a.example, b.example, c.example]"} {
		if err := p.intended(load(other), changes); err == nil {
			t.Errorf("got no error for hosts %s", other)
		}
	}
}

package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExpiry warns of grants that expire within 14 days, and distinguishes an expired
// grant from an error.
func TestExpiry(t *testing.T) {
	end := time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "grant.yaml")
	text := `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2026-12-31T00:00:00Z
  sockets: [/run/systemd/resolve/io.systemd.Resolve]
  rules:
  - {id: a, reason: A test, to: {hosts: [a.example]}, methods: [GET], paths: ["/v1/:id"], notAfter: 2026-12-10T00:00:00Z}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before            time.Duration
		warnings, expired string
	}{
		{40 * 24 * time.Hour, "", ""},
		{30 * 24 * time.Hour, "spec.rules[0].notAfter: 2026-12-10T00:00:00Z is 9 days ahead", ""},
		{13 * 24 * time.Hour, "spec.notAfter: 2026-12-31T00:00:00Z is 13 days ahead", ""},
		{13 * 24 * time.Hour, "spec.rules[0].notAfter: 2026-12-10T00:00:00Z has passed; the rule grants nothing", ""},
		{3 * time.Hour, "is 3 hours ahead", ""},
		{-time.Second, "", "spec.notAfter: 2026-12-31T00:00:00Z has passed; nothing that this grant states is allowed"},
	} {
		checked, err := Check(end.Add(-c.before), file)
		if err != nil {
			t.Fatal(err)
		}
		if got := checked.Warnings.Error(); !strings.Contains(got, c.warnings) || c.warnings == "" && strings.Contains(got, "ahead") {
			t.Errorf("%s before: warnings %s", c.before, got)
		}
		if got := checked.Expired.Error(); !strings.Contains(got, c.expired) || c.expired == "" && got != "" {
			t.Errorf("%s before: expired %s", c.before, got)
		}
		for _, doubt := range []string{"resolves names past the sidecar", `matches only the text ":id"`} {
			if !strings.Contains(checked.Warnings.Error(), doubt) {
				t.Errorf("%s before: no warning %q", c.before, doubt)
			}
		}
	}
}

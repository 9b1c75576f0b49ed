package main

import (
	"strings"
	"testing"
)

// TestCompletion asks as the shells' scripts do for the values of flags and
// arguments.
func TestCompletion(t *testing.T) {
	h := newHost(t, "one", "two")
	h.start("one", "two")
	if got := h.Chaperone("revoke", "--plugin", "one", "--reason", "looks odd"); got.Status != 0 {
		t.Fatalf("status %d: %s", got.Status, got.Stderr)
	}
	for name, test := range map[string]struct {
		words []string
		want  []string
	}{
		"formats":     {[]string{"status", "--output", ""}, []string{"table", "json", "yaml"}},
		"levels":      {[]string{"revoke", "--level", ""}, []string{"pause", "quarantine", "halt"}},
		"plugins":     {[]string{"status", "--plugin", ""}, []string{"one", "two"}},
		"revocations": {[]string{"restore", "--plugin", "one", ""}, []string{"looks odd"}},
		"kinds":       {[]string{"audit", "query", "--kind", ""}, []string{"decision", "revocation"}},
		"schemas":     {[]string{"schema", ""}, []string{"Sidecar", "PluginGrant"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := h.Chaperone(append([]string{"__complete"}, test.words...)...)
			for _, want := range test.want {
				if !strings.Contains(got.Stdout, want) {
					t.Errorf("%q is not completed:\n%s%s", want, got.Stdout, got.Stderr)
				}
			}
		})
	}
}

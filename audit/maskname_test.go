package audit_test

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// TestMaskedNames: of a key or a channel, what its rule's pattern spells out is readable.
func TestMaskedNames(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	tests := []struct{ fact, pattern, want string }{ // M is a mask
		{"key:app:user:42", "key:app:*", "key:app:M:M"},
		{"key:app:user:42", "key:app:us*", "key:app:usM:M"},
		{"key:app:user:42", "key:app:user:42", "key:app:user:42"},
		{"key:app:user:42", "key:*", "key:M:M:M"},
		{"key:app:user:42", "", "key:M:M:M"},
		{"key:app:", "key:app:*", "key:app:"},
		{"key:app:us*", "key:app:*", "key:app:M*"},
		{"key:*", "", "key:*"},
		{"key:a~b", "key:a~b", "key:aM"},
		{"key:a\"b", "key:a\"b", `key:a\"b`},
		{"channel:app.news", "channel:app.*", "channel:app.M"},
		{"channel:app/../x", "channel:app*", "channel:app/../M"},
		{"key:" + strings.Repeat("a:", 20) + "b", "", "key:" + strings.Repeat("M:", 15) + "M…"},
		{"key:" + strings.Repeat("\x01", 200), "key:" + strings.Repeat("\x01", 200), "key:" + strings.Repeat(`\u0001`, 84) + "…"},
		{"command:get", "", "command:get"},
		{"table:public.orders", "", "table:public.orders"},
	}
	for _, test := range tests {
		r := authz.Record{Time: at, Kind: authz.KindDecision, Protocol: "redis", Facts: []string{test.fact}, Patterns: []string{test.pattern}}
		if err := log.Record(&r); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSpace(string(f.read())), "\n")
	for i, test := range tests {
		_, text, _ := strings.Cut(lines[i], `"facts":["`)
		text, _, _ = strings.Cut(text, `"],"hash"`)
		var got strings.Builder
		for rest := text; rest != ""; {
			readable, mask, after := audit.CutMask(rest)
			if got.WriteString(readable); mask != "" {
				got.WriteString("M")
			}
			rest = after
		}
		masked := strings.Contains(lines[i], `"masked":"`)
		if got.String() != test.want || masked != (strings.HasPrefix(test.fact, "key:") || strings.HasPrefix(test.fact, "channel:")) {
			t.Errorf("%q under %q is recorded as %s, want %s; masked: %v", test.fact, test.pattern, text, test.want, masked)
		}
	}
	if line := written(t, true, &authz.Record{Time: at, Kind: authz.KindDecision, Protocol: "redis", Facts: []string{"key:app:1"}}); !strings.Contains(line, `"facts":["key:app:1"]`) {
		t.Errorf("with paths in full, a key is recorded as %s", line)
	}
}

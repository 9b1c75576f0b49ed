package phrase

import "testing"

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{
		"/var/log/a-b_c.jsonl": "/var/log/a-b_c.jsonl",
		"":                     "''",
		"a b":                  "'a b'",
		"$(id)`id`":            "'$(id)`id`'",
		"it's":                 `'it'\''s'`,
		"a\x1b[2J":             `"a\x1b[2J"`,
	} {
		if got := ShellWord(in); got != want {
			t.Errorf("ShellWord(%q) = %s, want %s", in, got, want)
		}
	}
}

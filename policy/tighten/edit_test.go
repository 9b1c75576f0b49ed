package tighten

import (
	"strings"
	"testing"
	"time"
)

// TestEdit edits texts at a marked place, and compares every byte.
func TestEdit(t *testing.T) {
	until := time.Date(2027, 1, 15, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		text  string // with § before the place
		apply func([]byte, int) ([]byte, error)
		want  string // "" for an error
	}{
		"first of a flow list":     {"hosts: [§a, b, c] # x", removeFlowItem, "hosts: [b, c] # x"},
		"middle of a flow list":    {"hosts: [a, §'b', c]", removeFlowItem, "hosts: [a, c]"},
		"last of a flow list":      {"hosts: [a, b, §\"c\\\"]\" ]", removeFlowItem, "hosts: [a, b ]"},
		"only one of a flow list":  {"hosts: [§a]", removeFlowItem, "hosts: []"},
		"trailing comma":           {"hosts: [a, §b, ]", removeFlowItem, "hosts: [a, ]"},
		"flow list of lines":       {"hosts: [\n  a,\n  §b, # x\n  c ]", removeFlowItem, "hosts: [\n  a,\n  # x\n  c ]"},
		"quotes with quotes":       {"[a, §'it''s', c]", removeFlowItem, "[a, c]"},
		"JSON":                     {`{"hosts": ["a", §"b"]}`, removeFlowItem, `{"hosts": ["a"]}`},
		"block list":               {"hosts:\n- a # x\n- §b # y\n# z\n- c\n", removeBlockItem, "hosts:\n- a # x\n# z\n- c\n"},
		"last line without an end": {"hosts:\n- a\n- §b", removeBlockItem, "hosts:\n- a\n"},
		"block on two lines":       {"- §\"a\n  b\"\n", removeBlockItem, ""},
		"two on one line":          {"- - §a\n", removeBlockItem, ""},
		"into a block":             {"  - id: §a # x\n    reason: y\n", insertNotAfter(until, 4, "why"), "  - id: a # x\n    notAfter: 2027-01-15T00:00:00Z # why\n    reason: y\n"},
		"into a block at the end":  {"  - id: §a", insertNotAfter(until, 4, "why"), "  - id: a\n    notAfter: 2027-01-15T00:00:00Z # why"},
		"into braces":              {"- {id: §a, reason: y}", insertNotAfter(until, -1, "why"), "- {id: a, notAfter: 2027-01-15T00:00:00Z, reason: y}"},
		"into JSON":                {`{"id": §"a"}`, insertNotAfter(until, -1, "why"), `{"id": "a", "notAfter": "2027-01-15T00:00:00Z"}`},
		"another notAfter":         {"notAfter: §2028-01-01T00:00:00Z # x", replaceScalar("2027", false), "notAfter: 2027 # x"},
		"another quoted notAfter":  {"{notAfter: §\"2028\"}", replaceScalar("2027", true), "{notAfter: \"2027\"}"},
		"a rule": {
			"  rules:\n  # about a\n  - id: §a\n    reason: x\n\n    # inner\n    to: {}\n\n  # about b\n  - id: b\n", removeRule,
			"  rules:\n  # about a\n\n  # about b\n  - id: b\n",
		},
		"the last rule":       {"  - id: b\n  - id: §a\n    to:\n      hosts: [a]\n  limits: {}\n", removeRule, "  - id: b\n  limits: {}\n"},
		"a rule in braces":    {"  - §{id: a,\n     reason: x}\n  - {id: b}\n", removeRule, "  - {id: b}\n"},
		"a rule in a flow":    {"rules: [§{id: a}, {id: b}]", removeRule, ""},
		"an unclosed quote":   {"[a, §\"b", removeFlowItem, ""},
		"a text of two lines": {"- §|\n  a\n", removeBlockItem, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			at := strings.Index(test.text, "§")
			data := []byte(strings.Replace(test.text, "§", "", 1))
			got, err := edit(data, []operation{{at, test.apply}})
			if test.want == "" {
				if err == nil {
					t.Errorf("got %q, want an error", got)
				}
				return
			}
			if err != nil || string(got) != test.want {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestOffsetOf(t *testing.T) {
	data := []byte("a\nüb: c\n")
	if at, err := offsetOf(data, 2, 2); err != nil || data[at] != 'b' {
		t.Errorf("got %d, %v, want the place of b", at, err)
	}
	for _, at := range [][2]int{{9, 1}, {3, 2}} {
		if _, err := offsetOf(data, at[0], at[1]); err == nil {
			t.Errorf("got no error for line %d, column %d", at[0], at[1])
		}
	}
}

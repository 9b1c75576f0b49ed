package diff

import "github.com/chaperone-proxy/chaperone/internal/sarif"

// SARIF returns the report as a SARIF 2.1.0 log, to be encoded as JSON: one result for
// each change, at its line. A wider change is an error, the others are notes. version is the
// program's.
func (r *Report) SARIF(version string) any {
	tool := sarif.Tool{Name: "chaperone policy diff", Version: version}
	for _, c := range Classes() {
		tool.Rules = append(tool.Rules, sarif.Rule{ID: "policy-" + string(c.Class), Text: c.Text})
	}
	var results []sarif.Result
	for _, p := range r.Plugins {
		for _, list := range []struct {
			level, effect string
			changes       []Change
		}{{"error", "wider", p.Wider}, {"note", "narrower", p.Narrower}, {"note", "changed", p.Changed}} {
			for _, c := range list.changes {
				results = append(results, c.sarif(p.Plugin, list.level, list.effect))
			}
		}
	}
	if r.Verdict == Undecided {
		results = append(results, sarif.Result{
			Rule: "policy-" + string(ClassPlugin), Level: "error", Properties: map[string]string{"effect": "undecided"},
			Text: "the time ended before every request was compared; say a longer --budget",
		})
	}
	return sarif.Log(tool, results)
}

func (c *Change) sarif(plugin, level, effect string) sarif.Result {
	out := sarif.Result{
		Rule: "policy-" + string(c.Class), Level: level, Text: effect + ": " + c.Text(plugin),
		Properties: map[string]string{"plugin": plugin, "effect": effect},
	}
	if p := c.Position; p != nil {
		out.File, out.Line, out.Column = p.File, p.Line, p.Column
	}
	return out
}

// Text returns the change on one line.
func (c *Change) Text(plugin string) string {
	text := plugin
	if c.Rule != "" {
		text += " " + c.Rule
	}
	if c.Shown != nil && c.Shown.Kind != "" && c.Shown.URL != "" {
		text += " " + c.Shown.Request()
	}
	return text + ": " + c.Summary
}

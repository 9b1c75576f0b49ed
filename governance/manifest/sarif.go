package manifest

import "github.com/chaperone-proxy/chaperone/internal/sarif"

// SARIF returns the result as a SARIF 2.1.0 log, to be encoded as JSON: one result for each finding, at its line.
// version is the program's.
func (r *Result) SARIF(version string) any {
	tool := sarif.Tool{Name: "chaperonectl plugin check", Version: version}
	for _, about := range Checks() {
		tool.Rules = append(tool.Rules, sarif.Rule{ID: "manifest-" + about.ID, Text: about.Text})
	}
	results := make([]sarif.Result, 0, len(r.Findings))
	for _, f := range r.Findings {
		one := sarif.Result{
			Rule: "manifest-" + f.Check, Level: string(f.Level), Text: f.text(), Properties: map[string]string{"plugin": r.Plugin, "version": r.Version},
			File: f.File, Line: f.Line, Column: f.Column,
		}
		for name, value := range map[string]string{"permission": f.Permission, "bound": f.Bound, "exemption": f.Exemption} {
			if value != "" {
				one.Properties[name] = value
			}
		}
		results = append(results, one)
	}
	return sarif.Log(tool, results)
}

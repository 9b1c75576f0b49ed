package diff

import (
	"net/url"
	"path/filepath"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// The types below are the part of SARIF 2.1.0 (OASIS Standard, March 2020) that
// [Report.SARIF] writes. A library for all of it would be linked into every sidecar.
type sarifLog struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool       sarifTool     `json:"tool"`
	ColumnKind string        `json:"columnKind"`
	Results    []sarifResult `json:"results"`
}

type sarifTool struct {
	Driver sarifDriver `json:"driver"`
}

type sarifDriver struct {
	Name    string      `json:"name"`
	Version string      `json:"version,omitempty"`
	Rules   []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID               string       `json:"id"`
	ShortDescription sarifMessage `json:"shortDescription"`
}

type sarifMessage struct {
	Text string `json:"text"`
}

type sarifResult struct {
	RuleID     string            `json:"ruleId"`
	RuleIndex  int               `json:"ruleIndex"`
	Level      string            `json:"level"`
	Message    sarifMessage      `json:"message"`
	Locations  []sarifLocation   `json:"locations,omitempty"`
	Properties map[string]string `json:"properties"`
}

type sarifLocation struct {
	PhysicalLocation sarifPhysicalLocation `json:"physicalLocation"`
}

type sarifPhysicalLocation struct {
	ArtifactLocation sarifArtifact `json:"artifactLocation"`
	Region           sarifRegion   `json:"region"`
}

type sarifArtifact struct {
	URI string `json:"uri"`
}

type sarifRegion struct {
	StartLine   int `json:"startLine"`
	StartColumn int `json:"startColumn"`
}

// SARIF returns the report as a SARIF 2.1.0 log, to be encoded as JSON: one result for
// each change, at its line. A wider change is an error, the others are notes. version is the
// program's.
func (r *Report) SARIF(version string) any {
	driver := sarifDriver{Name: "chaperone policy diff", Version: version}
	index := map[Class]int{}
	for i, c := range Classes() {
		index[c.Class] = i
		driver.Rules = append(driver.Rules, sarifRule{"policy-" + string(c.Class), sarifMessage{c.Text}})
	}
	run := sarifRun{Tool: sarifTool{driver}, ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	for _, p := range r.Plugins {
		for _, list := range []struct {
			level, effect string
			changes       []Change
		}{{"error", "wider", p.Wider}, {"note", "narrower", p.Narrower}, {"note", "changed", p.Changed}} {
			for _, c := range list.changes {
				run.Results = append(run.Results, c.sarif(p.Plugin, list.level, list.effect, index[c.Class]))
			}
		}
	}
	if r.Verdict == Undecided {
		run.Results = append(run.Results, sarifResult{
			RuleID: "policy-" + string(ClassPlugin), RuleIndex: index[ClassPlugin], Level: "error", Properties: map[string]string{"effect": "undecided"},
			Message: sarifMessage{"the time ended before every request was compared; say a longer --budget"},
		})
	}
	return sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}}
}

func (c *Change) sarif(plugin, level, effect string, index int) sarifResult {
	text := effect + ": " + c.Text(plugin)
	out := sarifResult{
		RuleID: "policy-" + string(c.Class), RuleIndex: index, Level: level, Message: sarifMessage{printable.Text(text)},
		Properties: map[string]string{"plugin": plugin, "effect": effect},
	}
	if p := c.Position; p != nil {
		uri := (&url.URL{Path: filepath.ToSlash(p.File)}).EscapedPath()
		if strings.Contains(strings.SplitN(uri, "/", 2)[0], ":") {
			uri = "./" + uri // it would be read as a scheme
		}
		out.Locations = []sarifLocation{{sarifPhysicalLocation{sarifArtifact{uri}, sarifRegion{p.Line, p.Column}}}}
	}
	return out
}

// Text returns the change on one line.
func (c *Change) Text(plugin string) string {
	text := plugin
	if c.Rule != "" {
		text += " " + c.Rule
	}
	if c.Shown != nil && c.Shown.Kind != "" && c.Shown.Method != "" {
		text += " " + c.Shown.Request()
	}
	return text + ": " + c.Summary
}

// Package sarif writes results as SARIF 2.1.0 (OASIS Standard, March 2020). It has the part of
// the format that the commands write; a library for all of it would be linked into every
// sidecar.
package sarif

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Tool is the program whose results a log holds.
type Tool struct {
	Name    string
	Version string // "" if it is not known
	Rules   []Rule
}

// Rule is a kind of result.
type Rule struct{ ID, Text string }

// Result is one result.
type Result struct {
	Rule  string // the id of one of the tool's rules
	Level string // error, warning or note
	Text  string
	// File, Line and Column are its place, 1-based and in characters; File is "" without one.
	File         string
	Line, Column int
	Properties   map[string]string
}

type log struct {
	Schema  string `json:"$schema"`
	Version string `json:"version"`
	Runs    []run  `json:"runs"`
}

type run struct {
	Tool       tool     `json:"tool"`
	ColumnKind string   `json:"columnKind"`
	Results    []result `json:"results"`
}

type tool struct {
	Driver driver `json:"driver"`
}

type driver struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Rules   []rule `json:"rules"`
}

type rule struct {
	ID               string  `json:"id"`
	ShortDescription message `json:"shortDescription"`
}

type message struct {
	Text string `json:"text"`
}

type result struct {
	RuleID     string            `json:"ruleId"`
	RuleIndex  int               `json:"ruleIndex"`
	Level      string            `json:"level"`
	Message    message           `json:"message"`
	Locations  []location        `json:"locations,omitempty"`
	Properties map[string]string `json:"properties"`
}

type location struct {
	PhysicalLocation physicalLocation `json:"physicalLocation"`
}

type physicalLocation struct {
	ArtifactLocation artifact `json:"artifactLocation"`
	Region           region   `json:"region"`
}

type artifact struct {
	URI string `json:"uri"`
}

type region struct {
	StartLine   int `json:"startLine"`
	StartColumn int `json:"startColumn"`
}

// Log returns a log of one run, to be encoded as JSON.
func Log(t Tool, results []Result) any {
	r := run{Tool: tool{driver{Name: t.Name, Version: t.Version}}, ColumnKind: "unicodeCodePoints", Results: []result{}}
	for _, one := range t.Rules {
		r.Tool.Driver.Rules = append(r.Tool.Driver.Rules, rule{one.ID, message{one.Text}})
	}
	for _, one := range results {
		out := result{
			RuleID: one.Rule, RuleIndex: slices.IndexFunc(t.Rules, func(r Rule) bool { return r.ID == one.Rule }),
			Level: one.Level, Message: message{printable.Text(one.Text)}, Properties: one.Properties,
		}
		if one.File != "" {
			out.Locations = []location{{physicalLocation{artifact{uri(one.File)}, region{one.Line, one.Column}}}}
		}
		r.Results = append(r.Results, out)
	}
	return log{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []run{r}}
}

// uri returns a path as a relative reference.
func uri(path string) string {
	out := (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath()
	if strings.Contains(strings.SplitN(out, "/", 2)[0], ":") {
		out = "./" + out // it would be read as a scheme
	}
	return out
}

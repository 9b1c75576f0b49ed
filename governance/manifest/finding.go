package manifest

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	// LevelError refuses the manifest.
	LevelError Level = "error"
	// LevelWarning is for a person to look at.
	LevelWarning Level = "warning"
	// LevelNote informs, as of an exemption that is used.
	LevelNote Level = "note"
)

func (l Level) rank() int { return slices.Index([]Level{LevelError, LevelWarning, LevelNote}, l) }

// The kinds of findings.
const (
	checkSchema     = "schema"     // the file is not a manifest
	checkName       = "name"       // names of the plugin, its folder and its parts
	checkVersion    = "version"    // versions
	checkPermission = "permission" // a permission that no grant may hold
	checkCredential = "credential" // credentials
	checkCeiling    = "ceiling"    // a ceiling of a guardrail
	checkNever      = "never"      // a never-list of a guardrail
	checkRule       = "rule"       // a condition of a guardrail
	checkGuardrail  = "guardrail"  // a guardrail that is wrong
	checkDocs       = "docs"       // documents
	checkSecret     = "secret"     // texts that look like a secret
	checkTodo       = "todo"       // values that are still to be written
	checkExemption  = "exemption"  // exemptions
)

// AboutCheck is a kind of finding, and what it is about.
type AboutCheck struct{ ID, Text string }

// Checks returns every kind of finding, in the order of their ids.
func Checks() []AboutCheck {
	return []AboutCheck{
		{checkCeiling, "A ceiling of a guardrail is exceeded"},
		{checkCredential, "A credential is not listed, not used, or of a kind that does not fit"},
		{checkDocs, "A document is missing or not the one that is stated"},
		{checkExemption, "An exemption has ended, or demands a control that is not stated"},
		{checkGuardrail, "A guardrail is wrong, so that nothing passes it"},
		{checkName, "A name is not one, or does not agree with the folder's"},
		{checkNever, "A never-list refuses what a permission asks for"},
		{checkPermission, "A permission is one that no grant may hold"},
		{checkRule, "A condition of a guardrail does not hold"},
		{checkSchema, "The file is not a PluginManifest"},
		{checkSecret, "A text looks like a secret"},
		{checkTodo, "A value is still to be written"},
		{checkVersion, "A version is not one of semver.org 2.0.0, or does not follow"},
	}
}

// Finding is one thing that a check found.
type Finding struct {
	// Check is the kind, as in ceiling.
	Check string `json:"check"`
	Level Level  `json:"level"`
	configs.Position
	// Field is the field of the manifest, as in spec.permissions[0].methods.
	Field string `json:"field,omitempty"`
	// Permission is the id of the permission that it is about.
	Permission string `json:"permission,omitempty"`
	// Bound is what refuses, as in company/ceilings.tlsMin, company/never/metadata or company/rules/read-only.
	Bound string `json:"bound,omitempty"`
	// Message is what is wrong.
	Message string `json:"message"`
	// Fix is the nearest change that ends the finding.
	Fix string `json:"fix,omitempty"`
	// Request is one that shows it, as in GET https://metadata.internal/.
	Request string `json:"request,omitempty"`
	// Exemption is the name of the exemption that turns the finding into a note.
	Exemption string `json:"exemption,omitempty"`
}

// Text returns the finding on one line, as file:line:column: level: check: field: message; fix.
func (f Finding) Text() string {
	return printable.Text(fmt.Sprintf("%s: %s: %s: %s", f.Position, f.Level, f.Check, f.text()))
}

// text returns the finding without its place.
func (f Finding) text() string {
	text := f.Message
	if f.Field != "" {
		text = f.Field + ": " + text
	}
	if f.Request != "" {
		text += ", as in " + f.Request
	}
	if f.Fix != "" {
		text += "; " + f.Fix
	}
	return text
}

// Result is what a check found.
type Result struct {
	Plugin  string `json:"plugin"`
	Version string `json:"version"`
	// Manifest is the digest of the file.
	Manifest string    `json:"manifest"`
	Findings []Finding `json:"findings"`
	// Exemptions are the names of the exemptions that are used.
	Exemptions []string `json:"exemptions,omitempty"`
	// Never reports that a never-list refuses a part of what is asked for, which nothing exempts.
	Never bool `json:"never,omitempty"`
}

// Faults returns the result for a manifest that cannot be read.
func Faults(errs configs.Errors) Result {
	r := Result{}
	for _, e := range errs {
		r.Findings = append(r.Findings, Finding{
			Check: checkSchema, Level: LevelError, Position: configs.Position{File: e.File, Line: max(e.Line, 1), Column: max(e.Column, 1)}, Field: e.Field, Message: e.Message,
		})
	}
	r.sort()
	return r
}

// Refused reports whether a finding is an error.
func (r *Result) Refused() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Level == LevelError })
}

// sort orders findings by place, without repetitions.
func (r *Result) sort() {
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Level.rank(), b.Level.rank()))
	})
	r.Findings = slices.Compact(r.Findings)
	slices.Sort(r.Exemptions)
	r.Exemptions = slices.Compact(r.Exemptions)
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
}

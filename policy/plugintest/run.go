package plugintest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Status is the result of one expectation.
type Status string

// The results of an expectation.
const (
	Pass      Status = "pass"
	Fail      Status = "fail"
	Undecided Status = "undecided" // a proof did not end in time
)

// Result is the result of one expectation.
type Result struct {
	Test   string `json:"test"` // metadata.name of its PluginTest
	Name   string `json:"name"` // the expectation on one line, unique in its test
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Status Status `json:"status"`

	// The following are empty for an expectation that passes.
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`
	Detail   string `json:"detail,omitempty"`
	Rule     string `json:"rule,omitempty"`    // where the rule that decided, or the nearest one, is written: FILE:LINE:COLUMN
	Nearest  string `json:"nearest,omitempty"` // the nearest rule of a denied request, and the fields that differ
	Remedy   string `json:"remedy,omitempty"`
	Add      string `json:"add,omitempty"`     // an expectation to add to the test
	Explain  string `json:"explain,omitempty"` // the request of a proof, as explain takes it

	Elapsed time.Duration `json:"-"`
}

type namedLine struct{ name, value string }

// lines returns what is known of a result that is not as expected.
func (r *Result) lines() (out []namedLine) {
	at := ""
	if r.File != "" {
		at = fmt.Sprintf("%s:%d:%d", r.File, r.Line, r.Column)
	}
	for _, line := range []namedLine{
		{"at", at},
		{"expected", r.Expected},
		{"got", r.Got},
		{"detail", r.Detail},
		{"nearest", r.Nearest},
		{"rule", r.Rule},
		{"remedy", r.Remedy},
		{"add", r.Add},
		{"explain", r.Explain},
	} {
		if line.value != "" {
			out = append(out, line)
		}
	}
	return out
}

// Run tests every expectation of the suites, in their order. When ctx ends, proofs that
// have not ended are undecided.
func Run(ctx context.Context, suites []*Suite) []Result {
	var out []Result
	for _, s := range suites {
		for _, e := range s.expectations {
			start := time.Now()
			r := e.result(e.test(ctx, s.subject.Snapshot))
			r.Elapsed = time.Since(start)
			out = append(out, r)
		}
	}
	return out
}

// outcome is what a policy makes of an expectation.
type outcome struct {
	status    Status
	reason    authz.Reason
	decision  authz.Decision
	nearest   *authz.Nearest // of a denied request that is not as expected
	detail    string
	remedy    string
	finding   *prove.Finding // of a proof that fails
	undecided string         // the cause
}

// test asks a policy.
func (e *expectation) test(ctx context.Context, s *authz.Snapshot) outcome {
	switch e.form {
	case "never":
		return e.proveNever(ctx, s)
	case "atMost":
		return e.proveAtMost(ctx, s)
	}
	o := e.decide(s)
	o.status = Fail
	if o.asExpected(e, s) {
		o.status = Pass
	}
	return o
}

// decide decides the request, and the address that it resolves to if it is known.
func (e *expectation) decide(s *authz.Snapshot) outcome {
	if e.malformed != nil {
		return outcome{reason: policy.ReasonOf(e.malformed), detail: e.malformed.Error()}
	}
	d := s.Decide(e.request, authz.Usage{}, e.at)
	o := outcome{reason: d.Reason, decision: d}
	addr := e.address()
	if !d.Allowed() || !addr.IsValid() {
		return o
	}
	if reason := d.CheckAddress(addr); reason != authz.Granted {
		o.reason = reason
		o.detail = fmt.Sprintf("%s may not connect to %s", e.request.Principal, addr)
		if rule := phrase.Rule(d.Grant, d.Rule); rule != "" {
			o.detail += " by " + rule
		}
	}
	return o
}

// address returns the address to which the request connects, invalid if it is not known.
func (e *expectation) address() netip.Addr {
	if e.Address.IsValid() {
		return e.Address
	}
	return e.request.Destination.Address()
}

// asExpected reports whether the decision is the expected one.
func (o *outcome) asExpected(e *expectation, s *authz.Snapshot) bool {
	if e.form == "allow" {
		want := authz.Granted.String()
		if e.Reason != "" {
			want = e.Reason
		}
		return o.reason.String() == want && (e.Rule == "" || phrase.Rule(o.decision.Grant, o.decision.Rule) == e.Rule) &&
			(e.Credential == nil || o.decision.Credential == *e.Credential)
	}
	if o.reason.Allowed() || e.Reason != "" && o.reason.String() != e.Reason {
		return false
	}
	if e.Nearest == "" {
		return true
	}
	o.explain(e, s)
	return o.nearest != nil && phrase.Rule(o.nearest.Grant, o.nearest.Rule) == e.Nearest
}

// explain adds the reasons of a denial in words.
func (o *outcome) explain(e *expectation, s *authz.Snapshot) {
	if o.detail != "" || e.malformed != nil { // it is not the decision on the request that denies
		return
	}
	x := s.Explain(e.request, authz.Usage{}, e.at)
	o.detail, o.nearest, o.remedy = x.Detail, x.Nearest, x.Remedy
}

// result describes an outcome, with the difference if it is not as expected.
func (e *expectation) result(o outcome) Result {
	r := Result{Test: e.suite.Name, Name: e.name, File: e.suite.File, Line: e.line, Column: e.column, Status: o.status}
	switch {
	case o.status == Pass:
		return r
	case o.undecided != "":
		r.Expected, r.Got, r.Detail = e.expected(), "undecided", o.undecided
		return r
	case o.finding != nil:
		e.describeFinding(&r, o.finding)
		return r
	}
	o.explain(e, e.suite.subject.Snapshot)
	r.Expected, r.Got, r.Detail, r.Remedy = e.expected(), o.text(), o.detail, o.remedy
	grant, rule := o.decision.Grant, o.decision.Rule
	if o.nearest != nil {
		grant, rule = o.nearest.Grant, o.nearest.Rule
		r.Nearest = fmt.Sprintf("%s (differs in %s)", phrase.Rule(grant, rule), strings.Join(o.nearest.Differs, ", "))
	}
	if at, ok := e.suite.subject.Position(grant, rule); ok && rule != "" {
		r.Rule = at.String()
	}
	if o.reason == authz.Observed && e.form == "allow" {
		r.Remedy = "write reason: observed if the request may depend on observing; otherwise grant it"
	}
	return r
}

// expected returns what the expectation states, on one line.
func (e *expectation) expected() string {
	switch e.form {
	case "never":
		return "no request that matches " + e.text + " is allowed"
	case "atMost":
		return "no more is allowed than by " + e.text
	case "deny":
		out := "denied"
		if e.Reason != "" {
			out += ": " + e.Reason
		}
		if e.Nearest != "" {
			out += ", nearest " + e.Nearest
		}
		return out
	}
	reason := e.Reason
	if reason == "" {
		reason = authz.Granted.String()
	}
	return "allowed: " + reason + decidedBy(e.Rule, e.Credential)
}

func decidedBy(rule string, credential *string) (out string) {
	if rule != "" {
		out += " by " + rule
	}
	switch {
	case credential == nil:
	case *credential == "":
		out += " without a credential"
	default:
		out += " with " + *credential
	}
	return out
}

// text returns the decision on one line.
func (o *outcome) text() string {
	if o.reason.Allowed() {
		return "allowed: " + o.reason.String() + decidedBy(phrase.Rule(o.decision.Grant, o.decision.Rule), &o.decision.Credential)
	}
	return "denied: " + o.reason.String()
}

// describeFinding adds the request that contradicts a proof.
func (e *expectation) describeFinding(r *Result, f *prove.Finding) {
	shown := prove.Show(*f, e.suite.Plugin, &e.suite.subject)
	r.Expected, r.Detail, r.Rule, r.Explain = e.expected(), shown.Summary, shown.Position, "explain"
	r.Got = shown.Words().String() + ": " + shown.New.Text()
	for _, word := range shown.Explain {
		r.Explain += " " + phrase.ShellWord(word)
	}
	if name := f.New.RuleName(); name != "" {
		r.Remedy = "narrow " + name
	}
}

// proveNever proves that the policy allows no request that matches the pattern.
func (e *expectation) proveNever(ctx context.Context, s *authz.Snapshot) outcome {
	return proved(prove.Never(ctx, s, e.pattern, prove.Options{Plugin: authz.Principal(e.suite.Plugin), At: e.at, Most: 1}))
}

// proveAtMost proves that the policy allows nothing that the approved one does not.
func (e *expectation) proveAtMost(ctx context.Context, s *authz.Snapshot) outcome {
	got, err := prove.Compare(ctx, e.approved.Snapshot, s, prove.Options{Plugin: authz.Principal(e.suite.Plugin), At: e.at, Most: 1})
	return proved(got, err)
}

func proved(got prove.Result, err error) outcome {
	switch {
	case err != nil:
		return outcome{status: Undecided, undecided: err.Error()}
	case len(got.Findings) > 0:
		return outcome{status: Fail, finding: &got.Findings[0]}
	case !got.Complete:
		return outcome{status: Undecided, undecided: "the budget was used up before every request was compared"}
	}
	return outcome{status: Pass}
}

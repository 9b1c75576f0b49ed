package prove

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Verdict is the answer to a claim.
type Verdict string

// The verdicts, from the best to the worst.
const (
	Within    Verdict = "within"    // the claim holds for every request
	Undecided Verdict = "undecided" // the time ended first, and nothing wider was found
	Wider     Verdict = "wider"     // a request shows that the claim does not hold
)

// Claim is one thing that was to be proved of one plugin.
type Claim struct {
	Plugin   string          `json:"plugin"`
	Sidecar  string          `json:"sidecar,omitempty"` // its metadata.name
	Claim    string          `json:"claim"`
	Verdict  Verdict         `json:"verdict"`
	Requests int             `json:"requests"` // that were decided
	Findings []Demonstration `json:"findings"`
	Inexact  []string        `json:"inexact,omitempty"` // parts that are compared conservatively
	Complete bool            `json:"complete"`          // every request was compared
}

// Report is the answer to all claims.
type Report struct {
	Verdict Verdict   `json:"verdict"`
	At      time.Time `json:"at"` // the instant from which it holds
	Claims  []Claim   `json:"claims"`
}

// Demonstration is a finding as it is shown: a request, and both decisions.
type Demonstration struct {
	Kind    Kind   `json:"kind"`
	Summary string `json:"summary"`
	Method  string `json:"method,omitempty"`
	URL     string `json:"url,omitempty"`
	// Statement is that of a database's session, or its facts, as explain takes them.
	Statement string    `json:"statement,omitempty"`
	Upgrade   string    `json:"upgrade,omitempty"`
	At        time.Time `json:"at"`
	Door      string    `json:"door,omitempty"`
	Address   string    `json:"address,omitempty"`
	Old       *Decided  `json:"old,omitempty"` // nil of a request that is never to be allowed
	New       Decided   `json:"new"`
	// Position is where the rule of the new policy is written, or what lets it observe.
	Position string `json:"position,omitempty"`
	// Explain are the arguments of chaperone explain that show the decision of either side,
	// without --config.
	Explain []string `json:"explain"`
	// Finding is what is shown.
	Finding Finding `json:"-"`
}

// Request returns the request as METHOD URL, with its upgrade behind it.
func (d *Demonstration) Request() string {
	if d.Upgrade == "" {
		return d.Words().String()
	}
	return d.Words().String() + ", upgrade " + d.Upgrade
}

// Words returns the request in words.
func (d *Demonstration) Words() policy.Words {
	return policy.Words{Method: d.Method, URL: d.URL, Statement: d.Statement, Upgrade: d.Upgrade}
}

// Decided is the decision of one side.
type Decided struct {
	Allowed    bool   `json:"allowed"`
	Reason     string `json:"reason"`
	Rule       string `json:"rule,omitempty"`
	Credential string `json:"credential,omitempty"`
}

// Text returns the decision in a few words.
func (d Decided) Text() string {
	text := d.Reason
	if d.Rule != "" {
		text += " by " + d.Rule
	}
	if d.Credential != "" {
		text += " with " + d.Credential
	}
	return text
}

// Show returns a finding as it is shown. after is the policy that is wider.
func Show(f Finding, plugin string, after *policy.Subject) Demonstration {
	d := Demonstration{Kind: f.Kind, Summary: f.Summary(), At: f.At, New: decided(f.New), Finding: f}
	if !f.Never {
		old := decided(f.Old)
		d.Old = &old
	}
	d.Explain = []string{"--plugin", plugin, "--at", f.At.UTC().Format(time.RFC3339Nano)}
	if f.Kind == KindSocket {
		d.Method, d.URL = "CONNECT", "unix:"+f.Socket
		d.New = Decided{Allowed: true, Reason: authz.Granted.String()}
		d.Old.Reason = authz.DestinationNotGranted.String()
		d.Explain = append(d.Explain, d.Method, d.URL)
		return d
	}
	d.Door = f.Door.Name
	if d.Door != "proxy" {
		d.Explain = append(d.Explain, "--door", d.Door)
	}
	if f.Address.IsValid() {
		d.Address = f.Address.String()
		d.Explain = append(d.Explain, "--address", d.Address)
		if d.Old != nil {
			d.Old.Allowed, d.Old.Reason = false, authz.AddressNotAllowed.String()
		}
	}
	w := policy.Text(f.Request)
	d.Method, d.URL, d.Statement, d.Upgrade = w.Method, w.URL, w.Statement, w.Upgrade
	if d.Upgrade != "" {
		d.Explain = append(d.Explain, "--upgrade", d.Upgrade)
	}
	d.Explain = append(d.Explain, w.Args()...)
	if at, ok := Place(f, after); ok {
		d.Position = at.String()
	}
	return d
}

// Under adds the revocations in a file or stateDir to the arguments of explain; none for "".
func (d *Demonstration) Under(revocations string) {
	if revocations != "" {
		d.Explain = append([]string{"--revocations", revocations}, d.Explain...)
	}
}

// Under is [Demonstration.Under] of every finding.
func (r *Report) Under(revocations string) {
	for _, c := range r.Claims {
		for i := range c.Findings {
			c.Findings[i].Under(revocations)
		}
	}
}

// Place returns where what makes the policy wider is written: the rule, the limit, or what
// lets the Sidecar observe. It is false for what is missing.
func Place(f Finding, after *policy.Subject) (policy.Position, bool) {
	if f.Kind == KindLimit {
		if at, found := after.Position(f.Limit.grant, f.Limit.rule); found {
			return at, true
		}
	}
	if f.New.Rule == "" {
		return after.FieldPosition("", "spec.mode")
	}
	return after.Position(f.New.Grant, f.New.Rule)
}

func decided(a Answer) Decided {
	return Decided{Allowed: a.Reason.Allowed(), Reason: a.Reason.String(), Rule: a.RuleName(), Credential: a.Credential}
}

// Summary returns what the finding is, in a few words.
func (f Finding) Summary() string {
	switch f.Kind {
	case KindAccess:
		if f.Never {
			return "allowed"
		}
		if f.New.Reason == authz.Observed {
			return "allowed while something observes, was " + f.Old.Reason.String()
		}
		return "allowed, was " + f.Old.Reason.String() + ContentText(f.Facts)
	case KindCredential:
		return fmt.Sprintf("injects the credential %s, was %s", f.New.Credential, cmp.Or(f.Old.Credential, "without one"))
	case KindUpstream:
		return fmt.Sprintf("is forwarded to %s, was %s", f.New.Upstream.URL(), f.Old.Upstream.URL())
	case KindAddress:
		if f.Never {
			return fmt.Sprintf("may connect to %s", f.Address)
		}
		return fmt.Sprintf("may connect to %s, which was refused", f.Address)
	case KindTerms:
		return "terms are weaker: " + weakerTerms(f.New.Terms, f.Old.Terms)
	case KindLimit:
		if f.Limit.Spec.Period == 0 {
			return fmt.Sprintf("the total %s of %s is not kept under its name: what was used starts again", f.Limit.Spec, f.Limit.Name())
		}
		return fmt.Sprintf("the limit %s of %s is not kept", f.Limit.Spec, f.Limit.Name())
	case KindSocket:
		return "the socket " + f.Socket + " may be used"
	}
	return string(f.Kind)
}

// ContentText names the facts that show a finding as the end of a sentence.
func ContentText(facts []authz.Fact) string {
	const most = 10
	var names []string
	for i, f := range facts {
		if i == most {
			names = append(names, fmt.Sprintf("%d more", len(facts)-most))
			break
		}
		names = append(names, printable.Text(f.Name))
	}
	if len(names) == 0 {
		return ""
	}
	return ": " + string(facts[0].Kind) + " " + phrase.List(names)
}

func weakerTerms(now, was authz.Terms) string {
	var out []string
	if now.TLSMin < was.TLSMin {
		out = append(out, fmt.Sprintf("TLS %s, was %s", now.TLSMin, was.TLSMin))
	}
	if now.CA != was.CA {
		out = append(out, "other certificate authorities")
	}
	if longer(now, was) {
		limit := "none"
		if now.Timeout > 0 {
			limit = now.Timeout.String()
		}
		out = append(out, fmt.Sprintf("timeout %s, was %s", limit, was.Timeout))
	}
	return strings.Join(out, "; ")
}

// claim turns a result into the answer to a claim.
func claim(plugin, sidecar, text string, r Result, after *policy.Subject) Claim {
	c := Claim{Plugin: plugin, Sidecar: sidecar, Claim: text, Verdict: Within, Requests: r.Requests, Inexact: r.Inexact, Complete: r.Complete, Findings: []Demonstration{}}
	for _, f := range r.Findings {
		c.Findings = append(c.Findings, Show(f, plugin, after))
	}
	switch {
	case len(c.Findings) > 0:
		c.Verdict = Wider
	case !r.Complete:
		c.Verdict = Undecided
	}
	return c
}

// add puts a claim into the report.
func (r *Report) add(c Claim) {
	r.Claims = append(r.Claims, c)
	worse := []Verdict{"", Within, Undecided, Wider}
	if slices.Index(worse, c.Verdict) > slices.Index(worse, r.Verdict) {
		r.Verdict = c.Verdict
	}
}

// Question is what is to be proved of a configuration.
type Question struct {
	At          time.Time // the instant from which it must hold
	Revocations []authz.Revocation
	Most        int // findings of each claim; 0 for all
}

func (q Question) options(plugin string) Options {
	return Options{Plugin: authz.Principal(plugin), At: q.At, Most: q.Most}
}

// Within adds the claim that each plugin of after is within its policy of before; text
// names it.
func (r *Report) Within(ctx context.Context, text string, before, after []policy.Subject, q Question) error {
	pairs, err := policy.Pairs(before, after, q.At)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		result, err := Compare(ctx, p.Before.With(q.Revocations), p.After.With(q.Revocations), q.options(p.Plugin))
		if err != nil {
			return err
		}
		r.add(claim(p.Plugin, p.Name, text, result, &p.After))
	}
	return nil
}

// Never adds the claim that no plugin of a configuration is allowed what a pattern holds.
func (r *Report) Never(ctx context.Context, subjects []policy.Subject, p Pattern, q Question) error {
	for _, s := range subjects {
		result, err := Never(ctx, s.With(q.Revocations), p, q.options(s.Plugin))
		if err != nil {
			return err
		}
		r.add(claim(s.Plugin, s.Name, "never "+p.Text, result, &s))
	}
	return nil
}

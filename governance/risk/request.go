package risk

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
)

// Rubric is a rubric and the digest of the signed document that it is from.
type Rubric struct {
	configs.RiskRubric
	Digest string
}

// Request is what a score is computed from.
type Request struct {
	Plugin   string
	Version  string
	Manifest *configs.PluginManifest
	// Previous is the manifest of the version before, nil without one, and PreviousDigest its
	// digest.
	Previous       *configs.PluginManifest
	PreviousDigest string
	// PreviousPerformance is its measurement; nil without one.
	PreviousPerformance *pilot.Performance
	// Submission and Guardrail are digests, "" if absent.
	Submission, Guardrail string
	// Target has the digest of the artifact, that of the manifest, and the authors.
	Target evidence.Target
	// Evidence are the verified statements of the request.
	Evidence []evidence.Item
	// Requirements are those of the guardrails. Their maxAge and role apply.
	Requirements []evidence.Requirement
	// Exemptions are those for the plugin.
	Exemptions []grantcheck.Exemption
	// AuthorSince is when the author's key was first seen; zero if it is not known.
	AuthorSince time.Time
	// Stops are hard stops that the caller has found.
	Stops []Stop
	// AsOf is the time of the score, in whole seconds.
	AsOf time.Time
}

// Stop is a hard stop: the score is 100.
type Stop struct {
	// Code is as in self_approval.
	Code string `json:"code"`
	Text string `json:"text"`
	// Evidence is a digest, if there is one.
	Evidence string `json:"evidence,omitempty"`
}

// The codes of hard stops.
const (
	StopUnsigned    = "unsigned_artifact"
	StopNever       = "never_list"
	StopSecret      = "secret_in_artifact"
	StopMismatch    = "evidence_of_another_artifact"
	StopSelfApprove = "self_approval"
)

// facts are a request's evidence, read.
type facts struct {
	*Request
	items    []evidence.Item
	findings []evidence.Finding
	vex      []evidence.VEX
	stops    []Stop
	trace    *measured[pilot.Trace]
	speed    *measured[pilot.Performance]
	controls *controls
}

// controls are the results of checklists.
type controls struct {
	failed map[string]string // the evidence of each control that is not met, by its id
	stale  string            // evidence of a checklist that is too old
}

// measured is a predicate of a pilot and the digest of its statement.
type measured[T any] struct {
	predicate *T
	digest    string
}

// read reads the evidence of a request. Evidence about another artifact is a hard stop, and
// counts for nothing else.
func read(req *Request) (*facts, error) {
	f := &facts{Request: req, stops: slices.Clone(req.Stops)}
	if req.Submission == "" {
		f.stops = append(f.stops, Stop{Code: StopUnsigned, Text: "no author has signed a submission that names the artifact"})
	}
	var about []evidence.Item
	for i := range req.Evidence {
		item := &req.Evidence[i]
		if err := item.About(req.Target); err != nil {
			f.stops = append(f.stops, Stop{Code: StopMismatch, Text: err.Error(), Evidence: item.Digest})
			continue
		}
		about = append(about, *item)
	}
	f.items = evidence.Current(about)
	var err error
	if f.findings, err = evidence.Findings(f.items); err != nil {
		return nil, err
	}
	if f.vex, err = evidence.Statements(f.items); err != nil {
		return nil, err
	}
	for i := range f.findings {
		found := &f.findings[i]
		if j := found.Judge(f.vex, req.Target); found.Secret && !j.Cleared() {
			f.stops = append(f.stops, Stop{StopSecret, "a secret is in the artifact: " + found.Name() + " at " + found.Location, found.Evidence})
		}
	}
	if f.trace, err = newest(f, pilot.TraceType, pilot.ParseTrace); err != nil {
		return nil, err
	}
	if f.speed, err = newest(f, pilot.PerformanceType, pilot.ParsePerformance); err != nil {
		return nil, err
	}
	if f.controls, err = f.checklists(); err != nil {
		return nil, err
	}
	return f, nil
}

// newest returns the newest statement of a pilot that counts; nil without one.
func newest[T any](f *facts, predicateType string, parse func([]byte) (*T, error)) (*measured[T], error) {
	item := f.fresh(predicateType, roleMeasurer)
	if item == nil {
		return nil, nil //nolint:nilnil // a request without a pilot is no error
	}
	predicate, err := parse(item.Predicate)
	if err != nil {
		return nil, fmt.Errorf("evidence %s: %w", item.Digest, err)
	}
	return &measured[T]{predicate, item.Digest}, nil
}

// typeChecklist is the predicate type of governance/compliance.
const typeChecklist = "https://chaperone.dev/attestation/compliance-checklist/v1"

// checklists returns the results of the checklists that count; nil without one. The newest
// statement about an item counts.
func (f *facts) checklists() (*controls, error) {
	items := slices.Clone(f.items)
	slices.SortFunc(items, func(a, b evidence.Item) int {
		return cmp.Or(b.IssuedAt.Compare(a.IssuedAt), cmp.Compare(a.Digest, b.Digest))
	})
	var out *controls
	stale, seen := "", map[string]bool{}
	for i := range items {
		item := &items[i]
		if item.PredicateType != typeChecklist || !item.Independent(f.Target.Authors) {
			continue
		}
		if !f.meets(item, "") {
			stale = item.Digest
			continue
		}
		s, err := compliance.Parse(item.Predicate)
		if err != nil {
			return nil, fmt.Errorf("evidence %s: %w", item.Digest, err)
		}
		if out == nil {
			out = &controls{failed: map[string]string{}}
		}
		for j := range s.Items {
			one := &s.Items[j]
			key := s.Checklist.Name + "/" + one.ID
			if met := one.Outcome == compliance.Proved || one.Outcome == compliance.Attested; !met && !seen[key] {
				out.failed[key] = item.Digest
			}
			seen[key] = true
		}
	}
	if out == nil && stale != "" {
		out = &controls{stale: stale}
	}
	return out, nil
}

// roleMeasurer is the role whose measurements count.
const roleMeasurer = "measurer"

// fresh returns the newest item of a type that meets every requirement of the guardrails, and is
// signed by a role if one is given; nil without one.
func (f *facts) fresh(predicateType, role string) *evidence.Item {
	var best *evidence.Item
	for i := range f.items {
		item := &f.items[i]
		if item.PredicateType == predicateType && f.meets(item, role) && (best == nil || item.ObservedAt.After(best.ObservedAt)) {
			best = item
		}
	}
	return best
}

// meets reports whether an item meets every requirement of the guardrails on its type.
func (f *facts) meets(item *evidence.Item, role string) bool {
	if item.Check(f.Target, evidence.Requirement{PredicateType: item.PredicateType, Role: role}, f.AsOf) != nil {
		return false
	}
	return !slices.ContainsFunc(f.Requirements, func(r evidence.Requirement) bool {
		return r.PredicateType == item.PredicateType && item.Check(f.Target, r, f.AsOf) != nil
	})
}

// inputs returns the digests of all that the score was computed from.
func (f *facts) inputs(rubric string) []Input {
	out := []Input{
		{"artifact", f.Target.Artifact},
		{"manifest", f.Target.Manifest},
		{"submission", f.Submission},
		{"guardrail", f.Guardrail},
		{"previous manifest", f.PreviousDigest},
		{"rubric", rubric},
	}
	for i := range f.Evidence {
		out = append(out, Input{"evidence " + f.Evidence[i].PredicateType, f.Evidence[i].Digest})
	}
	for _, e := range f.Exemptions {
		out = append(out, Input{"exemption " + e.Name, e.Digest})
	}
	out = slices.DeleteFunc(out, func(i Input) bool { return i.Digest == "" })
	slices.SortFunc(out, func(a, b Input) int { return strings.Compare(a.Name+"\x00"+a.Digest, b.Name+"\x00"+b.Digest) })
	return slices.Compact(out)
}

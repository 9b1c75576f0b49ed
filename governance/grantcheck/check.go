package grantcheck

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// MaxAhead is how far a time may be in the future, for clocks that differ.
const MaxAhead = 5 * time.Minute

// Terms are what the reader of a bundle demands of it: what the guardrails of its plugin
// state, and what it has seen before.
type Terms struct {
	// Guardrail is the [GuardrailDigest] of the verified guardrails that apply to the plugin.
	Guardrail string
	// Approvals are the approvals that each band needs. A band that is not there is refused.
	Approvals map[string]Approvers
	// Evidence is the evidence that the guardrails demand.
	Evidence []EvidenceTerm
	// Lifetimes are the longest lifetimes of grants by band, from NotBefore to NotAfter; 0
	// or none for any.
	Lifetimes map[string]time.Duration
	// Rubric is the digest of the rubric in force; "" is not compared.
	Rubric string
	// Artifact is the artifact that is to be started; the zero Artifact is not compared.
	Artifact Artifact
	// Seen is the last generation of the grant that was in force; zero for none.
	Seen HighWater
	// SeenByName are these by the grant's name, for a reader of several grants.
	SeenByName map[string]HighWater
	// Least are the lowest generations that may be loaded, by the grant's name.
	Least map[string]int64
	// Plugin is the plugin that the grant has to be for; "" for any. A grant that verifies
	// and is for another one is an [OtherPluginError].
	Plugin string
}

// Approvers are the approvals that a band needs, and when they are due.
type Approvers struct {
	Roles []RoleMin
	// SLA is how long the approvals may take; 0 for any time.
	SLA time.Duration
	// EscalateAfter and EscalateTo are the role that has to approve too after a time.
	EscalateAfter time.Duration
	EscalateTo    string
}

// RoleMin is how many distinct identities have to approve in a role.
type RoleMin struct {
	Role string
	Min  int // 1 if it is 0
}

// EvidenceTerm is evidence that a guardrail demands.
type EvidenceTerm struct {
	PredicateType string
	From          string        // the lowest band that needs it; "" for every band
	MaxAge        time.Duration // from IssuedAt until it is stale; 0 for any age
}

// HighWater is the highest generation of a grant that was in force.
type HighWater struct {
	Generation int64  `json:"generation"`
	Digest     string `json:"digest"`
}

// Verified is a grant that may be loaded.
type Verified struct {
	// Payload is the PluginGrant in JSON, and Digest its digest.
	Payload []byte
	Digest  string
	Name    string // metadata.name
	Plugin  string
	Binding Binding
	// NotBefore and NotAfter are when the grant begins and ends: at the latest when an
	// approval that it needs ends.
	NotBefore, NotAfter time.Time
	// Stale is when the first evidence becomes stale; the zero time for never.
	Stale      time.Time
	Authors    []string // identities that signed the submission
	Approvals  []Approval
	Exemptions []Exemption
}

// Problem is one thing that is wrong with a bundle.
type Problem struct {
	// Field is of the grant's payload, as in spec.binding.guardrail; "" for the bundle.
	Field   string
	Message string // the fault, the value, and the fix
}

// CheckErrors are everything that is wrong with a bundle.
type CheckErrors []Problem

// Error returns one problem per line.
func (p CheckErrors) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		if lines[i] = one.Message; one.Field != "" {
			lines[i] = one.Field + ": " + one.Message
		}
	}
	return strings.Join(lines, "\n")
}

// EndedError reports a grant which is right, and whose time is over, or that of an
// approval that it needs.
type EndedError struct {
	Verified *Verified // may be shown; nothing that it states is allowed
	Reason   string    // the end, and its time
}

// Error returns the reason.
func (e *EndedError) Error() string { return e.Reason }

// OtherPluginError reports a grant, signed as such, for another plugin than that of the
// [Terms]. The rest of it was not verified.
type OtherPluginError struct{ Plugin string }

// Error returns the plugin.
func (e *OtherPluginError) Error() string { return "the grant is for plugin " + quote(e.Plugin) }

// Check verifies a bundle: the signatures of the grant, the submission, the approvals
// and the exemptions, and that they all belong together. Its error is [CheckErrors], or an
// [EndedError] if nothing is wrong except that the time is over. Exemptions that have
// ended are no error here: their rules are denied, see [Exemption.State].
func Check(root *dsse.Root, b *Bundle, terms Terms, now time.Time) (*Verified, error) {
	c := &checker{root: root, b: b, terms: terms, now: now}
	if c.grant(); c.out == nil {
		return nil, c.problems
	}
	if terms.Plugin != "" && c.out.Plugin != terms.Plugin {
		return nil, &OtherPluginError{c.out.Plugin}
	}
	if seen, ok := terms.SeenByName[c.out.Name]; ok {
		c.terms.Seen = seen
	}
	c.binding()
	c.generation()
	c.submission()
	c.exemptions()
	c.evidence()
	c.lifetime()
	c.approvals()
	switch {
	case len(c.problems) > 0:
		return nil, c.problems
	case c.ended != "":
		return nil, &EndedError{c.out, c.ended}
	}
	return c.out, nil
}

// checker is one call of Check.
type checker struct {
	root  *dsse.Root
	b     *Bundle
	terms Terms
	now   time.Time

	out      *Verified
	limits   authz.Limits // of the grant
	rules    []ruleLimits
	after    time.Time // the latest time of what was reviewed
	ended    string    // the reason of an [EndedError]
	problems CheckErrors
}

func (c *checker) report(field, format string, args ...any) {
	c.problems = append(c.problems, Problem{field, fmt.Sprintf(format, args...)})
}

// bound reports a field of the binding.
func (c *checker) bound(field, format string, args ...any) {
	c.report("spec.binding."+field, format, args...)
}

// ends notes an end of the grant.
func (c *checker) ends(at time.Time, reason string) {
	if !c.now.Before(at) && c.ended == "" {
		c.ended = reason
	}
	c.out.NotAfter = earliest(c.out.NotAfter, at)
}

// grant verifies the grant itself.
func (c *checker) grant() {
	doc, err := c.root.Verify(c.b.Grant, dsse.KindGrant)
	if err != nil {
		c.report("", "%v", err)
		return
	}
	g, err := readGrant(doc.Payload)
	switch {
	case err != nil:
		c.report("", "%v", err)
		return
	case !authz.IsName(g.name) || !authz.IsName(g.plugin):
		c.report("metadata.name", "grant %s of plugin %s: both have to be names", quote(g.name), quote(g.plugin))
		return
	case g.binding == nil:
		c.report("spec.binding", "is missing; a signed grant is bound to what was reviewed")
		return
	case g.notAfter.IsZero() || g.notBefore.IsZero():
		c.report("spec.notBefore", "both notBefore and notAfter are required in a signed grant")
		return
	}
	c.limits, c.rules = g.limits, g.rules
	c.out = &Verified{
		Payload: doc.Payload, Digest: doc.Digest, Name: g.name, Plugin: g.plugin, Binding: *g.binding,
		NotBefore: g.notBefore, NotAfter: g.notAfter,
	}
	if g.notBefore.After(c.now.Add(MaxAhead)) {
		c.report("spec.notBefore", "the grant begins at %s, which is in the future", stamp(g.notBefore))
	}
	c.ends(g.notAfter, "the grant ended at "+stamp(g.notAfter)+"; issue a new generation")
}

// binding checks the form of the binding, and what is compared with the terms.
func (c *checker) binding() {
	b := &c.out.Binding
	for _, d := range []struct {
		field, digest string
		optional      bool
	}{
		{"artifact.digest", b.Artifact.Digest, false},
		{"submission", b.Submission, false},
		{"manifest", b.Manifest, false},
		{"guardrail", b.Guardrail, false},
		{"rubric", b.Rubric, false},
		{"previous", b.Previous, b.Generation == 1},
	} {
		if !(d.optional && d.digest == "") && !IsDigest(d.digest) {
			c.bound(d.field, "%s is not a digest; sha256: and 64 hexadecimal digits are required", quote(d.digest))
		}
	}
	switch b.Artifact.Kind {
	case ArtifactFile, ArtifactTree, ArtifactImage:
	default:
		c.bound("artifact.kind", "%s is not file, tree or image", quote(string(b.Artifact.Kind)))
	}
	if err := b.Artifact.CheckCommand(); err != nil {
		c.bound("artifact.command", "%v", err)
	}
	if err := b.policy(); err != nil {
		c.bound("policy", "%v", err)
	}
	if !slices.Contains(Bands(), b.Band) || b.Score < 0 || b.Score > 100 {
		c.bound("band", "band %s with score %d is not a band of low, moderate, high and critical with a score from 0 to 100", quote(b.Band), b.Score)
	}
	if c.terms.Guardrail == "" {
		c.bound("guardrail", "no signed guardrail applies to plugin %s; without one nothing is loaded", c.out.Plugin)
	} else if b.Guardrail != c.terms.Guardrail {
		c.bound("guardrail", "is %s, and the guardrails that are loaded have %s; they were replaced, added or removed since the review: review and issue the grant again", quote(b.Guardrail), c.terms.Guardrail)
	}
	if c.terms.Rubric != "" && b.Rubric != c.terms.Rubric {
		c.bound("rubric", "is %s, and the rubric in force has %s; review and issue the grant again", quote(b.Rubric), c.terms.Rubric)
	}
	if want := c.terms.Artifact; !want.Equal(Artifact{}) && !b.Artifact.Equal(want) {
		c.bound("artifact", "is %s %s, and the artifact that is to be started is %s %s; start the one that was approved, or have this one approved",
			quote(string(b.Artifact.Kind)), quote(b.Artifact.Digest), want.Kind, want.Digest)
	}
}

// generation compares the generation with the one that was in force before.
func (c *checker) generation() {
	b, seen := &c.out.Binding, c.terms.Seen
	switch {
	case b.Generation < 1:
		c.bound("generation", "is %d; it begins at 1", b.Generation)
	case b.Generation < c.terms.Least[c.out.Name]:
		c.bound("generation", "is %d, and %d is the lowest that the Sidecar allows (spec.trust.minGenerations); put the grant that was issued last in its place", b.Generation, c.terms.Least[c.out.Name])
	case b.Generation == 1 && b.Previous != "":
		c.bound("previous", "is %s in generation 1, which follows none", quote(b.Previous))
	case b.Generation < seen.Generation:
		c.bound("generation", "is %d, and generation %d was in force; issue the old content as generation %d", b.Generation, seen.Generation, seen.Generation+1)
	case b.Generation == seen.Generation && c.out.Digest != seen.Digest:
		c.bound("generation", "is %d, and another grant of this generation was in force: this one is %s, that was %s", b.Generation, c.out.Digest, seen.Digest)
	case seen.Generation > 0 && b.Generation == seen.Generation+1 && b.Previous != seen.Digest:
		c.bound("previous", "is %s, and generation %d that was in force is %s", quote(b.Previous), seen.Generation, seen.Digest)
	}
}

// submission verifies the author's submission and that the grant is for it.
func (c *checker) submission() {
	if c.b.Submission == nil {
		c.report("", "the grant's file has no submission; issue the grant again")
		return
	}
	doc, err := c.root.Verify(c.b.Submission, dsse.KindSubmission)
	if err != nil {
		c.report("", "submission: %v", err)
		return
	}
	var s Submission
	if err := dsse.Decode(doc.Payload, &s); err != nil {
		c.report("", "submission: %v", err)
		return
	}
	b := &c.out.Binding
	for _, d := range []struct{ field, got, want string }{
		{"submission", b.Submission, doc.Digest},
		{"manifest", b.Manifest, s.Manifest},
		{"artifact.kind", string(b.Artifact.Kind), string(s.Artifact.Kind)},
		{"artifact.digest", b.Artifact.Digest, s.Artifact.Digest},
		{"artifact.command", b.Artifact.commandText(), s.Artifact.commandText()},
	} {
		if d.got != d.want {
			c.bound(d.field, "is %s, and that of the submission is %s", quote(d.got), quote(d.want))
		}
	}
	if s.Plugin != c.out.Plugin {
		c.report("spec.plugin", "is %s, and the submission is for plugin %s", c.out.Plugin, quote(s.Plugin))
	}
	if s.IssuedAt.IsZero() || s.IssuedAt.After(c.now.Add(MaxAhead)) {
		c.report("", "submission: its issuedAt %s is missing or in the future", stamp(s.IssuedAt))
	}
	c.after = s.IssuedAt
	for _, signer := range doc.Signed {
		if !slices.Contains(c.out.Authors, signer.Identity) {
			c.out.Authors = append(c.out.Authors, signer.Identity)
		}
	}
}

// exemptions verifies the exemptions that the binding refers to.
func (c *checker) exemptions() {
	byDigest := map[string]*dsse.Envelope{}
	for _, e := range c.b.Exemptions {
		byDigest[e.Digest()] = e
	}
	for i, ref := range c.out.Binding.Exemptions {
		field := fmt.Sprintf("exemptions[%d]", i)
		envelope := byDigest[ref.Digest]
		if envelope == nil {
			c.bound(field, "exemption %s with %s is not there; add its file, or issue the grant without it", quote(ref.Name), quote(ref.Digest))
			continue
		}
		doc, err := c.root.Verify(envelope, dsse.KindExemption)
		if err != nil {
			c.bound(field, "%v", err)
			continue
		}
		e, err := ReadExemption(doc.Payload)
		switch {
		case err != nil:
			c.bound(field, "%v", err)
			continue
		case e.Name != ref.Name || e.Plugin != c.out.Plugin:
			c.bound(field, "is %s, and the exemption is %s for plugin %s", quote(ref.Name), quote(e.Name), e.Plugin)
			continue
		}
		c.problems = append(c.problems, e.unmet(c.rules, c.limits)...)
		c.out.Exemptions = append(c.out.Exemptions, e)
	}
}

// evidence checks that the evidence which the guardrails demand is named, and finds when
// it becomes stale.
func (c *checker) evidence() {
	b := &c.out.Binding
	for i, e := range b.Evidence {
		field := fmt.Sprintf("evidence[%d]", i)
		switch {
		case !IsDigest(e.Digest) || e.PredicateType == "":
			c.bound(field, "%s of type %s has no digest or no predicateType", quote(e.Digest), quote(e.PredicateType))
		case e.IssuedAt.IsZero() || e.IssuedAt.After(c.now.Add(MaxAhead)):
			c.bound(field+".issuedAt", "%s is missing or in the future", stamp(e.IssuedAt))
		}
		if e.IssuedAt.After(c.after) {
			c.after = e.IssuedAt
		}
		c.out.Stale = earliest(c.out.Stale, e.ExpiresAt)
	}
	for _, term := range c.terms.Evidence {
		if slices.Index(Bands(), b.Band) < slices.Index(Bands(), term.From) {
			continue
		}
		newest := time.Time{}
		for _, e := range b.Evidence {
			if e.PredicateType == term.PredicateType && e.IssuedAt.After(newest) {
				newest = e.IssuedAt
			}
		}
		switch {
		case newest.IsZero():
			c.bound("evidence", "lacks evidence of type %s, which the guardrail demands in band %s", quote(term.PredicateType), b.Band)
		case term.MaxAge > 0:
			c.out.Stale = earliest(c.out.Stale, newest.Add(term.MaxAge))
		}
	}
}

func (c *checker) lifetime() {
	longest := c.terms.Lifetimes[c.out.Binding.Band]
	notAfter := c.out.NotBefore.Add(longest)
	if end := c.out.NotAfter; longest > 0 && end.After(notAfter) {
		c.report("spec.notAfter", "%s is more than %s after notBefore, the longest lifetime in band %s; %s is the latest", stamp(end), authz.Duration(longest), c.out.Binding.Band, stamp(notAfter))
	}
}

// approvals counts the approvals that the band needs.
func (c *checker) approvals() {
	b := &c.out.Binding
	need, stated := c.terms.Approvals[b.Band]
	if !stated || len(need.Roles) == 0 && b.Band != BandLow {
		c.bound("band", "no guardrail states who approves in band %s; have one signed that does", quote(b.Band))
		return
	}
	r := Request{
		Submission: b.Submission, Grant: c.out.Digest, Guardrail: b.Guardrail, Rubric: b.Rubric,
		Exemptions: b.ExemptionDigests(), Evidence: b.EvidenceDigests(), Score: b.Score, Band: b.Band,
		Authors: c.out.Authors, After: c.after,
	}
	count := Tally(c.root, c.b.Approvals, r, need.Roles, c.now)
	if len(count.Missing) > 0 {
		if late := tally(c.root, c.b.Approvals, r, need.Roles, c.now, true); len(late.Missing) == 0 {
			count = late
		}
	}
	for _, r := range count.Rejected {
		c.report("", "rejected by %s as %s at %s: %s; the same identity has to withdraw it", r.Identity, r.Role, stamp(r.IssuedAt), quote(r.Comment))
	}
	c.out.Approvals = count.Valid
	if len(count.Missing) == 0 {
		if !count.Until.IsZero() {
			c.ends(count.Until, "an approval ended at "+stamp(count.Until))
		}
		return
	}
	var lacks []string
	for _, m := range count.Missing {
		lacks = append(lacks, fmt.Sprintf("%d more of role %s", m.Min, m.Role))
	}
	c.report("", "band %s needs approvals by %s", b.Band, strings.Join(lacks, ", "))
	for _, v := range count.Void {
		c.report("", "approvals[%d]%s does not count: %s", v.Index, v.reviewer(), v.Reason)
	}
}

// reviewer names the identity and the role; "" if they are not verified.
func (v VoidDecision) reviewer() string {
	if v.Approval == nil {
		return ""
	}
	return fmt.Sprintf(" by %s as %s", v.Approval.Identity, v.Approval.Role)
}

// IsDigest reports whether s is sha256: and 64 lower-case hexadecimal digits.
func IsDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

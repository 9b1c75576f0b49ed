package governance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/governance/risk"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// The stages of a request, in their order.
const (
	stageEligibility = "eligibility"
	stageSecurity    = "security"
	stagePerformance = "performance"
	stageCompliance  = "compliance"
	stageRisk        = "risk"
	stageApprovals   = "approvals"
	stageIssue       = "issue"
)

// StageNames returns the names of the stages, in their order: stage 0 is the first.
func StageNames() []string {
	return []string{stageEligibility, stageSecurity, stagePerformance, stageCompliance, stageRisk, stageApprovals, stageIssue}
}

// Problem is one thing that a stage waits for.
type Problem struct {
	// Message is what is missing or wrong, and the fix.
	Message string `json:"message"`
	// Role is the role that has to act; "" for anybody.
	Role string `json:"role,omitempty"`
	// People are the identities that may act in the role.
	People []string `json:"people,omitempty"`
}

// Stage is the state of one stage.
type Stage struct {
	Number   int       `json:"number"`
	Name     string    `json:"name"`
	Done     bool      `json:"done"`
	Problems []Problem `json:"problems,omitempty"`
	// Since is when the stage before ended, by the signed times; zero before the first.
	Since time.Time `json:"since,omitzero"`
	// Due is when the stage has to end; zero without a time limit.
	Due     time.Time `json:"due,omitzero"`
	Overdue bool      `json:"overdue,omitempty"`
	// Escalated are the roles that have to approve in addition, because the stage waits too long.
	Escalated []string `json:"escalated,omitempty"`
}

// Evaluation is the state of a request, computed from files and signatures.
type Evaluation struct {
	Request *Request
	Issued  *Issued // the plugin's grant before this one; nil for none
	// Ends is when the grant of this request, which is in force, ends; otherwise the zero time.
	Ends   time.Time
	Stages []Stage
	Score  int
	Band   string
	// Findings are of the check of the manifest, and Blocking those of scanners.
	Findings []string
	Blocking []string
	// Risk is the score, addend by addend; nil without a rubric.
	Risk *risk.Result
	// Observed is what a pilot saw, and Differences those to the version in force, in words.
	Observed    []string
	Differences []string
	// Class is how much more the version asks for than the one in force; "" without one.
	Class string
	// Draft is the digest of the grant that is reviewed; "" before one is composed.
	Draft string
	Moved []Moved
	Count grantcheck.Count
	// Dropped are permissions that a renewal leaves out, because nothing used them.
	Dropped []string

	inputs
	now time.Time
}

// inputs are what an evaluation judges by.
type inputs struct {
	guardrails []Guardrail
	terms      terms
	band       bandTerms
	rubric     string
	policy     []grantcheck.PolicyRef
	exemptions []Exemption
	items      []evidence.Item      // of the request, that are about it
	follows    grantcheck.HighWater // the grant before this one; zero for none
	stops      []risk.Stop

	previous            *Request // the request of Issued; nil if it is not there
	previousPerformance *pilot.Performance
}

// Evaluate computes the state of a request at a time. ctx bounds the time of proofs.
func (r *Repository) Evaluate(ctx context.Context, q *Request, now time.Time) (*Evaluation, error) {
	e := &Evaluation{Request: q, now: now, inputs: inputs{guardrails: r.guardrailsOf(q.Plugin), rubric: r.Rubric.Digest, policy: r.policyOf(q.Plugin)}}
	e.terms = termsOf(e.guardrails)
	var err error
	if e.Issued, err = r.Issued(q.Plugin); err != nil {
		return nil, err
	}
	for i, name := range StageNames() {
		e.Stages = append(e.Stages, Stage{Number: i, Name: name})
	}
	for _, f := range q.faults {
		e.problem(f.stage, Problem{Message: f.err.Error()})
	}
	if err := r.notRolledBack(e); err != nil {
		return nil, err
	}
	if err := r.findPrevious(e); err != nil {
		return nil, err
	}
	for i := range r.Exemptions {
		if x := &r.Exemptions[i]; x.Plugin == q.Plugin && x.State(now, 0) == grantcheck.ExemptionActive {
			e.exemptions = append(e.exemptions, *x)
		}
	}
	r.assess(e)
	r.eligible(ctx, e)
	r.evidence(e)
	r.approvals(e)
	e.finish()
	if e.issuedAlready() {
		e.Ends = r.Ends(e.Issued, now)
	}
	return e, nil
}

func (e *Evaluation) stage(name string) *Stage {
	return &e.Stages[slices.Index(StageNames(), name)]
}

func (e *Evaluation) problem(stage string, p Problem) {
	s := e.stage(stage)
	s.Problems = append(s.Problems, p)
}

// before returns the problems of the stages before one.
func (e *Evaluation) before(stage string) []Problem {
	var out []Problem
	for i := range e.Stages[:slices.Index(StageNames(), stage)] {
		out = append(out, e.Stages[i].Problems...)
	}
	return out
}

// eligible is stage 0: a manifest that its author submitted, within the guardrails.
func (r *Repository) eligible(ctx context.Context, e *Evaluation) {
	q := e.Request
	if name, version := q.Manifest.Plugin, q.Manifest.Spec.Version; name != q.Plugin || version != q.Version {
		e.problem(stageEligibility, Problem{Message: fmt.Sprintf("the manifest is of %s %s, and the folder is %s; rename one of them", name, version, q.Dir)})
	}
	if len(e.guardrails) == 0 {
		e.problem(stageEligibility, Problem{Message: fmt.Sprintf("no signed guardrail applies to plugin %s; without one no grant is issued or loaded", q.Plugin), Role: "policy", People: r.people("policy", nil)})
	}
	if q.Submission == nil && !slices.ContainsFunc(q.faults, func(f fault) bool { return f.stage == stageEligibility }) {
		e.problem(stageEligibility, Problem{Message: "the author has not submitted it: chaperonectl plugin submit " + q.Dir, Role: "author", People: r.people("author", nil)})
	}
	if s := q.Submission; s != nil && (s.IssuedAt.IsZero() || s.IssuedAt.After(e.now.Add(grantcheck.MaxAhead))) {
		e.problem(stageEligibility, Problem{Message: fmt.Sprintf("%s: its issuedAt %s is missing or in the future; submit again", FileSubmission, stamp(s.IssuedAt))})
	}
	r.checkManifest(ctx, e)
}

// people returns the identities that may sign in a role, without some.
func (r *Repository) people(role string, without []string) []string {
	return holders(r.Root, role, without)
}

// approvals is stage 5: everybody who has to approve has approved what is to be issued.
func (r *Repository) approvals(e *Evaluation) {
	s := e.stage(stageApprovals)
	e.band = inBand(e.guardrails, e.Band)
	early := len(e.before(stageApprovals)) > 0 // a grant is composed after them, and approvals are of a grant
	if !e.band.stated || len(e.band.roles) == 0 && e.Band != grantcheck.BandLow {
		if early {
			return // the band may be another once they are done
		}
		e.problem(stageApprovals, Problem{Message: fmt.Sprintf("no guardrail states who approves in band %s; have one signed that does", e.Band), Role: "policy", People: r.people("policy", nil)})
		return
	}
	s.Since = e.since()
	if e.band.sla > 0 && !s.Since.IsZero() {
		s.Due = s.Since.Add(e.band.sla)
	}
	if early {
		return
	}
	r.draft(e)
	need := slices.Clone(e.band.roles)
	for _, up := range e.band.escalate {
		// The approvals that were not there in time do not end the escalation afterwards.
		if due := s.Since.Add(time.Duration(up.After)); !e.now.Before(due) && len(r.tally(e, e.band.roles, due).Missing) > 0 {
			need = needRole(need, up.Role, 1)
			s.Escalated = append(s.Escalated, up.Role)
		}
	}
	e.Count = r.tally(e, need, e.now)
	for _, text := range r.outdated(e) {
		e.problem(stageApprovals, Problem{Message: text, Role: "policy", People: r.people("policy", nil)})
	}
	for _, rejected := range e.Count.Rejected {
		e.problem(stageApprovals, Problem{
			Message: fmt.Sprintf("%s rejected it as %s at %s: %q; the same identity has to withdraw that", rejected.Identity, rejected.Role, stamp(rejected.IssuedAt), rejected.Comment),
			Role:    rejected.Role, People: []string{rejected.Identity},
		})
	}
	for _, m := range e.Count.Missing {
		e.problem(stageApprovals, r.missing(e, m))
	}
}

// since returns when the approvers could begin: the latest signed time of what they review
// and, of a renewal, when it was composed.
func (e *Evaluation) since() time.Time {
	at := e.Request.reviewedUntil()
	if e.previous != nil && e.previous.Dir == e.Request.Dir && !e.issuedAlready() {
		if object, err := configs.ParseObject[configs.GrantSpec](FileDraft, e.Request.Draft); err == nil && object.Spec.NotBefore.After(at) {
			at = object.Spec.NotBefore
		}
	}
	return at
}

// draft checks the grant that was composed.
func (r *Repository) draft(e *Evaluation) {
	if e.issuedAlready() {
		e.Draft = e.Issued.Digest
		return
	}
	if len(e.Request.Draft) == 0 {
		e.problem(stageApprovals, Problem{Message: "no grant is composed yet: chaperonectl plugin review " + e.Request.Dir, Role: "release", People: r.people("release", nil)})
		return
	}
	if err := r.checkDraft(e); err != nil {
		for _, one := range split(err) {
			e.problem(stageApprovals, Problem{Message: one.Error()})
		}
		return
	}
	e.Draft = dsse.Digest(e.Request.Draft)
}

// split returns the errors that were joined.
func split(err error) []error {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		return many.Unwrap()
	}
	return []error{err}
}

func (r *Repository) tally(e *Evaluation, need []grantcheck.RoleMin, now time.Time) grantcheck.Count {
	var all []*dsse.Envelope
	for _, d := range e.Request.Decisions {
		all = append(all, d.Envelope)
	}
	return grantcheck.Tally(r.Root, all, e.asked(), need, now)
}

// asked is what approvals are counted for.
func (e *Evaluation) asked() grantcheck.Request {
	q := e.Request
	b := e.binding(grantTimes{})
	return grantcheck.Request{
		Submission: q.SubmissionDigest, Grant: e.Draft, Guardrail: b.Guardrail, Rubric: b.Rubric,
		Exemptions: b.ExemptionDigests(), Evidence: b.EvidenceDigests(), Score: b.Score, Band: b.Band,
		Authors: q.Authors, After: q.reviewedUntil(),
	}
}

// missing describes approvals that are missing, with the people who may give them.
func (r *Repository) missing(e *Evaluation, m grantcheck.RoleMin) Problem {
	without := slices.Clone(e.Request.Authors)
	for i := range e.Count.Valid {
		without = append(without, e.Count.Valid[i].Identity)
	}
	p := Problem{Role: m.Role, People: r.people(m.Role, without)}
	p.Message = fmt.Sprintf("%d more of role %s has to approve (band %s)", max(m.Min, 1), m.Role, e.Band)
	if len(p.People) < max(m.Min, 1) {
		p.Message += "; too few people are left who may: the author never approves, and nobody approves twice"
	}
	for _, v := range e.Count.Void {
		if v.Approval != nil && v.Approval.Role == m.Role || v.Approval == nil {
			p.Message += fmt.Sprintf("; %s does not count: %s", e.Request.Decisions[v.Index].File, v.Reason)
		}
	}
	return p
}

// finish marks what is done. A stage is done only after those before it.
func (e *Evaluation) finish() {
	done := true
	for i := range e.Stages {
		s := &e.Stages[i]
		done = done && len(s.Problems) == 0
		s.Done = done
		s.Overdue = !done && !s.Due.IsZero() && !e.now.Before(s.Due)
	}
	last := e.stage(stageIssue)
	if last.Done = false; e.Issued != nil && e.Draft != "" && e.Issued.Digest == e.Draft {
		last.Done = done
	}
	if e.issuedAlready() {
		for i := range e.Stages {
			e.Stages[i].Done = true
		}
	}
}

// issuedAlready reports whether the grant in force is this request's.
func (e *Evaluation) issuedAlready() bool {
	return e.Issued != nil && e.Request.Submission != nil && e.Issued.Object.Spec.Binding.Submission == e.Request.SubmissionDigest &&
		e.Issued.Digest == dsse.Digest(e.Request.Draft)
}

// Current returns the first stage that is not done, and nil after the last.
func (e *Evaluation) Current() *Stage {
	for i := range e.Stages {
		if !e.Stages[i].Done {
			return &e.Stages[i]
		}
	}
	return nil
}

// Refusal returns why a grant cannot be issued, with every problem on a line, or nil.
func (e *Evaluation) Refusal() error {
	problems := e.before(stageIssue)
	if len(problems) == 0 {
		return nil
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.Message
	}
	return fmt.Errorf("%s is not ready to be issued:\n%s", e.Request.Dir, strings.Join(lines, "\n"))
}

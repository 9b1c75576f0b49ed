package report

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Report is what happened in a repository in a time.
type Report struct {
	Since    time.Time `json:"since"`
	At       time.Time `json:"at"`
	Requests []Request `json:"requests"` // submitted since then, or still open; by submission
	Summary  Summary   `json:"summary"`
	// Exemptions are all that have not ended, and those that ended since then.
	Exemptions []Exemption `json:"exemptions"`
	// Renewals are the grants that are to be renewed by now.
	Renewals []Renewal `json:"renewals"`
	// Faults are requests that cannot be read.
	Faults []string `json:"faults,omitempty"`
}

// Request is one version of a plugin on its way. A time is zero if the step has not
// happened.
type Request struct {
	Plugin    string    `json:"plugin"`
	Version   string    `json:"version"`
	Stage     string    `json:"stage"` // that it waits in; "issued" after the last
	Score     int       `json:"score"`
	Band      string    `json:"band,omitempty"`
	Submitted time.Time `json:"submitted"`
	// Evidence is when the last evidence was signed, Approved when the last approval that
	// counts, and Issued when the grant could be in force: at its beginning, or at the last
	// approval, since the beginning is part of what is approved.
	Evidence time.Time `json:"evidence,omitzero"`
	Approved time.Time `json:"approved,omitzero"`
	Issued   time.Time `json:"issued,omitzero"`
	// Rejections counts rejections, withdrawn ones included.
	Rejections int  `json:"rejections"`
	Overdue    bool `json:"overdue,omitempty"`
	// Blocking counts findings that block, and Problems all that a stage waits for.
	Blocking int `json:"blocking"`
	Problems int `json:"problems"`
}

// Cycle returns the time from the submission to the grant; 0 if it is not issued.
func (q *Request) Cycle() time.Duration {
	if q.Issued.IsZero() {
		return 0
	}
	return max(q.Issued.Sub(q.Submitted), 0)
}

// Summary are figures over the requests. Durations are of the requests that got through
// the step.
type Summary struct {
	Requests int `json:"requests"`
	Issued   int `json:"issued"`
	Open     int `json:"open"`
	Overdue  int `json:"overdue"`
	// Reworked counts requests that were rejected at least once, or replaced by a later
	// submission of the plugin before a grant was issued.
	Reworked int `json:"reworked"`
	Blocking int `json:"blocking"` // findings
	// Cycle is from submission to grant; ToEvidence and ToApproval are its first parts.
	Cycle      Times `json:"cycle"`
	ToEvidence Times `json:"toEvidence"`
	ToApproval Times `json:"toApproval"`
}

// Times are the median and the 90th percentile of durations, in seconds, over Count
// requests.
type Times struct {
	Count  int     `json:"count"`
	Median float64 `json:"medianSeconds"`
	P90    float64 `json:"p90Seconds"`
}

// Exemption is a deviation that was approved.
type Exemption struct {
	Name          string                    `json:"name"`
	Plugin        string                    `json:"plugin"`
	Permission    string                    `json:"permission,omitempty"`
	GuardrailRule string                    `json:"guardrailRule"`
	Owner         string                    `json:"owner"`
	Ticket        string                    `json:"ticket"`
	State         grantcheck.ExemptionState `json:"state"`
	NotAfter      time.Time                 `json:"notAfter"`
	// DaysLeft is negative after the end.
	DaysLeft int   `json:"daysLeft"`
	MaxUses  int64 `json:"maxUses,omitempty"` // each sidecar counts the uses; its status has them
}

// Renewal is a grant that ends soon, or has ended.
type Renewal struct {
	Plugin      string    `json:"plugin"`
	Generation  int64     `json:"generation"`
	RenewBefore time.Time `json:"renewBefore,omitzero"`
	NotAfter    time.Time `json:"notAfter"`
	Ended       bool      `json:"ended"`
}

const (
	issuedStage = "issued"
	day         = 24 * time.Hour
)

// Build reports what happened since a time.
func Build(ctx context.Context, r *governance.Repository, since, now time.Time) (*Report, error) {
	out := &Report{Since: since, At: now, Requests: []Request{}, Exemptions: exemptions(r, since, now), Renewals: []Renewal{}}
	plugins, err := r.Plugins()
	if err != nil {
		return nil, err
	}
	replaced := 0
	for _, plugin := range plugins {
		requests, err := out.plugin(ctx, r, plugin)
		if err != nil {
			return nil, err
		}
		replaced += superseded(requests)
		out.Requests = append(out.Requests, requests...)
	}
	slices.SortFunc(out.Requests, func(a, b Request) int {
		return cmp.Or(a.Submitted.Compare(b.Submitted), cmp.Compare(a.Plugin, b.Plugin), cmp.Compare(a.Version, b.Version))
	})
	out.Summary = summary(out.Requests)
	out.Summary.Reworked += replaced
	return out, nil
}

// plugin returns the requests of a plugin that belong to the report, and adds its renewal.
func (r *Report) plugin(ctx context.Context, repository *governance.Repository, plugin string) (requests []Request, err error) {
	versions, err := repository.Versions(plugin)
	if err != nil {
		return nil, err
	}
	for _, version := range versions {
		q, err := request(ctx, repository, plugin, version, r.At)
		switch {
		case err != nil:
			r.Faults = append(r.Faults, governance.RequestDir(plugin, version)+": "+err.Error())
		case q.Submitted.IsZero(): // not a request yet
		case q.Submitted.Before(r.Since) && (q.Stage == issuedStage && q.Issued.Before(r.Since)):
		default:
			requests = append(requests, *q)
		}
	}
	grant, err := repository.Issued(plugin)
	if err != nil {
		r.Faults = append(r.Faults, err.Error())
		return requests, nil
	}
	if grant != nil {
		binding, ends := grant.Object.Spec.Binding, repository.Ends(grant, r.At)
		if at := binding.RenewBefore; !at.IsZero() && !r.At.Before(at) || !r.At.Before(ends) {
			r.Renewals = append(r.Renewals, Renewal{plugin, binding.Generation, at, ends, !r.At.Before(ends)})
		}
	}
	return requests, nil
}

func request(ctx context.Context, r *governance.Repository, plugin, version string, now time.Time) (*Request, error) {
	q, err := r.Request(governance.RequestDir(plugin, version))
	if err != nil {
		return nil, err
	}
	state, err := r.Evaluate(ctx, q, now)
	if err != nil {
		return nil, err
	}
	out := &Request{Plugin: plugin, Version: version, Stage: issuedStage, Score: state.Score, Band: state.Band, Blocking: len(state.Blocking)}
	if q.Submission != nil {
		out.Submitted = q.Submission.IssuedAt
	}
	if current := state.Current(); current != nil {
		out.Stage, out.Overdue = current.Name, current.Overdue
	}
	for i := range state.Stages {
		out.Problems += len(state.Stages[i].Problems)
	}
	for i := range q.Evidence {
		out.Evidence = latest(out.Evidence, q.Evidence[i].IssuedAt)
	}
	for i := range state.Count.Valid {
		out.Approved = latest(out.Approved, state.Count.Valid[i].IssuedAt)
	}
	if state.Issued != nil && state.Issued.Object.Spec.Binding.Submission == q.SubmissionDigest {
		out.Issued = latest(state.Issued.Object.Spec.NotBefore, out.Approved)
	}
	out.Rejections = rejections(r.Root, q)
	return out, nil
}

// rejections counts the rejections that a reviewer signed. An envelope that does not
// verify counts for nothing.
func rejections(root *dsse.Root, q *governance.Request) (n int) {
	for i := range q.Decisions {
		doc, err := root.Verify(q.Decisions[i].Envelope, dsse.KindApproval)
		if err != nil {
			continue
		}
		var a grantcheck.Approval
		if dsse.Decode(doc.Payload, &a) == nil && a.Decision == grantcheck.DecisionReject {
			n++
		}
	}
	return n
}

// superseded counts requests of one plugin that were never issued before a later one was
// submitted, and were never rejected, since those count already.
func superseded(requests []Request) (n int) {
	for i := range requests {
		q := &requests[i]
		if q.Stage == issuedStage || q.Rejections > 0 {
			continue
		}
		if slices.ContainsFunc(requests, func(other Request) bool { return other.Submitted.After(q.Submitted) }) {
			n++
		}
	}
	return n
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func summary(requests []Request) Summary {
	s := Summary{Requests: len(requests)}
	var cycle, evidence, approval []time.Duration
	for i := range requests {
		q := &requests[i]
		s.Blocking += q.Blocking
		if q.Rejections > 0 {
			s.Reworked++
		}
		if q.Overdue {
			s.Overdue++
		}
		if q.Stage == issuedStage {
			s.Issued++
		} else {
			s.Open++
		}
		if !q.Issued.IsZero() {
			cycle = append(cycle, q.Cycle())
		}
		if !q.Evidence.IsZero() {
			evidence = append(evidence, max(0, q.Evidence.Sub(q.Submitted))) // a scan may be older than the submission
		}
		if !q.Approved.IsZero() {
			approval = append(approval, q.Approved.Sub(latest(q.Submitted, q.Evidence)))
		}
	}
	s.Cycle, s.ToEvidence, s.ToApproval = times(cycle), times(evidence), times(approval)
	return s
}

// times returns the median and the 90th percentile, by the nearest rank.
func times(all []time.Duration) Times {
	if len(all) == 0 {
		return Times{}
	}
	slices.Sort(all)
	rank := func(percent int) float64 { return all[(len(all)*percent+99)/100-1].Seconds() }
	return Times{len(all), rank(50), rank(90)}
}

func exemptions(r *governance.Repository, since, now time.Time) []Exemption {
	out := []Exemption{}
	for i := range r.Exemptions {
		e := &r.Exemptions[i]
		if e.NotAfter.Before(since) {
			continue
		}
		out = append(out, Exemption{
			Name: e.Name, Plugin: e.Plugin, Permission: e.Permission, GuardrailRule: e.GuardrailRule, Owner: e.Owner, Ticket: e.Ticket,
			State: e.State(now, 0), NotAfter: e.NotAfter, DaysLeft: days(e.NotAfter.Sub(now)), MaxUses: e.MaxUses,
		})
	}
	slices.SortFunc(out, func(a, b Exemption) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// days returns whole days, rounded down: an exemption that ended an hour ago has -1 left.
func days(d time.Duration) int {
	n := int(d / day)
	if d < 0 && d%day != 0 {
		n--
	}
	return n
}

package learn

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Against compares the present policy with what it would be beside the proposal, from
// now on, and returns the result as sentences without a period: what a guardrail refuses,
// and requests that become possible.
func (p *Proposal) Against(ctx context.Context, present *policy.Subject, now time.Time) ([]string, error) {
	in := present.Input
	in.Observe, in.ObserveUntil = false, time.Time{} // an observing sidecar allows everything already
	in.Grants = append(slices.Clone(in.Grants), p.Grant("compiled to compare the proposal with the present policy"))
	wider, problems := authz.Compile(in, now)
	if len(problems) > 0 {
		const most = 10
		var out []string
		for _, problem := range problems[:min(len(problems), most)] {
			out = append(out, "Not valid beside the present grants and guardrails: "+problem.Path+" "+problem.Message)
		}
		return out, nil
	}
	in.Grants = present.Input.Grants
	before, problems := authz.Compile(in, now)
	if len(problems) > 0 {
		return nil, fmt.Errorf("compile the present policy: %s: %s", problems[0].Path, problems[0].Message)
	}
	const most = 20
	result, err := prove.Compare(ctx, snapshot(before), snapshot(wider), prove.Options{Plugin: authz.Principal(p.Terms.Plugin), At: now, Most: most})
	if err != nil {
		return nil, err
	}
	var out []string
	for i := range result.Findings {
		if f := &result.Findings[i]; f.Kind == prove.KindAccess {
			out = append(out, "Becomes possible: "+printable.Text(policy.Format(f.Request))+" by "+f.New.RuleName())
		} else {
			out = append(out, fmt.Sprintf("Wider than the present policy (%s): %s by %s", f.Kind, printable.Text(policy.Format(f.Request)), f.New.RuleName()))
		}
	}
	switch {
	case !result.Complete && len(result.Findings) < most:
		out = append(out, "The comparison with the present policy is not complete")
	case len(result.Findings) >= most:
		out = append(out, "The comparison lists its first findings only; policy diff lists all")
	}
	return out, nil
}

func snapshot(p *authz.Policy) *authz.Snapshot {
	var engine authz.Engine
	engine.Install(p)
	return engine.Current()
}

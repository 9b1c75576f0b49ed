package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Enforced returns the policy of an input as it is once neither the Sidecar nor a rule
// observes, as of now.
func Enforced(in authz.Input, now time.Time) (*authz.Snapshot, error) {
	in.Observe, in.ObserveUntil = false, time.Time{}
	in.Grants = slices.Clone(in.Grants)
	for i := range in.Grants {
		g := &in.Grants[i]
		g.Rules = slices.Clone(g.Rules)
		for j := range g.Rules {
			g.Rules[j].Mode, g.Rules[j].ObserveUntil = "", time.Time{}
		}
	}
	compiled, problems := authz.Compile(in, now)
	if len(problems) > 0 {
		return nil, fmt.Errorf("compile the policy without observing: %s: %s", problems[0].Path, problems[0].Message)
	}
	var engine authz.Engine
	engine.Install(compiled)
	return engine.Current(), nil
}

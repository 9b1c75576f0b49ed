package plugintest

import (
	"context"

	"github.com/chaperone-proxy/chaperone/authz"
)

// proveNever proves that the policy allows no request that matches the pattern.
func (e *expectation) proveNever(ctx context.Context, s *authz.Snapshot) outcome {
	_, _ = ctx, s
	return outcome{status: Undecided, undecided: "never is not supported yet"}
}

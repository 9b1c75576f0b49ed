package authz

import (
	"context"
	"errors"
	"fmt"
)

// RenewingSource is a CredentialSource that can look for a newer value than one that an
// upstream has refused.
type RenewingSource interface {
	CredentialSource
	// Newer returns a value of a later generation, at once if the source holds one, and
	// otherwise if its origin has replaced the value or lost it. It returns an error while
	// the value is still the current one, by the rules of [CredentialSource].
	Newer(ctx context.Context, ref CredentialRef, generation uint64) (Credential, error)
}

// Renew replaces the access's credential after the upstream refused to log it in: the
// password may have been replaced since the credential was fetched. The access then
// carries the new value, its lease and its term, and the record of its end names that
// lease. An error leaves the access as it was. The door that asked for the access calls
// it, before it reads Injection again.
func (a *Admission) Renew(ctx context.Context) error {
	if a.gate == nil || !a.Decision.Allowed() || a.Decision.Credential == "" {
		return errors.New("renew credential: the access carries none")
	}
	source, ok := a.gate.cfg.Credentials.(RenewingSource)
	if !ok {
		return errors.New("renew credential: its source has no newer value")
	}
	spec := a.Decision.rule.credential
	credential, err := source.Newer(ctx, spec.ref, a.Injection.Generation)
	if err != nil {
		return fmt.Errorf("renew credential %s of grant %s: %w", spec.ref.Name, spec.ref.Grant, err)
	}
	injection, err := spec.render(credential)
	if err != nil {
		return fmt.Errorf("renew credential %s of grant %s: %w", spec.ref.Name, spec.ref.Grant, err)
	}
	if !a.StillAllowed() {
		return errors.New("renew credential: the policy changed in between")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return errors.New("renew credential: the access has ended")
	}
	credential.Uses.Begin()
	if spec.kind == InjectDatabase {
		credential.Uses.MarkSessions()
	}
	a.releaseUses()
	a.Injection, a.carried = injection, carried{lease: credential.Lease, uses: credential.Uses, term: credential.Term}
	return nil
}

// Term returns the life of the credential's value that the access carries; nil, which
// never ends, for an access without a credential.
func (a *Admission) Term() *Term {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.term
}

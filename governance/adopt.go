package governance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Adoption is a request made from a grant without a signature.
type Adoption struct {
	Manifest    *configs.Object[configs.PluginManifest]
	Credentials []authz.CredentialSpec
	// Notes are what a person has to know, as sentences without a period.
	Notes []string
}

// Adopt makes the manifest that asks for exactly what a grant without a signature allows, and
// the sources of its credentials. It proves that the grant which the manifest becomes and the
// one that is in force allow the same: no access is lost or gained in the migration.
func Adopt(ctx context.Context, grant authz.Grant, version, vendor, purpose string, artifact grantcheck.Artifact, now time.Time) (*Adoption, error) {
	m := configs.PluginManifest{
		Version: version, Vendor: vendor, Purpose: purpose, Artifact: configs.Artifact{Artifact: artifact},
		Limits: grant.Limits, Sockets: grant.Sockets,
	}
	for i := range grant.Rules {
		if mode := grant.Rules[i].Mode; mode == authz.ModeObserve {
			return nil, fmt.Errorf("adopt grant %s: rule %s observes, and a signed grant does not; decide what it allows first", grant.Name, grant.Rules[i].ID)
		}
		m.Permissions = append(m.Permissions, configs.Permission{Rule: grant.Rules[i]})
	}
	out := &Adoption{Credentials: grant.Credentials}
	sources := map[string]authz.CredentialSpec{}
	for _, c := range grant.Credentials {
		sources[c.Name] = c
		m.Credentials = append(m.Credentials, configs.ManifestCredential{Name: c.Name, Kind: kindOf(c.Inject), Purpose: "as before"})
	}
	out.Manifest = &configs.Object[configs.PluginManifest]{Metadata: configs.Metadata{Name: grant.Plugin}, Spec: m}
	again, err := manifest.Grant(grant.Plugin, &m, sources)
	if err != nil {
		return nil, err
	}
	if err := sameAccess(ctx, grant, again, now); err != nil {
		return nil, err
	}
	if grant.Name != grant.Plugin {
		out.Notes = append(out.Notes, fmt.Sprintf("the grant is named %s and the signed one will be %s: until the first is removed, both are in force", grant.Name, grant.Plugin))
	}
	return out, nil
}

// kindOf returns the kind of credential that is injected in a place.
func kindOf(in authz.Inject) configs.CredentialKind {
	switch {
	case in.Basic != nil:
		return configs.CredentialBasic
	case in.MTLS != nil:
		return configs.CredentialMTLS
	case in.SigV4 != nil:
		return configs.CredentialSigV4
	case in.OAuth2 != nil:
		return configs.CredentialOAuth2
	case in.JWT != nil:
		return configs.CredentialJWT
	case in.Database != nil:
		return configs.CredentialDatabase
	case in.Query != "":
		return configs.CredentialQuery
	case in.Cookie != "":
		return configs.CredentialCookie
	case strings.HasPrefix(strings.ToLower(in.Value), "bearer "):
		return configs.CredentialBearer
	}
	return configs.CredentialHeader
}

// sameAccess proves that two grants allow the same for every request, credential and limit.
func sameAccess(ctx context.Context, before, after authz.Grant, now time.Time) error {
	after.NotAfter, after.Name = before.NotAfter, before.Name // when it ends is for the guardrails
	old, err := compiled(before, now)
	if err != nil {
		return err
	}
	next, err := compiled(after, now)
	if err != nil {
		return err
	}
	for _, way := range []struct {
		what string
		a, b policy.Subject
	}{{"would be lost", next, old}, {"would be gained", old, next}} {
		result, err := prove.Compare(ctx, way.a.Snapshot, way.b.Snapshot, prove.Options{Plugin: authz.Principal(before.Plugin), At: now, Most: 1})
		switch {
		case err != nil:
			return err
		case len(result.Findings) > 0:
			return fmt.Errorf("adopt grant %s: access %s, of kind %s; report this as a fault", before.Name, way.what, result.Findings[0].Kind)
		case !result.Complete:
			return fmt.Errorf("adopt grant %s: that the access stays the same is not proved: %s", before.Name, strings.Join(result.Inexact, "; "))
		}
	}
	return nil
}

func compiled(grant authz.Grant, now time.Time) (policy.Subject, error) {
	in := authz.Input{Plugin: grant.Plugin, Grants: []authz.Grant{configs.WithoutAuthorities(grant)}}
	c, problems := authz.Compile(in, now)
	if len(problems) > 0 {
		return policy.Subject{}, errors.New(problems[0].Path + ": " + problems[0].Message)
	}
	s := policy.Subject{Plugin: grant.Plugin, Input: in, Policy: c}
	s.Snapshot = s.With(nil)
	return s, nil
}

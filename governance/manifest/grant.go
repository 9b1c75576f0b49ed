package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// Grant returns the grant that a manifest asks for: one rule for each permission, in their order and with everything
// they state, and nothing else. The sources of credentials are those of the plugin's operator, by the name that the
// manifest gives them; one that is missing, or that injects something of another kind, is an error. The result has no
// end; its issuer sets NotAfter.
func Grant(plugin string, m *configs.PluginManifest, credentials map[string]authz.CredentialSpec) (authz.Grant, error) {
	g := authz.Grant{Name: plugin, Plugin: plugin, Limits: m.Limits, Sockets: slices.Clone(m.Sockets)}
	used := map[string]bool{}
	for i := range m.Permissions {
		r := m.Permissions[i].Rule
		r.Matcher = configs.Matcher(&r)
		g.Rules = append(g.Rules, r)
		used[r.Credential] = true
	}
	for _, c := range m.Credentials {
		if !used[c.Name] {
			continue
		}
		used[c.Name] = false
		source, ok := credentials[c.Name]
		switch {
		case !ok:
			return authz.Grant{}, fmt.Errorf("grant %s: credential %s has no source; state it in credentials.yaml beside the manifest, as in credentials: [{name: %s, vault: {path: ...}, inject: {...}}]", plugin, c.Name, c.Name)
		case !fits(c.Kind, source.Inject):
			return authz.Grant{}, fmt.Errorf("grant %s: credential %s is asked for as %s, and its source injects %s; change one of the two", plugin, c.Name, c.Kind, source.Inject.Describe())
		}
		source.Name = c.Name
		g.Credentials = append(g.Credentials, source)
	}
	delete(used, "")
	for _, r := range g.Rules {
		if used[r.Credential] {
			return authz.Grant{}, fmt.Errorf("grant %s: permission %s names credential %s, which the manifest does not list", plugin, r.ID, quote(r.Credential))
		}
	}
	return g, nil
}

// fits reports whether a place of injection is of the kind that a manifest asks for.
func fits(kind configs.CredentialKind, in authz.Inject) bool {
	switch kind {
	case configs.CredentialBearer:
		return in.Header != "" && strings.HasPrefix(strings.ToLower(in.Value), "bearer ")
	case configs.CredentialHeader:
		return in.Header != ""
	case configs.CredentialQuery:
		return in.Query != ""
	case configs.CredentialCookie:
		return in.Cookie != ""
	case configs.CredentialBasic:
		return in.Basic != nil
	case configs.CredentialMTLS:
		return in.MTLS != nil
	case configs.CredentialSigV4:
		return in.SigV4 != nil
	case configs.CredentialOAuth2:
		return in.OAuth2 != nil
	case configs.CredentialJWT:
		return in.JWT != nil
	case configs.CredentialDatabase:
		return in.Database != nil
	}
	return false
}

// assumed returns a source for each credential of a manifest, so that the grant can be judged before its
// sources are known. Credentials of different names or kinds differ.
func assumed(m *configs.PluginManifest) map[string]authz.CredentialSpec {
	out := map[string]authz.CredentialSpec{}
	for _, c := range m.Credentials {
		spec := authz.CredentialSpec{Name: c.Name, Vault: authz.VaultPath{Path: "manifest/" + c.Name}}
		switch kind := c.Kind; kind {
		case configs.CredentialBearer:
			spec.Inject = authz.Inject{Header: "Authorization", Value: "Bearer {token}"}
		case configs.CredentialHeader:
			spec.Inject = authz.Inject{Header: "X-Api-Key", Value: "{token}"}
		case configs.CredentialQuery:
			spec.Inject = authz.Inject{Query: "key", Value: "{token}"}
		case configs.CredentialCookie:
			spec.Inject = authz.Inject{Cookie: "session", Value: "{token}"}
		case configs.CredentialBasic:
			spec.Inject.Basic = &authz.Basic{Username: "{username}", Password: "{password}"}
		case configs.CredentialMTLS:
			spec.Inject.MTLS = &authz.MTLS{}
		case configs.CredentialSigV4:
			spec.Inject.SigV4 = &authz.SigV4{Service: "s3", Region: "eu-west-1"}
		case configs.CredentialOAuth2:
			spec.Inject.OAuth2 = &authz.OAuth2{TokenURL: "https://token.invalid/token"} // #nosec G101 -- an address
		case configs.CredentialJWT:
			spec.Inject.JWT = &authz.JWT{Algorithm: "RS256"}
			spec.Vault.Path = "manifest/sign/" + c.Name
		case configs.CredentialDatabase:
			spec.Inject.Database = &authz.DatabaseLogin{}
		}
		out[c.Name] = spec
	}
	return out
}

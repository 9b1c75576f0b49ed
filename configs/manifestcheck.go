package configs

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// ManifestFaults returns what is wrong in the fields of a manifest beside its permissions, which
// are judged as the rules of a grant. The errors have no places.
func ManifestFaults(name string, m *PluginManifest) (out Errors) {
	m.validateFields(name, func(path, format string, args ...any) {
		out = append(out, Error{Field: path, Message: fmt.Sprintf(format, args...)})
	})
	return out
}

// validate reports what is wrong in a manifest by itself. The permissions are judged as
// rules of a grant. chaperone plugin check judges it besides by guardrails, and reports the
// same as findings.
func (m *PluginManifest) validate(s *source, report reporter) {
	m.validateFields(s.manifest.Metadata.Name, report)
	m.validatePermissions(s, report)
}

func (m *PluginManifest) validateFields(plugin string, report reporter) {
	if !matches(versionForm, m.Version) && m.Version != "" {
		report("spec.version", "%q is not a semantic version; write three numbers, as in 2.4.1", clip(m.Version))
	}
	line(report, "spec.vendor", m.Vendor)
	line(report, "spec.purpose", m.Purpose)
	m.Artifact.validate(report)
	for i, c := range m.Contacts {
		c.validate(at("spec.contacts", i), report)
	}
	m.Support.validate(report)
	optionalLine(report, "spec.host.apiVersions", m.Host.APIVersions)
	m.validateCredentials(report)
	for _, d := range []struct{ path, value string }{{"spec.docs.runbook", m.Docs.Runbook}, {"spec.docs.dataFlow", m.Docs.DataFlow}, {"spec.docs.privacy", m.Docs.Privacy}} {
		if d.value != "" && !matches(digestForm, d.value) && !below(d.value) {
			report(d.path, "%q is neither a digest nor a file; write sha256: and 64 hexadecimal digits, or a path below the manifest's folder", clip(d.value))
		}
	}
	for i, v := range m.Supersedes {
		if !matches(versionForm, v) || v == m.Version {
			report(at("spec.supersedes", i), "%q is not another semantic version; write an earlier one, as in 2.4.0", clip(v))
		}
	}
	for name, versions := range m.Requires {
		if !authz.IsName(name) || name == plugin {
			report("spec.requires."+name, "%q is not the name of another plugin", clip(name))
		}
		line(report, "spec.requires."+name, versions)
	}
}

// below reports whether a path is of a file below the folder that it is relative to.
func below(name string) bool {
	return name != "" && !path.IsAbs(name) && path.Clean(name) == name && name != "." && name != ".." && !strings.HasPrefix(name, "../") && !strings.Contains(name, `\`)
}

func (a *Artifact) validate(report reporter) {
	oneOf(report, "spec.artifact.kind", a.Kind, grantcheck.ArtifactFile, grantcheck.ArtifactTree, grantcheck.ArtifactImage)
	if !matches(digestForm, a.Digest) && a.Digest != "" {
		report("spec.artifact.digest", "%q is not a digest; write sha256: and 64 hexadecimal digits in lower case", clip(a.Digest))
	}
	if err := a.CheckCommand(); err != nil {
		report("spec.artifact.command", "%v", err)
	}
	if a.PURL != "" && !matches(`^pkg:[a-zA-Z][a-zA-Z0-9.+-]*/[!-~]+$`, a.PURL) {
		report("spec.artifact.purl", "%q is not a package URL; write pkg:TYPE/NAME@VERSION, as in pkg:oci/crm-sync@2.4.1", clip(a.PURL))
	}
}

func (c *Contact) validate(path string, report reporter) {
	line(report, path+".name", c.Name)
	if c.Email == "" && c.Webhook == "" {
		report(path, "has no address; write email or webhook")
	}
	if c.Email != "" && !matches(`^[!-?A-~]+@[a-zA-Z0-9.-]+$`, c.Email) {
		report(path+".email", "%q is not an address of mail, as in oncall@acme.example", clip(c.Email))
	}
	if c.Webhook != "" && !httpsURL(c.Webhook) {
		report(path+".webhook", "%q is not an https URL without a user; write one, as in https://hooks.acme.example/chaperone", clip(c.Webhook))
	}
}

func httpsURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && u.Fragment == "" && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (s *Support) validate(report reporter) {
	optionalLine(report, "spec.support.contact", s.Contact)
	if !s.EndOfSupport.IsZero() && s.DeprecatedAfter.After(s.EndOfSupport) {
		report("spec.support.deprecatedAfter", "%s is after the end of support, %s", s.DeprecatedAfter.UTC().Format(time.RFC3339), s.EndOfSupport.UTC().Format(time.RFC3339))
	}
	optionalLine(report, "spec.support.migration", s.Migration)
	if s.Migration != "" && !httpsURL(s.Migration) && !below(s.Migration) {
		report("spec.support.migration", "%q is neither an https URL nor a path below the manifest's folder", clip(s.Migration))
	}
}

func (m *PluginManifest) validateCredentials(report reporter) {
	names := map[string]bool{}
	for i, c := range m.Credentials {
		path := at("spec.credentials", i)
		unique(report, path+".name", c.Name, names)
		oneOf(report, path+".kind", c.Kind, CredentialBearer, CredentialHeader, CredentialQuery, CredentialCookie, CredentialBasic,
			CredentialMTLS, CredentialSigV4, CredentialOAuth2, CredentialJWT, CredentialDatabase)
		line(report, path+".purpose", c.Purpose)
	}
	for i, p := range m.Permissions {
		if ca := p.To.TLS.CAFile; ca != "" {
			if err := grantcheck.CheckAuthorityFile(ca); err != nil {
				report(at("spec.permissions", i)+".to.tls.caFile", "%v", err)
			}
		}
		if p.Credential != "" && !names[p.Credential] {
			report(at("spec.permissions", i)+".credential", "%q is not one of the manifest's credentials; list it under spec.credentials", clip(p.Credential))
		}
		optionalLine(report, at("spec.permissions", i)+".reason", strings.NewReplacer("\n", " ", "\t", " ").Replace(p.Reason))
		if p.Mode != "" || !p.ObserveUntil.IsZero() {
			report(at("spec.permissions", i)+".mode", "is not for a manifest to ask; remove it: a pilot observes")
		}
	}
}

// validatePermissions compiles the permissions as the rules of a grant, with every region
// that they name.
func (m *PluginManifest) validatePermissions(s *source, report reporter) {
	grant := authz.Grant{
		Name: "manifest", Origin: s.origin(), Plugin: s.manifest.Metadata.Name, NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
		Rules: m.Rules(), Limits: m.Limits, Sockets: m.Sockets,
	}
	if len(grant.Rules) == 0 {
		report("spec.permissions", "is empty; write what the plugin may access")
		return
	}
	for i := range grant.Rules {
		r := &grant.Rules[i]
		r.Mode, r.ObserveUntil = "", time.Time{}
		kind := CredentialBearer
		for _, c := range m.Credentials {
			if c.Name == r.Credential {
				kind = c.Kind
			}
		}
		if !authz.IsName(r.Credential) || slices.ContainsFunc(grant.Credentials, func(c authz.CredentialSpec) bool { return c.Name == r.Credential }) {
			continue
		}
		grant.Credentials = append(grant.Credentials, authz.CredentialSpec{Name: r.Credential, Vault: kind.source(r.Credential), Inject: kind.place()})
	}
	_, problems := authz.Compile(authz.Input{Plugin: grant.Plugin, Grants: []authz.Grant{WithoutAuthorities(grant)}, Guardrails: anyRegions(grant.Rules)}, time.Time{})
	for _, p := range problems {
		if field, ok := strings.CutPrefix(p.Path, "spec.rules"); ok {
			report("spec.permissions"+field, "%s", p.Message)
		} else if strings.HasPrefix(p.Path, "spec.limits") || strings.HasPrefix(p.Path, "spec.sockets") {
			report(p.Path, "%s", p.Message)
		}
	}
}

// source returns a place in Vault that suits the kind, for the check of a manifest.
func (k CredentialKind) source(name string) authz.VaultPath {
	if k == CredentialJWT {
		return authz.VaultPath{Path: "transit/sign/" + name}
	}
	return authz.VaultPath{Path: "secret/data/" + name}
}

// place returns a place in requests of the kind, for the check of a manifest.
func (k CredentialKind) place() authz.Inject {
	switch k {
	case CredentialQuery:
		return authz.Inject{Query: "key", Value: "{key}"}
	case CredentialCookie:
		return authz.Inject{Cookie: "key", Value: "{key}"}
	case CredentialBasic:
		return authz.Inject{Basic: &authz.Basic{Username: "{username}", Password: "{password}"}}
	case CredentialMTLS:
		return authz.Inject{MTLS: &authz.MTLS{}}
	case CredentialSigV4:
		return authz.Inject{SigV4: &authz.SigV4{Service: "s3", Region: "eu-west-1"}}
	case CredentialOAuth2:
		return authz.Inject{OAuth2: &authz.OAuth2{TokenURL: "https://id.example/token"}} //nolint:gosec // an example, not a credential
	case CredentialJWT:
		return authz.Inject{JWT: &authz.JWT{Algorithm: "EdDSA"}}
	case CredentialDatabase:
		return authz.Inject{Database: &authz.DatabaseLogin{}}
	case CredentialBearer, CredentialHeader:
	}
	return authz.Inject{Header: "Authorization", Value: "Bearer {key}"}
}

// anyRegions returns a guardrail that defines every region of the rules, for rules that are
// checked without the guardrails that they will be under.
func anyRegions(rules []authz.Rule) []authz.Guardrail {
	g := authz.Guardrail{Name: "any", Plugins: []string{"**"}, Regions: map[string][]authz.Place{}}
	for _, r := range rules {
		for _, name := range r.Data.Regions {
			if authz.IsName(name) {
				g.Regions[name] = []authz.Place{"0.0.0.0/0"}
			}
		}
	}
	return []authz.Guardrail{g}
}

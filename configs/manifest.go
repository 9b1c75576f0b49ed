package configs

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// PluginManifest is the spec of a PluginManifest: what the author of a plugin asks for.
// Its name is the plugin's. It names neither a secret nor a path of one.
type PluginManifest struct {
	// Version is the plugin's semantic version (semver.org 2.0.0), as in 2.4.1.
	Version string `json:"version"`
	// Vendor is who makes the plugin, as in acme.example.
	Vendor string `json:"vendor"`
	// Artifact is what is executed.
	Artifact Artifact `json:"artifact"`
	// Purpose is for those who approve and use the plugin.
	Purpose string `json:"purpose"`
	// Contacts are informed of approvals, rollbacks and incidents.
	Contacts []Contact `json:"contacts,omitempty"`
	// Support is who supports this version, and for how long.
	Support Support `json:"support,omitzero"`
	// Host is the platform that the plugin runs on.
	Host Host `json:"host,omitzero"`
	// Permissions are the accesses that the plugin asks for.
	Permissions []Permission `json:"permissions"`
	// Credentials are the credentials that permissions name.
	Credentials []ManifestCredential `json:"credentials,omitempty"`
	// Limits are the limits that the plugin needs, as in a grant.
	Limits authz.Limits `json:"limits,omitzero"`
	// Sockets are the Unix sockets that the plugin uses, as in a grant.
	Sockets []string `json:"sockets,omitempty"`
	// Docs are the documents that come with the plugin.
	Docs Docs `json:"docs,omitzero"`
	// Supersedes are earlier versions that this one replaces, as in 2.4.0.
	Supersedes []string `json:"supersedes,omitempty"`
	// Requires are other plugins that this one needs, with the versions that will do, as in {accounts: ">=1.2.0 <2.0.0"}.
	Requires map[string]string `json:"requires,omitempty"`
}

// Artifact is what is executed.
type Artifact struct {
	grantcheck.Artifact
	// PURL is the package URL (ECMA-427), as in pkg:oci/crm-sync@2.4.1.
	PURL string `json:"purl,omitempty"`
}

// Contact is somebody to inform.
type Contact struct {
	// Name is a person or a team.
	Name string `json:"name"`
	// Email is an address of mail.
	Email string `json:"email,omitempty"`
	// Webhook is an https URL that receives CloudEvents.
	Webhook string `json:"webhook,omitempty"`
}

// Support is who supports a version, and for how long.
type Support struct {
	// Contact is where problems are reported, as in sec@acme.example.
	Contact string `json:"contact,omitempty"`
	// EndOfSupport is when this version is supported no longer.
	EndOfSupport time.Time `json:"endOfSupport,omitzero"`
	// DeprecatedAfter is when this version should not be used any more.
	DeprecatedAfter time.Time `json:"deprecatedAfter,omitzero"`
	// Migration is an https URL or a file that describes the way to a later version.
	Migration string `json:"migration,omitempty"`
}

// Host is the platform that a plugin runs on.
type Host struct {
	// APIVersions are the versions of the platform's API that the plugin works with, as in ">=1.4.0 <2.0.0".
	APIVersions string `json:"apiVersions,omitempty"`
}

// Permission is an access that a plugin asks for: a rule of a grant.
type Permission struct {
	authz.Rule
	// Optional is set for a permission without which the plugin works.
	Optional bool `json:"optional,omitempty"`
}

// ManifestCredential is a credential that permissions name. Its source is the
// operator's.
type ManifestCredential struct {
	// Name is the name that permissions use.
	Name string `json:"name"`
	// Kind is what is injected, as in bearer, basic, mtls, sigv4, oauth2, jwt or database.
	Kind CredentialKind `json:"kind"`
	// Purpose is what the credential is for.
	Purpose string `json:"purpose"`
}

// CredentialKind is the kind of a credential that a manifest asks for.
type CredentialKind string

// The kinds of credentials.
const (
	CredentialBearer   CredentialKind = "bearer"
	CredentialHeader   CredentialKind = "header"
	CredentialQuery    CredentialKind = "query"
	CredentialCookie   CredentialKind = "cookie"
	CredentialBasic    CredentialKind = "basic"
	CredentialMTLS     CredentialKind = "mtls"
	CredentialSigV4    CredentialKind = "sigv4"
	CredentialOAuth2   CredentialKind = "oauth2"
	CredentialJWT      CredentialKind = "jwt"
	CredentialDatabase CredentialKind = "database"
)

// Docs are documents, each by its digest (sha256: and 64 hexadecimal digits) or as a file
// below the manifest's folder.
type Docs struct {
	// Runbook describes failures of the plugin and what to do.
	Runbook string `json:"runbook,omitempty"`
	// DataFlow shows where data go.
	DataFlow string `json:"dataFlow,omitempty"`
	// Privacy is the notice of what happens with personal data.
	Privacy string `json:"privacy,omitempty"`
}

// Percent is a share in hundredths of a percent, written as in 10% or 99.99%. The zero
// Percent states nothing.
type Percent int

// UnmarshalText reads a percentage. Its error names the valid forms.
func (p *Percent) UnmarshalText(text []byte) error {
	const whole, places = 1000, 2
	digits, ok := strings.CutSuffix(string(text), "%")
	units, fraction, point := strings.Cut(digits, ".")
	n, err := strconv.ParseUint(units, 10, 16)
	plain := ok && err == nil && n <= whole && strconv.FormatUint(n, 10) == units
	hundredths := 0
	if point {
		var m uint64
		m, err = strconv.ParseUint((fraction + "0")[:min(len(fraction)+1, places)], 10, 8)
		plain = plain && err == nil && len(fraction) > 0 && len(fraction) <= places && strings.Trim(fraction, "0123456789") == ""
		hundredths = int(m) // #nosec G115 -- two digits
	}
	sum := Percent(int(n)*100 + hundredths) // #nosec G115 -- at most 1000
	if !plain || sum == 0 {
		return fmt.Errorf("%q is not a percentage; write a number above 0, up to 1000, with at most two decimals and %%, as in 10%% or 99.99%%", clip(string(text)))
	}
	*p = sum
	return nil
}

// String returns the percentage as UnmarshalText reads it.
func (p Percent) String() string {
	text := strconv.Itoa(int(p) / 100)
	if rest := int(p) % 100; rest != 0 {
		text += strings.TrimRight(fmt.Sprintf(".%02d", rest), "0")
	}
	return text + "%"
}

// MarshalText returns String.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

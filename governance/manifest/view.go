package manifest

import (
	"math"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// The types below are what conditions in CEL see: the fields of a manifest by their names
// in files, with the defaults that the sidecar would apply. Conditions are compiled
// against these types, so that a misspelt field is an error of the guardrail.

type celPlugin struct {
	Name        string            `json:"name"`
	Version     string            `json:"version"`
	Vendor      string            `json:"vendor"`
	Purpose     string            `json:"purpose"`
	Artifact    celArtifact       `json:"artifact"`
	Support     celSupport        `json:"support"`
	Permissions []celPermission   `json:"permissions"`
	Credentials []celCredential   `json:"credentials"`
	Limits      celLimits         `json:"limits"`
	Sockets     []string          `json:"sockets"`
	Docs        celDocs           `json:"docs"`
	Supersedes  []string          `json:"supersedes"`
	Requires    map[string]string `json:"requires"`
}

type celArtifact struct {
	Kind   string `json:"kind"`
	Digest string `json:"digest"`
	PURL   string `json:"purl"`
	// Command is empty if any arguments are accepted.
	Command []string `json:"command"`
}

type celSupport struct {
	Contact         string    `json:"contact"`
	EndOfSupport    time.Time `json:"endOfSupport"`
	DeprecatedAfter time.Time `json:"deprecatedAfter"`
}

type celCredential struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Purpose string `json:"purpose"`
}

type celDocs struct {
	Runbook  string `json:"runbook"`
	DataFlow string `json:"dataFlow"`
	Privacy  string `json:"privacy"`
}

type celPermission struct {
	ID           string        `json:"id"`
	Optional     bool          `json:"optional"`
	Reason       string        `json:"reason"`
	To           celTo         `json:"to"`
	Methods      []string      `json:"methods"`
	Paths        []string      `json:"paths"`
	Upgrades     []string      `json:"upgrades"`
	EncodedSlash string        `json:"encodedSlash"`
	Databases    []string      `json:"databases"`
	Statements   celStatements `json:"statements"`
	Opaque       string        `json:"opaque"`
	Commands     []string      `json:"commands"`
	Keys         []string      `json:"keys"`
	Channels     []string      `json:"channels"`
	Credential   string        `json:"credential"`
	Data         celData       `json:"data"`
	Limits       celLimits     `json:"limits"`
	Timeout      time.Duration `json:"timeout"`
	Insecure     bool          `json:"insecure"`
}

type celTo struct {
	Scheme    string   `json:"scheme"`
	Hosts     []string `json:"hosts"`
	Ports     []int64  `json:"ports"`
	Addresses []string `json:"addresses"`
	TLS       celTLS   `json:"tls"`
}

type celTLS struct {
	Min       string `json:"min"`
	CAFile    string `json:"caFile"`
	Originate bool   `json:"originate"`
}

type celStatements struct {
	Verbs     []string `json:"verbs"`
	Tables    []string `json:"tables"`
	Functions []string `json:"functions"`
}

type celData struct {
	Classes   []string      `json:"classes"`
	Regions   []string      `json:"regions"`
	Retention time.Duration `json:"retention"` // 0 for none, the longest duration if it is not stated
}

type celLimits struct {
	Requests      celLimit `json:"requests"`
	Connections   celLimit `json:"connections"`
	SentBytes     celLimit `json:"sentBytes"`
	ReceivedBytes celLimit `json:"receivedBytes"`
	Syscalls      celLimit `json:"syscalls"`
	Processes     celLimit `json:"processes"`
}

// celLimit is a limit; count is 0 if none is stated, and period 0 for a total.
type celLimit struct {
	Count  int64         `json:"count"`
	Period time.Duration `json:"period"`
}

func viewPlugin(name string, m *configs.PluginManifest) *celPlugin {
	v := &celPlugin{
		Name: name, Version: m.Version, Vendor: m.Vendor, Purpose: m.Purpose,
		Artifact: celArtifact{string(m.Artifact.Kind), m.Artifact.Digest, m.Artifact.PURL, m.Artifact.Command},
		Support:  celSupport{m.Support.Contact, m.Support.EndOfSupport, m.Support.DeprecatedAfter},
		Limits:   viewLimits(m.Limits), Sockets: m.Sockets, Docs: celDocs(m.Docs),
		Supersedes: m.Supersedes, Requires: m.Requires,
	}
	for i := range m.Permissions {
		v.Permissions = append(v.Permissions, viewPermission(&m.Permissions[i]))
	}
	for _, c := range m.Credentials {
		v.Credentials = append(v.Credentials, celCredential{c.Name, string(c.Kind), c.Purpose})
	}
	return v
}

func viewPermission(p *configs.Permission) celPermission {
	v := celPermission{
		ID: p.ID, Optional: p.Optional, Reason: p.Reason, To: viewTo(p.To), Methods: p.Methods, Paths: p.Paths,
		Upgrades: p.Upgrades, EncodedSlash: p.EncodedSlash, Databases: texts(p.Databases), Opaque: string(p.Opaque),
		Commands: p.Commands, Keys: p.Keys, Channels: p.Channels, Credential: p.Credential,
		Data:   celData{texts(p.Data.Classes), p.Data.Regions, viewRetention(p.Data.Retention)},
		Limits: viewLimits(p.Limits), Timeout: time.Duration(p.Timeout), Insecure: p.Insecure,
	}
	if v.EncodedSlash == "" {
		v.EncodedSlash = "refuse"
	}
	if v.Opaque == "" {
		v.Opaque = string(authz.OpaqueDeny)
	}
	if s := p.Statements; s != nil {
		v.Statements = celStatements(*s)
	}
	return v
}

func viewTo(to authz.To) celTo {
	v := celTo{Scheme: string(to.Scheme), Hosts: to.Hosts, TLS: celTLS{to.TLS.Min, to.TLS.CAFile, to.TLS.Originate}}
	if v.Scheme == "" {
		v.Scheme = string(authz.SchemeHTTPS)
	}
	if s := authz.Scheme(v.Scheme); v.TLS.Min == "" && (s == authz.SchemeHTTPS || s.Database()) {
		v.TLS.Min = "1.2"
	}
	for _, p := range to.Ports {
		v.Ports = append(v.Ports, int64(p))
	}
	if p := authz.Scheme(v.Scheme).DefaultPort(); len(v.Ports) == 0 && p != 0 {
		v.Ports = []int64{int64(p)}
	}
	for _, a := range to.Addresses {
		v.Addresses = append(v.Addresses, a.String())
	}
	return v
}

func viewLimits(l authz.Limits) celLimits {
	one := func(l authz.Limit) celLimit {
		return celLimit{int64(min(l.Count, 1<<62)), l.Period} // #nosec G115 -- bounded
	}
	return celLimits{
		one(l.Requests), one(l.Connections), one(authz.Limit(l.SentBytes)), one(authz.Limit(l.ReceivedBytes)), one(l.Syscalls), one(l.Processes),
	}
}

func texts[T ~string](in []T) (out []string) {
	for _, t := range in {
		out = append(out, string(t))
	}
	return out
}

// viewRetention returns how long data are kept. If nothing is stated, they may be kept for ever.
func viewRetention(r authz.Retention) time.Duration {
	if d, ok := r.Duration(); ok {
		return d
	}
	return math.MaxInt64
}

package authz

import "net/netip"

// Guardrail is what no grant may exceed: the spec of a PluginGuardrail as it
// is written.
type Guardrail struct {
	Name   string `json:"-"` // metadata.name
	Origin Origin `json:"-"`

	// Plugins are the names the guardrail holds for; * and ** as in paths.
	Plugins []string `json:"plugins"`
	// Never lists what no grant, mode or exemption passes.
	Never []Never `json:"never,omitempty"`
	// Ceilings are what a grant is refused for going beyond.
	Ceilings Ceilings `json:"ceilings,omitzero"`
}

// Never is one entry of a never-list. A destination that matches any of its
// hosts, or resolves into any of its addresses, is refused, and so is a Unix
// socket among its sockets.
type Never struct {
	ID        string         `json:"id"`
	Hosts     []string       `json:"hosts,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Sockets are Unix sockets as grants name them; ** at the end is the rest, as in /run/docker/** or @**.
	Sockets []string `json:"sockets,omitempty"`
}

// WildcardHosts says which wildcard hosts grants may hold.
type WildcardHosts string

// The kinds of wildcard hosts. The zero value sets no ceiling.
const (
	WildcardNone   WildcardHosts = "none"
	WildcardSingle WildcardHosts = "single" // *.NAME
	WildcardAny    WildcardHosts = "any"    // **.NAME too
)

// Ceilings bound what grants may ask for. A zero field sets no ceiling.
type Ceilings struct {
	// GrantLifetime is the longest time from now to a grant's notAfter.
	GrantLifetime Duration `json:"grantLifetime,omitempty"`
	// CredentialLifetime is the longest a lease is kept in use.
	CredentialLifetime Duration `json:"credentialLifetime,omitempty"`
	Schemes            []Scheme `json:"schemes,omitempty"`
	Methods            []string `json:"methods,omitempty"`
	// TLSMin is the lowest version a rule may accept.
	TLSMin        string        `json:"tlsMin,omitempty"`
	WildcardHosts WildcardHosts `json:"wildcardHosts,omitempty"`
	HostsPerGrant int           `json:"hostsPerGrant,omitempty"`
	// Limits must be stated by a grant, and not higher.
	Limits Limits `json:"limits,omitzero"`
}

package authz

import "net/netip"

// Guardrail bounds what grants may allow: the spec of a PluginGuardrail as
// written.
type Guardrail struct {
	Name   string `json:"-"` // metadata.name
	Origin Origin `json:"-"`

	// Plugins are the plugins that the guardrail applies to; * and ** as in paths.
	Plugins []string `json:"plugins"`
	// Never lists destinations and sockets that no grant, mode or exemption allows.
	Never []Never `json:"never,omitempty"`
	// Ceilings bound the grants; a grant that exceeds one is refused.
	Ceilings Ceilings `json:"ceilings,omitzero"`
	// Regions are the destinations of each region that rules may name in data.regions. Guardrails that define the same region must all include a destination.
	Regions map[string][]Place `json:"regions,omitempty"`
}

// Place is a destination of a region, as written: an address, a range of addresses, or an
// exact host.
type Place string

// AppliesTo reports whether the guardrail bounds the plugin's grants.
func (g *Guardrail) AppliesTo(plugin string) bool { return matchesPlugin(g.Plugins, plugin) }

// Never is one entry of a never-list. A destination that matches any of its
// hosts or resolves to any of its addresses is denied, and so is a Unix socket
// among its sockets.
type Never struct {
	ID        string         `json:"id"`
	Hosts     []string       `json:"hosts,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Sockets are Unix sockets as grants name them; ** at the end matches any rest, as in /run/docker/** or @**.
	Sockets []string `json:"sockets,omitempty"`
}

// WildcardHosts bounds the wildcard hosts of grants.
type WildcardHosts string

// The kinds of wildcard hosts. The zero value sets no ceiling.
const (
	WildcardNone   WildcardHosts = "none"
	WildcardSingle WildcardHosts = "single" // *.NAME
	WildcardAny    WildcardHosts = "any"    // **.NAME too
)

// Ceilings bound the requests of grants. A zero field sets no ceiling.
type Ceilings struct {
	// GrantLifetime is the longest time from now to a grant's notAfter.
	GrantLifetime Duration `json:"grantLifetime,omitempty"`
	// CredentialLifetime is the longest a lease is kept in use.
	CredentialLifetime Duration `json:"credentialLifetime,omitempty"`
	Schemes            []Scheme `json:"schemes,omitempty"`
	Methods            []string `json:"methods,omitempty"`
	// TLSMin is the lowest TLS version that a rule may accept.
	TLSMin        string        `json:"tlsMin,omitempty"`
	WildcardHosts WildcardHosts `json:"wildcardHosts,omitempty"`
	HostsPerGrant int           `json:"hostsPerGrant,omitempty"`
	// Limits are the limits that every grant must state, and their highest values.
	Limits Limits `json:"limits,omitzero"`
}

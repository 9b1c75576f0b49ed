package authz

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestProblems takes a policy without a problem, breaks it in one way, and
// expects exactly the problems that this makes.
func TestProblems(t *testing.T) {
	prefix := netip.MustParsePrefix
	rule := func(change func(r *Rule)) func(*Input) {
		return func(in *Input) { change(&in.Grants[0].Rules[0]) }
	}
	grant := func(change func(g *Grant)) func(*Input) {
		return func(in *Input) { change(&in.Grants[0]) }
	}
	credential := func(change func(c *CredentialSpec)) func(*Input) {
		return func(in *Input) {
			in.Grants[0] = withKey(in.Grants[0])
			change(&in.Grants[0].Credentials[0])
		}
	}
	guardrail := func(g Guardrail) func(*Input) {
		return func(in *Input) {
			g.Name, g.Origin = cmpOr(g.Name, "company"), "company.yaml"
			if g.Plugins == nil {
				g.Plugins = []string{"**"}
			}
			in.Guardrails = append(in.Guardrails, g)
		}
	}
	ceiling := func(c Ceilings) func(*Input) { return guardrail(Guardrail{Ceilings: c}) }
	both := func(changes ...func(*Input)) func(*Input) {
		return func(in *Input) {
			for _, change := range changes {
				change(in)
			}
		}
	}
	const by = " of guardrail company (company.yaml: spec.ceilings."
	for _, test := range []struct {
		name   string
		change func(*Input)
		want   []string
	}{
		{"nothing", func(*Input) {}, nil},

		// The grant as a whole.
		{"no name", grant(func(g *Grant) { g.Name = "" }), []string{`metadata.name: "" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"a name with a slash", grant(func(g *Grant) { g.Name = "a/b" }), []string{`metadata.name: "a/b" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"a name that ends in a dash", grant(func(g *Grant) { g.Name = "a-" }), []string{`metadata.name: "a-" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"a name that is too long", grant(func(g *Grant) { g.Name = strings.Repeat("a", 254) }), []string{`metadata.name: "` + strings.Repeat("a", 200) + `..." is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"two grants of one name", func(in *Input) { in.Grants = append(in.Grants, forecast()) }, []string{`metadata.name: "weather" is the name of an earlier grant`}},
		{"no plugin", grant(func(g *Grant) { g.Plugin = "" }), []string{`spec.plugin: "" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"a plugin in upper case", grant(func(g *Grant) { g.Plugin = "Weather" }), []string{`spec.plugin: "Weather" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"no end", grant(func(g *Grant) { g.NotAfter = time.Time{} }), []string{`spec.notAfter: is missing; nothing is granted for ever, write a time as in 2027-01-31T00:00:00Z`}},
		{"no rules", grant(func(g *Grant) { g.Rules = nil }), []string{`spec.rules: is empty; a grant holds at least one rule`}},
		{"throttle", grant(func(g *Grant) { g.Limits = Limits{Requests: Limit{1, 0}, OnExceeded: "throttle"} }), []string{`spec.limits.onExceeded: throttle is not supported yet; use deny or kill`}},
		{"an unknown consequence", grant(func(g *Grant) { g.Limits = Limits{Requests: Limit{1, 0}, OnExceeded: "warn"} }), []string{`spec.limits.onExceeded: "warn" is not deny or kill`}},
		{"a consequence of nothing", grant(func(g *Grant) { g.Limits = Limits{OnExceeded: OnExceededKill} }), []string{`spec.limits.onExceeded: is without a limit`}},
		{"a limit of nothing", grant(func(g *Grant) { g.Limits.Requests.Period = time.Minute }), []string{`spec.limits.requests: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`}},
		{"a limit for a century", grant(func(g *Grant) { g.Limits.Requests = Limit{1, maxPeriod + 1} }), []string{`spec.limits.requests: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`}},
		{"a limit in the past", grant(func(g *Grant) { g.Limits.Syscalls = Limit{1, -1} }), []string{`spec.limits.syscalls: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`}},

		// Rules.
		{"no id", rule(func(r *Rule) { r.ID = "" }), []string{`spec.rules[0].id: "" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"two rules of one id", grant(func(g *Grant) { g.Rules = append(g.Rules, g.Rules[0]) }), []string{`spec.rules[1].id: "read-forecast" is the name of an earlier rule`}},
		{"no reason", rule(func(r *Rule) { r.Reason = " \n" }), []string{`spec.rules[0].reason: is missing; say to the reviewer why the plugin needs it`}},
		{"a later end than the grant's", rule(func(r *Rule) { r.NotAfter = noon.AddDate(1, 0, 0) }), []string{`spec.rules[0].notAfter: is later than the grant's, 2026-12-21T12:00:00Z`}},
		{"an unknown mode", rule(func(r *Rule) { r.Mode = "audit" }), []string{`spec.rules[0].mode: "audit" is not enforce or observe`}},
		{"observing for ever", rule(func(r *Rule) { r.Mode = ModeObserve }), []string{`spec.rules[0].observeUntil: is missing; observing ends, write when`}},
		{"an end of observing without it", rule(func(r *Rule) { r.ObserveUntil = noon }), []string{`spec.rules[0].observeUntil: goes with mode: observe`}},
		{"a metered limit on a rule", rule(func(r *Rule) { r.Limits.SentBytes = ByteLimit{1, 0} }), []string{`spec.rules[0].limits.sentBytes: is not supported yet on a rule; state it in the grant's limits`}},
		{"stop on a rule", rule(func(r *Rule) { r.Limits = Limits{Requests: Limit{1, 0}, OnExceeded: "stop"} }), []string{`spec.rules[0].limits.onExceeded: stop is not supported yet; use deny or kill`}},

		// Destinations.
		{"a later scheme", rule(func(r *Rule) { r.To.Scheme, r.To.Ports = "postgres", []uint16{5432} }), []string{
			`spec.rules[0].to.scheme: postgres is not supported yet; use https, http, tls or tcp`,
			`spec.rules[0].methods: does not go with scheme postgres, whose content Chaperone does not see`,
			`spec.rules[0].paths: does not go with scheme postgres, whose content Chaperone does not see`,
		}},
		{"an unknown scheme", rule(func(r *Rule) { r.To.Scheme, r.Methods, r.Paths = "gopher", nil, nil }), []string{`spec.rules[0].to.scheme: "gopher" is not a scheme; use https, http, tls or tcp`}},
		{"no hosts", rule(func(r *Rule) { r.To.Hosts = nil }), []string{`spec.rules[0].to.hosts: is empty; name the hosts`}},
		{"every host", rule(func(r *Rule) { r.To.Hosts = []string{"*", "**"} }), []string{
			`spec.rules[0].to.hosts[0]: "*" is every host; name them, or *.NAME for the hosts under one name`,
			`spec.rules[0].to.hosts[1]: "**" is every host; name them, or *.NAME for the hosts under one name`,
		}},
		{"hosts that are none", rule(func(r *Rule) {
			r.To.Hosts = []string{"", "a*.example", "*.*.example", "*.", "**.**.example", "a b", "café.example", "a..b", strings.Repeat("a", 64) + ".example", "fe80::1%eth0", "*.[::1]", "1.2.3"}
		}), []string{
			`spec.rules[0].to.hosts[0]: host "" is not 1 to 253 bytes long`,
			`spec.rules[0].to.hosts[1]: "a*.example" is not a host; a wildcard is *. (one label) or **. (one or more) before a name`,
			`spec.rules[0].to.hosts[2]: "*.*.example" is not a host; a wildcard is *. (one label) or **. (one or more) before a name`,
			`spec.rules[0].to.hosts[3]: host "" is not 1 to 253 bytes long`,
			`spec.rules[0].to.hosts[4]: "**.**.example" is not a host; a wildcard is *. (one label) or **. (one or more) before a name`,
			`spec.rules[0].to.hosts[5]: host "a b" holds ' ', which is not in a host name`,
			`spec.rules[0].to.hosts[6]: host "café.example" is not ASCII`,
			`spec.rules[0].to.hosts[7]: host "a..b" has an empty label`,
			`spec.rules[0].to.hosts[8]: host "` + strings.Repeat("a", 64) + `.example" has a label over 63 bytes`,
			`spec.rules[0].to.hosts[9]: host "[fe80::1%eth0]" is not an IPv6 address without a zone`,
			`spec.rules[0].to.hosts[10]: "*.[::1]" is a wildcard over an address`,
			`spec.rules[0].to.hosts[11]: "1.2.3" is not canonical; write "1.2.0.3"`,
		}},
		{"hosts that are not canonical", rule(func(r *Rule) {
			r.To.Hosts = []string{"API.example", "api.example.", "*.API.example", "127.1", "0x7f.0.0.1", "[2001:db8::1]", "2001:DB8::1", "::ffff:192.0.2.1", "**.192.0.2.1"}
		}), []string{
			`spec.rules[0].to.hosts[0]: "API.example" is not canonical; write "api.example"`,
			`spec.rules[0].to.hosts[1]: "api.example." is not canonical; write "api.example"`,
			`spec.rules[0].to.hosts[2]: "*.API.example" is not canonical; write "*.api.example"`,
			`spec.rules[0].to.hosts[3]: "127.1" is not canonical; write "127.0.0.1"`,
			`spec.rules[0].to.hosts[4]: "0x7f.0.0.1" is not canonical; write "127.0.0.1"`,
			`spec.rules[0].to.hosts[5]: "[2001:db8::1]" is not canonical; write "2001:db8::1"`,
			`spec.rules[0].to.hosts[6]: "2001:DB8::1" is not canonical; write "2001:db8::1"`,
			`spec.rules[0].to.hosts[7]: "::ffff:192.0.2.1" is not canonical; write "192.0.2.1"`,
			`spec.rules[0].to.hosts[8]: "**.192.0.2.1" is a wildcard over an address`,
		}},
		{"an address by its name in TLS", rule(func(r *Rule) {
			r.To = To{Scheme: SchemeTLS, Hosts: []string{"192.0.2.1"}}
			r.Methods, r.Paths = nil, nil
		}), []string{`spec.rules[0].to.hosts[0]: 192.0.2.1 is an address, and tls is told apart by name; use tcp`}},
		{"tcp without a port", rule(func(r *Rule) { r.To.Scheme, r.Methods, r.Paths = SchemeTCP, nil, nil }), []string{`spec.rules[0].to.ports: is missing; tcp has no default port`}},
		{"ports that are none", rule(func(r *Rule) { r.To.Ports = []uint16{0, 443, 443} }), []string{
			`spec.rules[0].to.ports[0]: 0 is not a port from 1 to 65535, once`,
			`spec.rules[0].to.ports[2]: 443 is not a port from 1 to 65535, once`,
		}},
		{"addresses that match nothing", rule(func(r *Rule) {
			r.To.Addresses = []netip.Prefix{{}, prefix("10.0.0.1/8"), prefix("::ffff:10.0.0.0/104"), prefix("::ffff:0:0/90"), prefix("2001:db8::1/32")}
		}), []string{
			`spec.rules[0].to.addresses[0]: is not an address and a length, as in 203.0.113.0/24`,
			`spec.rules[0].to.addresses[1]: 10.0.0.1/8 is not canonical; write 10.0.0.0/8`,
			`spec.rules[0].to.addresses[2]: ::ffff:10.0.0.0/104 is not canonical; write 10.0.0.0/8`,
			`spec.rules[0].to.addresses[3]: is not an address and a length, as in 203.0.113.0/24`,
			`spec.rules[0].to.addresses[4]: 2001:db8::1/32 is not canonical; write 2001:db8::/32`,
		}},
		{"an old TLS", rule(func(r *Rule) { r.To.TLS.Min = "1.1" }), []string{`spec.rules[0].to.tls.min: "1.1" is not a version; use "1.2" or "1.3"`}},
		{"an authority that was not read", rule(func(r *Rule) { r.To.TLS.CAFile = "ca.pem" }), []string{`spec.rules[0].to.tls.caFile: "ca.pem" holds no certificate; without one every authority of the system would be trusted`}},
		{"TLS without TLS", rule(func(r *Rule) { r.To.Scheme, r.To.TLS.Originate = SchemeHTTP, true }), []string{`spec.rules[0].to.tls: does not go with scheme http, where Chaperone does not speak TLS`}},

		// Methods, paths, upgrades.
		{"no methods", rule(func(r *Rule) { r.Methods = nil }), []string{`spec.rules[0].methods: is missing; name the methods, or "*" for every one`}},
		{"methods that are none", rule(func(r *Rule) {
			r.Methods = []string{"GET", "*", "get", "TRACE", "G T", "CONNECT", strings.Repeat("X", 65)}
		}), []string{
			`spec.rules[0].methods[1]: "*" stands alone`,
			`spec.rules[0].methods[2]: "get" would never match, methods are case-sensitive; write GET`,
			`spec.rules[0].methods[3]: TRACE sends the request back, credential and all`,
			`spec.rules[0].methods[4]: method "G T" is not a token of at most 64 bytes`,
			`spec.rules[0].methods[5]: method CONNECT does not name an access`,
			`spec.rules[0].methods[6]: method "` + strings.Repeat("X", 65) + `" is not a token of at most 64 bytes`,
		}},
		{"no paths", rule(func(r *Rule) { r.Paths = nil }), []string{`spec.rules[0].paths: is missing; name the paths, or "/**" for every one`}},
		{"paths that are none", rule(func(r *Rule) {
			r.Paths = []string{"", "a", "*", "/a*", "/**/a", "/a//b", "/../a", "/a/%7e/*", "/%2f", "/a;b", "/a%", "/a/%2525", "/é"}
		}), []string{
			`spec.rules[0].paths[0]: "" does not start with /`,
			`spec.rules[0].paths[1]: "a" does not start with /`,
			`spec.rules[0].paths[2]: "*" does not start with /`,
			`spec.rules[0].paths[3]: "/a*" has a wildcard in a segment; * is a whole segment, and ** stands last`,
			`spec.rules[0].paths[4]: "/**/a" has a wildcard in a segment; * is a whole segment, and ** stands last`,
			`spec.rules[0].paths[5]: path has an empty segment`,
			`spec.rules[0].paths[6]: path has a dot segment`,
			`spec.rules[0].paths[7]: "/a/%7e/*" is not canonical; write "/a/~/*"`,
			`spec.rules[0].paths[8]: "/%2f" is not canonical; write "/%2F"`,
			`spec.rules[0].paths[9]: path holds ';'`,
			`spec.rules[0].paths[10]: path "/a%" holds a broken escape`,
			`spec.rules[0].paths[11]: path is encoded twice`,
			`spec.rules[0].paths[12]: "/é" is not canonical; write "/%C3%A9"`,
		}},
		{"an encoded slash by surprise", rule(func(r *Rule) { r.Paths = []string{"/a%2Fb"} }), []string{`spec.rules[0].paths[0]: an encoded slash needs encodedSlash: allow on the rule`}},
		{"an unknown encodedSlash", rule(func(r *Rule) { r.EncodedSlash = "yes" }), []string{`spec.rules[0].encodedSlash: "yes" is not refuse or allow`}},
		{"upgrades that are none", rule(func(r *Rule) { r.Upgrades = []string{"websocket", "WebSocket", "h2c", "a,b"} }), []string{
			`spec.rules[0].upgrades[1]: "WebSocket" is not a protocol that may be upgraded to; write it in lower case, as in websocket`,
			`spec.rules[0].upgrades[2]: "h2c" is not a protocol that may be upgraded to; write it in lower case, as in websocket`,
			`spec.rules[0].upgrades[3]: "a,b" is not a protocol that may be upgraded to; write it in lower case, as in websocket`,
		}},
		{"what a tunnel does not have", both(credential(func(*CredentialSpec) {}), rule(func(r *Rule) {
			r.To.Scheme, r.Upgrades, r.EncodedSlash = SchemeTLS, []string{"websocket"}, "allow"
		})), []string{
			`spec.rules[0].methods: does not go with scheme tls, whose content Chaperone does not see`,
			`spec.rules[0].paths: does not go with scheme tls, whose content Chaperone does not see`,
			`spec.rules[0].upgrades: does not go with scheme tls, whose content Chaperone does not see`,
			`spec.rules[0].encodedSlash: does not go with scheme tls, whose content Chaperone does not see`,
			`spec.rules[0].credential: does not go with scheme tls, whose content Chaperone does not see`,
		}},

		// Credentials.
		{"a credential that is not there", rule(func(r *Rule) { r.Credential = "key" }), []string{`spec.rules[0].credential: "key" is not one of the grant's credentials`}},
		{"a wildcard's credential by surprise", both(credential(func(*CredentialSpec) {}), rule(func(r *Rule) { r.To.Hosts = []string{"*.weather.example"} })), []string{
			`spec.rules[0].credential: would go to every host of a wildcard; name the hosts, or say wildcardCredential: true`,
		}},
		{"a wildcard's credential without one", both(credential(func(*CredentialSpec) {}), rule(func(r *Rule) { r.WildcardCredential = true })), []string{`spec.rules[0].wildcardCredential: is without a wildcard host`}},
		{"a credential in the clear", both(credential(func(*CredentialSpec) {}), rule(func(r *Rule) { r.To.Scheme = SchemeHTTP })), []string{
			`spec.rules[0].credential: would cross the network in the clear; use scheme https, or say insecure: true`,
		}},
		{"insecure https", both(credential(func(*CredentialSpec) {}), rule(func(r *Rule) { r.Insecure = true })), []string{`spec.rules[0].insecure: is only for scheme http`}},
		{"words about no credential", rule(func(r *Rule) { r.Insecure, r.WildcardCredential = true, true }), []string{
			`spec.rules[0].wildcardCredential: is without a credential`,
			`spec.rules[0].insecure: is without a credential`,
		}},
		{"two credentials of one name", both(credential(func(*CredentialSpec) {}), grant(func(g *Grant) { g.Credentials = append(g.Credentials, g.Credentials[0]) })), []string{
			`spec.credentials[1].name: "key" is the name of an earlier credential`,
		}},
		{"a credential without a name", both(credential(func(c *CredentialSpec) { c.Name = "K" }), rule(func(r *Rule) { r.Credential = "K" })), []string{
			`spec.credentials[0].name: "K" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`,
		}},
		{"a path of Vault's that is none", credential(func(c *CredentialSpec) { c.Vault.Path = "/secret/x" }), []string{`spec.credentials[0].vault.path: "/secret/x" is not a path as vault read takes it, as in secret/data/weather`}},
		{"a path up", credential(func(c *CredentialSpec) { c.Vault.Path = "secret/../sys/x" }), []string{`spec.credentials[0].vault.path: "secret/../sys/x" is not a path as vault read takes it, as in secret/data/weather`}},
		{"a path with a query", credential(func(c *CredentialSpec) { c.Vault.Path = "secret/x?list=1" }), []string{`spec.credentials[0].vault.path: "secret/x?list=1" is not a path as vault read takes it, as in secret/data/weather`}},
		{"Vault's own system", credential(func(c *CredentialSpec) { c.Vault.Path = "sys/raw/x" }), []string{`spec.credentials[0].vault.path: "sys/raw/x" is not a path as vault read takes it, as in secret/data/weather`}},
		{"no place", credential(func(c *CredentialSpec) { c.Inject = Inject{Value: "{k}"} }), []string{`spec.credentials[0].inject: names 0 places; write exactly one of header, query, cookie or basic`}},
		{"two places", credential(func(c *CredentialSpec) { c.Inject = Inject{Header: "x", Query: "x", Value: "{k}"} }), []string{`spec.credentials[0].inject: names 2 places; write exactly one of header, query, cookie or basic`}},
		{"no value", credential(func(c *CredentialSpec) { c.Inject = Inject{Cookie: "sid"} }), []string{`spec.credentials[0].inject.value: is missing; write what goes into the cookie, as in "Bearer {api_key}"`}},
		{"a name that no request carries", credential(func(c *CredentialSpec) { c.Inject.Header = "X Key" }), []string{`spec.credentials[0].inject.header: "X Key" is not a name that a request can carry`}},
		{"a header of the connection", credential(func(c *CredentialSpec) { c.Inject.Header = "Transfer-Encoding" }), []string{`spec.credentials[0].inject.header: Transfer-Encoding belongs to the connection or to Chaperone and carries no credential`}},
		{"a header of ours", credential(func(c *CredentialSpec) { c.Inject.Header = "X-Chaperone-Key" }), []string{`spec.credentials[0].inject.header: X-Chaperone-Key belongs to the connection or to Chaperone and carries no credential`}},
		{"a value of nothing", credential(func(c *CredentialSpec) { c.Inject.Value = "Bearer x" }), []string{`spec.credentials[0].inject.value: "Bearer x" takes nothing from Vault; name a field of its answer as in {api_key}`}},
		{"an open brace", credential(func(c *CredentialSpec) { c.Inject.Value = "Bearer {key" }), []string{`spec.credentials[0].inject.value: "{key" does not name a field of Vault's answer as {name}`}},
		{"a closing brace", credential(func(c *CredentialSpec) { c.Inject.Value = "Bearer key}" }), []string{`spec.credentials[0].inject.value: "Bearer key}" has a } without a {`}},
		{"an empty field", credential(func(c *CredentialSpec) { c.Inject.Value = "{}" }), []string{`spec.credentials[0].inject.value: "{}" does not name a field of Vault's answer as {name}`}},
		{"a field with a space", credential(func(c *CredentialSpec) { c.Inject.Value = "{api key}" }), []string{`spec.credentials[0].inject.value: "{api key}" does not name a field of Vault's answer as {name}`}},
		{"a line break", credential(func(c *CredentialSpec) { c.Inject.Value = "Bearer\r\nX: {key}" }), []string{`spec.credentials[0].inject.value: "Bearer??X: " holds a control byte`}},
		{"basic and a value", credential(func(c *CredentialSpec) { c.Inject = Inject{Basic: &Basic{"u", "{p}"}, Value: "{p}"} }), []string{`spec.credentials[0].inject.value: does not go with basic`}},
		{"basic of nothing", credential(func(c *CredentialSpec) { c.Inject = Inject{Basic: &Basic{"u", "p"}} }), []string{`spec.credentials[0].inject.basic: "u:p" takes nothing from Vault; name a field of its answer as in {api_key}`}},
		{"basic with broken templates", credential(func(c *CredentialSpec) { c.Inject = Inject{Basic: &Basic{"{u", "p}"}} }), []string{
			`spec.credentials[0].inject.basic.username: "{u" does not name a field of Vault's answer as {name}`,
			`spec.credentials[0].inject.basic.password: "p}" has a } without a {`,
		}},

		// Guardrails.
		{"a guardrail without a name", func(in *Input) { in.Guardrails = []Guardrail{{Plugins: []string{"*"}}} }, []string{`metadata.name: "" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`}},
		{"two guardrails of one name", both(guardrail(Guardrail{}), guardrail(Guardrail{})), []string{`metadata.name: "company" is the name of an earlier guardrail`}},
		{"a guardrail for nobody", guardrail(Guardrail{Plugins: []string{}}), []string{`spec.plugins: is empty; name plugins, or "**" for every one`}},
		{"plugins that are none", guardrail(Guardrail{Plugins: []string{"weather", "we*", "", "Weather", "a/**"}}), []string{
			`spec.plugins[1]: "we*" is not a plugin's name, * or **`,
			`spec.plugins[2]: "" is not a plugin's name, * or **`,
			`spec.plugins[3]: "Weather" is not a plugin's name, * or **`,
			`spec.plugins[4]: "a/**" is not a plugin's name, * or **`,
		}},
		{"never what", guardrail(Guardrail{Never: []Never{
			{ID: "a"}, {ID: "a", Hosts: []string{"x.example"}}, {ID: "", Hosts: []string{"x..example"}},
			{ID: "b", Addresses: []netip.Prefix{prefix("169.254.1.1/16"), prefix("::ffff:169.254.0.0/112"), {}}},
		}}), []string{
			`spec.never[0]: names no hosts and no addresses`,
			`spec.never[1].id: "a" is the name of an earlier entry`,
			`spec.never[2].id: "" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`,
			`spec.never[2].hosts[0]: host "x..example" has an empty label`,
			`spec.never[3].addresses[0]: 169.254.1.1/16 is not canonical; write 169.254.0.0/16`,
			`spec.never[3].addresses[1]: ::ffff:169.254.0.0/112 is not canonical; write 169.254.0.0/16`,
			`spec.never[3].addresses[2]: is not an address and a length, as in 203.0.113.0/24`,
		}},
		{"a host of a never-list is no problem", guardrail(Guardrail{Never: []Never{{ID: "a", Hosts: []string{"api.weather.example"}}}}), nil},
		{"ceilings that are none", guardrail(Guardrail{Plugins: []string{"other"}, Ceilings: Ceilings{
			Schemes: []Scheme{"https", "postgres", "gopher"}, TLSMin: "1.0", WildcardHosts: "all", HostsPerGrant: -1,
			Limits: Limits{Requests: Limit{0, 1}, OnExceeded: OnExceededDeny},
		}}), []string{
			`spec.ceilings.schemes[2]: "gopher" is not a scheme; use https, http, tls or tcp`,
			`spec.ceilings.tlsMin: "1.0" is not a version; use "1.2" or "1.3"`,
			`spec.ceilings.wildcardHosts: "all" is not none, single or any`,
			`spec.ceilings.hostsPerGrant: is below 0`,
			`spec.ceilings.limits.onExceeded: is not a ceiling; leave it out`,
			`spec.ceilings.limits.requests: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`,
		}},

		// Beyond a ceiling: both documents are named.
		{"too long", ceiling(Ceilings{GrantLifetime: Duration(24 * time.Hour)}), []string{
			`spec.notAfter: is over 1d away, the longest guardrail company (company.yaml: spec.ceilings.grantLifetime) allows; write 2026-11-22T12:00:00Z or earlier`,
		}},
		{"too many hosts", both(ceiling(Ceilings{HostsPerGrant: 1}), rule(func(r *Rule) { r.To.Hosts = []string{"a.example", "b.example"} })), []string{
			`spec.rules: name 2 hosts, more than the 1 that guardrail company (company.yaml: spec.ceilings.hostsPerGrant) allows`,
		}},
		{"a scheme too many", ceiling(Ceilings{Schemes: []Scheme{"tls", "postgres"}}), []string{`spec.rules[0].to.scheme: https is not among [tls postgres]` + by + `schemes)`}},
		{"a method too many", both(ceiling(Ceilings{Methods: []string{"GET", "HEAD"}}), rule(func(r *Rule) { r.Methods = []string{"GET", "POST"} })), []string{
			`spec.rules[0].methods[1]: POST is not among [GET HEAD]` + by + `methods)`,
		}},
		{"every method", both(ceiling(Ceilings{Methods: []string{"GET"}}), rule(func(r *Rule) { r.Methods = []string{"*"} })), []string{
			`spec.rules[0].methods[0]: * is not among [GET]` + by + `methods)`,
		}},
		{"TLS too old", ceiling(Ceilings{TLSMin: "1.3"}), []string{`spec.rules[0].to.tls: accepts TLS 1.2, below 1.3` + by + `tlsMin); write tls: {min: "1.3"}`}},
		{"TLS new enough", both(ceiling(Ceilings{TLSMin: "1.2"}), rule(func(r *Rule) { r.To.TLS.Min = "1.3" })), nil},
		{"no wildcards", both(ceiling(Ceilings{WildcardHosts: WildcardNone}), rule(func(r *Rule) { r.To.Hosts = []string{"a.example", "*.b.example"} })), []string{
			`spec.rules[0].to.hosts[1]: "*.b.example" is a wildcard, which guardrail company (company.yaml: spec.ceilings.wildcardHosts) does not allow`,
		}},
		{"single wildcards", both(ceiling(Ceilings{WildcardHosts: WildcardSingle}), rule(func(r *Rule) { r.To.Hosts = []string{"**.a.example", "*.b.example"} })), []string{
			`spec.rules[0].to.hosts[0]: "**.a.example" is a wildcard over more than one label, which guardrail company (company.yaml: spec.ceilings.wildcardHosts) does not allow`,
		}},
		{"any wildcards", both(ceiling(Ceilings{WildcardHosts: WildcardAny}), rule(func(r *Rule) { r.To.Hosts = []string{"**.a.example"} })), nil},
		{"a limit that is not stated", ceiling(Ceilings{Limits: Limits{Requests: Limit{10, time.Minute}, SentBytes: ByteLimit{1 << 20, time.Minute}}}), []string{
			`spec.limits: does not state requests, which guardrail company (company.yaml: spec.ceilings.limits.requests) requires; write 10/1m or less`,
			`spec.limits: does not state sentBytes, which guardrail company (company.yaml: spec.ceilings.limits.sentBytes) requires; write 1MiB/1m or less`,
		}},
		{"a limit too high", both(ceiling(Ceilings{Limits: Limits{Requests: Limit{10, time.Minute}}}), grant(func(g *Grant) { g.Limits.Requests = Limit{11, time.Minute} })), []string{
			`spec.limits.requests: 11/1m is more than the 10/1m that guardrail company (company.yaml: spec.ceilings.limits.requests) allows`,
		}},
		{"two guardrails, both gone beyond", both(ceiling(Ceilings{Methods: []string{"POST"}}), guardrail(Guardrail{Name: "team", Ceilings: Ceilings{Methods: []string{"PUT"}}})), []string{
			`spec.rules[0].methods[0]: GET is not among [POST]` + by + `methods)`,
			`spec.rules[0].methods[0]: GET is not among [PUT] of guardrail team (company.yaml: spec.ceilings.methods)`,
		}},
		{"another plugin's guardrail", guardrail(Guardrail{Plugins: []string{"other"}, Ceilings: Ceilings{Methods: []string{"POST"}}}), nil},
		{"a guardrail of unknown origin", func(in *Input) {
			in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"*"}, Ceilings: Ceilings{Schemes: []Scheme{"tls"}}}}
		}, []string{`spec.rules[0].to.scheme: https is not among [tls] of guardrail company (spec.ceilings.schemes)`}},

		{"everything at once", both(grant(func(g *Grant) { g.Plugin = "W" }), rule(func(r *Rule) { r.Reason, r.Methods = "", nil }), guardrail(Guardrail{Plugins: []string{}})), []string{
			`spec.plugins: is empty; name plugins, or "**" for every one`,
			`spec.plugin: "W" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`,
			`spec.rules[0].reason: is missing; say to the reviewer why the plugin needs it`,
			`spec.rules[0].methods: is missing; name the methods, or "*" for every one`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := input(forecast())
			in.Grants[0].Origin = "weather.yaml"
			test.change(&in)
			policy, problems := Compile(in, noon)
			var got []string
			for _, p := range problems {
				got = append(got, p.Path+": "+p.Message)
				if p.Kind == "" || p.Kind == kindGrant && p.Origin != "weather.yaml" && test.name != "two grants of one name" {
					t.Errorf("%+v does not say what it is about", p)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if (policy == nil) != (len(test.want) > 0) {
				t.Errorf("with %d problems, the policy is %v", len(test.want), policy)
			}
		})
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// TestCredentialLifetime: the shortest ceiling on a lease wins.
func TestCredentialLifetime(t *testing.T) {
	in := input(withKey(forecast()))
	for i, life := range []time.Duration{0, time.Hour, 15 * time.Minute, 30 * time.Minute} {
		in.Guardrails = append(in.Guardrails, Guardrail{
			Name: fmt.Sprintf("g%d", i), Plugins: []string{"*"}, Ceilings: Ceilings{CredentialLifetime: Duration(life)},
		})
	}
	got := snapshot(t, in).CredentialRefs("weather", noon)
	want := []CredentialRef{{Plugin: "weather", Grant: "weather", Name: "key", Path: "secret/data/weather", Lifetime: 15 * time.Minute}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestWithin compares limits with ceilings.
func TestWithin(t *testing.T) {
	for _, test := range []struct {
		limit, ceiling string
		want           bool
	}{
		{"10/1m", "10/1m", true},
		{"11/1m", "10/1m", false},
		{"10/1s", "1000/1m", true},
		{"10/100ms", "1000/1m", false},
		{"1000/1h", "100/1m", false}, // less on average, but all at once
		{"100/1h", "100/1m", true},
		{"5", "5", true},
		{"6", "5", false},
		{"5/1h", "5", false}, // a rate has no end
		{"5", "10/1m", true},
		{"11", "10/1m", false},
		{"9223372036854775807/250ms", "9223372036854775807/30d", false},
		{"9223372036854775807/30d", "9223372036854775807/250ms", true},
	} {
		var limit, ceiling Limit
		for text, into := range map[string]*Limit{test.limit: &limit, test.ceiling: &ceiling} {
			if err := into.UnmarshalText([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if test.limit == test.ceiling {
			limit = ceiling
		}
		if got := limit.within(ceiling); got != test.want {
			t.Errorf("%s within %s is %t", test.limit, test.ceiling, got)
		}
	}
}

// TestViews: what other rooms ask of a snapshot.
func TestViews(t *testing.T) {
	g := withKey(forecast())
	g.Credentials = append(g.Credentials, CredentialSpec{Name: "spare", Vault: VaultPath{"kv/spare"}, Inject: Inject{Query: "k", Value: "{k}"}})
	more := g.Rules[0]
	more.ID, more.To.Hosts = "same-key", []string{"api.weather.example", "*.weather.example"}
	more.WildcardCredential = true
	ended := g.Rules[0]
	ended.ID, ended.Credential, ended.NotAfter = "ended", "spare", noon
	ended.To.Hosts = []string{"ended.example"}
	tunnel := Rule{ID: "tunnel", Reason: "r", To: To{Scheme: SchemeTLS, Hosts: []string{"api.weather.example"}}}
	plain := Rule{ID: "plain", Reason: "r", To: To{Hosts: []string{"plain.example"}, TLS: TLS{Originate: true}}, Methods: []string{"GET"}, Paths: []string{"/"}}
	g.Rules = append(g.Rules, more, ended, tunnel, plain)
	in := input(g)
	in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"weather"}, Never: []Never{{ID: "no", Hosts: []string{"never.weather.example"}}}}}
	s := snapshot(t, in)

	if got, want := s.HostPatterns("weather"), []string{"*.weather.example", "api.weather.example", "ended.example", "plain.example"}; !slices.Equal(got, want) {
		t.Errorf("host patterns are %q", got)
	}
	if got := s.CredentialRefs("weather", noon); len(got) != 1 || got[0].Name != "key" {
		t.Errorf("credentials are %+v", got)
	}
	if got := s.CredentialRefs("weather", noon.Add(-time.Second)); len(got) != 2 {
		t.Errorf("credentials before the end of one are %+v", got)
	}
	for _, test := range []struct {
		host string
		port uint16
		want []Scheme
	}{
		{"api.weather.example", 443, []Scheme{SchemeHTTPS, SchemeTLS}},
		{"x.weather.example", 443, []Scheme{SchemeHTTPS}},
		{"api.weather.example", 80, nil},
		{"plain.example", 80, []Scheme{SchemeHTTP}},
		{"plain.example", 443, []Scheme{SchemeHTTPS, SchemeHTTP}},
		{"ended.example", 443, nil},
		{"example.org", 443, nil},
	} {
		if got := s.Schemes("weather", test.host, test.port, noon); !slices.Equal(got, test.want) {
			t.Errorf("schemes of %s:%d are %v", test.host, test.port, got)
		}
	}
	if s.HostPatterns("nobody") != nil || s.CredentialRefs("nobody", noon) != nil || s.Schemes("nobody", "a", 1, noon) != nil || s.pluginLimits("nobody") != nil || s.allLimits("nobody") != nil {
		t.Error("nobody has something")
	}
	if s.Input().Plugin != "weather" || (&Snapshot{}).Input().Plugin != "" {
		t.Error("the input is not the one that was compiled")
	}
}

// TestName says which names a plugin's resolver answers.
func TestName(t *testing.T) {
	g := forecast()
	for _, r := range []Rule{
		{ID: "wild", To: To{Hosts: []string{"*.weather.example"}}},
		{ID: "paused", To: To{Hosts: []string{"paused.example"}}},
		{ID: "shut", To: To{Hosts: []string{"shut.example", "both.example"}}},
		{ID: "open", To: To{Hosts: []string{"both.example"}}},
		{ID: "ended", To: To{Hosts: []string{"ended.example"}}, NotAfter: noon},
	} {
		r.Reason, r.Methods, r.Paths = "r", []string{"GET"}, []string{"/"}
		g.Rules = append(g.Rules, r)
	}
	in := input(g)
	in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"weather"}, Never: []Never{{ID: "no", Hosts: []string{"never.weather.example"}}}}}
	revocations := []Revocation{
		{ID: "1", Plugin: "weather", Grant: "weather", Rule: "paused", Level: LevelPause},
		{ID: "2", Plugin: "weather", Grant: "weather", Rule: "shut", Level: LevelQuarantine},
	}
	observing := in
	observing.Observe, observing.ObserveUntil = true, noon.Add(time.Hour)
	for _, test := range []struct {
		host, pattern string
		ok, observed  bool
	}{
		{"api.weather.example", "api.weather.example", true, true},
		{"x.weather.example", "*.weather.example", true, true},
		{"never.weather.example", "", false, false},
		{"a.b.weather.example", "", false, true},
		{"paused.example", "paused.example", true, true},
		{"shut.example", "", false, true},
		{"both.example", "both.example", true, true},
		{"ended.example", "", false, true},
		{"example.org", "", false, true},
	} {
		pattern, ok := snapshot(t, in, revocations...).Name("weather", test.host, noon)
		if pattern != test.pattern || ok != test.ok {
			t.Errorf("%s: %q, %t", test.host, pattern, ok)
		}
		if _, ok := snapshot(t, observing, revocations...).Name("weather", test.host, noon); ok != test.observed {
			t.Errorf("%s: %t while observing", test.host, ok)
		}
		for level, want := range map[Level]bool{LevelPause: test.ok, LevelQuarantine: false, LevelHalt: false} {
			all := append(slices.Clone(revocations), Revocation{ID: "3", Plugin: "weather", Level: level})
			if _, ok := snapshot(t, in, all...).Name("weather", test.host, noon); ok != want {
				t.Errorf("%s: %t at level %s", test.host, ok, level)
			}
		}
	}
	if _, ok := snapshot(t, in).Name("nobody", "api.weather.example", noon); ok {
		t.Error("nobody resolves a name")
	}
}

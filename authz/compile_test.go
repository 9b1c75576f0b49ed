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

// problemTest breaks a policy in one way, and names the fault.
type problemTest struct {
	name   string
	change func(*Input)
	want   []string
}

const badName = " is not a name; use lower-case letters and digits, with dashes, dots and underscores between them"

func changeRule(change func(r *Rule)) func(*Input) {
	return func(in *Input) { change(&in.Grants[0].Rules[0]) }
}

func changeGrant(change func(g *Grant)) func(*Input) {
	return func(in *Input) { change(&in.Grants[0]) }
}

func changeCredential(change func(c *CredentialSpec)) func(*Input) {
	return func(in *Input) {
		in.Grants[0] = withKey(in.Grants[0])
		change(&in.Grants[0].Credentials[0])
	}
}

func addGuardrail(g Guardrail) func(*Input) {
	return func(in *Input) {
		g.Name, g.Origin = cmpOr(g.Name, "company"), "company.yaml"
		if g.Plugins == nil {
			g.Plugins = []string{"**"}
		}
		in.Guardrails = append(in.Guardrails, g)
	}
}

func addCeiling(c Ceilings) func(*Input) { return addGuardrail(Guardrail{Ceilings: c}) }

func allOf(changes ...func(*Input)) func(*Input) {
	return func(in *Input) {
		for _, change := range changes {
			change(in)
		}
	}
}

const byCompany = " of guardrail company (company.yaml: spec.ceilings."

// grantProblems are those of a grant as a whole.
func grantProblems() []problemTest {
	return []problemTest{
		{"no name", changeGrant(func(g *Grant) { g.Name = "" }), []string{`metadata.name: ""` + badName}},
		{"a name with a slash", changeGrant(func(g *Grant) { g.Name = "a/b" }), []string{`metadata.name: "a/b"` + badName}},
		{"a name that ends in a dash", changeGrant(func(g *Grant) { g.Name = "a-" }), []string{`metadata.name: "a-"` + badName}},
		{"a name that begins with a dot", changeGrant(func(g *Grant) { g.Name = ".a" }), []string{`metadata.name: ".a"` + badName}},
		{"names with all there is", changeGrant(func(g *Grant) { g.Name = "0-a_b.c9" }), nil},
		{"a name that is too long", changeGrant(func(g *Grant) { g.Name = strings.Repeat("a", 254) }), []string{`metadata.name: "` + strings.Repeat("a", 200) + `..."` + badName}},
		{"two grants of one name", func(in *Input) { in.Grants = append(in.Grants, forecast()) }, []string{`metadata.name: "weather" is the name of an earlier grant`}},
		{"no plugin", changeGrant(func(g *Grant) { g.Plugin = "" }), []string{`spec.plugin: ""` + badName}},
		{"a plugin in upper case", changeGrant(func(g *Grant) { g.Plugin = "Weather" }), []string{`spec.plugin: "Weather"` + badName}},
		{"no end", changeGrant(func(g *Grant) { g.NotAfter = time.Time{} }), []string{`spec.notAfter: is missing; write when the grant ends, as in 2027-01-31T00:00:00Z`}},
		{"no rules", changeGrant(func(g *Grant) { g.Rules = nil }), []string{`spec.rules: is empty; write at least one rule`}},
		{"sockets", changeGrant(func(g *Grant) {
			g.Sockets = []string{
				"/run/a.sock", "@x", "@/run/a.sock", "", "/", "@", "run/a", "/run/../a", "/run/", "//run/a", "/run/a.sock", "/run/\x00", "/run/\n",
				"/" + strings.Repeat("a", 106), "/" + strings.Repeat("a", 107), "@" + strings.Repeat("a", 107),
			}
		}), []string{
			`spec.sockets[3]: ""` + badSocket, `spec.sockets[4]: "/"` + badSocket, `spec.sockets[5]: "@"` + badSocket, `spec.sockets[6]: "run/a"` + badSocket,
			`spec.sockets[7]: "/run/../a"` + badSocket, `spec.sockets[8]: "/run/"` + badSocket, `spec.sockets[9]: "//run/a"` + badSocket,
			`spec.sockets[10]: "/run/a.sock" is given twice; write it once`, `spec.sockets[11]: "/run/?" holds a control character`, `spec.sockets[12]: "/run/?" holds a control character`,
			`spec.sockets[14]: is 108 bytes long, over the 107 that the kernel allows; use a shorter path`, `spec.sockets[15]: is 108 bytes long, over the 107 that the kernel allows; use a shorter path`,
		}},
		{"a stop for requests", changeGrant(func(g *Grant) { g.Limits = Limits{Requests: Limit{1, 0}, OnExceeded: OnExceededStop} }), []string{`spec.limits.onExceeded: ` + noStop}},
		{"an unknown consequence", changeGrant(func(g *Grant) { g.Limits = Limits{Requests: Limit{1, 0}, OnExceeded: "warn"} }), []string{`spec.limits.onExceeded: "warn" is not deny, throttle, stop or kill`}},
		{"a consequence of nothing", changeGrant(func(g *Grant) { g.Limits = Limits{OnExceeded: OnExceededKill} }), []string{`spec.limits.onExceeded: is set without a limit; state a limit or remove it`}},
		{"a limit of nothing", changeGrant(func(g *Grant) { g.Limits.Requests.Period = time.Minute }), []string{`spec.limits.requests: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`}},
		{"a limit for a century", changeGrant(func(g *Grant) { g.Limits.Requests = Limit{1, maxPeriod + 1} }), []string{`spec.limits.requests: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`}},
		{"an unknown count", changeGrant(func(g *Grant) { g.Limits.Syscalls, g.Limits.CountSyscalls = Limit{1, 0}, "never" }), []string{`spec.limits.countSyscalls: "never" is not whenNear or exact`}},
		{"a count without a limit", changeGrant(func(g *Grant) { g.Limits.CountSyscalls = CountExact }), []string{`spec.limits.countSyscalls: is set without syscalls; state syscalls or remove it`}},
		{"a limit in the past", changeGrant(func(g *Grant) { g.Limits.Syscalls = Limit{1, -1} }), []string{`spec.limits.syscalls: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`}},
	}
}

const badSocket = ` is not a socket; write an absolute path without //, . and .., as in /run/db.sock, or @NAME for an abstract one`

const noStop = `stop does not work for requests, which the kernel does not count; use deny, throttle or kill`

// ruleProblems are those of rules.
func ruleProblems() []problemTest {
	return []problemTest{
		{"no id", changeRule(func(r *Rule) { r.ID = "" }), []string{`spec.rules[0].id: ""` + badName}},
		{"two rules of one id", changeGrant(func(g *Grant) { g.Rules = append(g.Rules, g.Rules[0]) }), []string{`spec.rules[1].id: "read-forecast" is the name of an earlier rule`}},
		{"no reason", changeRule(func(r *Rule) { r.Reason = " \n" }), []string{`spec.rules[0].reason: is missing; write for the reviewer why the plugin needs this access`}},
		{"unjudged reason", changeRule(func(r *Rule) { r.Reason = " todo: " }), []string{`spec.rules[0].reason: is still TODO; write for the reviewer why the plugin needs this access`}},
		{"a later end than the grant's", changeRule(func(r *Rule) { r.NotAfter = noon.AddDate(1, 0, 0) }), []string{`spec.rules[0].notAfter: is later than the grant's; write 2026-12-21T12:00:00Z or earlier`}},
		{"an unknown mode", changeRule(func(r *Rule) { r.Mode = "audit" }), []string{`spec.rules[0].mode: "audit" is not enforce or observe`}},
		{"observing for ever", changeRule(func(r *Rule) { r.Mode = ModeObserve }), []string{`spec.rules[0].observeUntil: is missing; write when mode observe ends, as in 2027-01-31T00:00:00Z`}},
		{"an end of observing without it", changeRule(func(r *Rule) { r.ObserveUntil = noon }), []string{`spec.rules[0].observeUntil: applies to mode: observe only; remove it`}},
		{"a metered limit on a rule", changeRule(func(r *Rule) { r.Limits.SentBytes = ByteLimit{1, 0} }), []string{`spec.rules[0].limits.sentBytes: is not supported yet on a rule; state it in the grant's limits`}},
		{"stop on a rule", changeRule(func(r *Rule) { r.Limits = Limits{Requests: Limit{1, 0}, OnExceeded: "stop"} }), []string{`spec.rules[0].limits.onExceeded: ` + noStop}},
	}
}

// destinationProblems are those of where rules lead.
func destinationProblems() []problemTest {
	return []problemTest{
		{"a later scheme", changeRule(func(r *Rule) { r.To.Scheme, r.To.Ports = "mysql", []uint16{5432} }), []string{
			`spec.rules[0].to.scheme: mysql is not supported yet; use https, http, tls, tcp, postgres or redis`,
			`spec.rules[0].methods: does not apply to scheme mysql, whose content Chaperone does not see; remove it`,
			`spec.rules[0].paths: does not apply to scheme mysql, whose content Chaperone does not see; remove it`,
		}},
		{"an unknown scheme", changeRule(func(r *Rule) { r.To.Scheme, r.Methods, r.Paths = "gopher", nil, nil }), []string{`spec.rules[0].to.scheme: "gopher" is not a scheme; use https, http, tls, tcp, postgres or redis`}},
		{"no hosts", changeRule(func(r *Rule) { r.To.Hosts = nil }), []string{`spec.rules[0].to.hosts: is empty; name the hosts, as in [api.weather.example]`}},
		{"every host", changeRule(func(r *Rule) { r.To.Hosts = []string{"*", "**"} }), []string{
			`spec.rules[0].to.hosts[0]: "*" matches every host; name the hosts, or write *.NAME for those under one name`,
			`spec.rules[0].to.hosts[1]: "**" matches every host; name the hosts, or write *.NAME for those under one name`,
		}},
		{"hosts that are none", changeRule(func(r *Rule) {
			r.To.Hosts = []string{"", "a*.example", "*.*.example", "*.", "**.**.example", "a b", "café.example", "a..b", strings.Repeat("a", 64) + ".example", "fe80::1%eth0", "*.[::1]", "1.2.3"}
		}), []string{
			`spec.rules[0].to.hosts[0]: is empty; name a host, as in api.weather.example`,
			`spec.rules[0].to.hosts[1]: "a*.example" is not a host; a wildcard is *. (one label) or **. (one or more) before a name`,
			`spec.rules[0].to.hosts[2]: "*.*.example" is not a host; a wildcard is *. (one label) or **. (one or more) before a name`,
			`spec.rules[0].to.hosts[3]: host "" is not 1 to 253 bytes long`,
			`spec.rules[0].to.hosts[4]: "**.**.example" is not a host; a wildcard is *. (one label) or **. (one or more) before a name`,
			`spec.rules[0].to.hosts[5]: host "a b" holds ' ', which is not allowed in a host name`,
			`spec.rules[0].to.hosts[6]: host "café.example" is not ASCII`,
			`spec.rules[0].to.hosts[7]: host "a..b" has an empty label`,
			`spec.rules[0].to.hosts[8]: host "` + strings.Repeat("a", 64) + `.example" has a label over 63 bytes`,
			`spec.rules[0].to.hosts[9]: host "[fe80::1%eth0]" is not an IPv6 address without a zone`,
			`spec.rules[0].to.hosts[10]: "*.[::1]" is a wildcard over an address`,
			`spec.rules[0].to.hosts[11]: "1.2.3" is not canonical; write "1.2.0.3"`,
		}},
		{"hosts that are not canonical", changeRule(func(r *Rule) {
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
		{"an address by its name in TLS", changeRule(func(r *Rule) {
			r.To = To{Scheme: SchemeTLS, Hosts: []string{"192.0.2.1"}}
			r.Methods, r.Paths = nil, nil
		}), []string{`spec.rules[0].to.hosts[0]: 192.0.2.1 is an address, and scheme tls matches server names; use tcp`}},
		{"tcp without a port", changeRule(func(r *Rule) { r.To.Scheme, r.Methods, r.Paths = SchemeTCP, nil, nil }), []string{`spec.rules[0].to.ports: is missing; tcp has no default port`}},
		{"ports that are none", changeRule(func(r *Rule) { r.To.Ports = []uint16{0, 443, 443} }), []string{
			`spec.rules[0].to.ports[0]: 0 is not a port; write a number from 1 to 65535`,
			`spec.rules[0].to.ports[2]: 443 is given twice; write it once`,
		}},
		{"addresses that match nothing", changeRule(func(r *Rule) {
			r.To.Addresses = []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("::ffff:10.0.0.0/104"), netip.MustParsePrefix("::ffff:0:0/90"), netip.MustParsePrefix("2001:db8::1/32")}
		}), []string{
			`spec.rules[0].to.addresses[0]: is not an address and a length, as in 203.0.113.0/24`,
			`spec.rules[0].to.addresses[1]: 10.0.0.1/8 is not canonical; write 10.0.0.0/8`,
			`spec.rules[0].to.addresses[2]: ::ffff:10.0.0.0/104 is not canonical; write 10.0.0.0/8`,
			`spec.rules[0].to.addresses[3]: is not an address and a length, as in 203.0.113.0/24`,
			`spec.rules[0].to.addresses[4]: 2001:db8::1/32 is not canonical; write 2001:db8::/32`,
		}},
		{"an old TLS", changeRule(func(r *Rule) { r.To.TLS.Min = "1.1" }), []string{`spec.rules[0].to.tls.min: "1.1" is not a version; use "1.2" or "1.3"`}},
		{"an authority that was not read", changeRule(func(r *Rule) { r.To.TLS.CAFile = "ca.pem" }), []string{`spec.rules[0].to.tls.caFile: "ca.pem" holds no certificate; without one every authority of the system would be trusted`}},
		{"TLS without TLS", changeRule(func(r *Rule) { r.To.Scheme, r.To.TLS.Originate = SchemeHTTP, true }), []string{`spec.rules[0].to.tls: does not apply to scheme http, for which Chaperone does not speak TLS; remove it`}},
	}
}

// requestProblems are those of methods, paths and upgrades.
func requestProblems() []problemTest {
	return []problemTest{
		{"no methods", changeRule(func(r *Rule) { r.Methods = nil }), []string{`spec.rules[0].methods: is missing; name the methods, or "*" for every one`}},
		{"methods that are none", changeRule(func(r *Rule) {
			r.Methods = []string{"GET", "*", "get", "TRACE", "G T", "CONNECT", strings.Repeat("X", 65)}
		}), []string{
			`spec.rules[0].methods[1]: "*" is beside other methods; write it alone`,
			`spec.rules[0].methods[2]: "get" never matches, because methods are case-sensitive; write GET`,
			`spec.rules[0].methods[3]: TRACE echoes the request with its credential; remove it`,
			`spec.rules[0].methods[4]: method "G T" is not a token of at most 64 bytes`,
			`spec.rules[0].methods[5]: method CONNECT is not a request; use another method`,
			`spec.rules[0].methods[6]: method "` + strings.Repeat("X", 65) + `" is not a token of at most 64 bytes`,
		}},
		{"no paths", changeRule(func(r *Rule) { r.Paths = nil }), []string{`spec.rules[0].paths: is missing; name the paths, or "/**" for every one`}},
		{"paths that are none", changeRule(func(r *Rule) {
			r.Paths = []string{"", "a", "*", "/a*", "/**/a", "/a//b", "/../a", "/a/%7e/*", "/%2f", "/a;b", "/a%", "/a/%2525", "/é"}
		}), []string{
			`spec.rules[0].paths[0]: "" does not start with /; write "/"`,
			`spec.rules[0].paths[1]: "a" does not start with /; write "/a"`,
			`spec.rules[0].paths[2]: "*" does not start with /; write "/*"`,
			`spec.rules[0].paths[3]: "/a*" has a wildcard in a segment; * is a whole segment, and ** stands last`,
			`spec.rules[0].paths[4]: "/**/a" has a wildcard in a segment; * is a whole segment, and ** stands last`,
			`spec.rules[0].paths[5]: path has an empty segment`,
			`spec.rules[0].paths[6]: path has a dot segment`,
			`spec.rules[0].paths[7]: "/a/%7e/*" is not canonical; write "/a/~/*"`,
			`spec.rules[0].paths[8]: "/%2f" is not canonical; write "/%2F"`,
			`spec.rules[0].paths[9]: path holds ';'`,
			`spec.rules[0].paths[10]: path holds a broken escape`,
			`spec.rules[0].paths[11]: path is encoded twice`,
			`spec.rules[0].paths[12]: "/é" is not canonical; write "/%C3%A9"`,
		}},
		{"an encoded slash by surprise", changeRule(func(r *Rule) { r.Paths = []string{"/a%2Fb"} }), []string{`spec.rules[0].paths[0]: an encoded slash needs encodedSlash: allow on the rule`}},
		{"an unknown encodedSlash", changeRule(func(r *Rule) { r.EncodedSlash = "yes" }), []string{`spec.rules[0].encodedSlash: "yes" is not refuse or allow`}},
		{"upgrades that are none", changeRule(func(r *Rule) {
			r.Upgrades = []string{"websocket", "WebSocket", "h2c", "a,b", "spdy/3.1", "a/b/c", "a/", "http/2.0", "tls/1.2", "connect-udp/1"}
		}), []string{
			`spec.rules[0].upgrades[1]: "WebSocket" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[2]: "h2c" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[3]: "a,b" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[5]: "a/b/c" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[6]: "a/" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[7]: "http/2.0" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[8]: "tls/1.2" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
			`spec.rules[0].upgrades[9]: "connect-udp/1" is not a protocol that can be granted; write one in lower case, as in websocket or spdy/3.1`,
		}},
		{"fields that tunnels lack", allOf(changeCredential(func(*CredentialSpec) {}), changeRule(func(r *Rule) {
			r.To.Scheme, r.Upgrades, r.EncodedSlash = SchemeTLS, []string{"websocket"}, "allow"
		})), []string{
			`spec.rules[0].methods: does not apply to scheme tls, whose content Chaperone does not see; remove it`,
			`spec.rules[0].paths: does not apply to scheme tls, whose content Chaperone does not see; remove it`,
			`spec.rules[0].upgrades: does not apply to scheme tls, whose content Chaperone does not see; remove it`,
			`spec.rules[0].encodedSlash: does not apply to scheme tls, whose content Chaperone does not see; remove it`,
			`spec.rules[0].credential: does not apply to scheme tls, whose content Chaperone does not see; remove it`,
		}},
	}
}

// credentialProblems are those of credentials.
func credentialProblems() []problemTest {
	return []problemTest{
		{"a credential that is not there", changeRule(func(r *Rule) { r.Credential = "key" }), []string{`spec.rules[0].credential: "key" is not one of the grant's credentials; add it under spec.credentials`}},
		{"a wildcard's credential by surprise", allOf(changeCredential(func(*CredentialSpec) {}), changeRule(func(r *Rule) { r.To.Hosts = []string{"*.weather.example"} })), []string{
			`spec.rules[0].credential: would be sent to every host of a wildcard; name the hosts, or set wildcardCredential: true`,
		}},
		{"a wildcard's credential without one", allOf(changeCredential(func(*CredentialSpec) {}), changeRule(func(r *Rule) { r.WildcardCredential = true })), []string{`spec.rules[0].wildcardCredential: is set without a wildcard host; remove it`}},
		{"a credential in the clear", allOf(changeCredential(func(*CredentialSpec) {}), changeRule(func(r *Rule) { r.To.Scheme = SchemeHTTP })), []string{
			`spec.rules[0].credential: would cross the network in clear text; use scheme https, or set insecure: true`,
		}},
		{"insecure https", allOf(changeCredential(func(*CredentialSpec) {}), changeRule(func(r *Rule) { r.Insecure = true })), []string{`spec.rules[0].insecure: applies to scheme http only; remove it`}},
		{"words about no credential", changeRule(func(r *Rule) { r.Insecure, r.WildcardCredential = true, true }), []string{
			`spec.rules[0].wildcardCredential: is set without a credential; remove it`,
			`spec.rules[0].insecure: is set without a credential; remove it`,
		}},
		{"two credentials of one name", allOf(changeCredential(func(*CredentialSpec) {}), changeGrant(func(g *Grant) { g.Credentials = append(g.Credentials, g.Credentials[0]) })), []string{
			`spec.credentials[1].name: "key" is the name of an earlier credential`,
		}},
		{"a credential without a name", allOf(changeCredential(func(c *CredentialSpec) { c.Name = "K" }), changeRule(func(r *Rule) { r.Credential = "K" })), []string{
			`spec.credentials[0].name: "K"` + badName,
		}},
		{"an invalid path of Vault", changeCredential(func(c *CredentialSpec) { c.Vault.Path = "/secret/x" }), []string{`spec.credentials[0].vault.path: "/secret/x" is not a path for vault read; write one as in secret/data/weather`}},
		{"a path up", changeCredential(func(c *CredentialSpec) { c.Vault.Path = "secret/../sys/x" }), []string{`spec.credentials[0].vault.path: "secret/../sys/x" is not a path for vault read; write one as in secret/data/weather`}},
		{"a path with a query", changeCredential(func(c *CredentialSpec) { c.Vault.Path = "secret/x?list=1" }), []string{`spec.credentials[0].vault.path: "secret/x?list=1" is not a path for vault read; write one as in secret/data/weather`}},
		{"a path with all there is", changeCredential(func(c *CredentialSpec) { c.Vault.Path = "kv-v2/data/a.b_c~d@e+f=g" }), nil},
		{"parameters of a key-value secret", changeCredential(func(c *CredentialSpec) {
			c.Vault.Path, c.Vault.Params = "secret/data/weather", map[string]string{"ttl": "1h"}
		}), []string{`spec.credentials[0].vault.params: would overwrite the secret "secret/data/weather"; remove them, so that it is read`}},
		{"Vault's own system", changeCredential(func(c *CredentialSpec) { c.Vault.Path = "sys/raw/x" }), []string{`spec.credentials[0].vault.path: "sys/raw/x" is not a path for vault read; write one as in secret/data/weather`}},
		{"no place", changeCredential(func(c *CredentialSpec) { c.Inject = Inject{Value: "{k}"} }), []string{`spec.credentials[0].inject: is missing; set one of header, query, cookie, basic, mtls, sigv4, oauth2, jwt or database`}},
		{"two places", changeCredential(func(c *CredentialSpec) { c.Inject = Inject{Header: "x", Query: "x", Value: "{k}"} }), []string{`spec.credentials[0].inject: sets header and query; set exactly one of them`}},
		{"no value", changeCredential(func(c *CredentialSpec) { c.Inject = Inject{Cookie: "sid"} }), []string{`spec.credentials[0].inject.value: is missing; write the template of the cookie, as in "Bearer {api_key}"`}},
		{"a name that no request carries", changeCredential(func(c *CredentialSpec) { c.Inject.Header = "X Key" }), []string{`spec.credentials[0].inject.header: "X Key" is not a valid name in a request; write a token, as in X-Api-Key`}},
		{"a header of the connection", changeCredential(func(c *CredentialSpec) { c.Inject.Header = "Transfer-Encoding" }), []string{`spec.credentials[0].inject.header: Transfer-Encoding is reserved for the connection or Chaperone; use another header`}},
		{"a header of ours", changeCredential(func(c *CredentialSpec) { c.Inject.Header = "X-Chaperone-Key" }), []string{`spec.credentials[0].inject.header: X-Chaperone-Key is reserved for the connection or Chaperone; use another header`}},
		{"a value of nothing", changeCredential(func(c *CredentialSpec) { c.Inject.Value = "Bearer x" }), []string{`spec.credentials[0].inject.value: "Bearer x" uses no field of Vault's answer; name one, as in {api_key}`}},
		{"an open brace", changeCredential(func(c *CredentialSpec) { c.Inject.Value = "Bearer {key" }), []string{`spec.credentials[0].inject.value: "{key" is not a field of Vault's answer; write {name}`}},
		{"a closing brace", changeCredential(func(c *CredentialSpec) { c.Inject.Value = "Bearer key}" }), []string{`spec.credentials[0].inject.value: "Bearer key}" has a } without a {; write {field}`}},
		{"an empty field", changeCredential(func(c *CredentialSpec) { c.Inject.Value = "{}" }), []string{`spec.credentials[0].inject.value: "{}" is not a field of Vault's answer; write {name}`}},
		{"a field with a blank at its end", changeCredential(func(c *CredentialSpec) { c.Inject.Value = "{key }" }), []string{`spec.credentials[0].inject.value: "{key }" is not a field of Vault's answer; write {name}`}},
		{"a line break", changeCredential(func(c *CredentialSpec) { c.Inject.Value = "Bearer\r\nX: {key}" }), []string{`spec.credentials[0].inject.value: "Bearer??X: " holds a control byte`}},
		{"basic and a value", changeCredential(func(c *CredentialSpec) { c.Inject = Inject{Basic: &Basic{"u", "{p}"}, Value: "{p}"} }), []string{`spec.credentials[0].inject.value: does not apply to basic; remove it`}},
		{"nothing secret", changeCredential(func(c *CredentialSpec) { c.Vault.NotSecret = []string{"api_key"} }), []string{`spec.credentials[0].vault.notSecret: names every field that inject uses; leave out those that are secret`}},
		{"not secret and not there", changeCredential(func(c *CredentialSpec) { c.Vault.NotSecret = []string{"region"} }), []string{`spec.credentials[0].vault.notSecret[0]: "region" is not a field that inject uses; name one of api_key`}},
		{"not secret of a signature", changeCredential(func(c *CredentialSpec) {
			c.Inject, c.Vault.NotSecret = Inject{SigV4: &SigV4{Service: "s3", Region: "eu-west-1"}}, []string{"access_key"}
		}), []string{`spec.credentials[0].vault.notSecret: applies to header, query, cookie, basic and database only; remove it`}},
		{"basic of nothing", changeCredential(func(c *CredentialSpec) { c.Inject = Inject{Basic: &Basic{"u", "p"}} }), []string{`spec.credentials[0].inject.basic: "u:p" uses no field of Vault's answer; name one, as in {api_key}`}},
		{"basic with broken templates", changeCredential(func(c *CredentialSpec) { c.Inject = Inject{Basic: &Basic{"{u", "p}"}} }), []string{
			`spec.credentials[0].inject.basic.username: "{u" is not a field of Vault's answer; write {name}`,
			`spec.credentials[0].inject.basic.password: "p}" has a } without a {; write {field}`,
		}},
	}
}

// guardrailProblems are those of guardrails.
func guardrailProblems() []problemTest {
	return []problemTest{
		{"a guardrail without a name", func(in *Input) { in.Guardrails = []Guardrail{{Plugins: []string{"*"}}} }, []string{`metadata.name: ""` + badName}},
		{"two guardrails of one name", allOf(addGuardrail(Guardrail{}), addGuardrail(Guardrail{})), []string{`metadata.name: "company" is the name of an earlier guardrail`}},
		{"a guardrail for nobody", addGuardrail(Guardrail{Plugins: []string{}}), []string{`spec.plugins: is empty; name plugins, or "**" for every one`}},
		{"plugins that are none", addGuardrail(Guardrail{Plugins: []string{"weather", "we*", "", "Weather", "a/**"}}), []string{
			`spec.plugins[1]: "we*" is not a plugin's name, * or **`,
			`spec.plugins[2]: "" is not a plugin's name, * or **`,
			`spec.plugins[3]: "Weather" is not a plugin's name, * or **`,
			`spec.plugins[4]: "a/**" is not a plugin's name, * or **`,
		}},
		{"never what", addGuardrail(Guardrail{Never: []Never{
			{ID: "a"},
			{ID: "a", Hosts: []string{"x.example"}},
			{ID: "", Hosts: []string{"x..example"}},
			{ID: "b", Addresses: []netip.Prefix{netip.MustParsePrefix("169.254.1.1/16"), netip.MustParsePrefix("::ffff:169.254.0.0/112"), {}}},
		}}), []string{
			`spec.never[0]: names no hosts, addresses or sockets`,
			`spec.never[1].id: "a" is the name of an earlier entry`,
			`spec.never[2].id: ""` + badName,
			`spec.never[2].hosts[0]: host "x..example" has an empty label`,
			`spec.never[3].addresses[0]: 169.254.1.1/16 is not canonical; write 169.254.0.0/16`,
			`spec.never[3].addresses[1]: ::ffff:169.254.0.0/112 is not canonical; write 169.254.0.0/16`,
			`spec.never[3].addresses[2]: is not an address and a length, as in 203.0.113.0/24`,
		}},
		{"sockets that are never", addGuardrail(Guardrail{Never: []Never{
			{ID: "a", Sockets: []string{"/run/docker.sock", "/run/docker/**", "@**", "/**", "**", "@", "run/a"}},
		}}), []string{
			`spec.never[0].sockets[4]: "x"` + badSocket, `spec.never[0].sockets[5]: "@"` + badSocket, `spec.never[0].sockets[6]: "run/a"` + badSocket,
		}},
		{"a host of a never-list is no problem", addGuardrail(Guardrail{Never: []Never{{ID: "a", Hosts: []string{"api.weather.example"}}}}), nil},
		{"ceilings that are none", addGuardrail(Guardrail{Plugins: []string{"other"}, Ceilings: Ceilings{
			Schemes: []Scheme{"https", "postgres", "gopher"}, TLSMin: "1.0", WildcardHosts: "all", HostsPerGrant: -1,
			Limits: Limits{Requests: Limit{0, 1}, OnExceeded: OnExceededDeny},
		}}), []string{
			`spec.ceilings.schemes[2]: "gopher" is not a scheme; use https, http, tls, tcp, postgres or redis`,
			`spec.ceilings.tlsMin: "1.0" is not a version; use "1.2" or "1.3"`,
			`spec.ceilings.wildcardHosts: "all" is not none, single or any`,
			`spec.ceilings.hostsPerGrant: is below 0`,
			`spec.ceilings.limits.onExceeded: is not a ceiling; leave it out`,
			`spec.ceilings.limits.requests: is not a limit; write COUNT/PERIOD or COUNT, with a period of at most 36500d`,
		}},
	}
}

// ceilingProblems are those of what goes beyond a ceiling: both documents are named.
func ceilingProblems() []problemTest {
	return []problemTest{
		{"too long", addCeiling(Ceilings{GrantLifetime: Duration(24 * time.Hour)}), []string{
			`spec.notAfter: is over 1d away, the longest guardrail company (company.yaml: spec.ceilings.grantLifetime) allows; write 2026-11-22T12:00:00Z or earlier`,
		}},
		{"too many hosts", allOf(addCeiling(Ceilings{HostsPerGrant: 1}), changeRule(func(r *Rule) { r.To.Hosts = []string{"a.example", "b.example"} })), []string{
			`spec.rules: name 2 hosts, more than the 1 that guardrail company (company.yaml: spec.ceilings.hostsPerGrant) allows`,
		}},
		{"a scheme too many", addCeiling(Ceilings{Schemes: []Scheme{"tls", "postgres"}}), []string{`spec.rules[0].to.scheme: https is not among [tls postgres], the ceiling` + byCompany + `schemes)`}},
		{"a method too many", allOf(addCeiling(Ceilings{Methods: []string{"GET", "HEAD"}}), changeRule(func(r *Rule) { r.Methods = []string{"GET", "POST"} })), []string{
			`spec.rules[0].methods[1]: POST is not among [GET HEAD], the ceiling` + byCompany + `methods)`,
		}},
		{"every method", allOf(addCeiling(Ceilings{Methods: []string{"GET"}}), changeRule(func(r *Rule) { r.Methods = []string{"*"} })), []string{
			`spec.rules[0].methods[0]: * is not among [GET], the ceiling` + byCompany + `methods)`,
		}},
		{"TLS too old", addCeiling(Ceilings{TLSMin: "1.3"}), []string{`spec.rules[0].to.tls: accepts TLS 1.2, below 1.3` + byCompany + `tlsMin); write tls: {min: "1.3"}`}},
		{"TLS new enough", allOf(addCeiling(Ceilings{TLSMin: "1.2"}), changeRule(func(r *Rule) { r.To.TLS.Min = "1.3" })), nil},
		{"no wildcards", allOf(addCeiling(Ceilings{WildcardHosts: WildcardNone}), changeRule(func(r *Rule) { r.To.Hosts = []string{"a.example", "*.b.example"} })), []string{
			`spec.rules[0].to.hosts[1]: "*.b.example" is a wildcard, which guardrail company (company.yaml: spec.ceilings.wildcardHosts) does not allow`,
		}},
		{"single wildcards", allOf(addCeiling(Ceilings{WildcardHosts: WildcardSingle}), changeRule(func(r *Rule) { r.To.Hosts = []string{"**.a.example", "*.b.example"} })), []string{
			`spec.rules[0].to.hosts[0]: "**.a.example" is a wildcard over more than one label, which guardrail company (company.yaml: spec.ceilings.wildcardHosts) does not allow`,
		}},
		{"any wildcards", allOf(addCeiling(Ceilings{WildcardHosts: WildcardAny}), changeRule(func(r *Rule) { r.To.Hosts = []string{"**.a.example"} })), nil},
		{"a limit that is not stated", addCeiling(Ceilings{Limits: Limits{Requests: Limit{10, time.Minute}, SentBytes: ByteLimit{1 << 20, time.Minute}}}), []string{
			`spec.limits: does not state requests, which guardrail company (company.yaml: spec.ceilings.limits.requests) requires; write 10/1m or less`,
			`spec.limits: does not state sentBytes, which guardrail company (company.yaml: spec.ceilings.limits.sentBytes) requires; write 1MiB/1m or less`,
		}},
		{"a limit too high", allOf(addCeiling(Ceilings{Limits: Limits{Requests: Limit{10, time.Minute}}}), changeGrant(func(g *Grant) { g.Limits.Requests = Limit{11, time.Minute} })), []string{
			`spec.limits.requests: 11/1m is more than the 10/1m that guardrail company (company.yaml: spec.ceilings.limits.requests) allows`,
		}},
		{"two guardrails, both gone beyond", allOf(addCeiling(Ceilings{Methods: []string{"POST"}}), addGuardrail(Guardrail{Name: "team", Ceilings: Ceilings{Methods: []string{"PUT"}}})), []string{
			`spec.rules[0].methods[0]: GET is not among [POST], the ceiling` + byCompany + `methods)`,
			`spec.rules[0].methods[0]: GET is not among [PUT], the ceiling of guardrail team (company.yaml: spec.ceilings.methods)`,
		}},
		{"another plugin's guardrail", addGuardrail(Guardrail{Plugins: []string{"other"}, Ceilings: Ceilings{Methods: []string{"POST"}}}), nil},
		{"a guardrail of unknown origin", func(in *Input) {
			in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"*"}, Ceilings: Ceilings{Schemes: []Scheme{"tls"}}}}
		}, []string{`spec.rules[0].to.scheme: https is not among [tls], the ceiling of guardrail company (spec.ceilings.schemes)`}},

		{"everything at once", allOf(changeGrant(func(g *Grant) { g.Plugin = "W" }), changeRule(func(r *Rule) { r.Reason, r.Methods = "", nil }), addGuardrail(Guardrail{Plugins: []string{}})), []string{
			`spec.plugins: is empty; name plugins, or "**" for every one`,
			`spec.plugin: "W"` + badName,
			`spec.rules[0].reason: is missing; write for the reviewer why the plugin needs this access`,
			`spec.rules[0].methods: is missing; name the methods, or "*" for every one`,
		}},
	}
}

// TestProblems takes a policy without a problem, breaks it in one way, and
// expects exactly the problems that this makes.
func TestProblems(t *testing.T) {
	tests := []problemTest{{"nothing", func(*Input) {}, nil}}
	for _, more := range []func() []problemTest{
		grantProblems, ruleProblems, destinationProblems, requestProblems, credentialProblems, guardrailProblems, ceilingProblems,
	} {
		tests = append(tests, more()...)
	}
	for _, test := range tests {
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

// TestCredentialLifetimeExemption: a longer life needs an exemption for each rule that uses
// the credential, and these rules end with it.
func TestCredentialLifetimeExemption(t *testing.T) {
	allow := Ceilings{CredentialLifetime: Duration(time.Hour)}
	for name, c := range map[string]struct {
		stated     time.Duration // 0 for a lease of Vault
		exemptions []Exemption
		want       time.Duration
		ends       bool
		problem    string
	}{
		"token":                {stated: time.Hour, exemptions: []Exemption{{Rule: "read-forecast", Allow: allow}}, want: time.Hour, ends: true},
		"lease":                {exemptions: []Exemption{{Allow: allow}}, want: time.Hour, ends: true},
		"short token":          {stated: 10 * time.Minute, exemptions: []Exemption{{Allow: allow}}, want: 15 * time.Minute},
		"longer than allowed":  {stated: 2 * time.Hour, exemptions: []Exemption{{Allow: allow}}, problem: "is more than the 15m"},
		"none":                 {stated: time.Hour, problem: "is more than the 15m"},
		"of another rule":      {stated: time.Hour, exemptions: []Exemption{{Rule: "other", Allow: allow}}, problem: "is more than the 15m"},
		"of another grant":     {stated: time.Hour, exemptions: []Exemption{{Grant: "other", Allow: allow}}, problem: "is more than the 15m"},
		"of another ceiling":   {stated: time.Hour, exemptions: []Exemption{{Ceiling: "ceilings.tlsMin", Allow: allow}}, problem: "is more than the 15m"},
		"shorter than allowed": {exemptions: []Exemption{{Allow: Ceilings{CredentialLifetime: Duration(time.Minute)}}}, want: 15 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			g := withKey(forecast())
			if c.stated > 0 {
				g.Credentials[0].Vault.Path = "transit/sign/weather"
				g.Credentials[0].Inject = Inject{JWT: &JWT{Algorithm: "RS256", Issuer: "i", Subject: "s", Audience: "a", Lifetime: Duration(c.stated)}}
			}
			in := input(g)
			in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"**"}, Ceilings: Ceilings{CredentialLifetime: Duration(15 * time.Minute)}}}
			for _, e := range c.exemptions {
				e.Name, e.NotAfter, e.MaxUses = "ex-1", noon.Add(time.Minute), 3
				e.Grant, e.Ceiling = cmpOr(e.Grant, "weather"), cmpOr(e.Ceiling, "ceilings.credentialLifetime")
				in.Exemptions = append(in.Exemptions, e)
			}
			if c.problem != "" {
				if _, problems := Compile(in, noon); len(problems) != 1 || !strings.Contains(problems[0].Message, c.problem) {
					t.Errorf("got %v, want %q", problems, c.problem)
				}
				return
			}
			s := snapshot(t, in)
			if got := s.CredentialRefs("weather", noon)[0].Lifetime; got != c.want {
				t.Errorf("the credential lasts %s, want %s", got, c.want)
			}
			if got := s.Decide(get(t, forecastURL), Usage{}, noon.Add(time.Minute)); got.Allowed() == c.ends {
				t.Errorf("at the end of the exemption the access is %s", got.Reason)
			}
		})
	}
}

// TestMethods: each method is granted by itself and by "*", which leaves TRACE out.
func TestMethods(t *testing.T) {
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "TRACE"}
	for _, granted := range append(methods[:len(methods)-1:len(methods)-1], "*") {
		g := forecast()
		g.Rules[0].Methods = []string{granted}
		s := snapshot(t, input(g))
		for _, asked := range methods {
			want := asked == granted || granted == "*" && asked != "TRACE"
			if d := s.Decide(get(t, asked+" "+forecastURL), Usage{}, noon); d.Allowed() != want {
				t.Errorf("%s where %s is granted is %s", asked, granted, d.Reason)
			}
		}
	}
}

// TestTerms: what the winner asks of the exchange, and the defaults.
func TestTerms(t *testing.T) {
	g := forecast()
	terms := func() Terms { return snapshot(t, input(g)).Decide(get(t, forecastURL), Usage{}, noon).Terms() }
	if got := terms(); got != (Terms{TLSMin: "1.2"}) {
		t.Errorf("the default terms are %+v", got)
	}
	g.Rules[0].To.TLS, g.Rules[0].Timeout = TLS{Min: "1.3", CAFile: "ca.pem", CA: "PEM"}, Duration(time.Second)
	if got := terms(); got != (Terms{TLSMin: "1.3", CA: "PEM", Timeout: time.Second}) {
		t.Errorf("the terms are %+v", got)
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
		if got := limit.Within(ceiling); got != test.want {
			t.Errorf("%s within %s is %t", test.limit, test.ceiling, got)
		}
	}
}

// TestViews: what other rooms ask of a snapshot.
func TestViews(t *testing.T) {
	g := withKey(forecast())
	g.Credentials = append(g.Credentials, CredentialSpec{Name: "spare", Vault: VaultPath{Path: "kv/spare"}, Inject: Inject{Query: "k", Value: "{k}"}})
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
		t.Error("the empty name has grants")
	}
	if s.Input().Plugin != "weather" || (&Snapshot{}).Input().Plugin != "" {
		t.Error("the input is not the one that was compiled")
	}
}

// TestName checks which names a plugin's resolver answers.
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
		t.Error("the empty name resolves a name")
	}
}

package prove

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// keyed returns rules with a credential.
func keyed(edit func(c *authz.CredentialSpec), paths ...string) authz.Input {
	return rules(func(g *authz.Grant) {
		c := authz.CredentialSpec{Name: "key", Vault: authz.VaultPath{Path: "secret/data/a"}, Inject: authz.Inject{Header: "Authorization", Value: "Bearer {key}"}}
		if edit != nil {
			edit(&c)
		}
		g.Credentials = append(g.Credentials, c)
		g.Rules[0].Credential = c.Name
	}, paths...)
}

// with returns the policy with a further rule in front of the first.
func with(in authz.Input, edit func(r *authz.Rule)) authz.Input {
	g := in.Grants[0]
	r := g.Rules[0]
	r.ID = "exact"
	edit(&r)
	g.Rules = append([]authz.Rule{r}, g.Rules...)
	in.Grants = []authz.Grant{g}
	return in
}

func guarded(in authz.Input, edit func(g *authz.Guardrail)) authz.Input {
	g := authz.Guardrail{Name: "guard", Plugins: []string{"**"}}
	edit(&g)
	in.Guardrails = append(slices.Clone(in.Guardrails), g)
	return in
}

func neverRange(text string) func(g *authz.Guardrail) {
	return func(g *authz.Guardrail) {
		g.Never = []authz.Never{{ID: "n", Addresses: []netip.Prefix{netip.MustParsePrefix(text)}}}
	}
}

// placed returns a policy of one rule for hosts in regions, which a guardrail defines.
func placed(hosts, regions []string, defined map[string][]authz.Place) authz.Input {
	in := rules(first(func(r *authz.Rule) { r.To.Hosts, r.Data.Regions = hosts, regions }), "/")
	return guarded(in, func(g *authz.Guardrail) { g.Regions = defined })
}

// regionTraps are changes of regions.
func regionTraps() []trap {
	a, wild := []string{"a.example"}, []string{"*.a.example"}
	eu, both := []string{"eu"}, []string{"eu", "us"}
	defined := map[string][]authz.Place{"eu": {"8.8.8.0/24"}, "us": {"9.9.9.0/24"}}
	wider := map[string][]authz.Place{"eu": {"8.8.8.0/23"}, "us": {"9.9.9.0/24"}}
	tagged := map[string][]authz.Place{"eu": {"8.8.8.0/24", "b.a.example"}, "us": {"9.9.9.0/24"}}
	return []trap{
		{"a further region", placed(a, eu, defined), placed(a, both, defined), []string{"address 9.9.9.0"}},
		{"one region less", placed(a, both, defined), placed(a, eu, defined), nil},
		{"no regions any more", placed(a, eu, defined), placed(a, nil, defined), []string{"address 8.8.7.255", "access GET https://a.example/"}},
		{"regions for a rule without them", placed(a, nil, defined), placed(a, eu, defined), nil},
		{"a region that grows", placed(a, eu, defined), placed(a, eu, wider), []string{"address 8.8.9.0"}},
		{"a region that shrinks", placed(a, eu, wider), placed(a, eu, defined), nil},
		{"a region that grows and is not used", placed(a, nil, defined), placed(a, nil, wider), nil},
		{"a host that becomes part of a region", placed(wild, eu, defined), placed(wild, eu, tagged), []string{"address 8.8.7.255", "access GET https://b.a.example/"}},
		{"a further guardrail that includes more", placed(a, eu, defined), guarded(placed(a, eu, defined), func(g *authz.Guardrail) { g.Name, g.Regions = "more", wider }), nil},
		{"a guardrail less", guarded(placed(a, eu, wider), func(g *authz.Guardrail) { g.Name, g.Regions = "more", defined }), placed(a, eu, wider), []string{"address 8.8.9.255"}},
	}
}

// trap is a change that looks harmless, or wider, and is not.
type trap struct {
	name          string
	before, after authz.Input
	want          []string // nil: within
}

// ruleTraps are changes of rules, credentials and guardrails.
func ruleTraps() []trap {
	return []trap{
		{
			"a deleted rule without a credential shadowed one with a credential",
			with(keyed(nil, "/**"), func(r *authz.Rule) { r.Paths, r.Credential = []string{"/public"}, "" }), keyed(nil, "/**"),
			[]string{"credential GET https://a.example/public"},
		},
		{
			"a deleted rule with tighter addresses shadowed a wider one",
			with(rules(first(func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }), "/**"), func(r *authz.Rule) {
				r.Paths, r.To.Addresses = []string{"/b"}, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
			}),
			rules(first(func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }), "/**"),
			[]string{"address 10.0.255.255"},
		},
		{
			"a deleted rule that a door cannot enforce shadowed one that it can",
			with(rules(nil, "/**"), func(r *authz.Rule) { r.Paths, r.Timeout = []string{"/b"}, authz.Duration(time.Second) }), rules(nil, "/**"),
			[]string{"terms GET https://a.example/b", "access GET https://a.example/b"},
		},
		{"any method from some", rules(nil, "/"), rules(first(func(r *authz.Rule) { r.Methods = []string{"*"} }), "/"), []string{"access ANY https://a.example/"}},
		{"/a/** does not hold /a", rules(nil, "/a/**"), rules(nil, "/a"), []string{"access GET https://a.example/a"}},
		{"/a/** holds /a/", rules(nil, "/a/**"), rules(nil, "/a/"), nil},
		{
			"**.x does not hold x", rules(first(func(r *authz.Rule) { r.To.Hosts = []string{"**.a.example"} }), "/"), rules(nil, "/"),
			[]string{"access GET https://a.example/"},
		},
		{
			"originate on each port of the rule", rules(first(func(r *authz.Rule) { r.To.Ports = []uint16{8443} }), "/"),
			rules(first(func(r *authz.Rule) { r.To.Ports, r.To.TLS.Originate = []uint16{8443}, true }), "/"),
			[]string{"access GET http://a.example/"},
		},
		{"the same credential by another name", keyed(nil, "/"), keyed(func(c *authz.CredentialSpec) { c.Name = "other" }, "/"), nil},
		{"another path by the same name", keyed(nil, "/"), keyed(func(c *authz.CredentialSpec) { c.Vault.Path = "secret/data/b" }, "/"), []string{"credential GET https://a.example/"}},
		{
			"other parameters", keyed(func(c *authz.CredentialSpec) {
				c.Vault.Path, c.Vault.Params = "aws/sts/a", map[string]string{"ttl": "1h"}
			}, "/"),
			keyed(func(c *authz.CredentialSpec) {
				c.Vault.Path, c.Vault.Params = "aws/sts/a", map[string]string{"ttl": "2h"}
			}, "/"),
			[]string{"credential GET https://a.example/"},
		},
		{"another place", keyed(nil, "/"), keyed(func(c *authz.CredentialSpec) { c.Inject = authz.Inject{Query: "key", Value: "{key}"} }, "/"), []string{"credential GET https://a.example/"}},
		{"no credential, which an Envoy over plain TCP can enforce", keyed(nil, "/"), rules(nil, "/"), []string{"access GET https://a.example/"}},
		{
			"a longer lease", guarded(keyed(nil, "/"), func(g *authz.Guardrail) { g.Ceilings.CredentialLifetime = authz.Duration(time.Minute) }), keyed(nil, "/"),
			[]string{"credential GET https://a.example/"},
		},
		{
			"a never-list without its host", guarded(rules(nil, "/"), func(g *authz.Guardrail) { g.Never = []authz.Never{{ID: "n", Hosts: []string{"**.example"}}} }), rules(nil, "/"),
			[]string{"access GET https://a.example/"},
		},
		{"a never-list without its address", guarded(rules(nil, "/"), neverRange("8.8.8.0/24")), rules(nil, "/"), []string{"address 8.8.8.0"}},
		{
			"a guardrail that leaves the plugin out", guarded(rules(nil, "/"), neverRange("8.8.8.0/24")),
			guarded(rules(nil, "/"), func(g *authz.Guardrail) { neverRange("8.8.8.0/24")(g); g.Plugins = []string{"other"} }),
			[]string{"address 8.8.8.0"},
		},
		{"a never-list of another plugin", guarded(rules(nil, "/"), func(g *authz.Guardrail) { neverRange("8.8.8.0/24")(g); g.Plugins = []string{"other"} }), rules(nil, "/"), nil},
	}
}

// limitTraps are changes of limits and terms.
func limitTraps() []trap {
	tcp := func(edit func(r *authz.Rule)) authz.Input {
		return rules(first(func(r *authz.Rule) {
			r.To.Scheme, r.To.Ports, r.Methods, r.Paths = authz.SchemeTCP, []uint16{5432}, nil, nil
			r.Limits.Requests = authz.Limit{Count: 10, Period: time.Minute}
			if edit != nil {
				edit(r)
			}
		}))
	}
	twoGrants := func(end time.Time) authz.Input {
		in := rules(nil, "/a")
		g := rules(nil, "/b").Grants[0]
		g.Name, g.NotAfter, g.Limits.Requests = "h", end, authz.Limit{Count: 10, Period: time.Minute}
		in.Grants = append(in.Grants, g)
		return in
	}
	return []trap{
		{"a total of a grant by another name", rules(limits("10"), "/"), rules(func(g *authz.Grant) { limits("10")(g); g.Name = "h" }, "/"), []string{"limit g/r requests"}},
		{"a rate by another name", rules(limits("10/1m"), "/"), rules(func(g *authz.Grant) { limits("10/1m")(g); g.Name = "h" }, "/"), nil},
		{"a limit of tunnels while the rule observes", tcp(nil), tcp(func(r *authz.Rule) { r.Mode, r.ObserveUntil = authz.ModeObserve, noon.Add(time.Hour) }), []string{"limit g/r requests"}},
		{"a limit that ends with another grant", twoGrants(noon.Add(24 * time.Hour)), twoGrants(noon.Add(time.Hour)), []string{"limit h requests"}},
		{
			"a limit that throttles instead of denying", rules(limits("10/1m"), "/"), rules(func(g *authz.Grant) {
				limits("10/1m")(g)
				g.Rules[0].Limits.OnExceeded = authz.OnExceededThrottle
			}, "/"), []string{"limit g/r requests"},
		},
		{"a limit that kills instead of denying", rules(limits("10/1m"), "/"), rules(func(g *authz.Grant) {
			limits("10/1m")(g)
			g.Rules[0].Limits.OnExceeded = authz.OnExceededDeny
		}, "/"), nil},
		{"other authorities", rules(nil, "/"), rules(first(func(r *authz.Rule) { r.To.TLS.CAFile, r.To.TLS.CA = "ca.pem", "a certificate" }), "/"), []string{"terms GET https://a.example/"}},
	}
}

func TestTraps(t *testing.T) {
	for _, test := range slices.Concat(ruleTraps(), limitTraps(), regionTraps()) {
		t.Run(test.name, func(t *testing.T) {
			got, err := Compare(context.Background(), snapshotOf(t, test.before), snapshotOf(t, test.after), Options{Plugin: "p", At: noon})
			if err != nil || !got.Complete {
				t.Fatalf("Compare = %+v, %v, want a complete result", got, err)
			}
			var lines []string
			for _, f := range got.Findings {
				lines = append(lines, describe(f))
			}
			if !slices.Equal(lines, test.want) {
				t.Errorf("Compare found %q, want %q", lines, test.want)
			}
		})
	}
}

// TestRevocations: a revoked rule that gets another name is in force again, and one that is
// deleted does not let a wider rule win.
func TestRevocations(t *testing.T) {
	revoked := func(in authz.Input) *authz.Snapshot {
		compiled, problems := authz.Compile(in, noon)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		var engine authz.Engine
		engine.Install(compiled)
		engine.Revoke(authz.Revocation{ID: "v", Plugin: "p", Grant: "g", Rule: "r", Level: authz.LevelQuarantine})
		return engine.Current()
	}
	renamed := rules(first(func(r *authz.Rule) { r.ID = "s" }), "/")
	got, err := Compare(context.Background(), revoked(rules(nil, "/")), revoked(renamed), Options{Plugin: "p", At: noon})
	if err != nil || len(got.Findings) != 1 || got.Findings[0].Old.Reason != authz.Revoked {
		t.Errorf("Compare = %+v, %v, want a finding that was revoked", got.Findings, err)
	}
}

func TestNever(t *testing.T) {
	private := rules(first(func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")} }), "/a")
	tunnel := rules(first(func(r *authz.Rule) {
		r.To.Scheme, r.To.Ports, r.Methods, r.Paths = authz.SchemeTCP, []uint16{443}, nil, nil
	}))
	originates := rules(first(func(r *authz.Rule) { r.To.TLS.Originate = true }), "/a")
	tests := []struct {
		name, pattern string
		in            authz.Input
		want          bool // a finding
	}{
		{"a path", "GET https://a.example/a", rules(nil, "/a"), true},
		{"another path", "GET https://a.example/b", rules(nil, "/a"), false},
		{"a path below a wildcard", "GET https://a.example/a/b/c", rules(nil, "/a/**"), true},
		{"a wildcard above a path", "GET https://a.example/*/b", rules(nil, "/a/*"), true},
		{"any path", "* https://a.example", rules(nil, "/a"), true},
		{"any host", "GET *://*/a", rules(nil, "/a"), true},
		{"a host below a wildcard", "GET https://x.a.example/", rules(first(func(r *authz.Rule) { r.To.Hosts = []string{"*.a.example"} }), "/**"), true},
		{"a wildcard", "GET https://**.example/", rules(nil, "/**"), true},
		{"another method", "POST,PUT https://a.example/a", rules(nil, "/a"), false},
		{"another port", "* https://a.example:8443", rules(nil, "/a"), false},
		{"any port", "* https://a.example:*", rules(first(func(r *authz.Rule) { r.To.Ports = []uint16{8443} }), "/a"), true},
		{"another scheme", "* http://a.example", rules(nil, "/a"), false},
		{"the scheme to which it is forwarded", "* https://a.example/a", originates, true},
		{"an address of a name", "* *://169.254.169.254/**", private, true},
		{"an address that no name may have", "* *://169.254.169.254/**", rules(nil, "/a"), false},
		{"an address that a literal embeds", "* *://169.254.169.254/**", rules(first(func(r *authz.Rule) { r.To.Hosts = []string{"64:ff9b::a9fe:a9fe"} }), "/a"), true},
		{"an address that another literal embeds", "* *://169.254.169.253/**", rules(first(func(r *authz.Rule) { r.To.Hosts = []string{"64:ff9b::a9fe:a9fe"} }), "/a"), false},
		{"an address that a granted range embeds", "* *://8.8.8.8", rules(first(func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96")} }), "/a"), true},
		{"an address that a granted range would embed", "* *://10.0.0.1", rules(first(func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96")} }), "/a"), false},
		{"an address while observing", "* *://8.8.8.8", observing(rules(nil, "/a")), true},
		{"a tunnel carries requests", "POST https://a.example/x", tunnel, true},
		{"a tunnel to another port", "POST https://a.example:8443/x", tunnel, false},
		{"an encoded slash", "GET https://a.example/a/*", rules(first(func(r *authz.Rule) { r.EncodedSlash = "allow" }), "/a/*"), true},
		{"anything while observing", "DELETE https://other.example/x", observing(rules(nil, "/a")), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, err := ParsePattern(test.pattern)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Never(context.Background(), snapshotOf(t, test.in), p, Options{Plugin: "p", At: noon})
			if err != nil || !got.Complete || (len(got.Findings) > 0) != test.want {
				t.Errorf("Never(%s) = %+v, %v, want findings: %t", test.pattern, got.Findings, err, test.want)
			}
		})
	}
	for _, wrong := range []string{"", "GET", "GET a.example", "GET https://", "GET https://a.example:0/", "GET https://a.example/a/../b", "GET https://a*.example/", "G/T https://a.example/", "GET https://a.example/** x"} {
		if p, err := ParsePattern(wrong); err == nil {
			t.Errorf("ParsePattern(%q) = %+v, want an error", wrong, p)
		}
	}
}

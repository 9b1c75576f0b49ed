package prove

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// rules returns a policy of one grant whose rules are for GET of paths at a.example,
// unless edit changes them.
func rules(edit func(g *authz.Grant), paths ...string) authz.Input {
	g := authz.Grant{Name: "g", Plugin: "p", NotAfter: noon.Add(24 * time.Hour), Rules: []authz.Rule{{
		ID: "r", Reason: "a test", To: authz.To{Hosts: []string{"a.example"}}, Methods: []string{"GET"}, Paths: paths,
	}}}
	if edit != nil {
		edit(&g)
	}
	return authz.Input{Plugin: "p", Grants: []authz.Grant{g}}
}

// first returns an edit of the first rule.
func first(edit func(r *authz.Rule)) func(g *authz.Grant) {
	return func(g *authz.Grant) { edit(&g.Rules[0]) }
}

func limits(l string) func(g *authz.Grant) {
	return func(g *authz.Grant) {
		if err := g.Rules[0].Limits.Requests.UnmarshalText([]byte(l)); err != nil {
			panic(err)
		}
	}
}

func observing(in authz.Input) authz.Input {
	in.Observe, in.ObserveUntil = true, noon.Add(time.Hour)
	return in
}

func snapshotOf(t testing.TB, in authz.Input) *authz.Snapshot {
	t.Helper()
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var engine authz.Engine
	engine.Install(compiled)
	return engine.Current()
}

// describe writes a finding on one line.
func describe(f Finding) string {
	switch f.Kind {
	case KindSocket:
		return "socket " + f.Socket
	case KindLimit:
		return "limit " + f.Limit.Name()
	case KindAddress:
		return "address " + f.Address.String()
	case KindAccess, KindCredential, KindUpstream, KindTerms:
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", f.Kind, f.Request.Action.Method, f.Request.Destination.URL(), f.Request.Action.Upgrade))
}

func TestCompare(t *testing.T) {
	prefixes := func(texts ...string) func(r *authz.Rule) {
		return func(r *authz.Rule) {
			for _, text := range texts {
				r.To.Addresses = append(r.To.Addresses, netip.MustParsePrefix(text))
			}
		}
	}
	tests := []struct {
		name          string
		before, after authz.Input
		want          []string // nil: within
	}{
		{"the same", rules(nil, "/a"), rules(nil, "/a"), nil},
		{"another path", rules(nil, "/a"), rules(nil, "/b"), []string{"access GET https://a.example/b"}},
		{"a wildcard within literals and the rest", rules(nil, "/a/**"), rules(nil, "/a/*"), nil},
		{"a union that lacks a slash at the end", rules(nil, "/a/", "/a/*", "/a/*/*", "/a/*/*/**"), rules(nil, "/a/**"), []string{"access GET https://a.example/a/any2/"}},
		{"a union that covers the rest", rules(nil, "/a/", "/a/*", "/a/*/**"), rules(nil, "/a/**"), nil},
		{"paths beyond the longest pattern", rules(nil, "/", "/*", "/*/", "/*/*", "/*/*/"), rules(nil, "/**"), []string{"access GET https://a.example/any1/any2/any3"}},
		{
			"an encoded slash", rules(nil, "/a/*"), rules(first(func(r *authz.Rule) { r.EncodedSlash = "allow" }), "/a/*"),
			[]string{"access GET https://a.example/a/any%2Fany2"},
		},
		{
			"observing adds TRACE to every method", rules(first(func(r *authz.Rule) { r.Methods = []string{"*"} }), "/**"),
			rules(first(func(r *authz.Rule) {
				r.Methods, r.Mode, r.ObserveUntil = []string{"*"}, authz.ModeObserve, noon.Add(time.Hour)
			}), "/**"),
			[]string{"access ANY https://a.example/ any", "access TRACE https://a.example/", "access TRACE https://a.example/ any"},
		},
		{
			"a deep wildcard beyond a single one", rules(first(func(r *authz.Rule) { r.To.Hosts = []string{"*.a.example"} }), "/"),
			rules(first(func(r *authz.Rule) { r.To.Hosts = []string{"**.a.example"} }), "/"),
			[]string{"access GET https://x.x.a.example/"},
		},
		{
			"plain http that becomes https", rules(nil, "/"), rules(first(func(r *authz.Rule) { r.To.TLS.Originate = true }), "/"),
			[]string{"access GET http://a.example/"},
		},
		{"a later end", rules(first(func(r *authz.Rule) { r.NotAfter = noon.Add(time.Hour) }), "/"), rules(nil, "/"), []string{"access GET https://a.example/"}},
		{"an earlier end", rules(nil, "/"), rules(first(func(r *authz.Rule) { r.NotAfter = noon.Add(time.Hour) }), "/"), nil},
		{"a private range", rules(nil, "/"), rules(first(prefixes("10.0.0.0/8")), "/"), []string{"address 10.0.0.0"}},
		{"a public range", rules(nil, "/"), rules(first(prefixes("93.184.0.0/16")), "/"), nil},
		{
			"a lower TLS version, which is then also not a condition that an Envoy cannot enforce", rules(first(func(r *authz.Rule) { r.To.TLS.Min = "1.3" }), "/"),
			rules(nil, "/"),
			[]string{"terms GET https://a.example/", "access GET https://a.example/"},
		},
		{"a rule's socket", rules(nil, "/"), rules(func(g *authz.Grant) { g.Sockets = []string{"/run/db.sock"} }, "/"), []string{"socket /run/db.sock"}},
		{"a higher rate", rules(limits("10/1m"), "/"), rules(limits("11/1m"), "/"), []string{"limit g/r requests"}},
		{"a lower rate", rules(limits("10/1m"), "/"), rules(limits("9/1m"), "/"), nil},
		{
			"two rates in place of one", rules(limits("10/1m"), "/a", "/b"),
			rules(func(g *authz.Grant) {
				limits("10/1m")(g)
				g.Rules = append(g.Rules, g.Rules[0])
				g.Rules[0].Paths, g.Rules[1].Paths, g.Rules[1].ID = []string{"/a"}, []string{"/b"}, "s"
			}),
			[]string{"limit g/r requests"},
		},
		{"a total that is counted afresh", rules(limits("10"), "/"), rules(func(g *authz.Grant) { limits("10")(g); g.Rules[0].ID = "s" }, "/"), []string{"limit g/r requests"}},
		{"the same total", rules(limits("10"), "/"), rules(limits("10"), "/"), nil},
	}
	for _, test := range tests {
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

// TestObserving: a sidecar that observes allows hosts that neither policy names.
func TestObserving(t *testing.T) {
	got, err := Compare(context.Background(), snapshotOf(t, rules(nil, "/")), snapshotOf(t, observing(rules(nil, "/"))), Options{Plugin: "p", At: noon})
	if err != nil || len(got.Findings) == 0 {
		t.Fatalf("Compare = %+v, %v, want findings", got, err)
	}
	if !slices.ContainsFunc(got.Findings, func(f Finding) bool { return f.New.Reason == authz.Observed }) {
		t.Errorf("no finding is observed: %+v", got.Findings)
	}
}

// TestEndsInTime: a comparison that is stopped reports that it is not complete.
func TestEndsInTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	got, err := Compare(ctx, snapshotOf(t, rules(nil, "/")), snapshotOf(t, rules(nil, "/")), Options{Plugin: "p", At: noon})
	if err != nil || got.Complete {
		t.Errorf("Compare = %+v, %v, want a result that is not complete", got, err)
	}
}

// many returns a policy of n rules, ten for each host and two paths in each.
func many(n int) authz.Input {
	in := authz.Input{Plugin: "p"}
	for host := range n / 10 {
		g := authz.Grant{Name: fmt.Sprintf("g%d", host), Plugin: "p", NotAfter: noon.Add(24 * time.Hour)}
		for i := range 10 {
			g.Rules = append(g.Rules, authz.Rule{
				ID: fmt.Sprintf("r%d", i), Reason: "a benchmark", To: authz.To{Hosts: []string{fmt.Sprintf("h%d.example", host)}},
				Methods: []string{"GET", "POST"}, Paths: []string{fmt.Sprintf("/v%d/*/items", i), fmt.Sprintf("/v%d/things/**", i)},
			})
		}
		in.Grants = append(in.Grants, g)
	}
	return in
}

func BenchmarkCompare(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := snapshotOf(b, many(n))
			for b.Loop() {
				got, err := Compare(context.Background(), s, s, Options{Plugin: "p", At: noon})
				if err != nil || !got.Complete || len(got.Findings) > 0 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

package authz

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// travels is a grant with a rule of every kind of place.
func travels() Grant {
	g := forecast()
	g.Rules[0].To.Hosts = []string{"api.weather.example", "*.tiles.weather.example"}
	g.Rules[0].Upgrades = []string{"websocket", "mqtt"}
	g.Rules[0].To.TLS.Originate = true
	g.Rules = append(g.Rules,
		Rule{ID: "db", Reason: "r", To: To{Scheme: SchemeTCP, Hosts: []string{"192.0.2.7"}, Ports: []uint16{5432, 5433}}},
		Rule{ID: "mail", Reason: "r", To: To{Scheme: SchemeTLS, Hosts: []string{"mail.example"}}, NotAfter: noon.Add(time.Hour)},
	)
	return g
}

// TestRoutes: a data plane receives the destinations of the rules in force, and of
// nothing else.
func TestRoutes(t *testing.T) {
	all := []string{
		"weather/db tcp 192.0.2.7:5432", "weather/db tcp 192.0.2.7:5433", "weather/mail tls mail.example:443",
		"weather/read-forecast https api.weather.example:443", "weather/read-forecast https *.tiles.weather.example:443",
	}
	never := Guardrail{Name: "company", Plugins: []string{"**"}, Never: []Never{{
		ID: "inside", Hosts: []string{"mail.example"}, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	}}}
	for _, c := range []struct {
		name       string
		now        time.Time
		revoked    []Revocation
		guardrails []Guardrail
		want       []string
	}{
		{name: "everything", now: noon, want: all},
		{name: "a rule has expired", now: noon.Add(time.Hour), want: slices.Delete(slices.Clone(all), 2, 3)},
		{name: "the grant has expired", now: noon.AddDate(0, 2, 0)},
		{name: "a rule is revoked", now: noon, revoked: []Revocation{{Plugin: "weather", Rule: "db", Level: LevelQuarantine}}, want: all[2:]},
		{name: "a rule is paused", now: noon, revoked: []Revocation{{Plugin: "weather", Rule: "db", Level: LevelPause}}, want: all},
		{name: "the plugin is revoked", now: noon, revoked: []Revocation{{Plugin: "weather", Level: LevelHalt}}},
		{name: "a never-list", now: noon, guardrails: []Guardrail{never}, want: all[3:]},
	} {
		in := input(travels())
		in.Guardrails = c.guardrails
		var got []string
		for _, r := range snapshot(t, in, c.revoked...).Routes("weather", c.now) {
			got = append(got, fmt.Sprintf("%s/%s %s %s:%d", r.Grant, r.Rule, r.Scheme, r.Host, r.Port))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
	}
	routes := snapshot(t, input(travels())).Routes("weather", noon)
	exact, wild := routes[3], routes[4]
	if !exact.Exact() || wild.Exact() || exact.Upgrades != "mqtt,websocket" || !exact.Originate || exact.Terms.TLSMin != "1.2" {
		t.Errorf("%+v and %+v", exact, wild)
	}
	for host, want := range map[string]bool{"a.tiles.weather.example": true, "a.b.tiles.weather.example": false, "eviltiles.weather.example": false} {
		if wild.Matches(host) != want {
			t.Errorf("%s matches %s: %t", wild.Host, host, !want)
		}
	}
	if (Route{}).Matches("") || (&Snapshot{}).Routes("weather", noon) != nil || snapshot(t, input(travels())).Routes("other", noon) != nil {
		t.Error("the zero route matches")
	}
}

// TestDecideRoute: what carries accesses stands as long as its rule does, and
// leads only where that one may.
func TestDecideRoute(t *testing.T) {
	revoke := func(level Level, rule string) []Revocation {
		return []Revocation{{Plugin: "weather", Rule: rule, Level: level}}
	}
	for _, c := range []struct {
		name, rule, to string
		now            time.Time
		revoked        []Revocation
		reason         Reason
		cuts           bool
	}{
		{"granted", "read-forecast", "https://api.weather.example/", noon, nil, Granted, false},
		{"a wildcard", "read-forecast", "https://a.tiles.weather.example/", noon, nil, Granted, false},
		{"an address", "db", "tcp://192.0.2.7:5433", noon, nil, Granted, false},
		{"another host", "read-forecast", "https://evil.example/", noon, nil, DestinationNotGranted, true},
		{"another rule's host", "db", "https://api.weather.example/", noon, nil, DestinationNotGranted, true},
		{"another port", "read-forecast", "https://api.weather.example:8443/", noon, nil, DestinationNotGranted, true},
		{"another scheme", "read-forecast", "http://api.weather.example:443/", noon, nil, DestinationNotGranted, true},
		{"no rule", "gone", "https://api.weather.example/", noon, nil, DestinationNotGranted, true},
		{"expired", "mail", "tls://mail.example:443", noon.Add(time.Hour), nil, GrantExpired, true},
		{"the rule is revoked", "db", "tcp://192.0.2.7:5432", noon, revoke(LevelQuarantine, "db"), Revoked, true},
		{"another rule is revoked", "db", "tcp://192.0.2.7:5432", noon, revoke(LevelQuarantine, "mail"), Granted, false},
		{"paused", "db", "tcp://192.0.2.7:5432", noon, revoke(LevelPause, ""), Revoked, false},
		{"halted", "db", "tcp://192.0.2.7:5432", noon, revoke(LevelHalt, ""), Revoked, true},
	} {
		s := snapshot(t, input(travels()), c.revoked...)
		d := s.DecideRoute("weather", "weather", c.rule, get(t, c.to).Destination, c.now)
		if d.Reason != c.reason || d.Cuts() != c.cuts {
			t.Errorf("%s: %s, cuts %t", c.name, d.Reason, d.Cuts())
		}
	}
	s := snapshot(t, input(travels()))
	d := s.DecideRoute("weather", "weather", "read-forecast", get(t, forecastURL).Destination, noon)
	if d.CheckAddress(netip.MustParseAddr("8.8.8.8")) != Granted || d.CheckAddress(netip.MustParseAddr("127.0.0.1")) != AddressNotAllowed {
		t.Error("a name resolves to public addresses, and to no other")
	}
	to := get(t, forecastURL).Destination
	if (&Snapshot{}).DecideRoute("weather", "weather", "read-forecast", to, noon).Reason != NotReady ||
		s.DecideRoute("other", "weather", "read-forecast", to, noon).Reason != NoGrant {
		t.Error("the route of no plugin is granted")
	}
}

// TestCovers: a connection outlives a reload of its rule if that removed no access.
func TestCovers(t *testing.T) {
	decide := func(change func(*Grant)) Decision {
		g := withKey(forecast())
		r := &g.Rules[0]
		r.Methods, r.Paths, r.Upgrades = []string{"GET", "HEAD"}, []string{"/v1/*", "/v2/**"}, []string{"websocket"}
		r.EncodedSlash, r.To.Addresses = "allow", []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		change(&g)
		to := get(t, forecastURL).Destination
		return snapshot(t, input(g)).DecideRoute("weather", "weather", "read-forecast", to, noon)
	}
	was := decide(func(*Grant) {})
	for _, c := range []struct {
		name   string
		change func(*Grant)
		covers bool
	}{
		{"nothing", func(*Grant) {}, true},
		{"a path more", func(g *Grant) { g.Rules[0].Paths = append(g.Rules[0].Paths, "/v3") }, true},
		{"any method", func(g *Grant) { g.Rules[0].Methods = []string{"*"} }, true},
		{"an address more", func(g *Grant) {
			g.Rules[0].To.Addresses = append(g.Rules[0].To.Addresses, netip.MustParsePrefix("198.51.100.0/24"))
		}, true},
		{"a limit", func(g *Grant) { g.Rules[0].Limits.Requests = Limit{Count: 1, Period: time.Minute} }, true},
		{"an earlier end", func(g *Grant) { g.Rules[0].NotAfter = noon.Add(time.Hour) }, true},
		{"a path less", func(g *Grant) { g.Rules[0].Paths = g.Rules[0].Paths[1:] }, false},
		{"a method less", func(g *Grant) { g.Rules[0].Methods = g.Rules[0].Methods[1:] }, false},
		{"no upgrades", func(g *Grant) { g.Rules[0].Upgrades = nil }, false},
		{"no encoded slash", func(g *Grant) { g.Rules[0].EncodedSlash = "" }, false},
		{"no credential", func(g *Grant) { g.Rules[0].Credential, g.Credentials = "", nil }, false},
		{"another credential", func(g *Grant) { g.Credentials[0].Vault.Path = "secret/data/other" }, false},
		{"another TLS floor", func(g *Grant) { g.Rules[0].To.TLS.Min = "1.3" }, false},
		{"other addresses", func(g *Grant) { g.Rules[0].To.Addresses[0] = netip.MustParsePrefix("198.51.100.0/24") }, false},
		{"public addresses", func(g *Grant) { g.Rules[0].To.Addresses = nil }, false},
	} {
		d := decide(c.change)
		if !d.Allowed() {
			t.Fatalf("%s: %s", c.name, d.Reason)
		}
		if d.Covers(was) != c.covers {
			t.Errorf("%s: what went on before goes on: %t", c.name, !c.covers)
		}
	}
	if all := decide(func(g *Grant) { g.Rules[0].Methods = []string{"*"} }); was.Covers(all) || was.Covers(Decision{}) || (Decision{}).Covers(was) {
		t.Error("fewer methods, or nothing, cover what was allowed")
	}
}

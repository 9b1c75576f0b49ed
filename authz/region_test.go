package authz

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// regional returns a policy whose rule is for regions, which guardrails define.
func regional(regions []string, addresses []netip.Prefix, defined ...map[string][]Place) Input {
	g := forecast()
	g.Rules[0].To.Hosts = []string{"api.weather.example", "*.weather.example", "8.8.8.8", "9.9.9.9"}
	g.Rules[0].To.Addresses = addresses
	g.Rules[0].Data.Regions = regions
	in := input(g)
	for i, r := range defined {
		in.Guardrails = append(in.Guardrails, Guardrail{Name: "company" + string(rune('a'+i)), Plugins: []string{"**"}, Regions: r})
	}
	return in
}

func decideURL(t testing.TB, in Input, url string) Decision {
	t.Helper()
	d := snapshot(t, in).Decide(get(t, url), Usage{}, noon)
	if !d.Allowed() {
		t.Fatalf("%s: decided %s", url, d.Reason)
	}
	return d
}

// TestRegions judges addresses and hosts by the regions of the winning rule.
func TestRegions(t *testing.T) {
	two := map[string][]Place{
		"eu": {"8.8.0.0/16", "2606:4700::/32", "9.9.9.9", "tagged.weather.example", "64:ff9b::/96"},
		"us": {"1.1.1.0/24"},
	}
	nat64 := prefixes("64:ff9b::/96")
	for _, c := range []struct {
		name, host string
		regions    []string
		addresses  []netip.Prefix
		defined    []map[string][]Place
		want       map[string]Reason
	}{
		{"one region", "api.weather.example", []string{"eu"}, nil, []map[string][]Place{two}, map[string]Reason{
			"8.8.8.8": Granted, "8.8.255.255": Granted, "8.9.0.0": AddressNotAllowed, "1.1.1.1": AddressNotAllowed, "9.9.9.9": Granted, "9.9.9.8": AddressNotAllowed,
			"::ffff:8.8.8.8": Granted, "::ffff:1.1.1.1": AddressNotAllowed, "2606:4700::1": Granted, "2606:4701::1": AddressNotAllowed, "10.0.0.1": AddressNotAllowed,
		}},
		{"two regions", "api.weather.example", []string{"eu", "us"}, nil, []map[string][]Place{two}, map[string]Reason{
			"8.8.8.8": Granted, "1.1.1.1": Granted, "::ffff:1.1.1.1": Granted, "4.4.4.4": AddressNotAllowed,
		}},
		{"a host of the region, at any address that the rule allows", "tagged.weather.example", []string{"eu"}, nil, []map[string][]Place{two}, map[string]Reason{
			"4.4.4.4": Granted, "10.0.0.1": AddressNotAllowed, "2606:4701::1": Granted,
		}},
		{"a host below one of the region", "x.weather.example", []string{"eu"}, nil, []map[string][]Place{two}, map[string]Reason{"4.4.4.4": AddressNotAllowed, "8.8.8.8": Granted}},
		{"a region does not grant an address", "api.weather.example", []string{"eu"}, prefixes("8.8.8.0/24"), []map[string][]Place{two}, map[string]Reason{
			"8.8.8.8": Granted, "8.8.9.9": AddressNotAllowed,
		}},
		{"translated addresses are where the translator leads", "api.weather.example", []string{"eu"}, nat64, []map[string][]Place{two}, map[string]Reason{
			"64:ff9b::8.8.8.8": Granted, "64:ff9b::1.1.1.1": AddressNotAllowed,
		}},
		{"a wide prefix includes no translator", "api.weather.example", []string{"world"}, nat64, []map[string][]Place{{"world": {"::/0", "0.0.0.0/0"}}}, map[string]Reason{
			"64:ff9b::8.8.8.8": AddressNotAllowed,
		}},
		{"several guardrails narrow a region", "api.weather.example", []string{"eu"}, nil, []map[string][]Place{two, {"eu": {"8.8.8.0/24", "1.1.1.0/24"}}, {"us": {"8.8.8.0/24"}}}, map[string]Reason{
			"8.8.8.8": Granted, "8.8.9.9": AddressNotAllowed, "1.1.1.1": AddressNotAllowed,
		}},
		{"several guardrails, of which one names the host", "tagged.weather.example", []string{"eu"}, nil, []map[string][]Place{two, {"eu": {"4.4.4.4"}}}, map[string]Reason{
			"4.4.4.4": Granted, "8.8.8.8": AddressNotAllowed,
		}},
		{"no regions", "api.weather.example", nil, nil, []map[string][]Place{two}, map[string]Reason{"4.4.4.4": Granted, "1.1.1.1": Granted}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decideURL(t, regional(c.regions, c.addresses, c.defined...), "https://"+c.host+"/v1/forecast/oslo")
			for text, want := range c.want {
				if got := d.CheckAddress(netip.MustParseAddr(text)); got != want {
					t.Errorf("%s: got %s, want %s", text, got, want)
				}
			}
		})
	}
	literal := regional([]string{"eu"}, nil, two)
	if d := decideURL(t, literal, "https://8.8.8.8/v1/forecast/oslo"); d.CheckAddress(netip.MustParseAddr("8.8.8.8")) != Granted || d.Region(netip.Addr{}) != "" {
		t.Errorf("literal in the region: %s", d.CheckAddress(netip.MustParseAddr("8.8.8.8")))
	}
	literal.Guardrails[0].Regions = map[string][]Place{"eu": {"1.1.1.1"}}
	if d := decideURL(t, literal, "https://8.8.8.8/v1/forecast/oslo"); d.CheckAddress(netip.MustParseAddr("8.8.8.8")) != AddressNotAllowed {
		t.Error("a literal outside the region is allowed")
	}
}

// A region that guardrails define is fixed for the access: what it holds, which is recorded,
// is that of the rule first.
func TestRegionOf(t *testing.T) {
	defined := map[string][]Place{"all": {"0.0.0.0/0"}, "eu": {"8.8.8.0/24", "tagged.weather.example"}, "us": {"8.8.8.0/24", "1.1.1.0/24"}}
	for _, c := range []struct {
		regions             []string
		host, address, want string
	}{
		{[]string{"us"}, "api.weather.example", "8.8.8.8", "us"},
		{[]string{"us", "eu"}, "api.weather.example", "8.8.8.8", "us"},
		{[]string{"eu", "us"}, "api.weather.example", "1.1.1.1", "us"},
		{[]string{"eu"}, "api.weather.example", "1.1.1.1", "all"},
		{nil, "api.weather.example", "1.1.1.1", "all"},
		{nil, "api.weather.example", "2606:4700::1", ""},
		{[]string{"eu"}, "tagged.weather.example", "", "eu"},
		{nil, "tagged.weather.example", "", "eu"},
		{nil, "api.weather.example", "", ""},
	} {
		var addr netip.Addr
		if c.address != "" {
			addr = netip.MustParseAddr(c.address)
		}
		if got := decideURL(t, regional(c.regions, nil, defined), "https://"+c.host+"/v1/forecast/oslo").Region(addr); got != c.want {
			t.Errorf("%v %s %s: got %q, want %q", c.regions, c.host, c.address, got, c.want)
		}
	}
}

// TestRegionRefusal records the region, and names it to the plugin.
func TestRegionRefusal(t *testing.T) {
	w := newWorld(t, regional([]string{"eu"}, nil, map[string][]Place{"eu": {"8.8.8.0/24"}, "us": {"1.1.1.0/24"}}))
	a := w.admit(t, get(t, forecastURL))
	r := a.RefuseAddress(netip.MustParseAddr("::ffff:1.1.1.1"))
	if err := a.End(Outcome{}); err != nil {
		t.Fatal(err)
	}
	const want = "address_not_allowed: api.weather.example resolves to 1.1.1.1, which is in region us, outside region eu of rule read-forecast of grant weather; " +
		"make the name resolve to an address in region eu, or have a guardrail include this one"
	if got := r.Line(); got != want || r.Nearest == nil || strings.Join(r.Nearest.Differs, " ") != "regions" {
		t.Errorf("got %s, nearest %+v, want %s", got, r.Nearest, want)
	}
	b := w.admit(t, get(t, forecastURL))
	if !b.Connected(Connection{Address: netip.MustParseAddr("8.8.8.8")}) || b.Connected(Connection{Address: netip.MustParseAddr("1.1.1.1")}) {
		t.Error("a connection is judged by another region than its address's")
	}
	b.Connected(Connection{Address: netip.MustParseAddr("8.8.8.8")})
	if err := b.End(Outcome{Address: "8.8.8.8:443"}); err != nil {
		t.Fatal(err)
	}
	var regions []string
	for _, r := range w.recorder.all() {
		regions = append(regions, string(r.Kind)+" "+r.Region)
	}
	if got := strings.Join(regions, ", "); got != "decision , end us, decision , end eu" {
		t.Errorf("recorded %s", got)
	}
	w.engine.Install(compile(t, regional([]string{"eu"}, nil, map[string][]Place{"eu": {"4.4.4.4"}})))
	c := w.admit(t, get(t, forecastURL))
	c.Connected(Connection{Address: netip.MustParseAddr("4.4.4.4")})
	if w.engine.Install(compile(t, regional([]string{"eu"}, nil, map[string][]Place{"eu": {"8.8.8.8"}}))); c.StillAllowed() {
		t.Error("an access goes on at an address that a guardrail has taken out of the region")
	}
}

// The end of an access through an Envoy, whose address the sidecar does not see, has the
// region of a rule with one region: the Envoy's exit keeps it.
func TestRegionThroughEnvoy(t *testing.T) {
	defined := map[string][]Place{"eu": {"8.8.8.0/24"}, "us": {"1.1.1.0/24"}}
	for name, c := range map[string]struct {
		regions []string
		door    Door
		refuses bool // after the decision
		want    string
	}{
		"one region":               {[]string{"eu"}, DoorExtAuthz, false, "eu"},
		"two regions":              {[]string{"eu", "us"}, DoorExtAuthz, false, ""},
		"no region":                {nil, DoorExtAuthz, false, ""},
		"refused at last":          {[]string{"eu"}, DoorExtAuthz, true, ""},
		"a proxy that dialled not": {[]string{"eu"}, DoorProxy, false, ""},
	} {
		w := newWorld(t, regional(c.regions, nil, defined))
		_, err := w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{Door: c.door, UID: -1}, func(a *Admission) Outcome {
			if c.refuses {
				a.Refuse(NotEnforceableHere, "")
			}
			return Outcome{}
		})
		records := w.recorder.all()
		if last := records[len(records)-1]; err != nil || last.Kind != KindEnd || last.Region != c.want {
			t.Errorf("%s: recorded %+v, %v, want region %q", name, last, err, c.want)
		}
	}
}

// A door that does not see the address enforces a region only for a host of the region.
func TestRegionsAtADoorWithoutAddresses(t *testing.T) {
	in := regional([]string{"eu"}, nil, map[string][]Place{"eu": {"8.8.8.0/24", "tagged.weather.example"}})
	for host, want := range map[string]Reason{"api.weather.example": NotEnforceableHere, "tagged.weather.example": Granted} {
		req := get(t, "https://"+host+"/v1/forecast/oslo")
		req.Unenforceable = ConditionAddresses
		if d := snapshot(t, in).Decide(req, Usage{}, noon); d.Reason != want {
			t.Errorf("%s: got %s, want %s", host, d.Reason, want)
		}
	}
	in.Grants[0].Rules[0].To.Addresses = prefixes("8.8.8.0/24")
	req := get(t, "https://tagged.weather.example/v1/forecast/oslo")
	req.Unenforceable = ConditionAddresses
	if d := snapshot(t, in).Decide(req, Usage{}, noon); d.Reason != NotEnforceableHere {
		t.Errorf("a host of the region with addresses: got %s", d.Reason)
	}
}

func TestRegionProblems(t *testing.T) {
	good := map[string][]Place{"eu": {"8.8.8.0/24"}}
	for _, c := range []struct {
		in   Input
		want string
	}{
		{regional([]string{"eu"}, nil), `spec.rules[0].data.regions[0]: "eu" is not a region that a guardrail for plugin weather defines; define it under spec.regions of a guardrail`},
		{regional([]string{"us"}, nil, good), `spec.rules[0].data.regions[0]: "us" is not a region that a guardrail for plugin weather defines; use eu, or define it under spec.regions of a guardrail`},
		{regional([]string{"eu", "eu"}, nil, good), `spec.rules[0].data.regions[1]: "eu" is given twice`},
		{regional([]string{}, nil, good), `spec.rules[0].data.regions: is empty; name regions, or leave it out to allow every region`},
		{regional(nil, nil, map[string][]Place{"EU": {"8.8.8.8"}}), `spec.regions.EU: "EU" is not a name; use lower-case letters and digits, with dashes, dots and underscores between them`},
		{regional(nil, nil, map[string][]Place{"eu": {}}), `spec.regions.eu: is empty; write the addresses and the exact hosts of the region`},
		{regional(nil, nil, map[string][]Place{"eu": {"*.eu.example"}}), `spec.regions.eu[0]: "*.eu.example" is a wildcard, and its hosts may be anywhere; write exact hosts, or the addresses of the region`},
		{regional(nil, nil, map[string][]Place{"eu": {"8.8.8.1/24"}}), `spec.regions.eu[0]: 8.8.8.1/24 is not canonical; write 8.8.8.0/24`},
		{regional(nil, nil, map[string][]Place{"eu": {"::ffff:8.8.8.0/120"}}), `spec.regions.eu[0]: ::ffff:8.8.8.0/120 is not canonical; write 8.8.8.0/24`},
		{regional(nil, nil, map[string][]Place{"eu": {"8.8.8.0/33"}}), `spec.regions.eu[0]: "8.8.8.0/33" is not a range of addresses; write an address and a length, as in 203.0.113.0/24`},
		{regional(nil, nil, map[string][]Place{"eu": {"::ffff:8.8.8.8"}}), `spec.regions.eu[0]: "::ffff:8.8.8.8" is not canonical; write "8.8.8.8"`},
		{regional(nil, nil, map[string][]Place{"eu": {"EU.example"}}), `spec.regions.eu[0]: "EU.example" is not canonical; write "eu.example"`},
	} {
		_, problems := Compile(c.in, noon)
		if len(problems) != 1 || problems[0].Path+": "+problems[0].Message != c.want {
			t.Errorf("got %v, want %s", problems, c.want)
		}
	}
	other := regional([]string{"eu"}, nil, good)
	other.Guardrails[0].Plugins = []string{"other"}
	if _, problems := Compile(other, noon); len(problems) != 1 {
		t.Errorf("a region of a guardrail for another plugin: got %v", problems)
	}
	classes := regional(nil, nil)
	classes.Grants[0].Rules[0].Data.Classes = []DataClass{"internal", "secret", "internal"}
	if _, problems := Compile(classes, noon); len(problems) != 2 {
		t.Errorf("classes: got %v", problems)
	}
}

// Regions only narrow: an address that a rule with regions allows is one that the same rule
// without them allows, and in one of the prefixes.
func TestRegionsOnlyNarrow(t *testing.T) {
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		if v4 := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4"); rapid.Bool().Draw(t, "is v4") {
			return netip.AddrFrom4([4]byte(v4))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6")))
	})
	rapid.Check(t, func(t *rapid.T) {
		var eu []Place
		var list []netip.Prefix
		for range rapid.IntRange(1, 4).Draw(t, "prefixes") {
			addr := address.Filter(func(a netip.Addr) bool { return !a.Is4In6() }).Draw(t, "prefix") // a region has no such prefix
			p := netip.PrefixFrom(addr, rapid.IntRange(0, addr.BitLen()).Draw(t, "bits")).Masked()
			eu, list = append(eu, Place(p.String())), append(list, p)
		}
		with, without := regional([]string{"eu"}, nil, map[string][]Place{"eu": eu}), regional(nil, nil)
		p, problems := Compile(with, noon)
		q, more := Compile(without, noon)
		if len(problems)+len(more) > 0 {
			t.Fatalf("%v %v", problems, more)
		}
		d, err := NewDestination(SchemeHTTPS, "api.weather.example", "/v1/forecast/oslo")
		if err != nil {
			t.Fatal(err)
		}
		req := Request{Principal: "weather", Destination: d, Action: Action{Method: "GET"}}
		a, b := newSnapshot(p, nil, 1).Decide(req, Usage{}, noon), newSnapshot(q, nil, 1).Decide(req, Usage{}, noon)
		addr := address.Draw(t, "address")
		in := rapid.Bool().Draw(t, "inside")
		if in {
			addr = rapid.SampledFrom(list).Draw(t, "of").Addr()
		}
		want := b.CheckAddress(addr)
		if !includes(list, addr.Unmap()) {
			want = AddressNotAllowed
		}
		if got := a.CheckAddress(addr); got != want {
			t.Fatalf("%s in %v: got %s, want %s", addr, list, got, want)
		}
	})
}

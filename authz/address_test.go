package authz

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// prefixes reads prefixes, for a rule or a never-list.
func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// decidedFor returns a decision of a rule with addresses, beside a never-list.
func decidedFor(t testing.TB, addresses, never []netip.Prefix) Decision {
	t.Helper()
	g := forecast()
	g.Rules[0].To.Addresses = addresses
	in := input(g)
	if len(never) > 0 {
		in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"**"}, Never: []Never{{ID: "n", Addresses: never}}}}
	}
	d := snapshot(t, in).Decide(get(t, forecastURL), Usage{}, noon)
	if !d.Allowed() {
		t.Fatalf("decided %s", d.Reason)
	}
	return d
}

// TestCheckAddress judges addresses by where a connection to them leads.
func TestCheckAddress(t *testing.T) {
	everything := prefixes("0.0.0.0/0", "::/0")
	for _, c := range []struct {
		name             string
		addresses, never []netip.Prefix
		want             map[string]Reason
	}{
		{"addresses of no server, even if granted", append(everything, prefixes("0.0.0.0/32", "::/128", "224.0.0.0/4", "ff00::/8", "255.255.255.255/32")...), nil, map[string]Reason{
			"0.0.0.0": AddressNotAllowed, "::": AddressNotAllowed, "::ffff:0.0.0.0": AddressNotAllowed,
			"64:ff9b::": AddressNotAllowed, "2002::1": AddressNotAllowed,
			"224.0.0.1": AddressNotAllowed, "ff02::1": AddressNotAllowed, "255.255.255.255": AddressNotAllowed,
			"127.0.0.1": Granted, "::1": Granted, "::ffff:127.0.0.1": Granted, "10.0.0.1": Granted, "fd00::1": Granted,
		}},
		{"the loopback in every spelling, beside a never-list", everything, prefixes("127.0.0.0/8", "::1/128"), map[string]Reason{
			"0.0.0.0": GuardrailDenied, "::": GuardrailDenied, "::ffff:0.0.0.0": GuardrailDenied, "::ffff:127.9.9.9": GuardrailDenied,
			"127.0.0.1": GuardrailDenied, "::1": GuardrailDenied, "::1%lo": GuardrailDenied, "::127.0.0.1": GuardrailDenied,
			"::ffff:0:127.0.0.1": GuardrailDenied, "64:ff9b::127.0.0.1": GuardrailDenied, "2002:7f00:1::": GuardrailDenied,
			"64:ff9b:1:7f00:0:100::": GuardrailDenied, "64:ff9b:1:7f:0:1::": GuardrailDenied,
			"64:ff9b:1:0:7f:0:100:0": GuardrailDenied, "64:ff9b:1::127.0.0.1": GuardrailDenied,
			"2001:0:7f00:1::f7f7:f7f7": GuardrailDenied, "2001:0:808:808::80ff:fffe": GuardrailDenied,
			"fd00::5efe:127.0.0.1": GuardrailDenied, "2001:4860::200:5efe:127.0.0.1": GuardrailDenied,
			"8.8.8.8": Granted,
		}},
		{"a wide prefix does not include what has a purpose of its own", everything, nil, map[string]Reason{
			"169.254.169.254": AddressNotAllowed, "::ffff:169.254.169.254": AddressNotAllowed, "fe80::1": AddressNotAllowed,
			"64:ff9b::8.8.8.8": AddressNotAllowed, "64:ff9b:1::8.8.8.8": AddressNotAllowed, "2002:808:808::1": AddressNotAllowed,
			"2001::1": AddressNotAllowed, "::8.8.8.8": AddressNotAllowed, "::ffff:0:8.8.8.8": AddressNotAllowed,
			"8.8.8.8": Granted, "2606:4700::1": Granted, "fd00:ec2::254": Granted,
		}},
		{"link-local where it is named", prefixes("169.254.170.2/32", "fe80::/10"), nil, map[string]Reason{
			"169.254.170.2": Granted, "169.254.169.254": AddressNotAllowed, "fe80::1": Granted, "fe80::1%eth0": AddressNotAllowed,
		}},
		{"translated, where the range is named: what is behind is judged too", prefixes("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "10.1.0.0/16"), nil, map[string]Reason{
			"64:ff9b::8.8.8.8": Granted, "64:ff9b::10.1.2.3": Granted, "64:ff9b::10.0.0.1": AddressNotAllowed,
			"64:ff9b::127.0.0.1": AddressNotAllowed, "64:ff9b::0.0.0.0": AddressNotAllowed, "64:ff9b::169.254.169.254": AddressNotAllowed,
			"64:ff9b:1::8.8.8.8": Granted, "64:ff9b:1::10.0.0.1": AddressNotAllowed, "64:ff9b:1:808:8:800::": Granted,
			"2001:0:808:808::f7f7:f7f7": Granted, "2001:0:808:808::f5ff:fffe": AddressNotAllowed,
		}},
		{"ISATAP behind a public prefix", nil, nil, map[string]Reason{
			"2606:4700::5efe:10.0.0.1": AddressNotAllowed, "2606:4700::1": Granted,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decidedFor(t, c.addresses, c.never)
			for text, want := range c.want {
				if got := d.CheckAddress(netip.MustParseAddr(text)); got != want {
					t.Errorf("%s: %s, want %s", text, got, want)
				}
			}
			if got := d.CheckAddress(netip.Addr{}); got != AddressNotAllowed {
				t.Errorf("no address: %s", got)
			}
		})
	}
}

// anyAddress draws addresses, often such that carry an IPv4 address.
func anyAddress(t *rapid.T) netip.Addr {
	four := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "IPv4"))
	six := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "IPv6"))
	switch copy(six[12:], four[:]); rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		return netip.AddrFrom4(four)
	case 1:
		copy(six[:12], "\x00\x64\xff\x9b\x00\x00\x00\x00\x00\x00\x00\x00")
	case 2:
		copy(six[:6], "\x00\x64\xff\x9b\x00\x01")
	case 3:
		copy(six[:2], "\x20\x02")
	case 4:
		copy(six[:4], "\x20\x01\x00\x00")
	case 5:
		copy(six[:12], "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff")
	case 6:
		copy(six[8:12], "\x00\x00\x5e\xfe")
	}
	return netip.AddrFrom16(six)
}

// TestNeverListSeesThrough: nothing on a never-list is granted in any spelling,
// whatever the rule's addresses are.
func TestNeverListSeesThrough(t *testing.T) {
	never := prefixes("0.0.0.0/1", "fc00::/7", "169.254.0.0/16")
	decisions := []Decision{
		decidedFor(t, nil, never), decidedFor(t, prefixes("0.0.0.0/0", "::/0"), never),
		decidedFor(t, prefixes("0.0.0.0/0", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"), never),
	}
	rapid.Check(t, func(t *rapid.T) {
		addr := anyAddress(t)
		held := slices.ContainsFunc(Reaches(addr), func(at netip.Addr) bool { return containsAddr(never, at) })
		for _, d := range decisions {
			got := d.CheckAddress(addr)
			if held && got != GuardrailDenied {
				t.Fatalf("%s: %s, and it resolves to %s", addr, got, Reaches(addr))
			}
			if got == Granted && unusable(addr.Unmap()) {
				t.Fatalf("%s is granted", addr)
			}
			if with := d.CheckAddress(addr.WithZone("eth0")); with == Granted && addr.Is6() && !addr.Is4In6() {
				t.Fatalf("%s is granted on an interface", addr)
			}
		}
	})
}

// TestLiteralsThatNameNoServer: a rule cannot name them.
func TestLiteralsThatNameNoServer(t *testing.T) {
	for _, host := range []string{"0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"} {
		g := forecast()
		g.Rules[0].To.Hosts = []string{host}
		if _, problems := Compile(input(g), noon); len(problems) != 1 || problems[0].Path != "spec.rules[0].to.hosts[0]" {
			t.Errorf("%s: %+v", host, problems)
		}
	}
}

// TestConnected: a connection is judged with each generation by its address and
// its TLS session, and so is one that was made while the policy changed.
func TestConnected(t *testing.T) {
	with := func(change func(r *Rule)) Input {
		g := forecast()
		g.Rules[0].To.Addresses = prefixes("10.0.0.0/8")
		if change != nil {
			change(&g.Rules[0])
		}
		return input(g)
	}
	never := with(nil)
	never.Guardrails = []Guardrail{{Name: "g", Plugins: []string{"*"}, Never: []Never{{ID: "n", Addresses: prefixes("10.1.0.0/16")}}}}
	meets := func(terms Terms) bool { return terms.TLSMin != "1.3" }
	for _, c := range []struct {
		name string
		next Input
		want Reason // Granted for a connection that goes on
	}{
		{"the same", with(nil), Granted},
		{"wider", with(func(r *Rule) { r.To.Addresses = prefixes("10.0.0.0/7") }), Granted},
		{"narrower, around it", with(func(r *Rule) { r.To.Addresses = prefixes("10.1.2.0/24") }), Granted},
		{"narrower", with(func(r *Rule) { r.To.Addresses = prefixes("10.2.0.0/16") }), AddressNotAllowed},
		{"public ones only", with(func(r *Rule) { r.To.Addresses = nil }), AddressNotAllowed},
		{"never", never, GuardrailDenied},
		{"a later version of TLS", with(func(r *Rule) { r.To.TLS.Min = "1.3" }), UpstreamUnreachable},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				w := newWorld(t, with(nil))
				a := w.admit(t, get(t, forecastURL))
				connection := Connection{Address: netip.MustParseAddr("::ffff:10.1.2.3"), Meets: meets}
				if !late && (!a.Connected(connection) || !a.StillAllowed()) {
					t.Fatal("it is refused at once")
				}
				w.engine.Install(compile(t, c.next))
				if late && a.Connected(connection) != (c.want == Granted) {
					t.Errorf("connected late: %t", c.want != Granted)
				}
				if a.StillAllowed() != (c.want == Granted) {
					t.Errorf("still allowed: %t", c.want != Granted)
				}
				if reason := a.ReasonNow(); c.want != Granted && reason != c.want {
					t.Errorf("the reason is %s", reason)
				}
			}
		})
	}
}

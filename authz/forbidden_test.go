package authz

import (
	"net/netip"
	"testing"
	"time"
)

func TestForbids(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	policy, problems := Compile(Input{
		Grants: []Grant{{Name: "g", Plugin: "weather", NotAfter: now.Add(time.Hour), Rules: []Rule{{
			ID: "r", Reason: "why", To: To{Scheme: SchemeHTTPS, Hosts: []string{"api.example"}}, Methods: []string{"GET"}, Paths: []string{"/**"},
		}}}},
		Guardrails: []Guardrail{{Name: "company", Plugins: []string{"**"}, Never: []Never{{
			ID: "evil", Hosts: []string{"evil.example", "**.evil.example"}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		}}}},
	}, now)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	engine := &Engine{}
	engine.Install(policy)
	for _, test := range []struct {
		host, addr string
		want       bool
	}{
		{"id.example", "", false},
		{"id.example", "192.0.2.1", false},
		{"id.example", "127.0.0.1", false},
		{"id.example", "::1", false},
		{"evil.example", "", true},
		{"EVIL.example.", "", true},
		{"id.evil.example", "", true},
		{"e vil", "", true},
		{"10.1.2.3", "", true},
		{"::ffff:10.1.2.3", "", true},
		{"169.254.169.254", "", true},
		{"", "10.1.2.3", true},
		{"", "64:ff9b::a01:203", true},
		{"", "2002:a01:203::1", true},
		{"", "169.254.169.254", true},
		{"", "64:ff9b::a9fe:a9fe", true},
		{"", "2002:a9fe:a9fe::1", true},
		{"", "::169.254.169.254", true},
		{"", "fe80::1", true},
		{"", "ff02::1", true},
		{"", "0.0.0.0", true},
		{"", "::", true},
		{"", "192.168.1.1", false},
	} {
		var addr netip.Addr
		if test.addr != "" {
			addr = netip.MustParseAddr(test.addr)
		}
		if got := engine.Current().Forbids("weather", test.host, addr); got != test.want {
			t.Errorf("%q %q: %v", test.host, test.addr, got)
		}
	}
	if !engine.Current().Forbids("nobody", "id.example", netip.Addr{}) {
		t.Error("a plugin that is not known may send anywhere")
	}
}

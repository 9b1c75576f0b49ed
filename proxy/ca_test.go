package proxy

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestConstraints issues leaves that the authority's own code would not, as a holder of
// its key could, and checks whether a client accepts them.
func TestConstraints(t *testing.T) {
	for _, test := range []struct {
		name     string
		hosts    []string
		observe  bool
		accepted []string
		refused  []string
	}{
		{"nothing granted", nil, false, nil, []string{"api.weather.example", "127.0.0.1", "::1"}},
		{
			"names",
			[]string{"api.weather.example", "*.tiles.weather.example"},
			false,
			[]string{"api.weather.example", "a.tiles.weather.example"},
			[]string{"evil.example", "weather.example", "evilapi.weather.example", "127.0.0.1", "::1"},
		},
		{
			"an address",
			[]string{"127.0.0.1", "api.weather.example"},
			false,
			[]string{"127.0.0.1", "api.weather.example"},
			[]string{"127.0.0.2", "::1", "evil.example"},
		},
		{"an address alone", []string{"::1"}, false, []string{"::1"}, []string{"127.0.0.1", "evil.example"}},
		{"observing", []string{"api.weather.example"}, true, []string{"evil.example"}, []string{"127.0.0.1", "::1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := authorityFor(t, test.hosts, test.observe)
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(a.pem())
			for _, host := range append(test.accepted, test.refused...) {
				leaf, err := a.leaf(host)
				if err != nil {
					t.Fatal(err)
				}
				_, err = leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
				want := len(test.accepted) > 0 && slices.Contains(test.accepted, host)
				if (err == nil) != want {
					t.Errorf("%s: verification gives %v, want accepted %v", host, err, want)
				}
				if a.covers(host) != want {
					t.Errorf("%s: covers is %v", host, !want)
				}
			}
			if !a.certificate.PermittedDNSDomainsCritical {
				t.Error("the constraints are not critical")
			}
		})
	}
}

// TestRenewAuthority renews the authority of a proxy that was created before any policy,
// as the command does before it starts a plugin.
func TestRenewAuthority(t *testing.T) {
	engine := new(authz.Engine)
	var announced []byte
	p, err := New(Config{
		Plugin: "weather", Engine: engine, Gate: &authz.Gate{}, Now: time.Now, Token: authz.NewSecret("t"),
		CAChanged: func(pem []byte) { announced = pem },
	})
	if err != nil {
		t.Fatal(err)
	}
	engine.Install(policyFor(t, []string{"api.weather.example"}, false))
	if err := p.RenewAuthority(); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(announced)
	leaf, err := p.authority.leaf("api.weather.example")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "api.weather.example"}); err != nil {
		t.Errorf("the authority that was announced last does not cover what is granted: %v", err)
	}
}

func authorityFor(t *testing.T, hosts []string, observe bool) *authority {
	t.Helper()
	engine := new(authz.Engine)
	engine.Install(policyFor(t, hosts, observe))
	a, err := newAuthority(Config{Plugin: "weather", Engine: engine, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func policyFor(t *testing.T, hosts []string, observe bool) *authz.Policy {
	t.Helper()
	input := authz.Input{Plugin: "weather", Observe: observe}
	if observe {
		input.ObserveUntil = time.Now().Add(time.Hour)
	}
	if len(hosts) > 0 {
		input.Grants = []authz.Grant{{Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(time.Hour), Rules: []authz.Rule{{
			ID: "r", Reason: "a test", Methods: []string{"GET"}, Paths: []string{"/"}, To: authz.To{Hosts: hosts},
		}}}}
	}
	policy, problems := authz.Compile(input, time.Now())
	if len(problems) > 0 {
		t.Fatalf("compile: %+v", problems)
	}
	return policy
}

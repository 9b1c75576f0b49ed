package xds_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// shapes are policies of every shape.
func shapes(t *testing.T) map[string][]authz.Rule {
	t.Helper()
	authority := string(testenv.MustGet(testenv.NewCA("another"))(t).PEM())
	with := func(r authz.Rule, change func(*authz.Rule)) authz.Rule {
		change(&r)
		return r
	}
	of := func(scheme authz.Scheme, host string, ports ...uint16) authz.Rule {
		r := authz.Rule{ID: "a", To: authz.To{Scheme: scheme, Hosts: []string{host}, Ports: ports}}
		if scheme.HTTP() {
			r.Methods, r.Paths = []string{"GET"}, []string{"/**"}
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			r.To.Addresses = []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
		}
		return r
	}
	base := https("a", "/**", "api.weather.example")
	var thousand []authz.Rule
	for i := range 1000 {
		r := https(fmt.Sprintf("r%d", i), "/**", fmt.Sprintf("h%d.weather.example", i))
		switch i % 10 {
		case 1:
			r.To.Hosts = []string{fmt.Sprintf("*.w%d.weather.example", i)}
		case 2:
			r.To.Scheme = authz.SchemeHTTP
		case 3:
			r = of(authz.SchemeTLS, fmt.Sprintf("h%d.weather.example", i))
		case 4:
			r = of(authz.SchemeTCP, fmt.Sprintf("198.51.%d.%d", i/250, i%250), uint16(1000+i))
		}
		r.ID = fmt.Sprintf("r%d", i)
		thousand = append(thousand, r)
	}
	return map[string][]authz.Rule{
		"nothing":         {},
		"exact":           {base},
		"single wildcard": {https("a", "/**", "*.weather.example")},
		"deep wildcard":   {https("a", "/**", "**.weather.example")},
		"wildcards that overlap": {
			https("a", "/**", "*.weather.example", "**.weather.example", "api.weather.example", "**.a.weather.example"), https("b", "/b", "**.weather.example"),
		},
		"originate":      {originated(base)},
		"http":           {of(authz.SchemeHTTP, "api.weather.example")},
		"http wildcard":  {of(authz.SchemeHTTP, "*.weather.example", 80, 8080)},
		"tls":            {of(authz.SchemeTLS, "api.weather.example")},
		"tls wildcard":   {of(authz.SchemeTLS, "**.weather.example", 443, 993)},
		"tls and https":  {base, with(of(authz.SchemeTLS, "api.weather.example", 443, 8443), func(r *authz.Rule) { r.ID = "b" })},
		"tcp address":    {of(authz.SchemeTCP, "198.51.100.7", 22, 443)},
		"tcp address v6": {of(authz.SchemeTCP, "2001:db8::7", 22)},
		"tcp name":       {of(authz.SchemeTCP, "db.weather.example", 5432)},
		"tcp wildcard":   {of(authz.SchemeTCP, "*.weather.example", 5432)},
		"https address":  {of(authz.SchemeHTTPS, "198.51.100.7"), with(of(authz.SchemeHTTPS, "2001:db8::7", 8443), func(r *authz.Rule) { r.ID = "b" })},
		"ports":          {with(base, func(r *authz.Rule) { r.To.Ports = []uint16{443, 8443, 9443} })},
		"timeout":        {with(base, func(r *authz.Rule) { r.Timeout = authz.Duration(3 * time.Second) })},
		"upgrades":       {with(base, func(r *authz.Rule) { r.Upgrades = []string{"connect", "websocket"} })},
		"authorities":    {with(base, func(r *authz.Rule) { r.To.TLS.CA = authority; r.To.TLS.CAFile = "ca.pem" })},
		"TLS 1.3":        {with(base, func(r *authz.Rule) { r.To.TLS.Min = "1.3" })},
		"a thousand":     thousand,
	}
}

// TestEnvoyTakesWhatIsMade has the real Envoy read the configuration of every
// shape of policy.
func TestEnvoyTakesWhatIsMade(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	authority := testenv.MustGet(testenv.NewCA("plugin"))(t)
	p := &plane{ca: authority, dir: t.TempDir()}
	for name, rules := range shapes(t) {
		t.Run(name, func(t *testing.T) {
			engine := new(authz.Engine)
			if len(rules) > 0 {
				engine.Install(compile(t, grant(rules...)))
			}
			cfg := xds.Config{
				Plugin: plugin, Engine: engine, Now: now, Check: "/run/check.sock", Listener: "/run/plugin.sock",
				EgressSockets: func(routes []authz.Route) ([]string, error) {
					out := make([]string, len(routes))
					for i := range routes {
						out[i] = fmt.Sprintf("/run/exit/%d.sock", i)
					}
					return out, nil
				},
				Leaf: pinned(t, p), Roots: string(authority.PEM()),
				Address: func(string) (netip.Addr, bool) { return virtual, true },
			}
			if len(rules) < 1000 { // one listener is as good as another, and takes long
				cfg.Explicit, cfg.Transparent = netip.MustParseAddrPort("127.0.0.1:15080"), netip.MustParseAddrPort("[::1]:15006")
			}
			text, err := xds.Static(cfg, p.params())
			if err != nil {
				t.Fatal(err)
			}
			if err := testenv.ValidateEnvoy(t.Context(), text); err != nil {
				t.Errorf("%v\n%s", err, text[:min(len(text), 20000)])
			}
			if strings.Contains(string(text), "failure_mode_allow: true") {
				t.Error("it fails open")
			}
		})
	}
	bootstrap := testenv.MustGet(xds.Bootstrap(p.params()))(t)
	testenv.Must(t, testenv.ValidateEnvoy(t.Context(), bootstrap))
}

// pinned returns a leaf that is made once, for all hosts.
func pinned(t *testing.T, p *plane) func(string) ([]byte, []byte, error) {
	t.Helper()
	certificate, key, err := p.leaf("api.weather.example")
	testenv.Must(t, err)
	return func(string) ([]byte, []byte, error) { return certificate, key, nil }
}

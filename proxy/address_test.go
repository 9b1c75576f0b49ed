package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// TestHostsOfOneRule requests several hosts of one rule, addresses among them, in every
// order: the result does not depend on earlier requests.
func TestHostsOfOneRule(t *testing.T) {
	plain := testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true, Authorize: func(*http.Request) bool { return true }, Listen: "0.0.0.0:0"})
	hosts := []string{"127.0.0.1", "127.0.0.2", "api.weather.example", "other.weather.example"}
	r := rule(plain, "read", hosts...)
	r.To.Addresses, r.To.Scheme, r.To.TLS, r.Credential = nil, authz.SchemeHTTP, authz.TLS{}, ""
	want := []int{200, 200, 403, 403} // a name may resolve to public addresses only
	for first := range hosts {
		w := newWorld(t, setup{input: granted(r), config: func(c *proxy.Config) {
			c.Upstream.Hosts["other.weather.example"] = []netip.Addr{netip.MustParseAddr("127.0.0.2")}
		}})
		client := w.client(nil)
		for i := range 2 * len(hosts) {
			at := (first + i) % len(hosts)
			url := fmt.Sprintf("http://%s:%d/echo", hosts[at], plain.Addr.Port())
			if response, body := send(t, client, request(t, "GET", url, "")); response.StatusCode != want[at] {
				t.Errorf("%s, when %s came first: %d, want %d: %s", hosts[at], hosts[first], response.StatusCode, want[at], body)
			}
		}
		w.settled()
	}
}

// TestNarrowedWhileLive narrows the hosts of a rule, or its TLS settings, while answers
// stream over connections of both kinds: connections to destinations that are no longer
// allowed are cut, and the others continue.
func TestNarrowedWhileLive(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{TLS: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }})
	other := upstream(t, testenv.UpstreamConfig{})
	wide := netip.MustParsePrefix("127.0.0.0/8")
	for _, c := range []struct {
		name   string
		change func(*authz.Rule)
		never  bool
		cut    bool
	}{
		{"addresses without it", func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("127.9.9.0/24")} }, false, true},
		{"addresses around it", func(r *authz.Rule) { r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")} }, false, false},
		{"a guardrail's addresses", nil, true, true},
		{"a later version of TLS", func(r *authz.Rule) { r.To.TLS.Min = "1.3" }, false, true},
		{"another authority", func(r *authz.Rule) { r.To.TLS.CA = string(other.CA.PEM()) }, false, true},
		{"one more authority", func(r *authz.Rule) { r.To.TLS.CA += string(other.CA.PEM()) }, false, false},
		{"the same", nil, false, false},
	} {
		for kind, transport := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
			t.Run(c.name+" "+kind, func(t *testing.T) {
				server := tcpServer(t, greeter)
				tunnel := tcpRule(server, authz.SchemeTCP, "other.weather.example")
				w := newWorld(t, setup{input: granted(rule(api, "read"), tunnel)})
				live, err := w.client(transport).Do(request(t, "GET", api.URL("api.weather.example", "/stream"), ""))
				testenv.Must(t, err)
				defer live.Body.Close()
				spliced := w.tunnel(fmt.Sprintf("other.weather.example:%d", server.Port()))
				if _, err := spliced.in.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				next := rule(api, "read")
				if c.change != nil {
					c.change(&next)
				}
				tunnel.To.Addresses = next.To.Addresses
				input := granted(next, tunnel)
				if c.never {
					input.Guardrails = []authz.Guardrail{{Name: "g", Plugins: []string{"**"}, Never: []authz.Never{{ID: "n", Addresses: []netip.Prefix{wide}}}}}
				}
				w.install(input)
				want := 0
				if c.cut {
					if want = 1; c.never || len(next.To.Addresses) > 0 && next.To.Addresses[0] != wide {
						want = 2
					}
				}
				if cut := w.proxy.Revalidate(); cut != want {
					t.Errorf("%d were cut, want %d", cut, want)
				}
				if !c.cut {
					if _, err := io.CopyN(io.Discard, live.Body, 1<<20); err != nil {
						t.Errorf("the answer ended: %v", err)
					}
					return
				}
				if _, err := io.Copy(io.Discard, live.Body); err == nil {
					t.Error("the answer looks complete")
				}
				testenv.Must(t, api.WaitStreams(t.Context(), 0))
			})
		}
	}
}

// TestExitNarrowed is the same for a connection of an Envoy.
func TestExitNarrowed(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	for name, narrow := range map[string]func(*authz.Input){
		"addresses": func(in *authz.Input) {
			in.Grants[0].Rules[0].To.Addresses = []netip.Prefix{netip.MustParsePrefix("127.9.9.0/24")}
		},
		"a guardrail": func(in *authz.Input) {
			in.Guardrails = []authz.Guardrail{{Name: "g", Plugins: []string{"**"}, Never: []authz.Never{{ID: "n", Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, setup{input: granted(rule(api, "read"))})
			live := w.stream(t, api, w.exits()["read api.weather.example"], "api.weather.example")
			input := granted(rule(api, "read"))
			narrow(&input)
			w.install(input)
			if cut := w.proxy.Revalidate(); cut != 1 {
				t.Errorf("%d were cut", cut)
			}
			if _, err := io.Copy(io.Discard, live); err == nil {
				t.Error("the answer looks complete")
			}
		})
	}
}

package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// inRegion grants rules for region eu, which has the addresses eu, beside region us at
// 127.0.0.7.
func inRegion(eu string, rules ...authz.Rule) authz.Input {
	for i := range rules {
		rules[i].Data.Regions = []string{"eu"}
	}
	input := granted(rules...)
	input.Guardrails = []authz.Guardrail{{Name: "company", Plugins: []string{"**"}, Regions: map[string][]authz.Place{
		"eu": {authz.Place(eu)}, "us": {"127.0.0.7"},
	}}}
	return input
}

// regionDoor is a way of the plugin to an upstream whose name resolves to 127.0.0.1.
type regionDoor struct {
	name string
	rule authz.Rule
	// open opens an access that stays, and asks what another one is answered: the refusal.
	open func(t *testing.T, w *world) io.Reader
	ask  func(t *testing.T, w *world) string
}

// regionDoors returns the doors. original is where connections were redirected from.
func regionDoors(t *testing.T, original *atomicAddr) []regionDoor {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	plain := upstream(t, testenv.UpstreamConfig{Plain: true, Authorize: func(*http.Request) bool { return true }})
	greet := tcpServer(t, greeter)
	plainRule := rule(plain, "read")
	plainRule.To.Scheme, plainRule.To.TLS, plainRule.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	redirected := func(t *testing.T, w *world, port uint16) *rawConn { return w.redirected(t, original, port) }
	tunnelled := func(t *testing.T, w *world) *rawConn {
		original.store(netip.AddrPort{})
		return w.raw()
	}
	plainHost, host := fmt.Sprintf("api.weather.example:%d", plain.Addr.Port()), fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	intercepted := func(t *testing.T, w *world) *rawConn {
		c := tunnelled(t, w)
		c.connect(host)
		return c.tls("api.weather.example")
	}
	greetHost := fmt.Sprintf("api.weather.example:%d", greet.Port())
	return []regionDoor{
		{
			"plain HTTP", plainRule,
			func(t *testing.T, w *world) io.Reader {
				return stream(t, tunnelled(t, w), "http://"+plainHost+"/stream", plainHost)
			},
			func(t *testing.T, w *world) string {
				return refusal(tunnelled(t, w), "http://"+plainHost+"/x", plainHost)
			},
		},
		{
			"intercepted TLS", rule(api, "read"),
			func(t *testing.T, w *world) io.Reader { return stream(t, intercepted(t, w), "/stream", host) },
			func(t *testing.T, w *world) string { return refusal(intercepted(t, w), "/x", host) },
		},
		{
			"redirected HTTP", plainRule,
			func(t *testing.T, w *world) io.Reader {
				return stream(t, redirected(t, w, plain.Addr.Port()), "/stream", plainHost)
			},
			func(t *testing.T, w *world) string {
				return refusal(redirected(t, w, plain.Addr.Port()), "/x", plainHost)
			},
		},
		{
			"redirected TLS", rule(api, "read"),
			func(t *testing.T, w *world) io.Reader {
				return stream(t, redirected(t, w, api.Addr.Port()).tls("api.weather.example"), "/stream", host)
			},
			func(t *testing.T, w *world) string {
				return refusal(redirected(t, w, api.Addr.Port()).tls("api.weather.example"), "/x", host)
			},
		},
		{
			"CONNECT to tcp", tcpRule(greet, authz.SchemeTCP, "api.weather.example"),
			func(t *testing.T, w *world) io.Reader {
				c := tunnelled(t, w)
				c.connect(greetHost)
				return greeted(t, c)
			},
			func(t *testing.T, w *world) string {
				response := tunnelled(t, w).connect(greetHost)
				body, err := io.ReadAll(io.LimitReader(response.Body, max(response.ContentLength, 0)))
				testenv.Must(t, err)
				return string(body)
			},
		},
		{
			"redirected tcp", tcpRule(greet, authz.SchemeTCP, "api.weather.example"),
			func(t *testing.T, w *world) io.Reader { return greeted(t, redirected(t, w, greet.Port())) },
			func(t *testing.T, w *world) string {
				if !redirected(t, w, greet.Port()).gone() {
					t.Error("a connection outside of the region got bytes")
				}
				return ""
			},
		},
		{
			"CONNECT to tls", tcpRule(api.Addr, authz.SchemeTLS, "api.weather.example"),
			func(t *testing.T, w *world) io.Reader { return stream(t, intercepted(t, w), "/stream", host) },
			func(t *testing.T, w *world) string {
				c := tunnelled(t, w)
				c.connect(host)
				if _, err := c.over(t, api.Pool(), "api.weather.example"); err == nil {
					t.Error("a handshake outside of the region succeeds")
				}
				return ""
			},
		},
		{
			"exit of an Envoy", rule(api, "read"),
			func(t *testing.T, w *world) io.Reader {
				return w.stream(t, api, w.exits()["read api.weather.example"], "api.weather.example")
			},
			func(t *testing.T, w *world) string {
				if !w.leave(w.exits()["read api.weather.example"]).gone() {
					t.Error("a connection outside of the region leaves")
				}
				return ""
			},
		},
	}
}

// TestRegionsAtTheDoors has an access at each door inside its rule's region, cuts it when a
// guardrail leaves its address out of the region, and refuses the next one.
func TestRegionsAtTheDoors(t *testing.T) {
	var original atomicAddr
	for _, door := range regionDoors(t, &original) {
		t.Run(door.name, func(t *testing.T) {
			original.store(netip.AddrPort{})
			w := newWorld(t, setup{input: inRegion("127.0.0.1", door.rule), config: redirect(original.load)})
			exit := door.name == "exit of an Envoy"
			live := door.open(t, w)
			w.install(inRegion("127.0.0.0/30", door.rule))
			if cut := w.proxy.Revalidate(); cut != 0 {
				t.Errorf("a wider region cut %d", cut)
			}
			outside := inRegion("127.0.0.2", door.rule)
			outside.Guardrails[0].Regions["us"] = []authz.Place{"127.0.0.1"}
			w.install(outside)
			if cut := w.proxy.Revalidate(); cut != 1 {
				t.Errorf("%d were cut, want 1", cut)
			}
			if _, err := io.Copy(io.Discard, live); err == nil {
				t.Error("the answer looks complete")
			}
			const named = "in region us, outside region eu of rule"
			if text := door.ask(t, w); text != "" && (!strings.Contains(text, "address_not_allowed") || !strings.Contains(text, named)) {
				t.Errorf("the next one is answered %q", text)
			}
			w.settled()
			checkRegions(t, w, exit, named)
		})
	}
}

// redirected connects as a plugin that the kernel redirected from the virtual address of
// api.weather.example.
func (w *world) redirected(t *testing.T, original *atomicAddr, port uint16) *rawConn {
	t.Helper()
	virtual, ok := w.resolver.Address("api.weather.example")
	if !ok {
		t.Fatal("the name has no virtual address")
	}
	original.store(netip.AddrPortFrom(virtual, port))
	return w.raw()
}

// stream begins an answer without an end.
func stream(t *testing.T, c *rawConn, target, host string) io.Reader {
	t.Helper()
	c.write("GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	response, err := http.ReadResponse(c.in, nil)
	testenv.Must(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response.Body
}

// refusal returns the body of an answer.
func refusal(c *rawConn, target, host string) string {
	c.write("GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	_, body := c.read()
	return body
}

// greeted reads the greeting of a tunnel.
func greeted(t *testing.T, c *rawConn) *bufio.Reader {
	t.Helper()
	if line, err := c.in.ReadString('\n'); err != nil || line != "220 hello\r\n" {
		t.Fatalf("greeting is %q, %v", line, err)
	}
	return c.in
}

// checkRegions checks the records of an access inside its region and of one outside. An exit
// records refusals alone: the accesses inside are those of the Envoy's requests.
func checkRegions(t *testing.T, w *world, exit bool, named string) {
	t.Helper()
	all := append(w.records.of(authz.KindEnd), w.records.of(authz.KindDecision)...)
	if !exit && !slices.ContainsFunc(all, func(r authz.Record) bool { return r.Kind == authz.KindEnd && r.Region == "eu" }) {
		t.Error("the access inside is recorded without its region")
	}
	if !slices.ContainsFunc(all, func(r authz.Record) bool {
		return !r.Allowed && r.Reason == authz.AddressNotAllowed.String() && strings.Contains(r.Detail, named)
	}) {
		t.Error("the refusal is recorded without the region")
	}
	for _, r := range all {
		t.Logf("%s %s region %q address %s %s", r.Kind, r.Reason, r.Region, r.Address, r.Detail)
	}
}

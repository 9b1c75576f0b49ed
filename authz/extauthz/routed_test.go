package extauthz

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestRouteHeader names the rule in every allowed request, whatever the plugin
// names in its place.
func TestRouteHeader(t *testing.T) {
	h := newHouse(t)
	s := h.server(t, Config{RouteHeader: true})
	defer s.Close()
	for name, c := range map[string]struct {
		in   *authv3.CheckRequest
		want string
	}{
		"a request":                  {withCredential(), "weather/read"},
		"raw headers":                {rawCheck("GET", "https", "a.tiles.weather.example", "/"), "weather/free"},
		"one that the plugin sent":   {envoyCheck("GET", "https", "a.tiles.weather.example", "/", HeaderRoute, "weather/ssh"), "weather/free"},
		"one in another spelling":    {rawCheck("GET", "https", "a.tiles.weather.example", "/", "X_Chaperone_Route", "weather/ssh"), "weather/free"},
		"plain http taken for https": {envoyCheck("GET", "http", "old.weather.example", "/"), "weather/originated"},
		"a tunnel":                   {envoyCheck("CONNECT", "http", "git.weather.example:22", ""), "weather/ssh"},
		"an upgrade":                 {envoyCheck("GET", "https", "live.weather.example", "/", "upgrade", "websocket"), "weather/socket"},
		"a refusal":                  {envoyCheck("GET", "https", "evil.example", "/", HeaderRoute, "weather/read"), ""},
		"a connection":               {connection("secure.weather.example", "198.51.100.1", 443), ""},
	} {
		out := ask(t, s, c.in)
		checkAnswer(t, out)
		if got := valueOf(out, HeaderRoute); got != c.want {
			t.Errorf("%s: route %q, want %q", name, got, c.want)
		}
		removed := out.GetOkResponse().GetHeadersToRemove()
		if slices.Contains(removed, HeaderRoute) || name == "one in another spelling" && !slices.Contains(removed, "x_chaperone_route") {
			t.Errorf("%s: removes %q", name, removed)
		}
	}
	plain := h.server(t, Config{})
	defer plain.Close()
	if got := valueOf(ask(t, plain, withCredential()), HeaderRoute); got != "" {
		t.Errorf("unexpected route %q", got)
	}
}

// TestNoRoute refuses what no rule allowed where the caller has routes for
// rules alone.
func TestNoRoute(t *testing.T) {
	h := newHouse(t)
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Observe: true, ObserveUntil: testTime.Add(time.Hour)}, testTime)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	h.engine.Install(policy)
	for _, routed := range []bool{false, true} {
		want := "observed"
		if routed {
			want = "not_enforceable_here"
		}
		s := h.server(t, Config{RouteHeader: routed})
		for _, in := range []*authv3.CheckRequest{withoutCredential(), connection("secure.weather.example", "198.51.100.1", 443)} {
			out := ask(t, s, in)
			checkAnswer(t, out)
			if got := reasonOf(out); got != want {
				t.Errorf("routed %t: %s, want %s", routed, got, want)
			}
		}
		s.Close()
	}
	if last := h.book.all()[7]; last.Kind != authz.KindEnd || last.Allowed || last.Reason != "not_enforceable_here" {
		t.Errorf("recorded %+v", last)
	}
}

// TestErrorResponse separates errors inside the sidecar from what the policy
// refuses, where that was asked for.
func TestErrorResponse(t *testing.T) {
	evil := envoyCheck("GET", "https", "evil.example", "/")
	for name, c := range map[string]struct {
		spoil func(*house)
		in    *authv3.CheckRequest
		want  bool
	}{
		"audit":         {func(h *house) { h.book.fail = errors.New("disk full") }, withCredential(), true},
		"a panic":       {func(h *house) { h.book.panics = true }, withCredential(), true},
		"no credential": {func(h *house) { clear(h.leases) }, withCredential(), true},
		"no policy":     {func(h *house) { *h.engine = authz.Engine{} }, withCredential(), true},
		"policy":        {func(*house) {}, evil, false},
		"malformed":     {func(*house) {}, new(authv3.CheckRequest), false},
	} {
		for _, asked := range []bool{false, true} {
			h := newHouse(t)
			c.spoil(h)
			s := h.server(t, Config{ErrorResponse: asked})
			out := ask(t, s, c.in)
			checkAnswer(t, out)
			failed, denied := out.GetErrorResponse(), out.GetDeniedResponse()
			if (failed != nil) != (c.want && asked) || (failed == nil) == (denied == nil) {
				t.Errorf("%s, asked for %t: %v", name, asked, out)
			}
			if failed != nil && failed.GetStatus().GetCode() != 503 {
				t.Errorf("%s: status %v", name, failed.GetStatus())
			}
			s.Close()
		}
	}
}

// connection is a check as the network filter sends it.
func connection(sni, address string, port uint32) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Destination: &authv3.AttributeContext_Peer{Service: sni, Address: socketAt(address, port)},
	}}
}

func socketAt(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// virtual gives out an address for each of some names.
func virtual(addr netip.Addr) (string, bool) {
	name, ok := map[netip.Addr]string{
		netip.MustParseAddr("240.0.0.1"): "git.weather.example",
		netip.MustParseAddr("240.0.0.2"): "secure.weather.example",
		netip.MustParseAddr("240.0.0.3"): "api.weather.example",
		netip.MustParseAddr("240.0.0.4"): "both.weather.example",
	}[addr]
	return name, ok
}

// TestVirtualConnections dials virtual addresses, which stand for names.
func TestVirtualConnections(t *testing.T) {
	grant := authz.Grant{Name: "weather", Plugin: "weather", NotAfter: testTime.Add(time.Hour)}
	for id, to := range map[string]authz.To{
		"git":    {Scheme: "tcp", Hosts: []string{"git.weather.example"}, Ports: []uint16{22}},
		"secure": {Scheme: "tls", Hosts: []string{"secure.weather.example"}},
		"both":   {Scheme: "tls", Hosts: []string{"both.weather.example"}},
		"any":    {Scheme: "tcp", Hosts: []string{"both.weather.example"}, Ports: []uint16{443}},
	} {
		grant.Rules = append(grant.Rules, authz.Rule{ID: id, Reason: "test", To: to})
	}
	h := newHouseOf(t, grant)
	s := h.server(t, Config{Name: virtual})
	defer s.Close()
	for name, c := range map[string]struct {
		in     *authv3.CheckRequest
		want   string
		scheme string
	}{
		"a name":                         {connection("", "240.0.0.1", 22), "granted", "tcp"},
		"in IPv6 clothes":                {connection("", "::ffff:240.0.0.1", 22), "granted", "tcp"},
		"another port":                   {connection("", "240.0.0.1", 23), "destination_not_granted", "tcp"},
		"TLS to a tcp host":              {connection("git.weather.example", "240.0.0.1", 22), "granted", "tcp"},
		"TLS in another spelling":        {connection("GIT.weather.example", "240.0.0.1", 22), "granted", "tcp"},
		"a tls host":                     {connection("secure.weather.example", "240.0.0.2", 443), "granted", "tls"},
		"a tls host without server name": {connection("", "240.0.0.2", 443), "destination_not_granted", "tcp"},
		"a host of both":                 {connection("both.weather.example", "240.0.0.4", 443), "granted", "tcp"},
		"another server name":            {connection("secure.weather.example", "240.0.0.1", 443), "destination_mismatch", "tls"},
		"an invalid server name":         {connection("a b", "240.0.0.1", 443), "destination_mismatch", "tls"},
		"an address for no name":         {connection("", "240.0.0.9", 22), "destination_not_granted", "tcp"},
		"a server name on it":            {connection("secure.weather.example", "240.0.0.9", 443), "granted", "tls"},
		"no port":                        {connection("", "240.0.0.1", 0), "malformed_request", "tls"},
	} {
		out := ask(t, s, c.in)
		checkAnswer(t, out)
		records := h.book.all()
		last := records[len(records)-1]
		if got := reasonOf(out); got != c.want || last.Scheme != c.scheme {
			t.Errorf("%s: %s %s, want %s %s", name, got, last.Scheme, c.want, c.scheme)
		}
	}
}

// TestVirtualHosts asks for virtual addresses, and on connections to them.
func TestVirtualHosts(t *testing.T) {
	s := newHouse(t).server(t, Config{Name: virtual})
	defer s.Close()
	const path = "/v1/forecast/berlin"
	for name, c := range map[string]struct {
		host, dialled string
		port          uint32
		want          string
	}{
		"for its host":                 {"240.0.0.3", "", 0, "granted"},
		"for its host, with the port":  {"240.0.0.3:443", "240.0.0.3", 443, "granted"},
		"for another port":             {"240.0.0.3:8443", "", 0, "destination_not_granted"},
		"in another spelling":          {"0xf0000003", "", 0, "granted"},
		"in IPv6 clothes":              {"[::ffff:240.0.0.3]", "", 0, "granted"},
		"for no name":                  {"240.0.0.9", "", 0, "destination_not_granted"},
		"the connection agrees":        {"api.weather.example", "240.0.0.3", 443, "granted"},
		"the connection is to another": {"api.weather.example", "240.0.0.1", 443, "destination_mismatch"},
		"to another port":              {"api.weather.example", "240.0.0.3", 80, "destination_mismatch"},
		"to the caller itself":         {"api.weather.example", "127.0.0.1", 15080, "granted"},
		"to what is no address":        {"api.weather.example", "?", 443, "granted"},
	} {
		in := envoyCheck("GET", "https", c.host, path)
		if c.dialled != "" {
			in.Attributes.Destination = &authv3.AttributeContext_Peer{Address: socketAt(c.dialled, c.port)}
		}
		out := ask(t, s, in)
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if c.want == "granted" && c.host != "api.weather.example" && valueOf(out, ":authority") != "api.weather.example" {
			t.Errorf("%s: goes on to %q", name, valueOf(out, ":authority"))
		}
	}
	in := envoyCheck("CONNECT", "http", "git.weather.example:22", "")
	in.Attributes.Destination = &authv3.AttributeContext_Peer{Address: socketAt("240.0.0.3", 443)}
	if got := reasonOf(ask(t, s, in)); got != "granted" {
		t.Errorf("CONNECT, which names another place than the proxy it was sent to: %s", got)
	}
	in = envoyCheck("CONNECT", "http", "240.0.0.1:22", "")
	if got := reasonOf(ask(t, s, in)); got != "granted" {
		t.Errorf("CONNECT to a virtual address: %s", got)
	}
	if got, _ := s.Check(context.WithoutCancel(t.Context()), withoutCredential()); reasonOf(got) != "granted" {
		t.Errorf("without a connection: %v", got)
	}
}

package extauthz

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/chaperone-proxy/chaperone/authz"
)

// envoyCheck is a check as Envoy sends it, headers as a map.
func envoyCheck(method, scheme, host, path string, headers ...string) *authv3.CheckRequest {
	folded := map[string]string{":method": method, ":authority": host, ":scheme": scheme, ":path": path, "user-agent": "test"}
	for i := 0; i+1 < len(headers); i += 2 {
		if old, there := folded[headers[i]]; there {
			folded[headers[i]] = old + "," + headers[i+1]
			continue
		}
		folded[headers[i]] = headers[i+1]
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "1", Method: method, Scheme: scheme, Host: host, Path: path, Protocol: "HTTP/1.1", Headers: folded,
		}},
	}}
}

// rawCheck is the same with encode_raw_headers.
func rawCheck(method, scheme, host, path string, headers ...string) *authv3.CheckRequest {
	in := envoyCheck(method, scheme, host, path)
	http := in.Attributes.Request.Http
	http.Headers = nil
	list := []string{":method", method, ":authority", host, ":scheme", scheme, ":path", path, "user-agent", "test"}
	list = append(list, headers...)
	http.HeaderMap = &corev3.HeaderMap{}
	for i := 0; i+1 < len(list); i += 2 {
		http.HeaderMap.Headers = append(http.HeaderMap.Headers, &corev3.HeaderValue{Key: list[i], RawValue: []byte(list[i+1])})
	}
	return in
}

// valueOf returns the value that an answer sets a header to, "" when it does not.
func valueOf(out *authv3.CheckResponse, name string) string {
	for _, h := range out.GetOkResponse().GetHeaders() {
		if h.GetHeader().GetKey() == name {
			return h.GetHeader().GetValue()
		}
	}
	return ""
}

// TestPaths sends the paths on which comparable products were bypassed
// (CVE-2026-26205, CVE-2026-32811, CVE-2021-29492, CVE-2023-27487 and others).
// The grant holds /v1/forecast/* and /v1/alerts/**.
func TestPaths(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	for _, c := range []struct{ path, want string }{
		{"/v1/forecast/berlin", "granted"},
		{"/v1/forecast/berlin?foo=bar", "granted"},
		{"/v1/forecast/berlin?", "granted"},
		{"/v1/forecast/berlin?a=/../x", "granted"},
		{"/v1/alerts/", "granted"},
		{"/v1/alerts/a/b", "granted"},
		{"/v1/forecast/caf%C3%A9", "granted"},
		{"/v1/alerts", "path_not_granted"},
		{"/v1/forecast", "path_not_granted"},
		{"/v1/forecast/", "path_not_granted"},
		{"/v1/forecast/a/b", "path_not_granted"},
		{"/v1/forecasts/berlin", "path_not_granted"},
		{"/v10/forecast/berlin", "path_not_granted"},
		{"/V1/forecast/berlin", "path_not_granted"},
		{"/admin?/v1/forecast/berlin", "path_not_granted"},
		{"/v1/forecast/a%2fb", "malformed_request"},
		{"/v1/alerts/a%2Fb", "malformed_request"},
		{"", "malformed_request"},
		{"*", "malformed_request"},
		{"http://h/v1/forecast/berlin", "malformed_request"},
		{"//admin/dashboard", "malformed_request"},
		{"//x/people?a=1", "malformed_request"},
		{"///a", "malformed_request"},
		{`/\admin`, "malformed_request"},
		{"/v1/forecast/../b", "malformed_request"},
		{"/v1/forecast/..", "malformed_request"},
		{"/..", "malformed_request"},
		{"/v1/alerts/%2e%2e/b", "malformed_request"},
		{"/v1/alerts/%2E%2E%2Fb", "malformed_request"},
		{"/v1/alerts/..%2fb", "malformed_request"},
		{"/v1/alerts/.%2fb", "malformed_request"},
		{"/v1/alerts/%252e%252e/b", "malformed_request"},
		{"/v1/alerts/..;/b", "malformed_request"},
		{"/v1/alerts/..;x/b", "malformed_request"},
		{"/v1/alerts/.;/b", "malformed_request"},
		{"/v1/alerts/..%3B/b", "malformed_request"},
		{"/v1/alerts;v=1/../b", "malformed_request"},
		{"/v1/alerts//../b", "malformed_request"},
		{"/v1/alerts//b", "malformed_request"},
		{`/v1/alerts/..\b`, "malformed_request"},
		{"/v1/alerts/a%5cb", "malformed_request"},
		{"/v1/alerts/%5c..%5cb", "malformed_request"},
		{"/v1/alerts/%00b", "malformed_request"},
		{"/v1/alerts/%0d%0aX:1", "malformed_request"},
		{"/v1/alerts/a#b", "malformed_request"},
		{"/v1/alerts/a?x#y", "malformed_request"},
		{"/v1/alerts/%zz", "malformed_request"},
		{"/v1/alerts/%", "malformed_request"},
		{"/v1/alerts/a b", "malformed_request"},
		{"/v1/alerts/" + strings.Repeat("a", 9<<10), "malformed_request"},
	} {
		for name, in := range map[string]*authv3.CheckRequest{
			"folded": envoyCheck("GET", "https", "api.weather.example", c.path),
			"raw":    rawCheck("GET", "https", "api.weather.example", c.path),
		} {
			out := ask(t, s, in)
			checkAnswer(t, out)
			if got := reasonOf(out); got != c.want && (c.want != "malformed_request" || got != "path_not_granted") {
				t.Errorf("%s %q: %s, want %s", name, c.path, got, c.want)
			} else if c.want == "malformed_request" && out.GetOkResponse() != nil {
				t.Errorf("%s %q passed", name, c.path)
			}
		}
	}
}

// TestHosts sends the hosts on which comparable products were bypassed
// (CVE-2022-24825, CVE-2022-29188 and others).
func TestHosts(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	const path = "/v1/forecast/berlin"
	for _, c := range []struct{ host, want string }{
		{"api.weather.example", "granted"},
		{"API.weather.example", "granted"},
		{"api.weather.example.", "granted"},
		{"api.weather.example:443", "granted"},
		{"api.weather.example:80", "destination_not_granted"},
		{"api.weather.example:0443", "malformed_request"},
		{"api.weather.example:", "malformed_request"},
		{"api.weather.example:443:443", "malformed_request"},
		{"api.weather.example..", "malformed_request"},
		{"user@api.weather.example", "malformed_request"},
		{"api.weather.example@evil", "malformed_request"},
		{"evilapi.weather.example", "destination_not_granted"},
		{"api.weather.example.evil", "destination_not_granted"},
		{"weather.example", "destination_not_granted"},
		{"tiles.weather.example", "destination_not_granted"},
		{"a.b.tiles.weather.example", "destination_not_granted"},
		{"eviltiles.weather.example", "destination_not_granted"},
		{"*.tiles.weather.example", "malformed_request"},
		{"[::1]", "destination_not_granted"},
		{"[::ffff:127.0.0.1]", "destination_not_granted"},
		{"[[::1]]:443", "malformed_request"},
		{"[fe80::1%25eth0]", "malformed_request"},
		{"[api.weather.example]:443", "malformed_request"},
		{"127.0.0.1", "destination_not_granted"},
		{"127.1", "destination_not_granted"},
		{"2130706433", "destination_not_granted"},
		{"0x7f000001", "destination_not_granted"},
		{"0177.0.0.1", "destination_not_granted"},
		{"0", "destination_not_granted"},
		{"①②⑦.0.0.1", "malformed_request"},
		{"localhost", "destination_not_granted"},
		{"api.weather.examplé", "malformed_request"},
		{"", "malformed_request"},
		{"api.weather.example,evil.example", "malformed_request"},
		{"evil.example\x00.weather.example", "malformed_request"},
		{"api.weather.example ", "malformed_request"},
		{"api.weather.example\t", "malformed_request"},
		{"api.weather.example%00", "malformed_request"},
		{"api.weather.example\r\nhost: evil", "malformed_request"},
		{strings.Repeat("a.", 130) + "example", "malformed_request"},
	} {
		for name, in := range map[string]*authv3.CheckRequest{
			"folded": envoyCheck("GET", "https", c.host, path),
			"raw":    rawCheck("GET", "https", c.host, path),
		} {
			out := ask(t, s, in)
			checkAnswer(t, out)
			if got := reasonOf(out); got != c.want {
				t.Errorf("%s %q: %s, want %s", name, c.host, got, c.want)
			}
		}
	}
}

func TestMethods(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	for method, want := range map[string]string{
		"GET": "granted", "HEAD": "granted", "get": "method_not_granted", "PATCH": "method_not_granted",
		"PRI": "malformed_request", "": "malformed_request", "G T": "malformed_request",
		"GET\x00": "malformed_request", strings.Repeat("A", 65): "malformed_request",
		"CONNECT": "malformed_request", // with a path
	} {
		out := ask(t, s, envoyCheck(method, "https", "api.weather.example", "/v1/forecast/berlin"))
		checkAnswer(t, out)
		if got := reasonOf(out); got != want {
			t.Errorf("%q: %s, want %s", method, got, want)
		}
	}
	for host, want := range map[string]string{
		"git.weather.example:22": "granted", "git.weather.example": "malformed_request", "git.weather.example:23": "destination_not_granted",
		"api.weather.example:443": "destination_not_granted", "secure.weather.example:443": "destination_not_granted", "": "malformed_request",
	} {
		out := ask(t, s, envoyCheck("CONNECT", "http", host, ""))
		checkAnswer(t, out)
		if got := reasonOf(out); got != want {
			t.Errorf("CONNECT %q: %s, want %s", host, got, want)
		}
	}
}

// TestHeaders sends what headers smuggle.
func TestHeaders(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	type pairs []string
	for _, c := range []struct {
		name    string
		host    string
		headers pairs
		want    string
		removed pairs
	}{
		{"bytes outside UTF-8", "a.tiles.weather.example", pairs{"x-name", "\xff\xfe"}, "granted", nil},
		{"NUL", "a.tiles.weather.example", pairs{"x-name", "a\x00b"}, "malformed_request", nil},
		{"CR", "a.tiles.weather.example", pairs{"x-name", "a\rb"}, "malformed_request", nil},
		{"LF", "a.tiles.weather.example", pairs{"x-name", "a\nb"}, "malformed_request", nil},
		{"an invalid name", "a.tiles.weather.example", pairs{"x name", "a"}, "malformed_request", nil},
		{"two methods", "a.tiles.weather.example", pairs{":method", "POST"}, "malformed_request", nil},
		{"two paths", "a.tiles.weather.example", pairs{":path", "/admin"}, "malformed_request", nil},
		{"two hosts", "a.tiles.weather.example", pairs{"host", "evil.example", "host", "a.tiles.weather.example"}, "malformed_request", nil},
		{"another host", "a.tiles.weather.example", pairs{"host", "evil.example"}, "destination_mismatch", nil},
		{"the same host", "a.tiles.weather.example", pairs{"host", "A.tiles.weather.example:443"}, "granted", nil},
		{"a method override", "a.tiles.weather.example", pairs{"x-http-method-override", "DELETE"}, "granted", pairs{"x-http-method-override"}},
		{"a method override in another spelling", "a.tiles.weather.example", pairs{"x_http_method_override", "DELETE"}, "granted", pairs{"x_http_method_override"}},
		{"an original path", "a.tiles.weather.example", pairs{"x-envoy-original-path", "/v1/forecast/berlin"}, "granted", nil},
		{"a forwarded host", "a.tiles.weather.example", pairs{"X-Forwarded-Host", "api.weather.example"}, "granted", pairs{"x-forwarded-host"}},
		{"a forwarded client certificate", "a.tiles.weather.example", pairs{"x-forwarded-client-cert", "URI=spiffe://x"}, "granted", pairs{"x-forwarded-client-cert"}},
		{"ours", "a.tiles.weather.example", pairs{"x-chaperone-plugin", "mail"}, "granted", pairs{"x-chaperone-plugin"}},
		{"hop by hop", "a.tiles.weather.example", pairs{"connection", "X-Hop , close", "x-hop", "1"}, "granted", pairs{"x-hop"}},
		{"hop by hop of the slot", "keys.weather.example", pairs{"connection", "x-api-key", "x-api-key", "1"}, "granted", nil},
		{"another spelling of the slot", "keys.weather.example", pairs{"x_api_key", "1", "x-api_key", "2"}, "granted", pairs{"x_api_key", "x-api_key"}},
		{"two upgrades", "live.weather.example", pairs{"upgrade", "websocket, h2c"}, "malformed_request", nil},
		{"an upgrade", "live.weather.example", pairs{"upgrade", "WebSocket"}, "granted", nil},
		{"another upgrade", "live.weather.example", pairs{"upgrade", "h2c"}, "method_not_granted", nil},
	} {
		for dialect, check := range map[string]func(string, string, string, string, ...string) *authv3.CheckRequest{"folded": envoyCheck, "raw": rawCheck} {
			out := ask(t, s, check("GET", "https", c.host, "/", c.headers...))
			checkAnswer(t, out)
			want := c.want
			if dialect == "folded" && c.name == "two hosts" {
				want = "destination_mismatch" // they arrive as one, joined by a comma
			}
			if got := reasonOf(out); got != want {
				t.Errorf("%s, %s: %s, want %s", dialect, c.name, got, want)
			}
			for _, name := range c.removed {
				if !slices.Contains(out.GetOkResponse().GetHeadersToRemove(), name) {
					t.Errorf("%s, %s: %s is not removed", dialect, c.name, name)
				}
			}
			if c.host == "keys.weather.example" && valueOf(out, "x-api-key") != canary {
				t.Errorf("%s, %s: the credential is not there", dialect, c.name)
			}
		}
	}
}

// TestBodies sends bodies, whole, cut short and of any bytes: no rule looks at
// them.
func TestBodies(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	for name, c := range map[string]struct {
		body, raw string
		want      string
	}{
		"a body":             {"{}", "", "granted"},
		"bytes":              {"", "\xff\x00", "granted"},
		"a long one":         {"", strings.Repeat("a", 3<<20), "granted"},
		"one that is beyond": {"", strings.Repeat("a", 5<<20), "malformed_request"},
	} {
		in := envoyCheck("GET", "https", "a.tiles.weather.example", "/", "x-envoy-auth-partial-body", "true")
		in.Attributes.Request.Http.Body, in.Attributes.Request.Http.RawBody, in.Attributes.Request.Http.Size = c.body, []byte(c.raw), 1<<40
		out := ask(t, s, in)
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestManyHeaders sends more headers than any request holds: each is looked at,
// and what it costs does not grow with their square.
func TestManyHeaders(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	var list []string
	for range 20_000 {
		list = append(list, "x_forwarded_for", "a", "connection", "b,c,d,e,f,g,h,i,j,k", "x-forwarded-"+strings.Repeat("a", len(list)%50), "1")
	}
	out := ask(t, s, rawCheck("GET", "https", "a.tiles.weather.example", "/", list...))
	checkAnswer(t, out)
	if removed := out.GetOkResponse().GetHeadersToRemove(); len(removed) > 100 || !slices.Contains(removed, "k") {
		t.Errorf("%s removes %d", reasonOf(out), len(removed))
	}
	out = ask(t, s, rawCheck("GET", "https", "a.tiles.weather.example", "/", append(list, "x-last", "a\nb")...))
	if got := reasonOf(out); got != "malformed_request" {
		t.Errorf("the last of many is not looked at: %s", got)
	}
}

// TestIdentity sends what may pass for an identity (CVE-2026-47778 and others).
func TestIdentity(t *testing.T) {
	ids := map[string]authz.Principal{"spiffe://cluster/ns/a/sa/weather": "weather", "spiffe://cluster/ns/a/sa/mail": "mail"}
	for _, c := range []struct {
		name      string
		ids       map[string]authz.Principal
		context   map[string]string
		principal string
		want      string
	}{
		{"the sidecar's plugin", nil, nil, "", "granted"},
		{"a principal where none is configured", nil, nil, "spiffe://other/ns/b/sa/x", "granted"},
		{"the route", nil, map[string]string{"plugin": "weather"}, "", "granted"},
		{"the route beats the certificate", ids, map[string]string{"plugin": "weather"}, "spiffe://cluster/ns/a/sa/mail", "granted"},
		{"the route's other plugin beats the certificate", ids, map[string]string{"plugin": "mail"}, "spiffe://cluster/ns/a/sa/weather", "identity_unknown"},
		{"the route's empty plugin", nil, map[string]string{"plugin": ""}, "", "identity_unknown"},
		{"another key", ids, map[string]string{"Plugin": "weather"}, "", "identity_unknown"},
		{"the certificate", ids, nil, "spiffe://cluster/ns/a/sa/weather", "granted"},
		{"a certificate of another plugin", ids, nil, "spiffe://cluster/ns/a/sa/mail", "identity_unknown"},
		{"none", ids, nil, "", "identity_unknown"},
		{"prefix", ids, nil, "spiffe://cluster/ns/a/sa/weatherman", "identity_unknown"},
		{"case", ids, nil, "spiffe://cluster/ns/a/sa/Weather", "identity_unknown"},
		{"trailing slash", ids, nil, "spiffe://cluster/ns/a/sa/weather/", "identity_unknown"},
		{"two", ids, nil, "spiffe://cluster/ns/a/sa/weather,spiffe://evil", "identity_unknown"},
		{"NUL", ids, nil, "spiffe://cluster/ns/a/sa/weather\x00b", "identity_unknown"},
		{"ids without one", map[string]authz.Principal{}, nil, "spiffe://cluster/ns/a/sa/weather", "identity_unknown"},
	} {
		s := newHouse(t).server(t, Config{SPIFFEIDs: c.ids})
		in := envoyCheck("GET", "https", "a.tiles.weather.example", "/", "x-plugin-id", "weather", "plugin", "weather")
		in.Attributes.ContextExtensions = c.context
		in.Attributes.Source = &authv3.AttributeContext_Peer{Principal: c.principal, Service: "weather"}
		out := ask(t, s, in)
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		s.Close()
	}
}

// TestAttributesThatDiffer sends checks whose parts say different things.
func TestAttributesThatDiffer(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	for name, c := range map[string]struct {
		change func(*authv3.AttributeContext_HttpRequest, *authv3.AttributeContext)
		want   string
	}{
		"method": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) { h.Method = "HEAD" }, "malformed_request"},
		"path":   {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) { h.Path = "/v1/alerts/" }, "malformed_request"},
		"scheme": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) { h.Scheme = "http" }, "malformed_request"},
		"host": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) {
			h.Host = "a.tiles.weather.example"
		}, "destination_mismatch"},
		"an odd scheme": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) {
			h.Scheme, h.Headers[":scheme"] = "ws", "ws"
		}, "malformed_request"},
		"server name": {func(_ *authv3.AttributeContext_HttpRequest, a *authv3.AttributeContext) {
			a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "a.tiles.weather.example"}
		}, "destination_mismatch"},
		"server name with a port": {func(_ *authv3.AttributeContext_HttpRequest, a *authv3.AttributeContext) {
			a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "api.weather.example:443"}
		}, "destination_mismatch"},
		"the same server name": {func(_ *authv3.AttributeContext_HttpRequest, a *authv3.AttributeContext) {
			a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "API.weather.example"}
		}, "granted"},
		"no server name": {func(_ *authv3.AttributeContext_HttpRequest, a *authv3.AttributeContext) {
			a.TlsSession = &authv3.AttributeContext_TLSSession{}
		}, "granted"},
		"a query apart": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) { h.Query = "days=3" }, "granted"},
		"another query": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) {
			h.Path, h.Headers[":path"], h.Query = "/v1/forecast/berlin?a=1", "/v1/forecast/berlin?a=1", "a=2"
		}, "malformed_request"},
		"only pseudo headers": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) {
			h.Method, h.Path, h.Host, h.Scheme = "", "", "", ""
		}, "granted"},
		"no headers": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) { h.Headers = nil }, "not_enforceable_here"},
		"some headers": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) {
			h.Headers = map[string]string{"x-a": "1", ":path": h.Path}
		}, "not_enforceable_here"},
		"gRPC's own filter": {func(h *authv3.AttributeContext_HttpRequest, _ *authv3.AttributeContext) {
			h.Id, h.Scheme, h.Size, h.Headers = "", "", -1, nil
		}, "granted"},
	} {
		in := envoyCheck("GET", "https", "api.weather.example", "/v1/forecast/berlin")
		c.change(in.Attributes.Request.Http, in.Attributes)
		out := ask(t, s, in)
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestConnections sends what the network filter sends.
func TestConnections(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	socket := func(address string, port uint32) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}
	}
	udp := socket("203.0.113.7", 22)
	udp.GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	for name, c := range map[string]struct {
		service, sni string
		address      *corev3.Address
		want         string
	}{
		"server name":                  {"secure.weather.example", "", socket("198.51.100.1", 443), "granted"},
		"server name in the session":   {"", "secure.weather.example", socket("198.51.100.1", 443), "granted"},
		"both":                         {"secure.weather.example", "Secure.weather.example", socket("198.51.100.1", 443), "granted"},
		"two server names":             {"secure.weather.example", "git.weather.example", socket("198.51.100.1", 443), "destination_mismatch"},
		"another server name":          {"api.weather.example", "", socket("198.51.100.1", 443), "destination_not_granted"},
		"another port":                 {"secure.weather.example", "", socket("198.51.100.1", 8443), "destination_not_granted"},
		"a server name with a port":    {"secure.weather.example:443", "", socket("198.51.100.1", 443), "malformed_request"},
		"a server name with a newline": {"secure.weather.example\n", "", socket("198.51.100.1", 443), "malformed_request"},
		"address":                      {"", "", socket("203.0.113.7", 22), "granted"},
		"address in IPv6 clothes":      {"", "", socket("::ffff:203.0.113.7", 22), "granted"},
		"another address":              {"", "", socket("203.0.113.8", 22), "destination_not_granted"},
		"loopback":                     {"", "", socket("127.0.0.1", 22), "destination_not_granted"},
		"a name for an address":        {"", "", socket("git.weather.example", 22), "malformed_request"},
		"no port":                      {"secure.weather.example", "", socket("203.0.113.7", 0), "malformed_request"},
		"a port beyond":                {"secure.weather.example", "", socket("203.0.113.7", 65536+443), "malformed_request"},
		"UDP":                          {"", "", udp, "malformed_request"},
		"no address":                   {"secure.weather.example", "", nil, "malformed_request"},
		"nothing":                      {"", "", nil, "malformed_request"},
	} {
		in := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Destination: &authv3.AttributeContext_Peer{Service: c.service, Address: c.address},
			TlsSession:  &authv3.AttributeContext_TLSSession{Sni: c.sni},
		}}
		out := ask(t, s, in)
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestEnforces admits rules whose conditions the caller is known to enforce.
func TestEnforces(t *testing.T) {
	s := newHouse(t).server(t, Config{Enforces: authz.ConditionAddresses})
	defer s.Close()
	if got := reasonOf(ask(t, s, envoyCheck("GET", "https", "inside.weather.example", "/"))); got != "granted" {
		t.Errorf("a rule whose addresses the caller enforces: %s", got)
	}
}

// TestUncarriable refuses what is injected by who makes the connection, also
// where the caller enforces everything.
func TestUncarriable(t *testing.T) {
	grant := authz.Grant{
		Name: "weather", Plugin: "weather", NotAfter: testTime.Add(time.Hour),
		Credentials: []authz.CredentialSpec{
			{Name: "mtls", Vault: authz.VaultPath{Path: "pki/issue/weather"}, Inject: authz.Inject{MTLS: &authz.MTLS{}}},
			{Name: "sigv4", Vault: authz.VaultPath{Path: "aws/sts/weather"}, Inject: authz.Inject{SigV4: &authz.SigV4{Service: "s3", Region: "eu-west-1"}}},
		},
	}
	for _, c := range grant.Credentials {
		grant.Rules = append(grant.Rules, authz.Rule{
			ID: c.Name, Reason: "test", To: authz.To{Hosts: []string{"api.weather.example"}},
			Methods: []string{"GET"}, Paths: []string{"/" + c.Name}, Credential: c.Name,
		})
	}
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{grant}}, testTime)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	h := newHouse(t)
	h.engine.Install(policy)
	s := h.server(t, Config{Enforces: ^authz.Conditions(0)})
	defer s.Close()
	for _, name := range []string{"mtls", "sigv4"} {
		if got := reasonOf(ask(t, s, envoyCheck("GET", "https", "api.weather.example", "/"+name))); got != "not_enforceable_here" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestAddresses asks for destinations that are addresses: they are judged here
// as at the dial, which is the caller's.
func TestAddresses(t *testing.T) {
	policy, problems := authz.Compile(authz.Input{
		Plugin: "weather", Observe: true, ObserveUntil: testTime.Add(time.Hour),
		Guardrails: []authz.Guardrail{{Name: "company", Plugins: []string{"**"}, Never: []authz.Never{
			{ID: "metadata", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
		}}},
		Grants: []authz.Grant{{
			Name: "weather", Plugin: "weather", NotAfter: testTime.Add(time.Hour),
			Rules: []authz.Rule{{
				ID: "inside", Reason: "test", To: authz.To{Hosts: []string{"10.1.2.3", "10.1.2.4"}}, Methods: []string{"GET"}, Paths: []string{"/**"},
			}},
		}},
	}, testTime)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	h := newHouse(t)
	h.engine.Install(policy)
	s := h.server(t, Config{Forbidden: func(to netip.AddrPort) bool { return to == netip.MustParseAddrPort("10.1.2.4:443") }})
	defer s.Close()
	for host, want := range map[string]string{
		"10.1.2.3": "granted", "10.1.2.4": "address_not_allowed", "[::ffff:10.1.2.3]": "granted", "0xa010203": "granted",
		"8.8.8.8": "observed", "10.1.2.5": "address_not_allowed", "127.0.0.1": "address_not_allowed", "[::1]": "address_not_allowed",
		"169.254.169.254": "address_not_allowed", "198.51.100.7": "guardrail", "[fd00:ec2::254]": "address_not_allowed",
		"[64:ff9b::a9fe:a9fe]": "address_not_allowed", "[2002:a9fe:a9fe::1]": "address_not_allowed",
	} {
		out := ask(t, s, envoyCheck("GET", "https", host, "/"))
		checkAnswer(t, out)
		if got := reasonOf(out); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}

// TestRegions asks for destinations inside and outside of a rule's regions. A host whose
// address is not known here is refused, unless a guardrail tags the host or the Envoy's
// connections are judged elsewhere.
func TestRegions(t *testing.T) {
	policy, problems := authz.Compile(authz.Input{
		Plugin: "weather",
		Guardrails: []authz.Guardrail{{Name: "company", Plugins: []string{"**"}, Regions: map[string][]authz.Place{
			"eu": {"8.8.8.0/24", "eu.weather.example"}, "us": {"9.9.9.9"},
		}}},
		Grants: []authz.Grant{{
			Name: "weather", Plugin: "weather", NotAfter: testTime.Add(time.Hour),
			Rules: []authz.Rule{{
				ID: "inside", Reason: "test", To: authz.To{Hosts: []string{"8.8.8.8", "9.9.9.9", "*.weather.example"}}, Methods: []string{"GET"}, Paths: []string{"/**"},
				Data: authz.Data{Regions: []string{"eu"}},
			}},
		}},
	}, testTime)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, c := range []struct {
		host     string
		enforces authz.Conditions
		want     string
		region   string // in the record of the access's end
		detail   string
	}{
		{"8.8.8.8", authz.ManagedEnvoyEnforces, "granted", "eu", ""},
		{"9.9.9.9", authz.ManagedEnvoyEnforces, "address_not_allowed", "us", "in region us, outside region eu"},
		{"eu.weather.example", 0, "granted", "eu", ""},
		{"api.weather.example", authz.ManagedEnvoyEnforces, "granted", "eu", ""},
		{"api.weather.example", 0, "not_enforceable_here", "", ""},
		{"8.8.8.8", 0, "not_enforceable_here", "", ""},
	} {
		h := newHouse(t)
		h.engine.Install(policy)
		s := h.server(t, Config{Enforces: c.enforces})
		out := ask(t, s, envoyCheck("GET", "https", c.host, "/"))
		s.Close()
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", c.host, got, c.want)
		}
		records := h.book.all()
		last := records[len(records)-1]
		if last.Region != c.region || !strings.Contains(last.Detail, c.detail) {
			t.Errorf("%s: recorded region %q, %q", c.host, last.Region, last.Detail)
		}
	}
}

// TestQueryInAnotherCase leaves no second spelling of the credential's parameter.
func TestQueryInAnotherCase(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	out := ask(t, s, envoyCheck("GET", "https", "maps.weather.example", "/a?KEY=1&%4bey=2&key%20=3&monkey=4;Key=5"))
	if got, want := valueOf(out, ":path"), "/a?monkey=4&key="+canary+"%26a%3Db+%2B%25"; got != want {
		t.Errorf("the path is %q, want %q", got, want)
	}
}

// TestNominatedCookie keeps the plugin's cookies from the upstream when Connection
// nominates Cookie, as in the proxy, also where the answer sets a cookie itself.
func TestNominatedCookie(t *testing.T) {
	s := newHouse(t).server(t, Config{})
	defer s.Close()
	for connection, want := range map[string]string{
		"":                   "theme=dark; sid=" + canary,
		"close, X-Other":     "theme=dark; sid=" + canary,
		"Cookie":             "sid=" + canary,
		"keep-alive, COOKIE": "sid=" + canary,
	} {
		headers := []string{"cookie", "theme=dark; sid=mine"}
		if connection != "" {
			headers = append(headers, "connection", connection)
		}
		for dialect, in := range map[string]*authv3.CheckRequest{
			"folded": envoyCheck("GET", "https", "shop.weather.example", "/", headers...),
			"raw":    rawCheck("GET", "https", "shop.weather.example", "/", headers...),
		} {
			out := ask(t, s, in)
			checkAnswer(t, out)
			if got := valueOf(out, "cookie"); got != want {
				t.Errorf("Connection %q, %s: got the cookies %q, want %q", connection, dialect, got, want)
			}
		}
	}
	out := ask(t, s, envoyCheck("GET", "https", "a.tiles.weather.example", "/", "cookie", "theme=dark", "connection", "cookie"))
	if removed := out.GetOkResponse().GetHeadersToRemove(); !slices.Contains(removed, "cookie") {
		t.Errorf("got %q removed, want the cookies too", removed)
	}
}

package doors

import (
	"slices"
	"strconv"
	"strings"
)

// req makes a request of HTTP/1.1, as to an explicit proxy: a line without its
// version, and headers.
func req(line string, headers ...string) string {
	return line + " HTTP/1.1\r\n" + strings.Join(append(headers, "Connection: close", "", ""), "\r\n")
}

// to makes a GET of a URL with its own Host.
func to(url string, headers ...string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	return req("GET "+url, append([]string{"Host: " + host}, headers...)...)
}

const (
	plainURL = "http://plain.weather.example:PLAIN"
	plainAt  = "plain.weather.example:PLAIN"
	secureAt = "api.weather.example:SECURE"
)

// connect makes a CONNECT.
func connect(to string) string { return "CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n\r\n" }

// fields are the headers of a request of HTTP/2.
func fields(pairs ...string) [][2]string {
	var out [][2]string
	for i := 0; i+1 < len(pairs); i += 2 {
		out = append(out, [2]string{pairs[i], pairs[i+1]})
	}
	return out
}

// parityCases returns every raw request.
func parityCases() []parityCase {
	all := slices.Concat(parityTargets(), parityHosts(), parityHeaders(), parityMethods(), parityFraming(), parityConnects(), parityInside(), parityHTTP2(), parityOdd())
	differ := differences()
	for i := range all {
		d := differ[all[i].name]
		all[i].envoy, all[i].why = d.envoy, d.why
		delete(differ, all[i].name)
	}
	for name := range differ {
		all = append(all, parityCase{name: "listed and not sent: " + name, envoy: "?"})
	}
	return all
}

func parityTargets() []parityCase {
	out := []parityCase{
		{name: "a granted request", request: to(plainURL + "/v1/a")},
		{name: "a path that is not granted", request: to(plainURL + "/other")},
		{name: "a rule that is used up", request: to(plainURL + "/none")},
		{name: "a query", request: to(plainURL + "/v1/a?b=c&d=%2F..")},
		{name: "origin form", request: req("GET /v1/a", "Host: "+plainAt)},
		{name: "asterisk form", request: req("OPTIONS *", "Host: "+plainAt)},
		{name: "authority form of a GET", request: req("GET "+plainAt, "Host: "+plainAt)},
		{name: "no path", request: req("GET "+plainURL, "Host: "+plainAt)},
		{name: "https in the target", request: req("GET https://"+secureAt+"/v1/a", "Host: "+secureAt)},
		{name: "another scheme", request: req("GET ftp://"+plainAt+"/v1/a", "Host: "+plainAt)},
		{name: "a scheme in capitals", request: req("GET HTTP://"+plainAt+"/v1/a", "Host: "+plainAt)},
		{name: "a fragment", request: to(plainURL + "/v1/a#b")},
		{name: "a path of 8 KiB", request: to(plainURL + "/v1/" + strings.Repeat("a", 8<<10))},
	}
	for _, path := range []string{
		"/v1/../a", "/v1/%2e%2e/a", "/v1/..%2fa", "/v1//a", "//v1/a", "/v1/a;b=c/d", "/v1/a%5cb", "/v1/a\\b", "/v1/a%00", "/v1/%zz", "/v1/%252e", "/v1/%61",
		"/v1/caf%C3%A9", "/v1/caf\xc3\xa9", "/v1/a\x01b", "/v1/a b", "/v1/a\tb", "/v1/{a}|b", "/V1/a",
	} {
		out = append(out, parityCase{name: "the path `" + inCell(path) + "`", request: to(plainURL + path)})
	}
	return out
}

// inCell names bytes that a table cannot hold.
func inCell(s string) string {
	return strings.NewReplacer("\x01", "<01>", "\t", "<tab>", "\xc3\xa9", "<C3 A9>", "|", "<bar>", "\x00", "<00>", "\xff", "<FF>").Replace(s)
}

func parityHosts() []parityCase {
	var out []parityCase
	for _, host := range []string{
		"PLAIN.weather.example", "plain.weather.example.", "plain.weather.example..", ".plain.weather.example", "a.maps.weather.example", "b.a.maps.weather.example",
		"maps.weather.example", "evil.example", "user@plain.weather.example", "plain.weather.example@evil.example", "*.maps.weather.example",
		"127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "[::1]", "b\xc3\xbccher.example", "xn--bcher-kva.example", "a_b.weather.example", "",
	} {
		authority := host + ":PLAIN"
		out = append(out, parityCase{name: "the host `" + inCell(host) + "`", request: req("GET http://"+strings.ReplaceAll(authority, "PLAIN.w", "Plain.w")+"/v1/a", "Host: "+strings.ReplaceAll(authority, "PLAIN.w", "Plain.w"))})
	}
	return append(out,
		parityCase{name: "a port of 080", request: to("http://plain.weather.example:080/v1/a")},
		parityCase{name: "a port beyond 65535", request: to("http://plain.weather.example:99999/v1/a")},
		parityCase{name: "an empty port", request: to("http://plain.weather.example:/v1/a")},
		parityCase{name: "another Host", request: req("GET "+plainURL+"/v1/a", "Host: evil.example")},
		parityCase{name: "no Host", request: req("GET " + plainURL + "/v1/a")},
		parityCase{name: "no Host in origin form", request: req("GET /v1/a")},
		parityCase{name: "two Hosts", request: req("GET "+plainURL+"/v1/a", "Host: "+plainAt, "Host: evil.example")},
		parityCase{name: "an empty Host", request: req("GET "+plainURL+"/v1/a", "Host:")},
	)
}

func parityHeaders() []parityCase {
	many := make([]string, 300)
	for i := range many {
		many[i] = "X-H: v"
	}
	out := []parityCase{
		{name: "300 headers", request: to(plainURL+"/v1/a", many...)},
		{name: "a head of 62 KiB", request: to(plainURL+"/v1/a", "X-Long: "+strings.Repeat("v", 62<<10))},
		{name: "a head of 100 KiB", request: to(plainURL+"/v1/a", "X-Long: "+strings.Repeat("v", 100<<10))},
		{name: "h2c offered", request: strings.Replace(to(plainURL+"/v1/a", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), "Connection: close", "Connection: Upgrade, HTTP2-Settings", 1)},
		{name: "a WebSocket", request: strings.Replace(to(plainURL+"/ws", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), "Connection: close", "Connection: Upgrade", 1)},
		{name: "a WebSocket that is not granted", request: strings.Replace(to(plainURL+"/v1/a", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), "Connection: close", "Connection: Upgrade", 1)},
		{name: "an upgrade of nobody's", request: strings.Replace(to(plainURL+"/v1/a", "Upgrade: my-own"), "Connection: close", "Connection: Upgrade", 1)},
		{name: "TLS offered as an upgrade", request: strings.Replace(to(plainURL+"/v1/a", "Upgrade: TLS/1.2"), "Connection: close", "Connection: Upgrade", 1)},
	}
	for _, header := range []string{
		"ot-baggage-trace_id: 1", "x_chaperone_route: plain/other", "X-Chaperone-Route: weather/api", "X-Forwarded-Host: evil.example", "X-Envoy-Original-Path: /v1/b",
		"X-HTTP-Method-Override: DELETE", "Proxy-Connection: keep-alive", "X-Bytes: caf\xe9", "X-Nul: a\x00b", "X-Tab:\ta", "X-Space : a", " X-Folded: a", "X Y: a", "X-Empty:", ": a", "X-Bare", "X-Bell: a\x07b",
		"Expect: 100-continue", "Expect: something", "TE: trailers", "TE: gzip", "Trailer: x-t", "Keep-Alive: timeout=5", "Max-Forwards: 0", "Cookie: a=1, b=2", "Range: bytes=0-1",
	} {
		out = append(out, parityCase{name: "the header `" + inCell(header) + "`", request: to(plainURL+"/v1/a", header)})
	}
	return out
}

func parityMethods() []parityCase {
	var out []parityCase
	for _, method := range []string{"HEAD", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "PROPFIND", "LIST", "get", "FOO", "M-SEARCH", "G=T", "G(T", "PRI"} {
		out = append(out, parityCase{name: "the method `" + method + "`", request: strings.Replace(to(plainURL+"/v1/a"), "GET", method, 1)})
	}
	return append(out, parityCase{name: "a method that is not granted", request: strings.Replace(to(plainURL+"/ws"), "GET", "POST", 1)})
}

func parityFraming() []parityCase {
	post := func(headers, body string) string {
		return "POST " + plainURL + "/v1/a HTTP/1.1\r\nHost: " + plainAt + "\r\nConnection: close\r\n" + headers + "\r\n" + body
	}
	return []parityCase{
		{name: "a body with its length", request: post("Content-Length: 2\r\n", "hi")},
		{name: "a body in chunks", request: post("Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n")},
		{name: "a body in chunks with extensions", request: post("Transfer-Encoding: chunked\r\n", "2;a=b\r\nhi\r\n0\r\n\r\n")},
		{name: "trailers", request: post("Transfer-Encoding: chunked\r\nTrailer: x-t\r\n", "2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n")},
		{name: "length and chunks", request: post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n")},
		{name: "two lengths that differ", request: post("Content-Length: 2\r\nContent-Length: 3\r\n", "hi!")},
		{name: "the same length twice", request: post("Content-Length: 2\r\nContent-Length: 2\r\n", "hi")},
		{name: "a list of one length", request: post("Content-Length: 2, 2\r\n", "hi")},
		{name: "a signed length", request: post("Content-Length: +2\r\n", "hi")},
		{name: "a negative length", request: post("Content-Length: -2\r\n", "hi")},
		{name: "a length that is no number", request: post("Content-Length: a\r\n", "hi")},
		{name: "chunks twice", request: post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n")},
		{name: "another coding", request: post("Transfer-Encoding: gzip, chunked\r\n", "2\r\nhi\r\n0\r\n\r\n")},
		{name: "chunked in capitals", request: post("Transfer-Encoding: CHUNKED\r\n", "2\r\nhi\r\n0\r\n\r\n")},
		{name: "an invalid chunk size", request: post("Transfer-Encoding: chunked\r\n", "zz\r\nhi\r\n0\r\n\r\n")},
		{name: "lines that end in LF", request: strings.ReplaceAll(to(plainURL+"/v1/a"), "\r\n", "\n")},
		{name: "an empty line first", request: "\r\n" + to(plainURL+"/v1/a")},
		{name: "HTTP/1.0", request: strings.Replace(to(plainURL+"/v1/a"), "HTTP/1.1", "HTTP/1.0", 1)},
		{name: "HTTP/1.0 without Host", request: "GET " + plainURL + "/v1/a HTTP/1.0\r\n\r\n"},
		{name: "HTTP/1.0 in origin form without Host", request: "GET /v1/a HTTP/1.0\r\n\r\n"},
		{name: "HTTP/1.2", request: strings.Replace(to(plainURL+"/v1/a"), "HTTP/1.1", "HTTP/1.2", 1)},
		{name: "HTTP/2.0 in a line of HTTP/1", request: strings.Replace(to(plainURL+"/v1/a"), "HTTP/1.1", "HTTP/2.0", 1)},
		{name: "no version", request: "GET " + plainURL + "/v1/a\r\n\r\n"},
		{name: "no HTTP", request: "hello there\r\n\r\n"},
		{name: "two spaces in the line", request: strings.Replace(to(plainURL+"/v1/a"), "GET ", "GET  ", 1)},
		{name: "nobody at the upstream", request: to("http://gone.weather.example:9/v1/a")},
	}
}

func parityConnects() []parityCase {
	out := []parityCase{
		{name: "CONNECT with a body", request: "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "CONNECT of HTTP/1.0", request: "CONNECT evil.example:443 HTTP/1.0\r\n\r\n"},
		{name: "CONNECT with another Host", request: "CONNECT evil.example:443 HTTP/1.1\r\nHost: " + secureAt + "\r\n\r\n"},
		{name: "CONNECT without Host", request: "CONNECT evil.example:443 HTTP/1.1\r\n\r\n"},
	}
	for _, to := range []string{
		"evil.example:443", "evil.example:80", "evil.example:22", "evil.example", "evil.example:", "evil.example:0", "evil.example:99999", "evil.example:0443", "http://evil.example/", "/",
		"user@evil.example:443", "*.weather.example:443", "[::1]:443", "127.0.0.1:443", "b\xc3\xbccher.example:443", "evil.example:443/x",
	} {
		out = append(out, parityCase{name: "CONNECT `" + inCell(to) + "`", request: connect(to)})
	}
	return out
}

func parityInside() []parityCase {
	get := req("GET /v1/a", "Host: "+secureAt)
	plain := req("GET /v1/a", "Host: "+plainAt)
	return []parityCase{
		{name: "TLS in a CONNECT", request: connect(secureAt), tls: "api.weather.example", inside: get},
		{name: "TLS in a CONNECT of HTTP/1.0", request: "CONNECT " + secureAt + " HTTP/1.0\r\n\r\n", tls: "api.weather.example", inside: get},
		{name: "TLS in a CONNECT to a name with a dot at its end", request: connect("api.weather.example.:SECURE"), tls: "api.weather.example", inside: get},
		{name: "TLS in a CONNECT to a name in capitals", request: connect("API.Weather.Example:SECURE"), tls: "api.weather.example", inside: get},
		{name: "TLS to a wildcard's host", request: connect("a.tiles.weather.example:SECURE"), tls: "a.tiles.weather.example", inside: req("GET /v1/a", "Host: a.tiles.weather.example:SECURE")},
		{name: "a path in TLS that is not granted", request: connect(secureAt), tls: "api.weather.example", inside: req("GET /other", "Host: "+secureAt)},
		{name: "a method in TLS that is not granted", request: connect(secureAt), tls: "api.weather.example", inside: req("DELETE /v1/a", "Host: "+secureAt)},
		{name: "another Host in TLS", request: connect(secureAt), tls: "api.weather.example", inside: req("GET /v1/a", "Host: evil.example")},
		{name: "another granted Host in TLS", request: connect(secureAt), tls: "api.weather.example", inside: req("GET /v1/a", "Host: a.tiles.weather.example:SECURE")},
		{name: "a Host in TLS without its port", request: connect(secureAt), tls: "api.weather.example", inside: req("GET /v1/a", "Host: api.weather.example")},
		{name: "another server name", request: connect(secureAt), tls: "a.tiles.weather.example", inside: get},
		{name: "absolute form in TLS", request: connect(secureAt), tls: "api.weather.example", inside: req("GET https://"+secureAt+"/v1/a", "Host: "+secureAt)},
		{name: "absolute form with http in TLS", request: connect(secureAt), tls: "api.weather.example", inside: req("GET http://"+secureAt+"/v1/a", "Host: "+secureAt)},
		{name: "CONNECT in TLS", request: connect(secureAt), tls: "api.weather.example", inside: connect(secureAt)},
		{name: "HTTP/1.0 in TLS", request: connect(secureAt), tls: "api.weather.example", inside: "GET /v1/a HTTP/1.0\r\nHost: " + secureAt + "\r\n\r\n"},
		{name: "HTTP/1.0 in TLS without Host", request: connect(secureAt), tls: "api.weather.example", inside: "GET /v1/a HTTP/1.0\r\n\r\n"},
		{name: "plain http in a CONNECT", request: connect(plainAt), inside: plain},
		{name: "plain http in a CONNECT to a name with a dot at its end", request: connect("plain.weather.example.:PLAIN"), inside: plain},
		{name: "plain http in a CONNECT to a wildcard's host", request: connect("a.maps.weather.example:PLAIN"), inside: req("GET /v1/a", "Host: a.maps.weather.example:PLAIN")},
		{name: "plain http in a CONNECT, of another host", request: connect(plainAt), inside: req("GET /v1/a", "Host: evil.example")},
		{name: "plain http in a CONNECT, of another granted host", request: connect(plainAt), inside: req("GET /v1/a", "Host: a.maps.weather.example:PLAIN")},
		{name: "plain http of HTTP/1.0 in a CONNECT", request: connect(plainAt), inside: "GET /v1/a HTTP/1.0\r\nHost: " + plainAt + "\r\n\r\n"},
		{name: "plain http where https is granted", request: connect(secureAt), inside: get},
		{name: "something else in a CONNECT", request: connect(plainAt), inside: "hello there\r\n\r\n"},
	}
}

// parityAnswer is an answer of an upstream.
type parityAnswer struct{ name, answer string }

func parityAnswers() []parityAnswer {
	head := func(lines ...string) string { return "HTTP/1.1 200 OK\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n" }
	return []parityAnswer{
		{"with its length", head("Content-Length: 2") + "ok"},
		{"that ends with the connection", head() + "ok"},
		{"with length and chunks", head("Content-Length: 2", "Transfer-Encoding: chunked") + "2\r\nok\r\n0\r\n\r\n"},
		{"with two lengths that differ", head("Content-Length: 2", "Content-Length: 3") + "ok!"},
		{"with the same length twice", head("Content-Length: 2", "Content-Length: 2") + "ok"},
		{"with a blank before a colon", head("Content-Length: 2", "X-A : b") + "ok"},
		{"with a folded header", head("Content-Length: 2", "X-A: b", " c") + "ok"},
		{"with a header without a colon", head("Content-Length: 2", "X-A") + "ok"},
		{"with bytes beyond ASCII", head("Content-Length: 2", "X-A: caf\xe9") + "ok"},
		{"with NUL in a header", head("Content-Length: 2", "X-A: a\x00b") + "ok"},
		{"with 300 headers", head("Content-Length: 2", strings.TrimSuffix(strings.Repeat("X-A: b\r\n", 300), "\r\n")) + "ok"},
		{"with a head of 200 KiB", head("Content-Length: 2", "X-A: "+strings.Repeat("b", 200<<10)) + "ok"},
		{"with a head of 300 KiB", head("Content-Length: 2", "X-A: "+strings.Repeat("b", 300<<10)) + "ok"},
		{"with trailers", head("Transfer-Encoding: chunked", "Trailer: X-T") + "2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"},
		{"with lines that end in LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"},
		{"of HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		{"of no version", "ok\r\n\r\n"},
		{"without a reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"},
		{"after a 103", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + head("Content-Length: 2") + "ok"},
		{"of a status beyond 599", "HTTP/1.1 799 Odd\r\nContent-Length: 2\r\n\r\nok"},
		{"of nothing", ""},
		{"that names the sidecar", head("Content-Length: 2", "X-Chaperone-Reason: granted", "Alt-Svc: h3=\":443\"") + "ok"},
		{"with an upgrade that was not asked for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"},
	}
}

// parityOdd asks for every answer.
func parityOdd() []parityCase {
	var out []parityCase
	for i, a := range parityAnswers() {
		out = append(out, parityCase{name: "an answer " + a.name, request: to("http://odd.weather.example:ODD/" + strconv.Itoa(i))})
	}
	return out
}

func parityHTTP2() []parityCase {
	request := func(name string, pairs ...string) parityCase {
		return parityCase{name: "HTTP/2: " + name, request: connect(secureAt), tls: "api.weather.example", fields: fields(pairs...)}
	}
	usual := []string{":method", "GET", ":scheme", "https", ":authority", secureAt, ":path", "/v1/a"}
	with := func(name string, pairs ...string) parityCase {
		return request(name, append(slices.Clone(usual), pairs...)...)
	}
	return []parityCase{
		with("a granted request"),
		request("a path that is not granted", ":method", "GET", ":scheme", "https", ":authority", secureAt, ":path", "/other"),
		request("another authority", ":method", "GET", ":scheme", "https", ":authority", "evil.example", ":path", "/v1/a"),
		request("another scheme", ":method", "GET", ":scheme", "http", ":authority", secureAt, ":path", "/v1/a"),
		request("a dot segment", ":method", "GET", ":scheme", "https", ":authority", secureAt, ":path", "/v1/../a"),
		request("no path", ":method", "GET", ":scheme", "https", ":authority", secureAt),
		request("an empty path", ":method", "GET", ":scheme", "https", ":authority", secureAt, ":path", ""),
		request("no authority", ":method", "GET", ":scheme", "https", ":path", "/v1/a"),
		request("no authority and a host", ":method", "GET", ":scheme", "https", ":path", "/v1/a", "host", secureAt),
		request("CONNECT", ":method", "CONNECT", ":authority", secureAt),
		request("an extended CONNECT", ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", secureAt, ":path", "/v1/a"),
		with("another host", "host", "evil.example"),
		with("connection", "connection", "close"),
		with("te: trailers", "te", "trailers"),
		with("te: gzip", "te", "gzip"),
		with("transfer-encoding", "transfer-encoding", "chunked"),
		with("a name in capitals", "X-A", "1"),
		with("a name with an underscore", "x_a", "1"),
		with("a name that is no token", "x a", "1"),
		with("bytes beyond ASCII", "x-a", "caf\xc3\xa9"),
		with("NUL", "x-a", "a\x00b"),
		with("LF", "x-a", "a\nb"),
		with("two cookies", "cookie", "a=1", "cookie", "b=2"),
		with("an unknown pseudo header", ":other", "1"),
		with("a length without a body", "content-length", "5"),
	}
}

// difference is what Envoy's door does otherwise, and why.
type difference struct{ envoy, why string }

// differences are by the names of requests.
func differences() map[string]difference {
	const (
		host    = "Envoy ignores Host where the target is absolute (RFC 9112, section 3.2.2), and forwards the target's"
		methods = "Envoy takes the methods of the IANA registry alone, PURGE and its like; the option for others is not covered by its security policy"
		inside  = "Envoy's filter does not receive the host of the CONNECT: each request is decided by its own"
		answers = "Envoy takes no such answer, which two readers could take for different ones"
		http2   = "Envoy resets the stream and gives no answer; both record it"
	)
	return map[string]difference{
		"origin form":                                      {"200", "Envoy's listener takes all forms: a request is decided by its host, whatever the form"},
		"https in the target":                              {"403 not_enforceable_here", "Envoy refuses https on a connection without TLS; clients send a CONNECT"},
		"the path `/v1/caf<C3 A9>`":                        {"400 malformed_request", "Envoy takes printable ASCII only in a target (RFC 3986)"},
		"the host `user@plain.weather.example`":            {"200", "Envoy drops the user before it asks, and forwards none"},
		"the host `plain.weather.example@evil.example`":    {"403 destination_not_granted", "Envoy drops the user before it asks; the host after it is what is decided"},
		"the host `a_b.weather.example`":                   {"400 malformed_request", "Envoy takes no underscore in the host of an absolute target; it does in a CONNECT"},
		"another Host":                                     {"200", host},
		"no Host":                                          {"200", host},
		"two Hosts":                                        {"200", host},
		"the header ` X-Folded: a`":                        {"200", "Envoy joins a folded line (RFC 9112, section 5.2) and forwards one line"},
		"the header `Expect: something`":                   {"417, recorded granted", "Envoy leaves other expectations to the upstream, which answers 417"},
		"the method `LIST`":                                {"400 malformed_request", methods},
		"the method `get`":                                 {"400 malformed_request", methods},
		"the method `FOO`":                                 {"400 malformed_request", methods},
		"the method `M-SEARCH`":                            {"400 malformed_request", methods},
		"length and chunks":                                {"400 malformed_request", "Envoy refuses both together; the proxy drops the length (RFC 9112, section 6.3)"},
		"the same length twice":                            {"400 malformed_request", "Envoy refuses it (RFC 9110, section 8.6 leaves the choice)"},
		"an empty line first":                              {"200", "Envoy ignores it (RFC 9112, section 2.2)"},
		"HTTP/2.0 in a line of HTTP/1":                     {"200", "Envoy reads it as HTTP/1.1, and answers and forwards so"},
		"no version":                                       {"200", "Envoy reads it as HTTP/1.0, and decides it"},
		"two spaces in the line":                           {"200", "Envoy takes any blanks between the parts of the line (RFC 9112, section 3)"},
		"CONNECT with another Host":                        {"403 destination_not_granted", "Envoy ignores Host where the target has the host"},
		"CONNECT `127.0.0.1:443`":                          {"403 destination_not_granted", "the proxy refuses inside TLS, where the plugin can read it, what its authority covers; Envoy at the CONNECT"},
		"a Host in TLS without its port":                   {"403 destination_not_granted", "Envoy's filter does not receive the port of the CONNECT: it is a request for another port"},
		"another server name":                              {"421 destination_mismatch", "Envoy shows the certificate of the server name, and the request in it is refused"},
		"absolute form in TLS":                             {"200", "Envoy takes all forms"},
		"absolute form with http in TLS":                   {"403 destination_not_granted", "Envoy takes all forms, and the scheme of the target: it is a request for http"},
		"CONNECT in TLS":                                   {"403 destination_not_granted", "refused at both; Envoy asks about it"},
		"HTTP/1.0 in TLS without Host":                     {"400 malformed_request", "Envoy's filter does not receive the host of the CONNECT"},
		"plain http in a CONNECT, of another host":         {"403 destination_not_granted", inside},
		"plain http in a CONNECT, of another granted host": {"200", inside},
		"HTTP/2: another scheme":                           {"403 destination_not_granted", "Envoy passes the scheme on that was sent: it is a request for http"},
		"HTTP/2: no path":                                  {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: an empty path":                            {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: no authority":                             {"reset PROTOCOL_ERROR, recorded malformed_request", "Envoy demands a host, and resets the stream"},
		"HTTP/2: CONNECT":                                  {"403 destination_not_granted", "refused at both; Envoy asks about it"},
		"HTTP/2: an extended CONNECT":                      {"403 method_not_granted", "Envoy offers it (RFC 8441), and asks about it as a WebSocket"},
		"HTTP/2: another host":                             {"200", "Envoy drops host where :authority is there (RFC 9113, section 8.3.1)"},
		"HTTP/2: connection":                               {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: te: gzip":                                 {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: transfer-encoding":                        {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: a name in capitals":                       {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: a name that is no token":                  {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: NUL":                                      {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: LF":                                       {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: an unknown pseudo header":                 {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"HTTP/2: a length without a body":                  {"reset PROTOCOL_ERROR, recorded malformed_request", http2},
		"an answer with length and chunks":                 {"502 upstream_unreachable", answers},
		"an answer with the same length twice":             {"502 upstream_unreachable", answers},
		"an answer with a blank before a colon":            {"502 upstream_unreachable", answers},
		"an answer with an upgrade that was not asked for": {"101", "Envoy passes the status on; what the plugin sends next is a request again"},
	}
}

package attack

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
)

// The list of attacks. Each has a number, which attempts and failures name.
//
//	 1  the good host's name inside a connection to the evil one
//	 2  an absolute URI that disagrees with its connection or with Host
//	 3  server names, hosts and authorities that disagree, or are spelled in odd ways
//	 4  a redirected connection to an address that is not the host's
//	 5  another port or scheme of the good host
//	 6  names that resolve to where they should not, at once or later
//	 7  redirects, also of the endpoint that gives out tokens
//	 8  hop-by-hop headers that list the credential's place
//	 9  credentials of the plugin's own, however spelled
//	10  values that would end a header
//	11  request smuggling
//	12  paths that are others
//	13  stand-ins where they do not belong
//	14  echoes in every spelling, place and coding
//	15  upgrades
//	16  trailers
//	17  connections that are shared: see room.search
//	19  signatures and headers of AWS's
//	20  token endpoints that are slow, wrong or evil
//	21  revocation while it happens: see room.revoked
//	22  leases that end: see room.lapses
//	23  what is written: see room.search
//	24  the sidecar's own places
//	25  floods: see room.flood and room.mints
//
// There is no 18: it is about databases that are spoken to in their own protocol.

// lane is how a plugin's request reaches a door.
type lane struct {
	name                               string
	envoy, redirected, tunnel, tls, h2 bool
}

// lanes are those of a door, as house.open has it.
func lanes(door string) []lane {
	if door == "envoy" {
		return []lane{{name: "Envoy", envoy: true}, {name: "Envoy, HTTP/2", envoy: true, h2: true}}
	}
	out := []lane{
		{name: "absolute form"},
		{name: "HTTP/2 in clear", h2: true},
		{name: "CONNECT", tunnel: true},
		{name: "CONNECT, HTTP/2 in clear", tunnel: true, h2: true},
		{name: "CONNECT, TLS", tunnel: true, tls: true},
		{name: "CONNECT, TLS, HTTP/2", tunnel: true, tls: true, h2: true},
	}
	if door == "required" {
		out = append(out,
			lane{name: "redirected", redirected: true}, lane{name: "redirected, HTTP/2 in clear", redirected: true, h2: true},
			lane{name: "redirected, TLS", redirected: true, tls: true}, lane{name: "redirected, TLS, HTTP/2", redirected: true, tls: true, h2: true})
	}
	return out
}

// explicit is a request to a proxy, which names where it goes in full.
func (w lane) explicit() bool { return !w.envoy && !w.redirected && !w.tunnel }

// probe is an attack: one request, or bytes that are almost one. In its texts {G} is
// the good host's authority and {g} its name, {E} and {e} the evil one's, {K} the
// kind of credential, {P} the port of both, {OTHER} and {CLEAR} ports where the
// good name resolves to another server, with and without TLS, {S} the placeholder, {ID}
// the attempt's own name, {T} the target as this way has it, {ECHO} and {REDIRECT}
// paths whose answer holds all that was sent, where that is searched.
type probe struct {
	item   int // of the list above
	name   string
	to     string // where the plugin connects, or asks to; "": {G}
	sni    string // "": the name in to; -: none
	method string
	path   string // "": /v1/{ECHO}/{ID}
	host   string // beside to
	heads  []string
	body   string
	tail   []string
	text   string // all of it, for HTTP/1.1 only
	after  []string
	kinds  string // "": every one
	any    bool   // of which one will do, each time another: it is no credential's affair
	share  int    // of which one in so many will do, each time others
	not    func(lane) string
	want   string
	envoy  string // the expectation at Envoy's door, where that differs
}

// Expectations: the place where the request arrives, alternatives divided by |. "good"
// and "evil" are one request there; "refused" is no request and a refusal with the
// reason that may follow; "nobody" is no request, with any answer. "goods" may be several
// requests, each decided by itself; of "misplaced" the head may arrive, before the body
// or bytes behind it are refused.

// Reasons why an attack does not apply on some ways.
func inTLS(w lane) string {
	if !w.tls {
		return "without TLS there is no server name"
	}
	return ""
}

func inHTTP1(w lane) string {
	if w.h2 {
		return "HTTP/2 has no such syntax; its own are below"
	}
	return ""
}

func inHTTP2(w lane) string {
	if !w.h2 {
		return "it is HTTP/2's"
	}
	return ""
}

func named(w lane) string {
	if w.redirected {
		return "a redirected plugin names nothing; it connects"
	}
	return ""
}

func inside(w lane) string {
	if !w.tunnel && !w.redirected {
		return "there is no connection that has a name of its own"
	}
	return inHTTP1(w)
}

func onlyRedirected(w lane) string {
	if !w.redirected {
		return "this way redirects no connection"
	}
	return ""
}

func inClear(w lane) string {
	if w.tls || w.envoy {
		return "the rule is for http, which this way is not"
	}
	return ""
}

func dialsItself(w lane) string {
	if w.envoy {
		return "Envoy resolves and dials: a rule that states addresses is refused there as not_enforceable_here"
	}
	return ""
}

func scrubbed(w lane) string {
	if w.envoy {
		return "an answer does not pass the sidecar behind Envoy, so that nothing is scrubbed"
	}
	return ""
}

func carriesBodies(w lane) string {
	if w.envoy {
		return "a body does not pass the sidecar behind Envoy; a placeholder is worth nothing"
	}
	return ""
}

func firstOf(reasons ...func(lane) string) func(lane) string {
	return func(w lane) string {
		for _, reason := range reasons {
			if text := reason(w); text != "" {
				return text
			}
		}
		return ""
	}
}

const mine = "mine-of-the-plugin"

// ownCredentials are what a plugin puts where credentials go.
func ownCredentials() []string {
	return []string{
		"Authorization: Bearer " + mine, "authorization: Basic " + mine, "X-Api-Key: " + mine, "Cookie: sid=" + mine + "; other=1", "X-Db-Password: " + mine,
		"X-Amz-Security-Token: " + mine, "X-Amz-Date: " + mine, "X-Vault-Token: " + mine,
		"X-Forwarded-Host: {E}", "X-Forwarded-For: {E}", "Forwarded: host={E}", "X-Original-URL: /" + mine, "X-HTTP-Method-Override: DELETE",
	}
}

// probes is the list.
func probes() []probe {
	all := []probe{{name: "nothing but a request", want: "good"}}
	for i, group := range [][]probe{confusions(), spelledHosts(), resolutions(), headersOfTheirOwn(), smuggled(), paths(), misplacements(), echoes(), upgrades(), signatures(), tokenEndpoints(), itself(), floods()} {
		for _, p := range group {
			p.any = i == 1 || i == 2 || i == 4 || i == 5 // names, addresses, framing and paths
			all = append(all, p)
		}
	}
	return all
}

// confusions are items 1, 2, 4 and 5: names that disagree.
func confusions() []probe {
	return []probe{
		{item: 1, name: "the good host's name in what goes to the evil one", to: "{E}", host: "{G}", want: "refused destination_mismatch", envoy: "evil|refused"},
		{item: 1, name: "the evil host's name in what goes to the good one", host: "{E}", want: "refused destination_mismatch", envoy: "good|refused"},
		{item: 1, name: "an ordinary request to the evil one", to: "{E}", heads: []string{"Authorization: Bearer {api_key}"}, want: "evil"},
		{item: 2, name: "an absolute URI elsewhere than its connection", text: "GET https://{E}/v1/echo/{ID} HTTP/1.1\r\nHost: {G}\r\nConnection: close\r\n\r\n", not: inside, want: "refused"},
		{item: 2, name: "an absolute URI that comes back", to: "{E}", text: "GET https://{G}/v1/echo/{ID} HTTP/1.1\r\nHost: {E}\r\nConnection: close\r\n\r\n", not: inside, want: "refused"},
		{item: 3, name: "the evil server name to the good host", sni: "{e}", not: inTLS, want: "refused|nobody"},
		{item: 3, name: "the good server name to the evil host", to: "{E}", sni: "{g}", host: "{G}", not: inTLS, want: "refused|nobody"},
		{item: 3, name: "no server name", sni: "-", not: inTLS, want: "good"},
		{item: 3, name: "another case of server name", sni: "{U}", not: inTLS, want: "good"},
		{item: 3, name: "two hosts", text: "GET {T} HTTP/1.1\r\nHost: {G}\r\nHost: {E}\r\nConnection: close\r\n\r\n", not: inHTTP1, want: "refused|nobody", envoy: "good"},
		{item: 3, name: "two hosts, the evil one's first", to: "{E}", text: "GET {T} HTTP/1.1\r\nHost: {E}\r\nHost: {G}\r\nConnection: close\r\n\r\n", not: inHTTP1, want: "refused|nobody", envoy: "evil"},
		{item: 3, name: ":authority and Host", heads: []string{"host: {E}"}, not: inHTTP2, want: "refused|nobody", envoy: "good|refused|nobody"},
		{item: 4, name: "an address without a name", to: "198.51.100.7:{P}", sni: "{g}", host: "{G}", not: onlyRedirected, want: "good"},
		{item: 4, name: "an address without a name, and no name", to: "198.51.100.7:{P}", sni: "-", host: "198.51.100.7:{P}", not: onlyRedirected, want: "refused|nobody"},
		{item: 4, name: "the evil host's address", to: "{E}", sni: "{g}", host: "{G}", not: onlyRedirected, want: "refused|nobody"},
		{item: 5, name: "another port of the good host", to: "{g}:{OTHER}", want: "refused|nobody"}, // by the kernel, where it is redirected
		{item: 5, name: "another port of the good host, without TLS", to: "{g}:{CLEAR}", want: "refused|nobody"},
		{item: 5, name: "another port in Host", host: "{g}:{OTHER}", want: "refused", envoy: "good|refused"},
	}
}

// spelledHosts are the rest of item 3.
func spelledHosts() []probe {
	var out []probe
	for _, c := range []struct{ host, want, envoy string }{
		{"{U}:{P}", "good", ""},
		{"{g}.:{P}", "good", ""},
		{"{g}:0{P}", "refused|nobody|good", ""},
		{"{g}:", "refused|nobody", ""},
		{"{g}:443:80", "refused|nobody", ""},
		{"{g}@{E}", "refused|nobody", "evil|nobody"},
		{"{E}@{G}", "refused|nobody", "good|nobody"},
		{"{g}%2eevil.example:{P}", "refused|nobody", ""},
		{"{g}%00.evil.example:{P}", "refused|nobody", ""},
		{"\uff4bind.good.example:{P}", "refused|nobody", ""},
		{"xn--{g}:{P}", "refused|nobody", ""},
		{"[::ffff:127.0.0.1]:{P}", "refused|nobody", ""},
		{"127.1:{P}", "refused|nobody", ""},
		{"2130706433:{P}", "refused|nobody", ""},
		{"{g},{E}", "refused|nobody", ""},
		{"{g}/.evil.example:{P}", "refused|nobody", "refused|nobody"},
		{"{g}\\.evil.example:{P}", "refused|nobody", ""},
		{"{g}#@{E}", "refused|nobody", ""},
		{"*.good.example:{P}", "refused|nobody", ""},
	} {
		out = append(out,
			probe{item: 3, name: "to " + c.host, to: c.host, not: firstOf(named, func(w lane) string {
				if w.envoy && strings.ContainsAny(c.host, "/#") {
					return "in a URI that is a path's beginning"
				}
				return ""
			}), want: c.want, envoy: c.envoy},
			probe{item: 3, name: "Host " + c.host, host: c.host, want: c.want, envoy: "good|refused|nobody"})
	}
	return append(out, probe{item: 3, name: "a tab behind Host", text: "GET {T} HTTP/1.1\r\nHost: {G}\t\r\nConnection: close\r\n\r\n", not: inHTTP1, want: "good|refused|nobody"})
}

// rebound are names that resolve to where they should not.
func rebound() []struct {
	name, records string
	want          string
} {
	return []struct{ name, records, want string }{
		{"rebind", "", "good|refused address_not_allowed"},
		{"both", "A 127.0.0.2,A 127.0.0.1", "good"},
		{"lone", "A 127.0.0.2", "refused address_not_allowed"},
		{"metadata", "A 169.254.169.254", "refused address_not_allowed"},
		{"zero", "A 0.0.0.0", "refused address_not_allowed"},
		{"mapped", "AAAA ::ffff:127.0.0.2", "refused address_not_allowed"},
		{"nat64", "AAAA 64:ff9b::7f00:2", "refused address_not_allowed"},
		{"imds6", "AAAA fd00:ec2::254", "refused address_not_allowed"},
		{"alias", "CNAME evil.example.,A 127.0.0.2", "refused address_not_allowed"},
	}
}

// resolutions is item 6.
func resolutions() []probe {
	var out []probe
	for _, r := range rebound() {
		out = append(out, probe{item: 6, name: "a name that is " + r.name, to: "{K}." + r.name + ".example:{P}", not: dialsItself, want: r.want})
	}
	return append(out, probe{item: 6, name: "a rule that states addresses, behind Envoy", to: "stated.good.example:{P}", kinds: "header", not: func(w lane) string {
		if !w.envoy {
			return "this door does enforce them"
		}
		return ""
	}, want: "refused not_enforceable_here"})
}

// headersOfTheirOwn are items 7 to 10 and 16.
func headersOfTheirOwn() []probe {
	slots := "Authorization, Cookie, X-Api-Key, X-Db-Password, X-Amz-Security-Token, X-Amz-Date"
	out := []probe{
		{item: 7, name: "a redirect", path: "/v1/{REDIRECT}/{ID}", share: 2, want: "good"},
		{item: 7, name: "a redirect with a body", method: "POST", path: "/v1/{REDIRECT}/{ID}", body: "the body", share: 2, want: "good"},
		{item: 8, name: "Connection that lists the credential's places", heads: []string{"Connection: " + slots, "Keep-Alive: " + slots, "Proxy-Connection: " + slots}, not: inHTTP1, share: 2, want: "good"},
		{item: 8, name: "Connection in HTTP/2", heads: []string{"connection: " + slots}, not: inHTTP2, share: 2, want: "good|refused|nobody"},
		{item: 8, name: "h2c", heads: []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"}, not: inHTTP1, share: 2, want: "good", envoy: "nobody|refused|good"},
		{item: 9, name: "credentials of its own", path: "/v1/{ECHO}/{ID}?key=" + mine + "&k%65y=" + mine + "&KEY=" + mine, heads: ownCredentials(), want: "good"},
		{item: 9, name: "credentials with underscores", heads: []string{"x_api_key: " + mine, "X_DB_PASSWORD: " + mine, "x_amz_security_token: " + mine}, want: "good"},
		{item: 9, name: "a space before a colon", text: "GET {T} HTTP/1.1\r\nHost: {H}\r\nAuthorization : Bearer " + mine + "\r\nConnection: close\r\n\r\n", not: inHTTP1, want: "refused|nobody"},
		{item: 9, name: "a login to a proxy", heads: []string{"Proxy-Authorization: Basic bWluZTptaW5l"}, not: func(w lane) string {
			if w.explicit() {
				return "it is the sidecar's own on this way"
			}
			return ""
		}, want: "good"},
		{
			item: 16, name: "trailers", method: "POST", heads: []string{"Trailer: Authorization, X-Api-Key, X-Db-Password, X-Amz-Security-Token, Cookie", "TE: trailers"}, body: "x",
			tail: []string{"Authorization: Bearer " + mine, "X-Api-Key: " + mine, "X-Db-Password: " + mine, "X-Amz-Security-Token: " + mine, "Cookie: sid=" + mine}, want: "good|nobody",
		},
		{
			item: 16, name: "trailers that are other credentials' places", method: "POST", heads: []string{"Trailer: X-Api-Key, X-Db-Password, X-Amz-Security-Token, Cookie"}, body: "x",
			tail: []string{"X-Api-Key: " + mine, "X-Db-Password: " + mine, "X-Amz-Security-Token: " + mine, "Cookie: sid=" + mine}, want: "good",
		},
		{item: 16, name: "trailers that were not announced", method: "POST", body: "x", tail: []string{"Authorization: Bearer " + mine, "X-Api-Key: " + mine}, share: 2, want: "good"},
		{item: 16, name: "a trailer of the answer", path: "/v1/trailer/{ID}", heads: []string{"TE: trailers"}, not: scrubbed, share: 2, want: "good"},
	}
	return out
}

// smuggled is item 11: what one side may take for one request, and another for two.
func smuggled() []probe {
	const second = "GET /v1/smuggled/{ID} HTTP/1.1\r\nHost: {G}\r\n\r\n"
	var out []probe
	for _, c := range []struct{ name, heads, body, want string }{
		{"a length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + second, "refused|nobody|goods"},
		{"two transfer codings", "Transfer-Encoding: chunked, identity\r\nContent-Length: 4\r\n", "0\r\n\r\n" + second, "refused|nobody"},
		{"a transfer coding twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n" + second, "refused|nobody"},
		{"a hidden transfer coding", "Transfer-Encoding: \x0bchunked\r\nContent-Length: 4\r\n", "0\r\n\r\n" + second, "refused|nobody"},
		{"a folded header", "X-A: b\r\n Authorization: " + mine + "\r\n", "", "refused|nobody|good"},
		{"line feeds alone", "X-A: b\nX-B: c\nHost: {E}\r\n", "", "refused|nobody"},
		{"a length with a sign", "Content-Length: +4\r\n", "abcd", "refused|nobody"},
		{"two lengths", "Content-Length: 0\r\nContent-Length: 30\r\n", second, "refused|nobody"},
		{"the same length twice", "Content-Length: 4\r\nContent-Length: 4\r\n", "abcd", "refused|nobody|good"},
		{"a chunk's extension", "Transfer-Encoding: chunked\r\nConnection: close\r\n", "1;a=\"\r\n\r\n\"\r\nx\r\n0\r\n\r\n", "refused|nobody|good"},
		{"a chunk that is too large", "Transfer-Encoding: chunked\r\nConnection: close\r\n", "fffffffffffffffff\r\nx\r\n0\r\n\r\n", "refused|nobody|good"},
		{"a carriage return alone", "X-A: b\rHost: {E}\r\n", "", "refused|nobody"},
		{"NUL", "X-A: b\x00c\r\n", "", "refused|nobody"},
		{"a name with a space", "X A: b\r\n", "", "refused|nobody"},
		{"no name", ": b\r\n", "", "refused|nobody"},
	} {
		out = append(out, probe{item: 11, name: c.name, text: "POST {T} HTTP/1.1\r\nHost: {H}\r\n" + c.heads + "\r\n" + c.body, not: inHTTP1, want: c.want, envoy: c.want + "|good"})
	}
	return append(out,
		probe{item: 11, name: "a body that is expected", text: "POST {T} HTTP/1.1\r\nHost: {H}\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", not: inHTTP1, want: "good"},
		probe{item: 11, name: "CONNECT with a body", text: "CONNECT {G} HTTP/1.1\r\nHost: {G}\r\nContent-Length: 4\r\n\r\nabcd", not: inHTTP1, want: "nobody"},
		probe{item: 11, name: "CONNECT inside", text: "CONNECT {E} HTTP/1.1\r\nHost: {E}\r\nConnection: close\r\n\r\nGET /v1/echo/{ID} HTTP/1.1\r\nHost: {G}\r\n\r\n", not: inside, want: "nobody"},
		probe{item: 11, name: "HTTP/2: lines in a value", heads: []string{"x-a: b\r\nhost: {E}"}, not: inHTTP2, want: "refused|nobody"},
		probe{item: 11, name: "HTTP/2: lines in a path", path: "/v1/{ECHO}/{ID} HTTP/1.1\r\nHost: {E}\r\nX-A: b", not: inHTTP2, want: "refused|nobody"},
		probe{item: 11, name: "HTTP/2: a path with a space", path: "/v1/{ECHO}/{ID} HTTP/1.1", not: inHTTP2, want: "refused|nobody"},
		probe{item: 11, name: "HTTP/2: another length", method: "POST", heads: []string{"content-length: 3"}, body: "abcdef", not: inHTTP2, want: "refused|nobody|good"},
		probe{item: 11, name: "HTTP/2: a transfer coding", method: "POST", heads: []string{"transfer-encoding: chunked"}, body: "0\r\n\r\n", not: inHTTP2, want: "refused|nobody"},
	)
}

// paths is item 12.
func paths() []probe {
	var out []probe
	for _, c := range []struct{ path, want string }{
		{"/v1/../admin/{ID}", "refused|nobody"},
		{"/v1/%2e%2e/admin/{ID}", "refused|nobody"},
		{"/v1/..%2fadmin/{ID}", "refused|nobody"},
		{"//admin/{ID}", "refused|nobody"},
		{"/v1;x/../admin/{ID}", "refused|nobody"},
		{"/v1/%00/{ID}", "refused|nobody"},
		{"/v1/\\..\\admin/{ID}", "refused|nobody"},
		{"/v1/%5c..%5cadmin/{ID}", "refused|nobody"},
		{"/v1/%252e%252e/{ID}", "refused|nobody"},
		{"/admin/{ID}", "refused path_not_granted"},
		{"/V1/echo/{ID}", "refused path_not_granted"},
		{"/v1/{ECHO}/%c0%ae%c0%ae/{ID}", "good|refused|nobody"},
		{"/%76%31/{ECHO}/{ID}", "good"},
		{"/v1/{ECHO}/{ID}?a=b&a=c", "good"},
		{"/v1/{ECHO}/{ID}?key=" + mine + "%26key=" + mine, "good"},
	} {
		out = append(out, probe{item: 12, name: c.path, path: c.path, want: c.want})
	}
	return append(out, probe{item: 12, name: "a method that is not granted", method: "DELETE", want: "refused method_not_granted"})
}

// misplacements is item 13.
func misplacements() []probe {
	const want = "refused credential_misplaced"
	out := []probe{
		{name: "in its place", heads: []string{"X-Api-Key: {S}"}, want: "good"},
		{name: "in the path", path: "/v1/{S}/{ID}", want: want},
		{name: "in the query", path: "/v1/{ECHO}/{ID}?k={S}", want: want},
		{name: "in another header", heads: []string{"X-Note: {S}"}, want: want},
		{name: "in another header, in base64", heads: []string{"X-Note: {S64}"}, want: want},
		{name: "in another header, escaped", heads: []string{"X-Note: {S%}"}, want: want},
		{name: "in a header's name", heads: []string{"X-{S}: 1"}, want: want, envoy: "refused|nobody"},
		{name: "in a cookie", heads: []string{"Cookie: a={S}"}, want: want},
		{name: "in the host's name", to: "{S-}.evil.example:{P}", not: named, want: "refused|nobody"},
		{name: "in the body", method: "POST", body: "note={S}", not: carriesBodies, want: "misplaced"},
		{name: "in a body of parts", text: "POST {T} HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{SCHUNKS}0\r\n\r\n", not: firstOf(inHTTP1, carriesBodies), want: "misplaced"},
		{name: "in a body of base64", method: "POST", body: "note={S64}", not: carriesBodies, want: "misplaced"},
		{name: "in a body of gzip", method: "POST", heads: []string{"Content-Encoding: gzip"}, body: "{SGZIP}", not: carriesBodies, want: "misplaced"},
		{name: "in a body of br", method: "POST", heads: []string{"Content-Encoding: br"}, body: "{SBR}", not: carriesBodies, want: "misplaced"},
		{name: "in a trailer", method: "POST", heads: []string{"Trailer: X-Note"}, body: "x", tail: []string{"X-Note: {S}"}, not: carriesBodies, want: "misplaced"},
		{name: "to the evil host, in the credential's place", to: "{E}", heads: []string{"X-Api-Key: {S}"}, want: want},
		{name: "to the evil host, in its body", to: "{E}", method: "POST", body: "{S}", not: carriesBodies, want: "misplaced"},
		{name: "in a WebSocket", path: "/v1/ws/{ID}", heads: websocketHeads(), after: []string{"{SFRAME}"}, not: firstOf(inHTTP1, carriesBodies), want: "good"},
		{name: "in a WebSocket, in pieces", path: "/v1/ws/{ID}", heads: websocketHeads(), after: []string{"{SFRAME1}", "{SFRAME2}"}, not: firstOf(inHTTP1, carriesBodies), want: "good"},
	}
	for i := range out {
		out[i].item, out[i].kinds, out[i].name = 13, "placeholder", "a stand-in "+out[i].name
	}
	return out
}

func websocketHeads() []string {
	return []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: " + mine}
}

// echoes is item 14.
func echoes() []probe {
	const accept = "Accept-Encoding: gzip, deflate, br, zstd"
	var out []probe
	for name := range spellings("x") {
		out = append(out, probe{item: 14, name: "an echo, " + name, path: "/v1/" + name + "/{ID}", heads: []string{accept}, share: 3, not: scrubbed, want: "good"})
	}
	for _, name := range []string{"headers", "early", "error", "pieces", "gzip", "deflate", "br", "zstd", "grpc", "all"} {
		out = append(out, probe{item: 14, name: "an echo by " + name, path: "/v1/" + name + "/{ID}", heads: []string{accept, "TE: trailers", "A-IM: gzip"}, share: 2, not: scrubbed, want: "good"})
	}
	for i := range len(headerCanary) {
		out = append(out, probe{item: 14, name: fmt.Sprintf("an echo, byte %02d", i), kinds: "header", path: "/v1/range/{ID}", heads: []string{fmt.Sprintf("Range: bytes=%d-%[1]d", i)}, not: scrubbed, want: "good"})
	}
	return append(out,
		probe{item: 14, name: "TRACE", method: "TRACE", want: "refused method_not_granted"},
		probe{item: 14, name: "an echo of half", path: "/v1/range/{ID}", heads: []string{"Range: bytes=3-"}, not: scrubbed, want: "good"},
		probe{item: 14, name: "an echo that Envoy forwards", kinds: "header", path: "/v1/raw/{ID}", not: func(w lane) string {
			if !w.envoy || w.h2 {
				return "one of Envoy's will do, and the sidecar's scrub"
			}
			return ""
		}, want: "good"})
}

// upgrades is item 15.
func upgrades() []probe {
	return []probe{
		{item: 15, name: "a WebSocket that echoes", path: "/v1/ws/{ID}", heads: websocketHeads(), after: []string{"\x81\x84\x00\x00\x00\x00ping"}, not: firstOf(inHTTP1, scrubbed), share: 2, want: "good"},
		{item: 15, name: "a WebSocket where none is granted", to: "{E}", path: "/other/{ID}", heads: websocketHeads(), not: inHTTP1, want: "refused"},
		{item: 15, name: "another upgrade", heads: []string{"Connection: Upgrade", "Upgrade: tls/1.3, websocket"}, not: inHTTP1, want: "refused|nobody|good"}, // the first that is granted
		{item: 15, name: "a WebSocket over HTTP/2", method: "CONNECT", heads: []string{":protocol: websocket"}, not: inHTTP2, want: "refused|nobody|good"},
	}
}

// signatures is item 19.
func signatures() []probe {
	own := "AWS4-HMAC-SHA256 Credential=AKIAMINE/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=" + strings.Repeat("0", 64)
	out := []probe{
		{name: "a signature of its own", heads: []string{"Authorization: " + own, "X-Amz-Date: 20260101T000000Z", "X-Amz-Security-Token: " + mine}, want: "good"},
		{name: "a signature in the query", path: "/v1/{ECHO}/{ID}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAMINE%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=" + strings.Repeat("0", 64) + "&X-Amz-Security-Token=" + mine + "&X-Amz-Expires=900", want: "good"},
		{name: "headers of AWS's", heads: []string{"X-Amz-Target: DynamoDB_20120810.ListTables", "X-Amz-Meta-A: b"}, want: "good"},
		{name: "a body of AWS's chunks", method: "PUT", heads: []string{"X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "X-Amz-Decoded-Content-Length: 4", "Content-Encoding: aws-chunked"}, body: "4;chunk-signature=" + strings.Repeat("0", 64) + "\r\nabcd\r\n0;chunk-signature=" + strings.Repeat("0", 64) + "\r\n\r\n", want: "refused"},
		{name: "a host with AWS's name in front", to: "s3.amazonaws.com.evil.example:{P}", not: named, want: "refused|nobody"},
	}
	for i := range out {
		out[i].item, out[i].kinds = 19, "sigv4"
	}
	return out
}

// tokenEndpoints are items 10 and 20: credentials that must not be sent, or that
// come from a strange endpoint.
func tokenEndpoints() []probe {
	var out []probe
	for _, s := range (*house)(nil).spares() {
		if strings.HasSuffix(s.host, ".lease.example") {
			continue // see room.lapses
		}
		p := probe{item: 20, name: "a token from " + s.host, to: s.host + ":{P}", kinds: "oauth2", want: "good"}
		switch name, _, _ := strings.Cut(s.host, "."); {
		case strings.HasSuffix(s.host, ".bad.example"):
			p.item, p.name, p.want = 10, "a value of "+s.host, "refused credential_unavailable"
		case name == "redirect", name == "slow", name == "error", name == "endless":
			p.want = "refused credential_unavailable"
		case name == "negative", name == "huge":
			p.want = "good|refused credential_unavailable"
		}
		out = append(out, p)
	}
	return out
}

// itself is item 24: what is the sidecar's.
func itself() []probe {
	var out []probe
	for _, to := range []string{"vault.self.example:{VAULT}", "metrics.self.example:{METRICS}"} {
		out = append(out, probe{item: 24, name: to, to: to, path: "/v1/sys/health?{ID}", not: inClear, want: "refused address_not_allowed"})
	}
	for _, to := range []string{"127.0.0.1:{VAULT}", "127.0.0.1:{METRICS}", "127.0.0.1:{PROXY}", "169.254.169.254:80", "[fd00:ec2::254]:80", "localhost:{VAULT}", "[::1]:{VAULT}"} {
		out = append(out, probe{item: 24, name: to, to: to, kinds: "header", not: named, want: "refused|nobody"})
	}
	return out
}

// floods is item 25, beside the connections that never become a request.
func floods() []probe {
	return []probe{
		{item: 25, name: "trailers without end", path: "/v1/endless/{ID}", not: firstOf(inHTTP1, scrubbed), share: 2, want: "good"},
		{item: 25, name: "hints without end", path: "/v1/hints/{ID}", not: firstOf(inHTTP1, scrubbed), share: 2, want: "good"},
	}
}

// standInTexts are other spellings of the placeholder.
func standInTexts(standIn string) map[string]string {
	half := len(standIn) / 2
	compressed := func(way string) string {
		var b bytes.Buffer
		z := compressors[way](&b)
		_, _ = z.Write([]byte("note=" + standIn)) // to memory
		_ = z.Close()
		return b.String()
	}
	frame := func(text string, head byte) string {
		return string([]byte{head, 0x80 | byte(len(text)), 0, 0, 0, 0}) + text
	}
	whole := frame(standIn, 0x81)
	return map[string]string{
		"{S}": standIn, "{S-}": strings.ReplaceAll(strings.ToLower(standIn), "_", "-"), "{S64}": base64.StdEncoding.EncodeToString([]byte("k=" + standIn)), "{S%}": url.PathEscape(strings.ReplaceAll(standIn, "_", "%5F")),
		"{SCHUNKS}": fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n", half, standIn[:half], len(standIn)-half, standIn[half:]),
		"{SGZIP}":   compressed("gzip"), "{SBR}": compressed("br"),
		"{SFRAME}": whole, "{SFRAME1}": whole[:10], "{SFRAME2}": whole[10:],
	}
}

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
//	13  placeholders where they do not belong
//	14  echoes in every spelling, place and coding
//	15  upgrades
//	16  trailers
//	17  connections that are shared: see harness.searchSecrets
//	19  signatures and headers of AWS's
//	20  token endpoints that are slow, wrong or evil
//	21  revocation while it happens: see harness.revokeWhileStreaming
//	22  leases that end: see harness.leaseExpiry
//	23  what is written: see harness.searchSecrets
//	24  the sidecar's own places
//	25  floods: see harness.flood and harness.issuedCredentials
//
// There is no 18: it is about databases that are spoken to in their own protocol.

// ingress is how a request of the plugin reaches the sidecar.
type ingress struct {
	name                               string
	envoy, redirected, tunnel, tls, h2 bool
}

// ingresses returns those of a door, as env.open names it.
func ingresses(door string) []ingress {
	if door == "envoy" {
		return []ingress{{name: "Envoy", envoy: true}, {name: "Envoy, HTTP/2", envoy: true, h2: true}}
	}
	out := []ingress{
		{name: "absolute form"},
		{name: "HTTP/2 in clear", h2: true},
		{name: "CONNECT", tunnel: true},
		{name: "CONNECT, HTTP/2 in clear", tunnel: true, h2: true},
		{name: "CONNECT, TLS", tunnel: true, tls: true},
		{name: "CONNECT, TLS, HTTP/2", tunnel: true, tls: true, h2: true},
	}
	if door == "required" {
		out = append(out,
			ingress{name: "redirected", redirected: true}, ingress{name: "redirected, HTTP/2 in clear", redirected: true, h2: true},
			ingress{name: "redirected, TLS", redirected: true, tls: true}, ingress{name: "redirected, TLS, HTTP/2", redirected: true, tls: true, h2: true})
	}
	return out
}

// explicit is a request to a proxy, which names where it goes in full.
func (in ingress) explicit() bool { return !in.envoy && !in.redirected && !in.tunnel }

// attackCase is one request, or bytes that are almost one, and the expected outcome. In its texts {G} is
// the good host's authority and {g} its name, {E} and {e} the evil one's, {K} the
// kind of credential, {P} the port of both, {OTHER} and {CLEAR} ports where the
// good name resolves to another server, with and without TLS, {S} the placeholder, {ID}
// the attempt's own name, {T} the target as this ingress has it, {ECHO} and {REDIRECT}
// paths whose answer holds all that was sent, where that is searched.
type attackCase struct {
	item         int // of the list above
	name         string
	to           string // where the plugin connects, or asks to; "": {G}
	sni          string // "": the name in to; -: none
	method       string
	path         string // "": /v1/{ECHO}/{ID}
	host         string // beside to
	heads        []string
	body         string
	tail         []string
	text         string // all of it, for HTTP/1.1 only
	after        []string
	kinds        string // "": every one
	anyKind      bool   // of which one will do, each time another: it is no credential's affair
	oneIn        int    // of which one in so many will do, each time others
	inapplicable func(ingress) string
	want         string
	envoy        string // the expectation behind Envoy, where that differs
}

// Expectations: the place where the request arrives, alternatives divided by |. "good"
// and "evil" are one request there; "refused" is no request and a refusal with the
// reason that may follow; "nobody" is no request, with any answer. "goods" may be several
// requests, each decided by itself; of "misplaced" the head may arrive, before the body
// or bytes behind it are refused.

// Reasons why an attack does not apply to some ingresses.
func inTLS(in ingress) string {
	if !in.tls {
		return "without TLS there is no server name"
	}
	return ""
}

func inHTTP1(in ingress) string {
	if in.h2 {
		return "HTTP/2 has no such syntax; its own are below"
	}
	return ""
}

func inHTTP2(in ingress) string {
	if !in.h2 {
		return "it is HTTP/2's"
	}
	return ""
}

func onlyNamed(in ingress) string {
	if in.redirected {
		return "a redirected plugin names nothing; it connects"
	}
	return ""
}

func onlyInside(in ingress) string {
	if !in.tunnel && !in.redirected {
		return "there is no connection that has a name of its own"
	}
	return inHTTP1(in)
}

func onlyRedirected(in ingress) string {
	if !in.redirected {
		return "this way redirects no connection"
	}
	return ""
}

func inClear(in ingress) string {
	if in.tls || in.envoy {
		return "the rule is for http, which this way is not"
	}
	return ""
}

func onlyDialing(in ingress) string {
	if in.envoy {
		return "Envoy resolves and dials: a rule that states addresses is refused there as not_enforceable_here"
	}
	return ""
}

func onlyScrubbed(in ingress) string {
	if in.envoy {
		return "an answer does not pass the sidecar behind Envoy, so that nothing is scrubbed"
	}
	return ""
}

func onlyBodies(in ingress) string {
	if in.envoy {
		return "a body does not pass the sidecar behind Envoy; a placeholder is worth nothing"
	}
	return ""
}

func firstOf(reasons ...func(ingress) string) func(ingress) string {
	return func(in ingress) string {
		for _, reason := range reasons {
			if text := reason(in); text != "" {
				return text
			}
		}
		return ""
	}
}

const pluginValue = "mine-of-the-plugin"

// ownCredentials are what a plugin puts where credentials go.
func ownCredentials() []string {
	return []string{
		"Authorization: Bearer " + pluginValue, "authorization: Basic " + pluginValue, "X-Api-Key: " + pluginValue, "Cookie: sid=" + pluginValue + "; other=1", "X-Db-Password: " + pluginValue,
		"X-Amz-Security-Token: " + pluginValue, "X-Amz-Date: " + pluginValue, "X-Vault-Token: " + pluginValue,
		"X-Forwarded-Host: {E}", "X-Forwarded-For: {E}", "Forwarded: host={E}", "X-Original-URL: /" + pluginValue, "X-HTTP-Method-Override: DELETE",
	}
}

// attackCases returns the list.
func attackCases() []attackCase {
	all := []attackCase{{name: "nothing but a request", want: "good"}}
	for i, group := range [][]attackCase{confusions(), spelledHosts(), resolutions(), ownHeaders(), smuggled(), paths(), misplacedPlaceholders(), echoes(), upgrades(), signatures(), tokenEndpoints(), sidecarAddresses(), floods()} {
		for _, p := range group {
			p.anyKind = i == 1 || i == 2 || i == 4 || i == 5 // names, addresses, framing and paths
			all = append(all, p)
		}
	}
	return all
}

// confusions are items 1, 2, 4 and 5: names that disagree.
func confusions() []attackCase {
	return []attackCase{
		{item: 1, name: "the good host's name in what goes to the evil one", to: "{E}", host: "{G}", want: "refused destination_mismatch", envoy: "evil|refused"},
		{item: 1, name: "the evil host's name in what goes to the good one", host: "{E}", want: "refused destination_mismatch", envoy: "good|refused"},
		{item: 1, name: "an ordinary request to the evil one", to: "{E}", heads: []string{"Authorization: Bearer {api_key}"}, want: "evil"},
		{item: 2, name: "an absolute URI elsewhere than its connection", text: "GET https://{E}/v1/echo/{ID} HTTP/1.1\r\nHost: {G}\r\nConnection: close\r\n\r\n", inapplicable: onlyInside, want: "refused"},
		{item: 2, name: "an absolute URI that comes back", to: "{E}", text: "GET https://{G}/v1/echo/{ID} HTTP/1.1\r\nHost: {E}\r\nConnection: close\r\n\r\n", inapplicable: onlyInside, want: "refused"},
		{item: 3, name: "the evil server name to the good host", sni: "{e}", inapplicable: inTLS, want: "refused|nobody"},
		{item: 3, name: "the good server name to the evil host", to: "{E}", sni: "{g}", host: "{G}", inapplicable: inTLS, want: "refused|nobody"},
		{item: 3, name: "no server name", sni: "-", inapplicable: inTLS, want: "good"},
		{item: 3, name: "another case of server name", sni: "{U}", inapplicable: inTLS, want: "good"},
		{item: 3, name: "two hosts", text: "GET {T} HTTP/1.1\r\nHost: {G}\r\nHost: {E}\r\nConnection: close\r\n\r\n", inapplicable: inHTTP1, want: "refused|nobody", envoy: "good"},
		{item: 3, name: "two hosts, the evil one's first", to: "{E}", text: "GET {T} HTTP/1.1\r\nHost: {E}\r\nHost: {G}\r\nConnection: close\r\n\r\n", inapplicable: inHTTP1, want: "refused|nobody", envoy: "evil"},
		{item: 3, name: ":authority and Host", heads: []string{"host: {E}"}, inapplicable: inHTTP2, want: "refused|nobody", envoy: "good|refused|nobody"},
		{item: 4, name: "an address without a name", to: "198.51.100.7:{P}", sni: "{g}", host: "{G}", inapplicable: onlyRedirected, want: "good"},
		{item: 4, name: "an address without a name, and no name", to: "198.51.100.7:{P}", sni: "-", host: "198.51.100.7:{P}", inapplicable: onlyRedirected, want: "refused|nobody"},
		{item: 4, name: "the evil host's address", to: "{E}", sni: "{g}", host: "{G}", inapplicable: onlyRedirected, want: "refused|nobody"},
		{item: 5, name: "another port of the good host", to: "{g}:{OTHER}", want: "refused|nobody"}, // by the kernel, where it is redirected
		{item: 5, name: "another port of the good host, without TLS", to: "{g}:{CLEAR}", want: "refused|nobody"},
		{item: 5, name: "another port in Host", host: "{g}:{OTHER}", want: "refused", envoy: "good|refused"},
	}
}

// spelledHosts are the rest of item 3.
func spelledHosts() []attackCase {
	var out []attackCase
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
			attackCase{item: 3, name: "to " + c.host, to: c.host, inapplicable: firstOf(onlyNamed, func(in ingress) string {
				if in.envoy && strings.ContainsAny(c.host, "/#") {
					return "in a URI that is a path's beginning"
				}
				return ""
			}), want: c.want, envoy: c.envoy},
			attackCase{item: 3, name: "Host " + c.host, host: c.host, want: c.want, envoy: "good|refused|nobody"})
	}
	return append(out, attackCase{item: 3, name: "a tab behind Host", text: "GET {T} HTTP/1.1\r\nHost: {G}\t\r\nConnection: close\r\n\r\n", inapplicable: inHTTP1, want: "good|refused|nobody"})
}

// reboundNames are names that resolve to where they should not.
func reboundNames() []struct {
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
func resolutions() []attackCase {
	var out []attackCase
	for _, r := range reboundNames() {
		out = append(out, attackCase{item: 6, name: "a name that is " + r.name, to: "{K}." + r.name + ".example:{P}", inapplicable: onlyDialing, want: r.want})
	}
	return append(out, attackCase{item: 6, name: "a rule that states addresses, behind Envoy", to: "stated.good.example:{P}", kinds: "header", inapplicable: func(in ingress) string {
		if !in.envoy {
			return "this door does enforce them"
		}
		return ""
	}, want: "refused not_enforceable_here"})
}

// ownHeaders are items 7 to 10 and 16.
func ownHeaders() []attackCase {
	slots := "Authorization, Cookie, X-Api-Key, X-Db-Password, X-Amz-Security-Token, X-Amz-Date"
	out := []attackCase{
		{item: 7, name: "a redirect", path: "/v1/{REDIRECT}/{ID}", oneIn: 2, want: "good"},
		{item: 7, name: "a redirect with a body", method: "POST", path: "/v1/{REDIRECT}/{ID}", body: "the body", oneIn: 2, want: "good"},
		{item: 8, name: "Connection that lists the credential's places", heads: []string{"Connection: " + slots, "Keep-Alive: " + slots, "Proxy-Connection: " + slots}, inapplicable: inHTTP1, oneIn: 2, want: "good"},
		{item: 8, name: "Connection in HTTP/2", heads: []string{"connection: " + slots}, inapplicable: inHTTP2, oneIn: 2, want: "good|refused|nobody"},
		{item: 8, name: "h2c", heads: []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"}, inapplicable: inHTTP1, oneIn: 2, want: "good", envoy: "nobody|refused|good"},
		{item: 9, name: "credentials of its own", path: "/v1/{ECHO}/{ID}?key=" + pluginValue + "&k%65y=" + pluginValue + "&KEY=" + pluginValue, heads: ownCredentials(), want: "good"},
		{item: 9, name: "credentials with underscores", heads: []string{"x_api_key: " + pluginValue, "X_DB_PASSWORD: " + pluginValue, "x_amz_security_token: " + pluginValue}, want: "good"},
		{item: 9, name: "a space before a colon", text: "GET {T} HTTP/1.1\r\nHost: {H}\r\nAuthorization : Bearer " + pluginValue + "\r\nConnection: close\r\n\r\n", inapplicable: inHTTP1, want: "refused|nobody"},
		{item: 9, name: "a login to a proxy", heads: []string{"Proxy-Authorization: Basic bWluZTptaW5l"}, inapplicable: func(in ingress) string {
			if in.explicit() {
				return "it is the sidecar's own on this way"
			}
			return ""
		}, want: "good"},
		{
			item: 16, name: "trailers", method: "POST", heads: []string{"Trailer: Authorization, X-Api-Key, X-Db-Password, X-Amz-Security-Token, Cookie", "TE: trailers"}, body: "x",
			tail: []string{"Authorization: Bearer " + pluginValue, "X-Api-Key: " + pluginValue, "X-Db-Password: " + pluginValue, "X-Amz-Security-Token: " + pluginValue, "Cookie: sid=" + pluginValue}, want: "good|nobody",
		},
		{
			item: 16, name: "trailers that are other credentials' places", method: "POST", heads: []string{"Trailer: X-Api-Key, X-Db-Password, X-Amz-Security-Token, Cookie"}, body: "x",
			tail: []string{"X-Api-Key: " + pluginValue, "X-Db-Password: " + pluginValue, "X-Amz-Security-Token: " + pluginValue, "Cookie: sid=" + pluginValue}, want: "good",
		},
		{item: 16, name: "trailers that were not announced", method: "POST", body: "x", tail: []string{"Authorization: Bearer " + pluginValue, "X-Api-Key: " + pluginValue}, oneIn: 2, want: "good"},
		{item: 16, name: "a trailer of the answer", path: "/v1/trailer/{ID}", heads: []string{"TE: trailers"}, inapplicable: onlyScrubbed, oneIn: 2, want: "good"},
	}
	return out
}

// smuggled is item 11: what one side may take for one request, and another for two.
func smuggled() []attackCase {
	const second = "GET /v1/smuggled/{ID} HTTP/1.1\r\nHost: {G}\r\n\r\n"
	var out []attackCase
	for _, c := range []struct{ name, heads, body, want string }{
		{"a length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n" + second, "refused|nobody|goods"},
		{"two transfer codings", "Transfer-Encoding: chunked, identity\r\nContent-Length: 4\r\n", "0\r\n\r\n" + second, "refused|nobody"},
		{"a transfer coding twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n" + second, "refused|nobody"},
		{"a hidden transfer coding", "Transfer-Encoding: \x0bchunked\r\nContent-Length: 4\r\n", "0\r\n\r\n" + second, "refused|nobody"},
		{"a folded header", "X-A: b\r\n Authorization: " + pluginValue + "\r\n", "", "refused|nobody|good"},
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
		out = append(out, attackCase{item: 11, name: c.name, text: "POST {T} HTTP/1.1\r\nHost: {H}\r\n" + c.heads + "\r\n" + c.body, inapplicable: inHTTP1, want: c.want, envoy: c.want + "|good"})
	}
	return append(out,
		attackCase{item: 11, name: "a body that is expected", text: "POST {T} HTTP/1.1\r\nHost: {H}\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", inapplicable: inHTTP1, want: "good"},
		attackCase{item: 11, name: "CONNECT with a body", text: "CONNECT {G} HTTP/1.1\r\nHost: {G}\r\nContent-Length: 4\r\n\r\nabcd", inapplicable: inHTTP1, want: "nobody"},
		attackCase{item: 11, name: "CONNECT inside", text: "CONNECT {E} HTTP/1.1\r\nHost: {E}\r\nConnection: close\r\n\r\nGET /v1/echo/{ID} HTTP/1.1\r\nHost: {G}\r\n\r\n", inapplicable: onlyInside, want: "nobody"},
		attackCase{item: 11, name: "HTTP/2: lines in a value", heads: []string{"x-a: b\r\nhost: {E}"}, inapplicable: inHTTP2, want: "refused|nobody"},
		attackCase{item: 11, name: "HTTP/2: lines in a path", path: "/v1/{ECHO}/{ID} HTTP/1.1\r\nHost: {E}\r\nX-A: b", inapplicable: inHTTP2, want: "refused|nobody"},
		attackCase{item: 11, name: "HTTP/2: a path with a space", path: "/v1/{ECHO}/{ID} HTTP/1.1", inapplicable: inHTTP2, want: "refused|nobody"},
		attackCase{item: 11, name: "HTTP/2: another length", method: "POST", heads: []string{"content-length: 3"}, body: "abcdef", inapplicable: inHTTP2, want: "refused|nobody|good"},
		attackCase{item: 11, name: "HTTP/2: a transfer coding", method: "POST", heads: []string{"transfer-encoding: chunked"}, body: "0\r\n\r\n", inapplicable: inHTTP2, want: "refused|nobody"},
	)
}

// paths is item 12.
func paths() []attackCase {
	var out []attackCase
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
		{"/v1/{ECHO}/{ID}?key=" + pluginValue + "%26key=" + pluginValue, "good"},
	} {
		out = append(out, attackCase{item: 12, name: c.path, path: c.path, want: c.want})
	}
	return append(out, attackCase{item: 12, name: "a method that is not granted", method: "DELETE", want: "refused method_not_granted"})
}

// misplacedPlaceholders is item 13.
func misplacedPlaceholders() []attackCase {
	const want = "refused credential_misplaced"
	out := []attackCase{
		{name: "in its place", heads: []string{"X-Api-Key: {S}"}, want: "good"},
		{name: "in the path", path: "/v1/{S}/{ID}", want: want},
		{name: "in the query", path: "/v1/{ECHO}/{ID}?k={S}", want: want},
		{name: "in another header", heads: []string{"X-Note: {S}"}, want: want},
		{name: "in another header, in base64", heads: []string{"X-Note: {S64}"}, want: want},
		{name: "in another header, escaped", heads: []string{"X-Note: {S%}"}, want: want},
		{name: "in a header's name", heads: []string{"X-{S}: 1"}, want: want, envoy: "refused|nobody"},
		{name: "in a cookie", heads: []string{"Cookie: a={S}"}, want: want},
		{name: "in the host's name", to: "{S-}.evil.example:{P}", inapplicable: onlyNamed, want: "refused|nobody"},
		{name: "in the body", method: "POST", body: "note={S}", inapplicable: onlyBodies, want: "misplaced"},
		{name: "in a body of parts", text: "POST {T} HTTP/1.1\r\nHost: {H}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{SCHUNKS}0\r\n\r\n", inapplicable: firstOf(inHTTP1, onlyBodies), want: "misplaced"},
		{name: "in a body of base64", method: "POST", body: "note={S64}", inapplicable: onlyBodies, want: "misplaced"},
		{name: "in a body of gzip", method: "POST", heads: []string{"Content-Encoding: gzip"}, body: "{SGZIP}", inapplicable: onlyBodies, want: "misplaced"},
		{name: "in a body of br", method: "POST", heads: []string{"Content-Encoding: br"}, body: "{SBR}", inapplicable: onlyBodies, want: "misplaced"},
		{name: "in a trailer", method: "POST", heads: []string{"Trailer: X-Note"}, body: "x", tail: []string{"X-Note: {S}"}, inapplicable: onlyBodies, want: "misplaced"},
		{name: "to the evil host, in the credential's place", to: "{E}", heads: []string{"X-Api-Key: {S}"}, want: want},
		{name: "to the evil host, in its body", to: "{E}", method: "POST", body: "{S}", inapplicable: onlyBodies, want: "misplaced"},
		{name: "in a WebSocket", path: "/v1/ws/{ID}", heads: websocketHeads(), after: []string{"{SFRAME}"}, inapplicable: firstOf(inHTTP1, onlyBodies), want: "good"},
		{name: "in a WebSocket, in pieces", path: "/v1/ws/{ID}", heads: websocketHeads(), after: []string{"{SFRAME1}", "{SFRAME2}"}, inapplicable: firstOf(inHTTP1, onlyBodies), want: "good"},
	}
	for i := range out {
		out[i].item, out[i].kinds, out[i].name = 13, "placeholder", "a placeholder "+out[i].name
	}
	return out
}

func websocketHeads() []string {
	return []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: " + pluginValue}
}

// echoes is item 14.
func echoes() []attackCase {
	const accept = "Accept-Encoding: gzip, deflate, br, zstd"
	var out []attackCase
	for name := range spellings("x") {
		out = append(out, attackCase{item: 14, name: "an echo, " + name, path: "/v1/" + name + "/{ID}", heads: []string{accept}, oneIn: 3, inapplicable: onlyScrubbed, want: "good"})
	}
	for _, name := range []string{"headers", "early", "error", "pieces", "gzip", "deflate", "br", "zstd", "grpc", "all"} {
		out = append(out, attackCase{item: 14, name: "an echo by " + name, path: "/v1/" + name + "/{ID}", heads: []string{accept, "TE: trailers", "A-IM: gzip"}, oneIn: 2, inapplicable: onlyScrubbed, want: "good"})
	}
	for i := range len(headerCanary) {
		out = append(out, attackCase{item: 14, name: fmt.Sprintf("an echo, byte %02d", i), kinds: "header", path: "/v1/range/{ID}", heads: []string{fmt.Sprintf("Range: bytes=%d-%[1]d", i)}, inapplicable: onlyScrubbed, want: "good"})
	}
	return append(out,
		attackCase{item: 14, name: "TRACE", method: "TRACE", want: "refused method_not_granted"},
		attackCase{item: 14, name: "an echo of half", path: "/v1/range/{ID}", heads: []string{"Range: bytes=3-"}, inapplicable: onlyScrubbed, want: "good"},
		attackCase{item: 14, name: "an echo that Envoy forwards", kinds: "header", path: "/v1/raw/{ID}", inapplicable: func(in ingress) string {
			if !in.envoy || in.h2 {
				return "one of Envoy's will do, and the sidecar's scrub"
			}
			return ""
		}, want: "good"})
}

// upgrades is item 15.
func upgrades() []attackCase {
	return []attackCase{
		{item: 15, name: "a WebSocket that echoes", path: "/v1/ws/{ID}", heads: websocketHeads(), after: []string{"\x81\x84\x00\x00\x00\x00ping"}, inapplicable: firstOf(inHTTP1, onlyScrubbed), oneIn: 2, want: "good"},
		{item: 15, name: "a WebSocket where none is granted", to: "{E}", path: "/other/{ID}", heads: websocketHeads(), inapplicable: inHTTP1, want: "refused"},
		{item: 15, name: "another upgrade", heads: []string{"Connection: Upgrade", "Upgrade: tls/1.3, websocket"}, inapplicable: inHTTP1, want: "refused|nobody|good"}, // the first that is granted
		{item: 15, name: "a WebSocket over HTTP/2", method: "CONNECT", heads: []string{":protocol: websocket"}, inapplicable: inHTTP2, want: "refused|nobody|good"},
	}
}

// signatures is item 19.
func signatures() []attackCase {
	own := "AWS4-HMAC-SHA256 Credential=AKIAMINE/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=" + strings.Repeat("0", 64)
	out := []attackCase{
		{name: "a signature of its own", heads: []string{"Authorization: " + own, "X-Amz-Date: 20260101T000000Z", "X-Amz-Security-Token: " + pluginValue}, want: "good"},
		{name: "a signature in the query", path: "/v1/{ECHO}/{ID}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAMINE%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=" + strings.Repeat("0", 64) + "&X-Amz-Security-Token=" + pluginValue + "&X-Amz-Expires=900", want: "good"},
		{name: "headers of AWS's", heads: []string{"X-Amz-Target: DynamoDB_20120810.ListTables", "X-Amz-Meta-A: b"}, want: "good"},
		{name: "a body of AWS's chunks", method: "PUT", heads: []string{"X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "X-Amz-Decoded-Content-Length: 4", "Content-Encoding: aws-chunked"}, body: "4;chunk-signature=" + strings.Repeat("0", 64) + "\r\nabcd\r\n0;chunk-signature=" + strings.Repeat("0", 64) + "\r\n\r\n", want: "refused"},
		{name: "a host with AWS's name in front", to: "s3.amazonaws.com.evil.example:{P}", inapplicable: onlyNamed, want: "refused|nobody"},
	}
	for i := range out {
		out[i].item, out[i].kinds = 19, "sigv4"
	}
	return out
}

// tokenEndpoints are items 10 and 20: credentials that must not be sent, or that
// come from a strange endpoint.
func tokenEndpoints() []attackCase {
	var out []attackCase
	for _, s := range (*env)(nil).decoys() {
		if strings.HasSuffix(s.host, ".lease.example") {
			continue // see harness.leaseExpiry
		}
		p := attackCase{item: 20, name: "a token from " + s.host, to: s.host + ":{P}", kinds: "oauth2", want: "good"}
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

// sidecarAddresses is item 24: what is the sidecar's.
func sidecarAddresses() []attackCase {
	var out []attackCase
	for _, to := range []string{"vault.self.example:{VAULT}", "metrics.self.example:{METRICS}"} {
		out = append(out, attackCase{item: 24, name: to, to: to, path: "/v1/sys/health?{ID}", inapplicable: inClear, want: "refused address_not_allowed"})
	}
	for _, to := range []string{"127.0.0.1:{VAULT}", "127.0.0.1:{METRICS}", "127.0.0.1:{PROXY}", "169.254.169.254:80", "[fd00:ec2::254]:80", "localhost:{VAULT}", "[::1]:{VAULT}"} {
		out = append(out, attackCase{item: 24, name: to, to: to, kinds: "header", inapplicable: onlyNamed, want: "refused|nobody"})
	}
	return out
}

// floods is item 25, beside the connections that never become a request.
func floods() []attackCase {
	return []attackCase{
		{item: 25, name: "trailers without end", path: "/v1/endless/{ID}", inapplicable: firstOf(inHTTP1, onlyScrubbed), oneIn: 2, want: "good"},
		{item: 25, name: "hints without end", path: "/v1/hints/{ID}", inapplicable: firstOf(inHTTP1, onlyScrubbed), oneIn: 2, want: "good"},
	}
}

// placeholderNames returns other spellings of the placeholder.
func placeholderNames(placeholder string) map[string]string {
	half := len(placeholder) / 2
	compressed := func(way string) string {
		var b bytes.Buffer
		z := compressors[way](&b)
		_, _ = z.Write([]byte("note=" + placeholder)) // to memory
		_ = z.Close()
		return b.String()
	}
	frame := func(text string, head byte) string {
		return string([]byte{head, 0x80 | byte(len(text)), 0, 0, 0, 0}) + text
	}
	whole := frame(placeholder, 0x81)
	return map[string]string{
		"{S}": placeholder, "{S-}": strings.ReplaceAll(strings.ToLower(placeholder), "_", "-"), "{S64}": base64.StdEncoding.EncodeToString([]byte("k=" + placeholder)), "{S%}": url.PathEscape(strings.ReplaceAll(placeholder, "_", "%5F")),
		"{SCHUNKS}": fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n", half, placeholder[:half], len(placeholder)-half, placeholder[half:]),
		"{SGZIP}":   compressed("gzip"), "{SBR}": compressed("br"),
		"{SFRAME}": whole, "{SFRAME1}": whole[:10], "{SFRAME2}": whole[10:],
	}
}

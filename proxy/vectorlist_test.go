package proxy_test

import (
	"fmt"
	"strings"
)

func vectorGroups() map[string][]vector {
	return map[string][]vector{
		"legitimate": legitimateVectors(), "paths": pathVectors(), "hosts": hostVectors(), "bytes": byteVectors(),
		"lines": lineVectors(), "framing": framingVectors(), "chunks": chunkVectors(),
	}
}

const close1 = "Connection: close\r\n\r\n"

func plainGet(target string) string {
	return "GET {U}" + target + " HTTP/1.1\r\nHost: {G}\r\n" + close1
}

// legitimateVectors are requests that a server would serve on a direct connection.
func legitimateVectors() []vector {
	var out []vector
	for sent, reaches := range map[string]string{
		"/public/": "/public/", "/public/a": "/public/a", "/public/a/": "/public/a/", "/public/a?": "/public/a?",
		"/public/a?x=../../secret": "/public/a?x=../../secret", "/public/a?x=//e/": "/public/a?x=//e/", "/public/a?http://x/": "/public/a?http://x/",
		"/public/a?x=%2e%2e%2f": "/public/a?x=%2e%2e%2f", "/public/a?a&b;c": "/public/a?a&b;c", "/public/a?%00": "/public/a?%00",
		"/public/a..b": "/public/a..b", "/public/...": "/public/...", "/public/.a": "/public/.a", "/public/a.": "/public/a.", "/public/..a": "/public/..a",
		"/public/~a": "/public/~a", "/public/a@b": "/public/a@b", "/public/a:b": "/public/a:b", "/public/a,b": "/public/a,b",
		"/public/a+b": "/public/a+b", "/public/(a)": "/public/(a)", "/public/a'b": "/public/a'b", "/public/a*b": "/public/a*b",
		"/public/a!b": "/public/a!b", "/public/$a": "/public/$a", "/public/a&b": "/public/a&b", "/public/a=b": "/public/a=b",
		"/public/%41": "/public/A", "/public/%7Ea": "/public/~a", "/public/a%20b": "/public/a%20b", "/public/%c3%a9": "/public/%C3%A9",
		"/public/\xc3\xa9": "/public/%C3%A9", "/public/%E2%80%AE": "/public/%E2%80%AE", "/public/a%3Fb": "/public/a%3Fb", "/public/a%23b": "/public/a%23b",
		"/public/a%25": "/public/a%25", "/public/100%25": "/public/100%25", "/public/-_.": "/public/-_.",
		"/public/" + strings.Repeat("a", 4000): "/public/" + strings.Repeat("a", 4000),
	} {
		out = append(out, vector{plainGet(sent), reaches})
	}
	for _, fields := range []string{
		"", "Accept: */*\r\n", "X-Empty:\r\n", "X-Tabs:\ta\tb\r\n", "X-Latin: caf\xe9\r\n", "X-UTF-8: \xe2\x9c\x93\r\n", "x-lower: a\r\n",
		"X!#$%&'*+-.^_`|~: a\r\n", "X-Long: " + strings.Repeat("a", 8000) + "\r\n", "Cookie: a=1\r\nCookie: b=2\r\n", "X-Twice: 1\r\nX-Twice: 2\r\n",
		"User-Agent: curl/8\r\n", "Referer: https://evil.example/\r\n", "Origin: null\r\n", "X-Forwarded-Host: evil.example\r\n", "Range: bytes=0-1\r\n",
		"If-None-Match: \"a\"\r\n", "TE: trailers\r\n", "Expect:\r\n", "Keep-Alive: timeout=5\r\n", "Proxy-Connection: keep-alive\r\n", "X_Under: a\r\n",
		"Upgrade: h2c\r\n", "Upgrade: TLS/1.2\r\n", "Via: 1.1 x\r\n", "Max-Forwards: 0\r\n", "Content-Type: text/plain\r\n", "Content-Length: 0\r\n",
		"Date: Sun, 29 Nov 2026 12:00:00 GMT\r\n", "X-Colon: a:b:c\r\n", "X-Quotes: \"a, b\"\r\n", strings.Repeat("X-Many: a\r\n", 90),
	} {
		out = append(out, vector{"GET {U}/public/h HTTP/1.1\r\nHost: {G}\r\n" + fields + close1, "/public/h"})
	}
	for _, request := range []string{
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nConnection: close\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 005\r\nConnection: close\r\n\r\nhello",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n00005\r\nhello\r\n00\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
		"POST {U}/public/h HTTP/1.1\r\nhost: {G}\r\nCONTENT-LENGTH: 5\r\nConnection: close\r\n\r\nhello",
		"PUT {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
		"DELETE {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
		"GET {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
		"PATCH {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
		"OPTIONS {U}/public/h HTTP/1.1\r\nHost: {G}\r\nConnection: close\r\n\r\n",
		"GET {U}/public/h HTTP/1.1\r\nHost:{G}\r\n" + close1,
		"GET {U}/public/h HTTP/1.1\r\nHost: \t{G} \t\r\n" + close1,
		"POST {U}/public/h HTTP/1.1\r\nHost: {G}\r\nContent-Length: 1\r\n\r\nx\r\nGET {U}/public/h HTTP/1.1\r\nHost: {G}\r\n" + close1,
		"GET {U}/public/h HTTP/1.0\r\nHost: {G}\r\n\r\n",
	} {
		out = append(out, vector{request, "/public/h"})
	}
	return out
}

// pathVectors combine ways to write a parent folder with places in a path.
func pathVectors() []vector {
	up := []string{
		"..", "%2e%2e", ".%2e", "%2e.", "%2E%2E", "..;", "..;a", "..%3b", "%2e%2e;", "%252e%252e", "%25%32%65%25%32%65", "..%00", "..%09", "..%20", "..%0a",
		"..%0d%0a", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%u002e%u002e", "%uff0e%uff0e", "\xef\xbc\x8e\xef\xbc\x8e", "%ef%bc%8e%ef%bc%8e", "..#", "..?", "\xc0\xae\xc0\xae",
		"..\\", "..%5c", "..%255c", "..%2f", "..%252f", "..%c0%af", "..%ef%bc%8f", ".", "%2e", "", "...", "....", ".%00.", ".\t.", ". .", "..\x00", "..\x7f", "..\x0b",
	}
	var out []vector
	for _, dots := range up {
		for _, place := range []string{
			"/public/%s/secret", "/public/a/%s/%s/secret", "/public/%s", "/public%s/secret", "/%s/secret", "/%s/public/a", "/public/a/%s/b", "/public//%s/secret", "/public/%ssecret", "%s/public/a",
		} {
			out = append(out, vector{text: plainGet(strings.ReplaceAll(place, "%s", dots))})
		}
	}
	for _, target := range []string{
		"", "*", "/", "/public", "/publicly", "/PUBLIC/a", "/Public/a", "/public%2fa", "/public%5ca", "/public\\a", "\\public\\a", "//public/a", "///public/a", "/public//a", "/./public/a",
		"/public/a#b", "/public/a?b#c", "/%70ublic/../secret", "/public/%", "/public/%4", "/public/%zz", "/public/%00", "/public/\x01", "/public/\x7f", "/public/\xff", "public/a", "?/public/a", "#/public/a",
		"@evil.example/public/a", ":80/public/a", "/public/a HTTP/1.1\r\nX: ", "/public/a%0d%0aHost:%20e", "/;/public/a", "/public;/../secret", "/public/a;/../../secret", "/secret;/public/a", "/secret%3f/public/a",
		"/secret%23/public/a", "/secret?/public/a", "/secret/..;/public/a", "/public/..%01/secret", "/%2e%2e%2fsecret", "/public/%2e%2e%2f%2e%2e%2fsecret", "/public/" + strings.Repeat("a", 100000),
		"/public/%F0%9F%92%A9/..%2f..%2fsecret", "/.public/a", "/public./a", "/public%20/a", "/public%09/a", "/p\u0075blic/../secret", "/public\u2215a", "/public\u2044..\u2044secret",
	} {
		out = append(out, vector{text: plainGet(target)})
	}
	return out
}

// hostVectors name hosts in every way, in the target and in Host.
func hostVectors() []vector {
	hosts := []string{
		"{E}", "evil.example", "api.weather.example", "api.weather.example.", "api.weather.example.:{P}", "API.WEATHER.EXAMPLE:{P}", "api.weather.example:0{P}", "api.weather.example:+{P}",
		"api.weather.example:", "api.weather.example:{P}:{P}", "api.weather.example:0", "api.weather.example:65536", "api.weather.example:99999999999", "api.weather.example:80 ",
		"api.weather.example%2eevil.example", "api.weather.example%00.evil.example", "api.weather.example\x00.evil.example", "api.weather.example\t{E}", "api.weather.example {E}",
		"api.weather.example#@{E}", "api.weather.example?@{E}", "api.weather.example\\@{E}", "api.weather.example/@{E}", "user@{G}", "user:pass@{G}", "{G}@{E}", "{E}#@{G}", "{E}?@{G}", "{E}\\@{G}", "{E}/@{G}", "@{G}", "a@b@{G}",
		"{G},{E}", "{E},{G}", "{G};{E}", "api.weather.example;evil.example", "[{G}]", "[::ffff:127.0.0.1]:{P}", "[::1]:{P}", "[::]:{P}", "[::1%25lo]:{P}", "[fe80::1%25eth0]:{P}", "[v1.x]:{P}", "[127.0.0.1]:{P}",
		"127.0.0.1:{P}", "127.1:{P}", "2130706433:{P}", "0x7f000001:{P}", "0x7f.1:{P}", "0177.0.0.1:{P}", "127.0.0.01:{P}", "127.0.0.1.:{P}", "0:{P}", "0.0.0.0:{P}", "127.0.0.1.nip.io:{P}", "localhost:{P}", "localhost.:{P}",
		"api\u3002weather.example:{P}", "api\uff0eweather.example:{P}", "\u24d0pi.weather.example:{P}", "api.weather.\u0435xample:{P}", "xn--api-.weather.example:{P}", "api.weather.example\u200b:{P}", "api.weather.exampl\u0435:{P}",
		".api.weather.example:{P}", "..api.weather.example:{P}", "api..weather.example:{P}", "-api.weather.example:{P}", "api_.weather.example:{P}", "*.weather.example:{P}", "**:{P}", "*", "", " ", ":{P}", ":", "//{G}", "http://{G}", "https://{G}",
		"%61pi.weather.example:{P}", "api.weather.example%3a{P}", "api.weather.example%20:{P}", "api.weather.example\xff:{P}", "api.weather.example|{E}", "api.weather.example\"{E}", "<api.weather.example>:{P}", "{api.weather.example}:{P}", "^:{P}", "`:{P}",
		strings.Repeat("a", 64) + ".example:{P}", strings.Repeat("a.", 130) + "example:{P}",
	}
	var out []vector
	for _, host := range hosts {
		out = append(out,
			vector{text: "GET http://" + host + "/public/a HTTP/1.1\r\nHost: " + host + "\r\n" + close1},
			vector{text: "GET https://" + host + "/public/a HTTP/1.1\r\nHost: " + host + "\r\n" + close1},
			vector{text: "GET {U}/public/a HTTP/1.1\r\nHost: " + host + "\r\n" + close1},
			vector{text: "GET http://" + host + "/public/a HTTP/1.1\r\nHost: {G}\r\n" + close1},
			vector{text: "GET {U}/public/a HTTP/1.1\r\nHost: {G}\r\nHost: " + host + "\r\n" + close1},
			vector{text: "GET {U}/public/a HTTP/1.1\r\nHost: " + host + "\r\nHost: {G}\r\n" + close1},
			vector{text: "CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\nGET /public/a HTTP/1.1\r\nHost: {G}\r\n" + close1},
		)
	}
	for _, scheme := range []string{"ftp", "file", "gopher", "HTTP", "htTp", "ws", "http+unix", "javascript", "", " http", "http:", "http:/", "http:///", `http:\\`, "h2c", "//"} {
		out = append(out, vector{text: "GET " + scheme + "://{G}/public/a HTTP/1.1\r\nHost: {G}\r\n" + close1})
	}
	return out
}

// byteVectors put every byte into the name and the value of a field, and into a
// method and a target.
func byteVectors() []vector {
	var out []vector
	for i := range 256 {
		b := string([]byte{byte(i)})
		out = append(out,
			vector{text: "GET {U}/public/b HTTP/1.1\r\nHost: {G}\r\nX" + b + "Y: a\r\n" + close1},
			vector{text: "GET {U}/public/b HTTP/1.1\r\nHost: {G}\r\nX-B: a" + b + "c\r\n" + close1},
			vector{text: "GET {U}/public/b HTTP/1.1\r\nHost: {G}\r\nContent-Length" + b + ": 5\r\n" + close1},
			vector{text: "G" + b + "ET {U}/public/b HTTP/1.1\r\nHost: {G}\r\n" + close1},
			vector{text: "GET {U}/public/" + b + " HTTP/1.1\r\nHost: {G}\r\n" + close1},
			vector{text: "GET {U}/public/b" + b + "HTTP/1.1\r\nHost: {G}\r\n" + close1},
		)
	}
	return out
}

// lineVectors are request lines and heads that servers read in different ways.
func lineVectors() []vector {
	var out []vector
	for _, line := range []string{
		"GET {U}/public/l", "GET {U}/public/l HTTP/0.9", "GET {U}/public/l HTTP/1.2", "GET {U}/public/l HTTP/2.0", "GET {U}/public/l HTTP/1.10", "GET {U}/public/l HTTP/01.1", "GET {U}/public/l HTTP/1.1 ", "GET {U}/public/l HTTP/1.1 x",
		"GET  {U}/public/l HTTP/1.1", "GET\t{U}/public/l\tHTTP/1.1", " GET {U}/public/l HTTP/1.1", "GET {U}/public/l http/1.1", "GET {U}/public/l HTTPS/1.1", "GET {U}/public/l HTTP/1,1", "GET {U}/public/l HTTP/1.1\x00", "GET {U}/public/l\x00 HTTP/1.1",
		"get {U}/public/l HTTP/1.1", "GeT {U}/public/l HTTP/1.1", "TRACE {U}/public/l HTTP/1.1", "CONNECT {U}/public/l HTTP/1.1", "PRI * HTTP/2.0", "GET {U}/public/l {U}/secret HTTP/1.1", "GET {U}/secret {U}/public/l HTTP/1.1",
		"GET {U}/public/l\rHTTP/1.1", "GET {U}/secret\r\nGET {U}/public/l HTTP/1.1", "GET {U}/public/l HTTP/1.1\r", "GET {U}/public/l HTTP/1.1\nHost: evil.example", "\x16\x03\x01GET {U}/public/l HTTP/1.1", "{U}/public/l HTTP/1.1", "GET HTTP/1.1",
		"M-SEARCH {U}/public/l HTTP/1.1", "SECRET {U}/public/l HTTP/1.1", "GET, {U}/public/l HTTP/1.1", strings.Repeat("A", 5000) + " {U}/public/l HTTP/1.1",
	} {
		out = append(out, vector{text: line + "\r\nHost: {G}\r\n" + close1})
	}
	for _, fields := range []string{
		"Connection: X-Secret-Hop, close\r\nX-Secret-Hop: 1\r\n", "Connection: close, Host\r\n", "Connection: close, Content-Length\r\nContent-Length: 0\r\n", "Connection: Authorization\r\nAuthorization: mine\r\n",
		"Authorization: mine\r\n", "authorization: mine\r\nAUTHORIZATION: mine\r\n", "Authorization : mine\r\n", "Authorization\t: mine\r\n", "Author\x00ization: mine\r\n", " Authorization: mine\r\n", "X: a\r\n\tAuthorization: mine\r\n", "X: a\nAuthorization: mine\r\n", "X: a\rAuthorization: mine\r\n",
		"Authorization:mine\x0b\r\n", "Authorization_: mine\r\n", "X-Forwarded-Host: {E}\r\nX-Host: {E}\r\nForwarded: host={E}\r\nX-Original-URL: /secret\r\nX-Rewrite-URL: /secret\r\n", "X-HTTP-Method-Override: DELETE\r\n", "X-Http-Method: PUT\r\n",
		"Host : {E}\r\n", "Host\x00: {E}\r\n", " Host: {E}\r\n", "Hos\tt: {E}\r\n", "HOST: {E}\r\n", "Ho\xc5\xbft: {E}\r\n", ": a\r\n", ":path: /secret\r\n", "no colon\r\n", "\x00: a\r\n", "X:\x00\r\n", "X: a\x00b\r\n",
		"Proxy-Authorization: Basic eA==\r\n", "Proxy-Authorization: Basic eA==\r\nProxy-Authorization: Basic eQ==\r\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n",
		"Expect: 200-ok\r\n", "Expect: 100-continue, x\r\n", "Trailer: Content-Length\r\n", "TE: gzip\r\nConnection: TE\r\n", "Keep-Alive: x\r\nConnection: Keep-Alive\r\n", strings.Repeat("X: a\r\n", 20000), "X: " + strings.Repeat("a", 500000) + "\r\n",
	} {
		out = append(out,
			vector{text: "GET {U}/public/l HTTP/1.1\r\nHost: {G}\r\n" + fields + close1},
			vector{text: "GET {U}/public/l HTTP/1.1\r\n" + fields + "Host: {G}\r\n" + close1},
			vector{text: "GET {U}/public/l HTTP/1.1\r\n" + fields + close1},
		)
	}
	return out
}

// smuggled is a request that must not reach an upstream as one.
const smuggled = "GET {U}/secret HTTP/1.1\r\nHost: {G}\r\nX: "

// framingVectors combine transfer codings with lengths. Servers disagree about most of
// them.
func framingVectors() []vector {
	codings := []string{
		"", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: CHUNKED\r\n", "Transfer-Encoding : chunked\r\n", "Transfer-Encoding\t: chunked\r\n", " Transfer-Encoding: chunked\r\n", "Transfer-Encoding:\tchunked\r\n", "Transfer-Encoding:chunked\r\n",
		"Transfer-Encoding: \x0bchunked\r\n", "Transfer-Encoding: \x0cchunked\r\n", "Transfer-Encoding: \xa0chunked\r\n", "Transfer-Encoding: chunked\x00\r\n", "Transfer-Encoding\x00: chunked\r\n", "Transfer-Encoding: chunked \r\n", "Transfer-Encoding: chunked\x0b\r\n",
		"Transfer-Encoding: xchunked\r\n", "Transfer-Encoding: chunkedx\r\n", "Transfer-Encoding: chunk\r\n", "Transfer-Encoding: \"chunked\"\r\n", "Transfer-Encoding: 'chunked'\r\n", "Transfer-Encoding: chunked;x=1\r\n", "Transfer-Encoding: chunked,\r\n", "Transfer-Encoding: ,chunked\r\n",
		"Transfer-Encoding: identity\r\n", "Transfer-Encoding: identity, chunked\r\n", "Transfer-Encoding: chunked, identity\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked, gzip\r\n", "Transfer-Encoding: chunked, chunked\r\n", "Transfer-Encoding: gzip\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding:\r\n chunked\r\n",
		"Transfer-Encoding:\r\n\tchunked\r\n", "Transfer-Encoding: chunked\r\n x\r\n", "X: y\nTransfer-Encoding: chunked\r\n", "X: y\rTransfer-Encoding: chunked\r\n", "X: y\r\n\rTransfer-Encoding: chunked\r\n", "\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding\n: chunked\r\n",
		"Transfer_Encoding: chunked\r\n", "Transfer Encoding: chunked\r\n", "Transfer-Encodin\xe9: chunked\r\n", "transfer-encoding: chunked\r\n", "TrAnSfEr-EnCoDiNg: chunked\r\n", "Transfer-Encoding: chun\u212aed\r\n", "Transfer-Encoding: cow\r\n", "Transfer-Encoding: \r\n", "Transfer-Encoding:\r\n",
		"Content-Encoding: chunked\r\n", "X-Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n", "Connection: Content-Length\r\n", "TE: chunked\r\n", "Transfer-Encoding: \\chunked\r\n", "Transfer-Encoding: chunked\xff\r\n",
	}
	lengths := []string{"", "Content-Length: 4\r\n", "Content-Length: 0\r\n", "Content-Length: 70\r\n"}
	bodies := []string{"0\r\n\r\n" + smuggled, "1\r\nZ\r\nQ\r\n\r\n" + smuggled}
	var out []vector
	for _, coding := range codings {
		for _, length := range lengths {
			for _, body := range bodies {
				out = append(out, vector{text: "POST {U}/public/f HTTP/1.1\r\nHost: {G}\r\n" + coding + length + "\r\n" + body})
			}
		}
	}
	for _, length := range []string{
		"+4", "-4", "4 ", " 4", "04", "0x4", "4,4", "4, 4", "4, 5", "4;", "4 4", "4\t", "\x0b4", "4\x00", "\uff14", "1e1", "", " ", "4.0", "4a", "99999999999999999999", "18446744073709551620", "-0", "+0", "4\r\nContent-Length: 4", "4\r\nContent-Length: 5", "5\r\nContent-Length: 4",
		"4\r\n 4", "4\n", "\r\n 4", "4\r\nContent_Length: 5", "0\r\nContent-Length: 4", "4\r\ncontent-length: 9", "04\r\nContent-Length: 4", "4_0", "٤",
	} {
		for _, name := range []string{"Content-Length", "Content-length", "Content-Length ", "Content_Length", " Content-Length", "Content-Length\x00"} {
			out = append(out, vector{text: "POST {U}/public/f HTTP/1.1\r\nHost: {G}\r\n" + name + ": " + length + "\r\n\r\nabcd" + smuggled})
		}
	}
	return out
}

// chunkVectors are chunked bodies that servers read in different ways.
func chunkVectors() []vector {
	var out []vector
	for _, body := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5\nhello\n0\n\n", "5\r\nhello0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "5\rhello\r0\r\r", "+5\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5h\r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", "5\t\r\nhello\r\n0\r\n\r\n",
		"5;\r\nhello\r\n0\r\n\r\n", "5;x\r\nhello\r\n0\r\n\r\n", "5;x=\"\r\nhello\r\n0\r\n\r\n", "5;x=\"\n\"\r\nhello\r\n0\r\n\r\n", "5;\n0\r\n\r\n", "5;x\nhello\r\n0\r\n\r\n", "5;\rx\r\nhello\r\n0\r\n\r\n", "5 ;x\r\nhello\r\n0\r\n\r\n", "5;;;\r\nhello\r\n0\r\n\r\n", "5;" + strings.Repeat("x", 20000) + "\r\nhello\r\n0\r\n\r\n",
		"10000000000000005\r\nhello\r\n0\r\n\r\n", "100000005\r\nhello\r\n0\r\n\r\n", "fffffffffffffffb\r\nhello\r\n0\r\n\r\n", strings.Repeat("0", 5000) + "5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n-0\r\n\r\n", "5\r\nhello\r\n+0\r\n\r\n", "5\r\nhello\r\n0 \r\n\r\n", "5\r\nhello\r\n00\r\n\r\n", "5\r\nhello\r\n0;x\r\n\r\n",
		"5\r\nhello\r\n0\r\nX: 1\r\n\r\n", "5\r\nhello\r\n0\r\nX : 1\r\n\r\n", "5\r\nhello\r\n0\r\n X: 1\r\n\r\n", "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n", "5\r\nhello\r\n0\r\nHost: evil.example\r\n\r\n", "5\r\nhello\r\n0\r\nAuthorization: mine\r\n\r\n", "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"5\r\nhello\r\n0\r\nX: a\nY: b\r\n\r\n", "5\r\nhello\r\n0\r\nX\x00: a\r\n\r\n", "5\r\nhello\r\n0\r\nno colon\r\n\r\n", "5\r\nhello\r\n0\r\n", "5\r\nhello\r\n0\r\n\n", "5\r\nhello\r\n0\n\r\n", "5\r\nhello", "5\r\nhel", "", "\r\n", "x\r\n", "\x005\r\nhello\r\n0\r\n\r\n", "5\x00\r\nhello\r\n0\r\n\r\n", "５\r\nhello\r\n0\r\n\r\n",
		"2\r\nhi\r\n3\r\nyou\r\n0\r\n\r\n", "5\r\nhelloXX\r\n0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n", "6\r\nhello\r\n0\r\n\r\n", "5_0\r\nhello\r\n0\r\n\r\n", "5\x0b\r\nhello\r\n0\r\n\r\n", "5\r\r\nhello\r\n0\r\n\r\n", "\r\n5\r\nhello\r\n0\r\n\r\n",
	} {
		for _, after := range []string{"", smuggled + "\r\n\r\n"} {
			out = append(out, vector{text: fmt.Sprintf("POST {U}/public/c HTTP/1.1\r\nHost: {G}\r\nTransfer-Encoding: chunked\r\n\r\n%s%s", body, after)})
		}
	}
	return out
}

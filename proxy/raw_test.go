package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// rawConn is a connection on which a test writes bytes that clients do not.
type rawConn struct {
	net.Conn
	in *bufio.Reader
	t  testing.TB
}

func (w *world) raw() *rawConn {
	w.t.Helper()
	c, err := new(net.Dialer).DialContext(w.t.Context(), "tcp", w.addr.String())
	testenv.Must(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	testenv.Must(w.t, c.SetDeadline(time.Now().Add(2*time.Minute)))
	return &rawConn{c, bufio.NewReader(c), w.t}
}

// lasting removes the deadline, for transfers that the test ends.
func (c *rawConn) lasting() *rawConn {
	c.t.Helper()
	testenv.Must(c.t, c.SetDeadline(time.Time{}))
	return c
}

// connect opens a tunnel and returns the answer.
func (c *rawConn) connect(authority string) *http.Response {
	c.t.Helper()
	c.write("CONNECT " + authority + " HTTP/1.1\r\nHost: " + authority + "\r\n\r\n")
	response, err := http.ReadResponse(c.in, &http.Request{Method: "CONNECT"})
	testenv.Must(c.t, err)
	return response
}

// tunnel opens a tunnel, or fails the test.
func (w *world) tunnel(authority string) *rawConn {
	w.t.Helper()
	c := w.raw()
	if response := c.connect(authority); response.StatusCode != 200 {
		body, _ := io.ReadAll(response.Body)
		w.t.Fatalf("CONNECT %s: %s %s", authority, response.Status, body)
	}
	return c
}

// tls starts TLS with a server name, trusting anything.
func (c *rawConn) tls(name string) *rawConn {
	c.t.Helper()
	inner := tls.Client(c.Conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	testenv.Must(c.t, inner.HandshakeContext(c.t.Context()))
	return &rawConn{inner, bufio.NewReader(inner), c.t}
}

func (c *rawConn) write(s string) {
	c.t.Helper()
	_, err := io.WriteString(c.Conn, s)
	testenv.Must(c.t, err)
}

// read reads one answer.
func (c *rawConn) read() (*http.Response, string) {
	c.t.Helper()
	response, err := http.ReadResponse(c.in, nil)
	testenv.Must(c.t, err)
	body, err := io.ReadAll(response.Body)
	testenv.Must(c.t, err)
	return response, string(body)
}

// want writes a request and checks how it is answered.
func (c *rawConn) want(reason authz.Reason, request string) {
	c.t.Helper()
	c.write(request)
	response, body := c.read()
	if reason == authz.Granted {
		if response.StatusCode != 200 {
			c.t.Errorf("%.80q: %s %s", request, response.Status, body)
		}
		return
	}
	wantRefusal(c.t, response, body, reason)
	if c.t.Failed() {
		c.t.Logf("request was %.200q", request)
	}
}

// TestPathsAndMethods sends targets byte for byte. The rule grants /a/**, /caf%C3%A9 and
// /api/v1, by GET.
func TestPathsAndMethods(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	r := rule(api, "read")
	r.Methods, r.Paths = []string{"GET"}, []string{"/a/**", "/caf%C3%A9", "/api/v1"}
	w := newWorld(t, setup{input: granted(r)})
	host := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	long := "/a/" + strings.Repeat("x", 8<<10)
	for _, test := range []struct {
		method, target string
		want           authz.Reason
		sent           string // the target at the upstream, if it is granted
	}{
		{"GET", "/a/", authz.Granted, "/a/"},
		{"GET", "/a/b?x=1", authz.Granted, "/a/b?x=1"},
		{"GET", "/a/b?", authz.Granted, "/a/b?"},
		{"GET", "/a?/../b", authz.PathNotGranted, ""},
		{"GET", "/a/?a=/../x", authz.Granted, "/a/?a=/../x"},
		{"GET", "/%61/%62", authz.Granted, "/a/b"},
		{"GET", "/caf%c3%a9", authz.Granted, "/caf%C3%A9"},
		{"GET", "/caf\xc3\xa9", authz.Granted, "/caf%C3%A9"},
		{"GET", "/a/../b", authz.MalformedRequest, ""},
		{"GET", "/a/..", authz.MalformedRequest, ""},
		{"GET", "/..", authz.MalformedRequest, ""},
		{"GET", "/a/%2e%2e/b", authz.MalformedRequest, ""},
		{"GET", "/a/%2E%2E%2Fb", authz.MalformedRequest, ""},
		{"GET", "/a/..%2fb", authz.MalformedRequest, ""},
		{"GET", "/a/.%2fb", authz.MalformedRequest, ""},
		{"GET", "/a/%252e%252e/b", authz.MalformedRequest, ""},
		{"GET", "/a/..;/b", authz.MalformedRequest, ""},
		{"GET", "/a/..;x/b", authz.MalformedRequest, ""},
		{"GET", "/a/.;/b", authz.MalformedRequest, ""},
		{"GET", "/a/..%3B/b", authz.MalformedRequest, ""},
		{"GET", "/a;v=1/../b", authz.MalformedRequest, ""},
		{"GET", "//a", authz.MalformedRequest, ""},
		{"GET", "//a//../b", authz.MalformedRequest, ""},
		{"GET", "///a", authz.MalformedRequest, ""},
		{"GET", `/\a`, authz.MalformedRequest, ""},
		{"GET", `/a\..\b`, authz.MalformedRequest, ""},
		{"GET", "/a%5c..%5cb", authz.MalformedRequest, ""},
		{"GET", "/a%2fb", authz.MalformedRequest, ""},
		{"GET", "/a%00b", authz.MalformedRequest, ""},
		{"GET", "/a%0d%0aX:1", authz.MalformedRequest, ""},
		{"GET", "/a/#b", authz.MalformedRequest, ""},
		{"GET", "/a/?x#y", authz.MalformedRequest, ""},
		{"GET", "/%zz", authz.MalformedRequest, ""},
		{"GET", "/%", authz.MalformedRequest, ""},
		{"GET", long, authz.MalformedRequest, ""},
		{"GET", "/\uff0e\uff0e\uff0f", authz.PathNotGranted, ""},
		{"GET", "/A/", authz.PathNotGranted, ""},
		{"GET", "/a", authz.PathNotGranted, ""},
		{"GET", "/api/v1", authz.Granted, "/api/v1"},
		{"GET", "/api/v10", authz.PathNotGranted, ""},
		{"GET", "/api/v1/", authz.PathNotGranted, ""},
		{"GET", "https://api.weather.example/a/../b", authz.MalformedRequest, ""},
		{"GET", "https://evil.example/a/", authz.DestinationMismatch, ""},
		{"OPTIONS", "*", authz.MalformedRequest, ""},
		{"get", "/a/", authz.MethodNotGranted, ""},
		{"PATCH", "/a/", authz.MethodNotGranted, ""},
		{"TRACE", "/a/", authz.MethodNotGranted, ""},
		{"CONNECT", "evil.example:443", authz.MalformedRequest, ""},
		{"G@T", "/a/", authz.MalformedRequest, ""},
		{strings.Repeat("M", 65), "/a/", authz.MalformedRequest, ""},
	} {
		t.Run(test.method+" "+strings.Trim(fmt.Sprintf("%.40q", test.target), `"`), func(t *testing.T) {
			c := w.tunnel(host).tls("api.weather.example")
			c.t = t
			api.Forget()
			c.want(test.want, test.method+" "+test.target+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			switch got := api.Requests(); {
			case test.want != authz.Granted && len(got) > 0:
				t.Errorf("the upstream received %+v", got)
			case test.want == authz.Granted && (len(got) != 1 || got[0].Target != test.sent):
				t.Errorf("the upstream received %+v, want the target %s", got, test.sent)
			}
		})
	}
	decided := w.records.of(authz.KindDecision)
	if len(decided) != 50 {
		t.Errorf("%d decisions were recorded, want one for each request", len(decided))
	}
}

// TestHostsThatDisagree names one destination in the tunnel and another inside.
func TestHostsThatDisagree(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	port := api.Addr.Port()
	authority := fmt.Sprintf("api.weather.example:%d", port)
	for _, test := range []struct {
		name, sni, head string
		want            authz.Reason
	}{
		{"same", "api.weather.example", "Host: " + authority, authz.Granted},
		{"port left out", "api.weather.example", "Host: api.weather.example", authz.DestinationMismatch},
		{"capitals", "API.weather.EXAMPLE", "Host: API.weather.example:" + fmt.Sprint(port), authz.Granted},
		{"trailing dot", "api.weather.example", "Host: api.weather.example.:" + fmt.Sprint(port), authz.Granted},
		{"no SNI", "", "Host: " + authority, authz.Granted},
		{"other Host", "api.weather.example", "Host: evil.example:" + fmt.Sprint(port), authz.DestinationMismatch},
		{"other SNI", "evil.example", "Host: " + authority, authz.DestinationMismatch},
		{"other SNI and Host", "evil.example", "Host: evil.example:" + fmt.Sprint(port), authz.DestinationMismatch},
		{"other port", "api.weather.example", "Host: api.weather.example:81", authz.DestinationMismatch},
		{"userinfo", "api.weather.example", "Host: api.weather.example@evil.example", authz.MalformedRequest},
		{"two ports", "api.weather.example", "Host: api.weather.example:443:80", authz.DestinationMismatch},
		{"leading zero", "api.weather.example", "Host: api.weather.example:0443", authz.DestinationMismatch},
		{"empty port", "api.weather.example", "Host: api.weather.example:", authz.DestinationMismatch},
		{"two hosts", "api.weather.example", "Host: " + authority + "\r\nHost: evil.example", authz.MalformedRequest},
		{"two equal hosts", "api.weather.example", "Host: " + authority + "\r\nHost: " + authority, authz.MalformedRequest},
		{"a list", "api.weather.example", "Host: " + authority + ",evil.example", authz.DestinationMismatch},
		{"escaped", "api.weather.example", "Host: api%2eweather%2eexample", authz.DestinationMismatch},
		{"fullwidth", "api.weather.example", "Host: \uff41pi.weather.example", authz.MalformedRequest},
		{"none", "api.weather.example", "X-Other: 1", authz.MalformedRequest},
		{"a suffix", "api.weather.example", "Host: evilapi.weather.example:" + fmt.Sprint(port), authz.DestinationMismatch},
		{"space before the colon", "api.weather.example", "Host : " + authority, authz.MalformedRequest},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := w.tunnel(authority).tls(test.sni)
			c.t = t
			api.Forget()
			c.want(test.want, "GET /x HTTP/1.1\r\n"+test.head+"\r\n\r\n")
			if got := api.Requests(); test.want == authz.Granted && (len(got) != 1 || got[0].Host != authority) {
				t.Errorf("the upstream received %+v", got)
			} else if test.want != authz.Granted && len(got) > 0 {
				t.Errorf("the upstream received %+v", got)
			}
		})
	}
}

// TestConnect checks the authority of CONNECT.
func TestConnect(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	port := fmt.Sprint(api.Addr.Port())
	for _, test := range []struct {
		authority string
		want      authz.Reason
	}{
		{"API.weather.example.:" + port, authz.Granted},
		{"evil.example:443", authz.DestinationNotGranted},
		{"evilapi.weather.example:" + port, authz.DestinationNotGranted},
		{"api.weather.example.evil:" + port, authz.DestinationNotGranted},
		{"127.0.0.1:" + port, authz.DestinationNotGranted},
		{"127.1:" + port, authz.DestinationNotGranted},
		{"2130706433:" + port, authz.DestinationNotGranted},
		{"0x7f000001:" + port, authz.DestinationNotGranted},
		{"0177.0.0.1:" + port, authz.DestinationNotGranted},
		{"[::1]:" + port, authz.DestinationNotGranted},
		{"[::ffff:127.0.0.1]:" + port, authz.DestinationNotGranted},
		{"[[::1]]:" + port, authz.MalformedRequest},
		{"[fe80::1%25eth0]:" + port, authz.MalformedRequest},
		{"api.weather.example", authz.MalformedRequest},
		{"api.weather.example:0443", authz.MalformedRequest},
		{"api.weather.example:", authz.MalformedRequest},
		{"*.weather.example:443", authz.MalformedRequest},
		{"user@api.weather.example:443", authz.MalformedRequest},
		{"api.weather.example:443/", authz.MalformedRequest},
		{"api\x00.weather.example:443", authz.MalformedRequest},
		{strings.Repeat("a.", 130) + "example:443", authz.MalformedRequest},
	} {
		t.Run(fmt.Sprintf("%.30q", test.authority), func(t *testing.T) {
			c := w.raw()
			c.t = t
			c.write("CONNECT " + test.authority + " HTTP/1.1\r\nHost: " + test.authority + "\r\n\r\n")
			response, err := http.ReadResponse(c.in, &http.Request{Method: "GET"}) // GET: read the body
			testenv.Must(t, err)
			if test.want == authz.Granted {
				if response.StatusCode != 200 {
					t.Errorf("answer is %s", response.Status)
				}
				return
			}
			body, err := io.ReadAll(response.Body)
			testenv.Must(t, err)
			wantRefusal(t, response, string(body), test.want)
		})
	}
	if api.Total() > 0 {
		t.Errorf("the upstream received %+v", api.Requests())
	}
	// The record of a refused host has its name and the method.
	found := false
	for _, record := range w.records.of(authz.KindDecision) {
		if record.Reason == authz.DestinationNotGranted.String() && (record.Host == "" || record.Port == 0 || record.Method != "CONNECT") {
			t.Errorf("a refused CONNECT is recorded as %+v", record)
		}
		found = found || record.Host == "evil.example" && record.Port == 443
	}
	if !found {
		t.Error("evil.example is in no record")
	}
}

// TestAbsoluteForm sends plain requests to the forward proxy.
func TestAbsoluteForm(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Plain: true})
	r := rule(api, "read")
	r.To.Scheme, r.To.TLS, r.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	w := newWorld(t, setup{input: granted(r)})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	good := "http://" + authority
	for _, test := range []struct {
		name, request string
		want          authz.Reason
	}{
		{"granted", "GET " + good + "/x?y HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.Granted},
		{"scheme in capitals", "GET HTTP://" + authority + "/x HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.Granted},
		{"no path", "GET " + good + " HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.Granted},
		{"HTTP/1.0 without Host", "GET " + good + "/x HTTP/1.0\r\n\r\n", authz.Granted},
		{"evil URI, good Host", "GET http://evil.example/ HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.DestinationMismatch},
		{"good URI, evil Host", "GET " + good + "/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", authz.DestinationMismatch},
		{"evil URI and Host", "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", authz.DestinationNotGranted},
		{"two hosts", "GET " + good + "/ HTTP/1.1\r\nHost: " + authority + "\r\nHost: evil.example\r\n\r\n", authz.MalformedRequest},
		{"userinfo", "GET http://api.weather.example@evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", authz.MalformedRequest},
		{"dot segments", "GET " + good + "/a/../b HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.MalformedRequest},
		{"origin-form", "GET /x HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.MalformedRequest},
		{"other scheme", "GET ftp://" + authority + "/x HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.MalformedRequest},
		{"https on the same port", "GET https://" + authority + "/x HTTP/1.1\r\nHost: " + authority + "\r\n\r\n", authz.DestinationNotGranted},
		{"other port", "GET http://api.weather.example:1/x HTTP/1.1\r\nHost: api.weather.example:1\r\n\r\n", authz.DestinationNotGranted},
		{"folded header", "GET " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nX: 1\r\n 2\r\n\r\n", authz.Granted},
		{"bare line feeds", "GET " + good + "/x HTTP/1.1\nHost: " + authority + "\n\n", authz.Granted},
		{"unknown transfer coding", "POST " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", authz.MalformedRequest},
		{"hidden transfer coding", "POST " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", authz.MalformedRequest},
		{"signed length", "POST " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nContent-Length: +5\r\n\r\nhello", authz.MalformedRequest},
		{"two lengths", "POST " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", authz.MalformedRequest},
		{"header too long", "GET " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", authz.MalformedRequest},
		{"control byte in a header", "GET " + good + "/x HTTP/1.1\r\nHost: " + authority + "\r\nX: a\x00b\r\n\r\n", authz.MalformedRequest},
		{"no request at all", "\x16\x03\x01 nonsense\r\n\r\n", authz.MalformedRequest},
		{"version", "GET " + good + "/x HTTP/3.0\r\nHost: " + authority + "\r\n\r\n", authz.MalformedRequest},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := w.raw()
			c.t = t
			api.Forget()
			c.want(test.want, test.request)
			if got := api.Requests(); test.want == authz.Granted && (len(got) != 1 || got[0].Host != authority) {
				t.Errorf("the upstream received %+v", got)
			} else if test.want != authz.Granted && len(got) > 0 {
				t.Errorf("the upstream received %+v", got)
			}
		})
	}
}

// TestPlainHTTPInATunnel sends requests without TLS through CONNECT.
func TestPlainHTTPInATunnel(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Plain: true})
	r := rule(api, "read")
	r.To.Scheme, r.To.TLS, r.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	w := newWorld(t, setup{input: granted(r)})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	c := w.tunnel(authority)
	c.want(authz.Granted, "GET /x HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
	c.want(authz.DestinationMismatch, "GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n")
	c.want(authz.Granted, "GET /x HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
	c.want(authz.MalformedRequest, "GET /x HTTP/1.1\r\nHost: "+authority+"\r\nHost: evil.example\r\n\r\n")
	w.tunnel(authority).want(authz.MalformedRequest, "NO REQUEST AT ALL\r\n\r\n")
}

// TestFraming pipelines requests that two parsers might split in two ways.
func TestFraming(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Plain: true})
	r := rule(api, "read")
	r.To.Scheme, r.To.TLS, r.Insecure, r.Paths = authz.SchemeHTTP, authz.TLS{}, true, []string{"/ok"}
	w := newWorld(t, setup{input: granted(r)})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	good := " http://" + authority + "/ok HTTP/1.1\r\nHost: " + authority + "\r\n"
	evil := "GET http://" + authority + "/ok HTTP/1.1\r\nHost: evil.example\r\n\r\n"
	for _, test := range []struct {
		name, sent string
		want       []authz.Reason
	}{
		{"kept alive", "GET" + good + "\r\n" + "GET" + good + "\r\n" + evil, []authz.Reason{authz.Granted, authz.Granted, authz.DestinationMismatch}},
		{"after a refusal", "GET http://" + authority + "/a/../b HTTP/1.1\r\nHost: " + authority + "\r\n\r\n" + "GET" + good + "\r\n", []authz.Reason{authz.MalformedRequest, authz.Granted}},
		{"body that is none", "POST" + good + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", []authz.Reason{authz.MalformedRequest}},
		{"other expectation", "POST" + good + "Expect: 200-maybe\r\nContent-Length: 1\r\n\r\n", []authz.Reason{authz.MalformedRequest}},
		{"folded Host", "GET http://" + authority + "/ok HTTP/1.1\r\nHost:\r\n evil.example\r\n\r\n", []authz.Reason{authz.DestinationMismatch}},
		{"length", "POST" + good + "Content-Length: 5\r\n\r\nhello" + evil, []authz.Reason{authz.Granted, authz.DestinationMismatch}},
		{"chunked", "POST" + good + "Transfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\nX: 1\r\n\r\n" + evil, []authz.Reason{authz.Granted, authz.DestinationMismatch}},
		{"length and chunked", "POST" + good + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + "GET" + good + "\r\n", []authz.Reason{authz.Granted, authz.MalformedRequest}},
		{"empty lines first", "\r\n\r\nGET" + good + "\r\n" + evil, []authz.Reason{authz.MalformedRequest}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := w.raw()
			c.t = t
			go func() { _, _ = io.WriteString(c.Conn, test.sent) }()
			for _, reason := range test.want {
				response, body := c.read()
				if reason == authz.Granted {
					if response.StatusCode != 200 {
						t.Errorf("answer is %s %s", response.Status, body)
					}
					continue
				}
				wantRefusal(t, response, body, reason)
			}
		})
	}
}

// TestHTTP2Host sends a Host beside :authority.
func TestHTTP2Host(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	for _, test := range []struct {
		name, authority, host, status string
	}{
		{"same", authority, authority, "200"},
		{"none", authority, "", "200"},
		{"other Host", authority, "evil.example", "421"},
		{"other authority", "evil.example", "", "421"},
		{"other authority, good Host", "evil.example", authority, "421"},
		{"Host alone", "", authority, "200"},
		{"other Host alone", "", "evil.example", "421"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := w.tunnel(authority)
			inner := tls.Client(c.Conn, &tls.Config{ServerName: "api.weather.example", InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			testenv.Must(t, inner.HandshakeContext(t.Context()))
			if got := h2Status(t, inner, test.authority, test.host); got != test.status {
				t.Errorf("status is %s, want %s", got, test.status)
			}
		})
	}
	if api.Total() != 3 {
		t.Errorf("the upstream received %+v", api.Requests())
	}
}

// h2Status sends one request over HTTP/2 and returns the status.
func h2Status(t *testing.T, c net.Conn, authority, host string) string {
	t.Helper()
	_, err := io.WriteString(c, http2.ClientPreface)
	testenv.Must(t, err)
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	testenv.Must(t, framer.WriteSettings())
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "GET"},
		{Name: ":scheme", Value: "https"},
		{Name: ":path", Value: "/x"},
		{Name: ":authority", Value: authority},
		{Name: "host", Value: host},
	} {
		if field.Value != "" {
			testenv.Must(t, encoder.WriteField(field))
		}
	}
	testenv.Must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
	for {
		frame, err := framer.ReadFrame()
		testenv.Must(t, err)
		if headers, ok := frame.(*http2.MetaHeadersFrame); ok {
			return headers.PseudoValue("status")
		}
	}
}

// TestOriginate sends plain http for an https rule with originate.
func TestOriginate(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	r := rule(api, "read")
	r.To.TLS.Originate = true
	w := newWorld(t, setup{input: granted(r)})
	for _, authority := range []string{"api.weather.example", fmt.Sprintf("api.weather.example:%d", api.Addr.Port())} {
		c := w.raw()
		c.want(authz.Granted, "GET http://"+authority+"/x HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
	}
	got := api.Requests()
	if len(got) != 2 || got[0].SNI != "api.weather.example" || got[0].Host != fmt.Sprintf("api.weather.example:%d", api.Addr.Port()) {
		t.Errorf("the upstream received %+v", got)
	}
}

// TestObserve forwards requests of an observed rule, without a credential.
func TestObserve(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	r := rule(api, "read")
	r.Paths, r.Mode, r.ObserveUntil = []string{"/granted"}, authz.ModeObserve, time.Now().Add(time.Minute)
	w := newWorld(t, setup{input: granted(r)})
	client := w.client(nil)
	if response, body := send(t, client, request(t, "GET", api.URL("api.weather.example", "/other"), "")); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("observed: %s %s", response.Status, body)
	}
	if got := api.Requests(); len(got) != 1 || got[0].Header["Authorization"] != nil {
		t.Errorf("the upstream received %+v", got)
	}
	if response, body := send(t, client, request(t, "GET", api.URL("api.weather.example", "/granted"), "")); response.StatusCode != 200 {
		t.Errorf("granted: %s %s", response.Status, body)
	}
}

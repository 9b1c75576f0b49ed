package proxy_test

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

func testServerCA(api *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw}))
}

// TestSlot puts values into the credential's slot as a plugin might, and checks the
// request that arrives.
func TestSlot(t *testing.T) {
	anyone := testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("ada:"+apiKey))
	for _, test := range []struct {
		name   string
		inject authz.Inject
		head   string // after Host
		target string
		want   map[string]string // header to value, all of them
		wire   string            // the target that arrives
	}{
		{
			"header", bearer,
			"Authorization: Bearer mine\r\nauthorization: Basic bWluZTptaW5l\r\nAUTHORIZATION: x\r\nUser-Agent: u\r\n", "/",
			map[string]string{"Authorization": "Bearer " + apiKey, "User-Agent": "u", "Accept-Encoding": "identity"},
			"/",
		},
		{
			"header listed in Connection", bearer,
			"Connection: Authorization, X-Other, close\r\nX-Other: 1\r\nX-Kept: 2\r\n", "/",
			map[string]string{"Authorization": "Bearer " + apiKey, "X-Kept": "2", "Accept-Encoding": "identity"},
			"/",
		},
		{
			"underscores",
			authz.Inject{Header: "X-Api-Key", Value: "{api_key}"},
			"X_Api_Key: mine\r\nx-api_key: mine\r\nX-API-KEY: mine\r\nX-Api-Key-2: kept\r\n", "/",
			map[string]string{"X-Api-Key": apiKey, "X-Api-Key-2": "kept", "Accept-Encoding": "identity"},
			"/",
		},
		{
			"basic",
			authz.Inject{Basic: &authz.Basic{Username: "{username}", Password: "{password}"}},
			"Authorization: Bearer mine\r\n", "/",
			map[string]string{"Authorization": basic, "Accept-Encoding": "identity"},
			"/",
		},
		{
			"query",
			authz.Inject{Query: "key", Value: "{api_key}"},
			"",
			"/x?key=mine&a=1&KEY=mine&%6bey=mine&b=2;key=mine&key&keys=3&c=%20",
			map[string]string{"Accept-Encoding": "identity"},
			"/x?a=1&b=2&keys=3&c=%20&key=" + apiKey,
		},
		{
			"query alone",
			authz.Inject{Query: "key", Value: "{api_key}"},
			"", "/x",
			map[string]string{"Accept-Encoding": "identity"},
			"/x?key=" + apiKey,
		},
		{
			"cookie",
			authz.Inject{Cookie: "sid", Value: "{api_key}"},
			"Cookie: a=1; sid=mine; SID=mine\r\nCookie: b=2;sid=mine\r\n", "/",
			map[string]string{"Cookie": "a=1; b=2; sid=" + apiKey, "Accept-Encoding": "identity"},
			"/",
		},
		{
			"removed headers", bearer,
			"X-Forwarded-For: 1\r\nX_Forwarded_Host: 1\r\nForwarded: for=1\r\nX-HTTP-Method-Override: DELETE\r\nX-Http-Method: DELETE\r\n" +
				"X-Method-Override: DELETE\r\nX-Original-URL: /\r\nX-Rewrite-URL: /\r\nx-chaperone-decision: 1\r\nProxy-Connection: keep-alive\r\n" +
				"Keep-Alive: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\nProxy-Authorization: Basic eDp5\r\n", "/",
			map[string]string{"Authorization": "Bearer " + apiKey, "Te": "trailers", "Accept-Encoding": "identity"},
			"/",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			api := upstream(t, anyone)
			w := newWorld(t, setup{input: authz.Input{Grants: []authz.Grant{grant(test.inject, rule(api, "read"))}}})
			authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
			c := w.tunnel(authority).tls("api.weather.example")
			c.t = t
			c.want(authz.Granted, "GET "+test.target+" HTTP/1.1\r\nHost: "+authority+"\r\n"+test.head+"\r\n")
			got := api.Requests()[0]
			headers := make(map[string]string)
			for name, values := range got.Header {
				headers[name] = strings.Join(values, "|")
			}
			if diff := cmp.Diff(test.want, headers); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			if got.Target != test.wire {
				t.Errorf("target is %s, want %s", got.Target, test.wire)
			}
		})
	}
}

// TestEcho uses an upstream that returns everything that it received.
func TestEcho(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte(apiKey))
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/body":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"authorization": %q, "again": %q}`, r.Header.Get("Authorization"), apiKey)
		case "/base64":
			w.Header().Set("Content-Type", "text/plain")
			fmt.Fprintf(w, "x%sy", encoded)
		case "/header":
			w.Header().Set("X-Debug", r.Header.Get("Authorization"))
			w.Header().Set("Location", "/?"+apiKey)
		case "/split":
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range len(apiKey) {
				fmt.Fprint(w, apiKey[i:i+1])
				w.(http.Flusher).Flush()
			}
		case "/trailer":
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, "body")
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"X-Debug", apiKey)
		case "/hints":
			w.Header().Set("Link", apiKey)
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
		case "/image":
			w.Header().Set("Content-Type", "image/png")
			_, _ = io.WriteString(w, "not text")
		}
	}))
	defer api.Close()
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	client := w.client(nil)
	for _, test := range []struct{ path, where string }{
		{"/body", "body"},
		{"/base64", "body"},
		{"/header", "header"},
		{"/split", "body"},
		{"/trailer", "header x-debug"},
		{"/hints", "header link"},
		{"/image", ""},
	} {
		t.Run(test.path, func(t *testing.T) {
			before := len(w.echoed())
			response, err := client.Do(request(t, "GET", urlOf(api, test.path), ""))
			testenv.Must(t, err)
			body, err := io.ReadAll(response.Body)
			testenv.Must(t, err)
			testenv.Must(t, response.Body.Close())
			all := fmt.Sprint(response.Header, string(body), response.Trailer)
			if strings.Contains(all, apiKey) || strings.Contains(all, encoded[:len(encoded)-3]) {
				t.Errorf("the plugin sees the credential: %s", all)
			}
			w.settled()
			echoes := w.echoed()[before:]
			if test.where == "" {
				if len(echoes) > 0 {
					t.Errorf("echo record %+v", echoes)
				}
				return
			}
			if len(echoes) != 1 || !strings.Contains(echoes[0].Detail, test.where) || echoes[0].Credential != "key" {
				t.Errorf("echo records are %+v", echoes)
			}
		})
	}
}

// settled waits until no access is live, so that everything is recorded.
func (w *world) settled() {
	w.t.Helper()
	deadline := testDeadline()
	for w.proxy.Open() > 0 {
		if deadline() {
			w.t.Fatal("accesses stay open")
		}
	}
}

// TestAnswersAreStripped removes fields from answers by which clients would bypass the
// proxy.
func TestAnswersAreStripped(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Alt-Svc", "X-Chaperone-Reason", "X-Chaperone-Decision", "Proxy-Authenticate", "Keep-Alive"} {
			w.Header().Set(name, "x")
		}
		w.Header().Set("Location", "http://evil.example/")
		w.Header()["Content-Type"] = nil
		w.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(w, "<html>")
	}))
	defer api.Close()
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	response, _ := send(t, w.client(nil), request(t, "GET", urlOf(api, "/"), ""))
	if response.StatusCode != http.StatusFound || response.Header.Get("Location") != "http://evil.example/" {
		t.Errorf("a redirect is answered %s %v", response.Status, response.Header)
	}
	for name := range response.Header {
		switch name {
		case "Location", "Date", "Content-Length":
		default:
			t.Errorf("header %s passed, or was added", name)
		}
	}
}

// TestToken proves the caller without the kernel.
func TestToken(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Plain: true})
	r := rule(api, "read")
	r.To.Scheme, r.To.TLS, r.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	w := newWorld(t, setup{input: granted(r), config: func(c *proxy.Config) {
		c.Identify, c.Token = nil, authz.NewSecret("proxy-token")
	}})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	basic := func(s string) string {
		return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(s)) + "\r\n"
	}
	for _, test := range []struct {
		name, head string
		want       int
	}{
		{"none", "", http.StatusProxyAuthRequired},
		{"right", basic("chaperone:proxy-token"), 200},
		{"wrong password", basic("chaperone:proxy-tokem"), 403},
		{"wrong user", basic("other:proxy-token"), 403},
		{"empty", basic("chaperone:"), 403},
		{"twice", basic("chaperone:proxy-token") + basic("chaperone:proxy-token"), 403},
		{"not base64", "Proxy-Authorization: Basic !\r\n", 403},
		{"bearer", "Proxy-Authorization: Bearer proxy-token\r\n", 403},
	} {
		for _, line := range []string{"GET http://" + authority + "/", "CONNECT " + authority} {
			t.Run(test.name+" "+line[:3], func(t *testing.T) {
				c := w.raw()
				c.write(line + " HTTP/1.1\r\nHost: " + authority + "\r\n" + test.head + "\r\n")
				response, err := http.ReadResponse(c.in, nil)
				testenv.Must(t, err)
				if response.StatusCode != test.want {
					t.Errorf("answer is %s, want %d", response.Status, test.want)
				}
				if asked := response.Header.Get("Proxy-Authenticate") != ""; asked != (test.want == 407) {
					t.Errorf("Proxy-Authenticate is %q", response.Header.Get("Proxy-Authenticate"))
				}
				if test.want != 200 && response.Header.Get("X-Chaperone-Reason") != "identity_unknown" {
					t.Errorf("headers are %v", response.Header)
				}
			})
		}
	}
	if got := api.Requests()[0].Header; got["Proxy-Authorization"] != nil {
		t.Errorf("the token went to the upstream: %v", got)
	}
}

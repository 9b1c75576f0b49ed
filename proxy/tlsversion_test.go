package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/coder/websocket"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestTLSVersion records the version of TLS that was negotiated with the upstream for each
// access, also on a connection that is used again, and none where the proxy speaks none.
func TestTLSVersion(t *testing.T) {
	ask := func(t *testing.T, client *http.Client, url string) {
		t.Helper()
		for range 2 { // the second on the connection of the first
			response, err := client.Get(url)
			testenv.Must(t, err)
			_, err = io.Copy(io.Discard, response.Body)
			testenv.Must(t, err)
			testenv.Must(t, response.Body.Close())
		}
	}
	http1 := func(t *testing.T, w *world, api *testenv.Upstream) {
		ask(t, w.client(nil), api.URL("api.weather.example", "/echo"))
	}
	http2 := func(t *testing.T, w *world, api *testenv.Upstream) {
		ask(t, w.client(withHTTP2), api.URL("api.weather.example", "/echo"))
	}
	grpc := func(t *testing.T, w *world, api *testenv.Upstream) {
		client := w.dialGRPC(fmt.Sprintf("api.weather.example:%d", api.Addr.Port()))
		chat(t, client, "1")
		chat(t, client, "1")
	}
	upgrade := func(t *testing.T, w *world, api *testenv.Upstream) {
		for range 2 {
			conn, _, err := websocket.Dial(t.Context(), api.URL("api.weather.example", "/ws"), &websocket.DialOptions{HTTPClient: w.client(nil)})
			testenv.Must(t, err)
			testenv.Must(t, conn.Close(websocket.StatusNormalClosure, ""))
		}
	}
	tunnel := func(t *testing.T, w *world, api *testenv.Upstream) {
		host := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
		for range 2 {
			c := w.raw()
			c.connect(host)
			inner, err := c.over(t, api.Pool(), "api.weather.example")
			testenv.Must(t, err)
			testenv.Must(t, inner.Close())
		}
	}
	older := func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }
	for name, c := range map[string]struct {
		upstream testenv.UpstreamConfig
		scheme   authz.Scheme
		access   func(*testing.T, *world, *testenv.Upstream)
		want     string
	}{
		"HTTP/1.1":                        {testenv.UpstreamConfig{}, "", http1, "1.3"},
		"HTTP/1.1 over an older TLS":      {testenv.UpstreamConfig{TLS: older}, "", http1, "1.2"},
		"HTTP/2":                          {testenv.UpstreamConfig{}, "", http2, "1.3"},
		"HTTP/2 over an older TLS":        {testenv.UpstreamConfig{TLS: older}, "", http2, "1.2"},
		"HTTP/2 to an upstream without":   {testenv.UpstreamConfig{HTTP1: true, TLS: older}, "", http2, "1.2"},
		"gRPC":                            {testenv.UpstreamConfig{}, "", grpc, "1.3"},
		"an upgrade over an older TLS":    {testenv.UpstreamConfig{TLS: older}, "", upgrade, "1.2"},
		"plain http":                      {testenv.UpstreamConfig{Plain: true}, authz.SchemeHTTP, http1, ""},
		"TLS of the plugin's in a tunnel": {testenv.UpstreamConfig{}, authz.SchemeTLS, tunnel, ""},
	} {
		t.Run(name, func(t *testing.T) {
			api := upstream(t, c.upstream)
			granting := rule(api, "read")
			if granting.To.Scheme = c.scheme; c.scheme == authz.SchemeHTTP {
				granting.To.TLS, granting.Insecure = authz.TLS{}, true
			}
			if c.scheme == authz.SchemeTLS {
				granting = tcpRule(api.Addr, authz.SchemeTLS, "api.weather.example")
			}
			w := newWorld(t, setup{input: granted(granting)})
			c.access(t, w, api)
			w.settled()
			ends := w.records.of(authz.KindEnd)
			if len(ends) != 2 {
				t.Errorf("%d accesses ended, want 2", len(ends))
			}
			for _, r := range ends {
				if r.TLS != c.want || r.Address == "" {
					t.Errorf("an access to %q was recorded with TLS %q, want %q", r.Address, r.TLS, c.want)
				}
			}
			for _, r := range w.records.of(authz.KindDecision) {
				if r.TLS != "" {
					t.Errorf("a decision was recorded with TLS %q, before there was a connection", r.TLS)
				}
			}
		})
	}
}

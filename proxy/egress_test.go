package proxy_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// exits creates the egress sockets of every grant, in a directory with a short path.
func (w *world) exits() map[string]string {
	w.t.Helper()
	routes := w.engine.Current().Routes(plugin, time.Now())
	paths, err := w.proxy.EgressSockets(w.exitDir(), "", routes)
	testenv.Must(w.t, err)
	byName := make(map[string]string)
	for i, r := range routes {
		byName[r.Rule+" "+r.Host] = paths[i]
	}
	return byName
}

func (w *world) exitDir() string {
	w.t.Helper()
	if w.dir == "" {
		dir, err := os.MkdirTemp("", "exits")
		testenv.Must(w.t, err)
		w.t.Cleanup(func() { _ = os.RemoveAll(dir) })
		w.dir = filepath.Join(dir, "exit")
	}
	return w.dir
}

// leave connects to an egress socket as an Envoy does.
func (w *world) leave(path string) *rawConn {
	w.t.Helper()
	c, err := new(net.Dialer).DialContext(w.t.Context(), "unix", path)
	testenv.Must(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	testenv.Must(w.t, c.SetDeadline(time.Now().Add(2*time.Minute)))
	return &rawConn{c, bufio.NewReader(c), w.t}
}

// over speaks TLS on an egress socket as an Envoy does.
func (c *rawConn) over(t *testing.T, roots *x509.CertPool, name string) (*rawConn, error) {
	t.Helper()
	inner := tls.Client(c.Conn, &tls.Config{ServerName: name, RootCAs: roots})
	if err := inner.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	return &rawConn{inner, bufio.NewReader(inner), t}, nil
}

// ask sends a request and reads the answer's body.
func (c *rawConn) ask(host, path string) (string, error) {
	c.write("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// gone reports whether a connection ended without a byte.
func (c *rawConn) gone() bool {
	_, err := c.in.ReadByte()
	return err != nil && !os.IsTimeout(err)
}

func TestExit(t *testing.T) {
	open := func(*http.Request) bool { return true }
	api := upstream(t, testenv.UpstreamConfig{Authorize: open})
	plain := upstream(t, testenv.UpstreamConfig{Authorize: open, Plain: true})
	greet := tcpServer(t, greeter)
	wild := rule(api, "wild", "*.weather.example")
	through := tcpRule(api.Addr, authz.SchemeTLS, "other.weather.example")
	plainRule, plainWild := rule(plain, "plain"), rule(plain, "plain-wild", "*.weather.example")
	for _, r := range []*authz.Rule{&plainRule, &plainWild} {
		r.To.Scheme, r.To.TLS, r.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	}
	wild.WildcardCredential, plainWild.WildcardCredential = true, true
	var later atomic.Int64 // seconds: what was refused alike a second ago is recorded again
	w := newWorld(t, setup{
		input: granted(rule(api, "read"), wild, through, plainRule, plainWild, tcpRule(greet, authz.SchemeTCP, "127.0.0.1")),
		config: func(c *proxy.Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Add(1)) * time.Second) }
		},
	})
	exits := w.exits()
	for _, test := range []struct {
		exit, sni, host string
		want            authz.Reason
	}{
		{"read api.weather.example", "api.weather.example", "api.weather.example", authz.Granted},
		{"wild *.weather.example", "other.weather.example", "other.weather.example", authz.Granted},
		{"wild *.weather.example", "evil.example", "evil.example", authz.DestinationMismatch},
		{"wild *.weather.example", "", "evil.example", authz.MalformedRequest},
		{"tls other.weather.example", "other.weather.example", "other.weather.example", authz.Granted},
		{"tls other.weather.example", "api.weather.example", "api.weather.example", authz.DestinationMismatch},
		{"plain api.weather.example", "", "api.weather.example", authz.Granted},
		{"plain-wild *.weather.example", "", "other.weather.example", authz.Granted},
		{"plain-wild *.weather.example", "", "evil.example", authz.DestinationMismatch},
		{"plain-wild *.weather.example", "", "a.b.weather.example", authz.DestinationMismatch},
		{"plain-wild *.weather.example", "", "other.weather.example\r\nHost: evil.example", authz.MalformedRequest},
	} {
		t.Run(test.exit+" for "+test.host, func(t *testing.T) {
			api.Forget()
			plain.Forget()
			before := len(w.refused())
			c, err := w.leave(exits[test.exit]), error(nil)
			defer func(c net.Conn) { _ = c.Close() }(c)
			if test.sni != "" {
				c, err = c.over(t, api.Pool(), test.sni)
			}
			var body string
			if err == nil {
				body, err = c.ask(test.host, "/x")
			}
			asked := api.Total() + plain.Total()
			if test.want == authz.Granted {
				if err != nil || !strings.Contains(body, `"/x"`) || asked != 1 {
					t.Fatalf("answer is %q, %v, and %d requests arrived", body, err, asked)
				}
				return
			}
			if err == nil || asked != 0 {
				t.Errorf("answer is %q, and %d requests arrived", body, asked)
			}
			refusals := w.refused()[before:]
			if len(refusals) != 1 || refusals[0].Reason != test.want || !strings.Contains(refusals[0].Detail, "weather/") {
				t.Errorf("refused as %+v", refusals)
			}
		})
	}
	t.Run("tcp", func(t *testing.T) {
		c := w.leave(exits["tcp 127.0.0.1"])
		if line, err := c.in.ReadString('\n'); err != nil || line != "220 hello\r\n" {
			t.Fatalf("greeting is %q, %v", line, err)
		}
		testenv.Must(t, c.Conn.(*net.UnixConn).CloseWrite())
		if rest, err := io.ReadAll(c.in); err != nil || string(rest) != "bye\r\n" {
			t.Errorf("after the end of file came %q, %v", rest, err)
		}
	})
	w.settled()
}

// TestLeaf has a TLS server use a certificate that was made for an Envoy.
func TestLeaf(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	wild := rule(api, "wild", "*.tiles.weather.example", "**.maps.weather.example")
	wild.WildcardCredential = true
	w := newWorld(t, setup{input: granted(rule(api, "read"), rule(api, "literal", "127.0.0.1"), wild)})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.proxy.CAPool())
	for _, test := range []struct{ host, name string }{
		{"api.weather.example", "api.weather.example"},
		{"*.tiles.weather.example", "a.tiles.weather.example"},
		{"127.0.0.1", "127.0.0.1"},
	} {
		certPEM, keyPEM, err := w.proxy.Leaf(test.host)
		testenv.Must(t, err)
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		testenv.Must(t, err)
		if left := time.Until(pair.Leaf.NotAfter); left < 20*24*time.Hour || left > 31*24*time.Hour {
			t.Errorf("%s: it is valid for %s", test.host, left)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: test.name}); err != nil {
			t.Errorf("%s: %v", test.host, err)
		}
		for _, other := range []string{"b.a.tiles.weather.example", "tiles.weather.example", "evil.example"} {
			if pair.Leaf.VerifyHostname(other) == nil {
				t.Errorf("%s: it is for %s too", test.host, other)
			}
		}
		if block, rest := pem.Decode(certPEM); block == nil || len(rest) > 0 {
			t.Errorf("%s: more than the leaf is sent", test.host)
		}
	}
	for _, host := range []string{
		"", "*", "*.", "*.*.tiles.weather.example", "**.maps.weather.example", "evil.example", "*.example", "*.weather.example", "*.127.0.0.1",
		"127.0.0.2", "::1", "API.weather.example", "api.weather.example.", "api.weather.example:443", "a.api.weather.example/x", "api.weather.example\n",
	} {
		if _, _, err := w.proxy.Leaf(host); err == nil {
			t.Errorf("a leaf for %q was issued", host)
		}
	}
	w.engine.Revoke(quarantine)
	w.install(granted(rule(api, "literal", "127.0.0.1")))
	if _, _, err := w.proxy.Leaf("api.weather.example"); err == nil {
		t.Error("a leaf for what is not granted any more was issued")
	}
}

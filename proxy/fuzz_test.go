package proxy

import (
	"bufio"
	"bytes"
	"net/http"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/http1head"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// FuzzConvert converts arbitrary requests: no result has another destination than its
// connection, or one that is not canonical.
func FuzzConvert(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: api.weather.example\r\n\r\n",
		"GET http://api.weather.example/a/../b HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"GET https://u@api.weather.example:443/%2e%2e HTTP/1.1\r\nHost: api.weather.example\r\n\r\n",
		"GET //evil/ HTTP/1.1\r\nHost: API.weather.example.:443\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: [::ffff:127.0.0.1]:443\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	p := &Proxy{cfg: Config{Plugin: "weather"}}
	f.Fuzz(func(t *testing.T, head []byte) {
		for _, c := range []*conn{
			{Conn: session.NewConn(new(session.Socket)), mode: explicit},
			{Conn: session.NewConn(new(session.Socket)), mode: tunnel, scheme: authz.SchemeHTTPS, host: "api.weather.example", port: 443},
		} {
			heads := http1head.NewScanner(bytes.NewReader(head), maxHeaderBytes)
			r, err := http.ReadRequest(bufio.NewReader(heads))
			if err != nil {
				return
			}
			host, unclear := heads.Take(r)
			c.http1 = requestHeads{host: host, unclear: unclear}
			if c.mode == explicit {
				c.http1.scanner = heads
			}
			req, fault := p.convert(r, c)
			if fault != nil {
				if fault.Reason != authz.MalformedRequest && fault.Reason != authz.DestinationMismatch || fault.Detail == "" {
					t.Fatalf("%q: fault %+v", head, fault)
				}
				continue
			}
			d := req.Destination
			if c.mode != explicit && (d.Host() != c.host || d.Port() != c.port || d.Scheme() != c.scheme) {
				t.Fatalf("%q: the tunnel is for %s:%d, the request for %s", head, c.host, c.port, d.URL())
			}
			if r.Host != "" && !d.Agrees(r.Host) {
				t.Fatalf("%q: Host %q, destination %s", head, r.Host, d.URL())
			}
			again, err := authz.NewDestination(d.Scheme(), d.HostPort(), d.Target())
			if err != nil || again != d {
				t.Fatalf("%q: %s is not canonical: %s, %v", head, d.URL(), again.URL(), err)
			}
		}
	})
}

package proxy

import (
	"bufio"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/chaperone-proxy/chaperone/authz"
)

// FuzzHeads reads requests as net/http does and compares what headReader has
// seen: the Host of each, or nothing at all.
func FuzzHeads(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET http://b/ HTTP/1.1\r\nHost: c\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.0\n\n", "GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := &conn{prefix: slices.Clone(sent)}
		c.heads = &headReader{conn: c}
		// One byte at a time, and only what is asked for: net/http reads ahead,
		// and so must the observer not depend on where reads end.
		in := bufio.NewReaderSize(iotest.OneByteReader(eofConn{c}), 16)
		for range 8 {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			host, unclear := c.heads.take(r)
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			if !unclear && r.URL.Host == "" && r.Method != http.MethodConnect && host != r.Host {
				t.Fatalf("%q: net/http sees the host %q, headReader %q", sent, r.Host, host)
			}
		}
	})
}

// eofConn is a conn that ends where its read-ahead does.
type eofConn struct{ c *conn }

func (e eofConn) Read(b []byte) (int, error) {
	if len(e.c.prefix) == 0 {
		return 0, io.EOF
	}
	return e.c.Read(b)
}

// FuzzConvert makes requests of anything: none may name another destination
// than its connection, nor any that is not canonical.
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
			{way: explicit},
			{way: tunnel, scheme: authz.SchemeHTTPS, host: "api.weather.example", port: 443},
		} {
			c.prefix = slices.Clone(head)
			c.heads = &headReader{conn: c}
			r, err := http.ReadRequest(bufio.NewReader(eofConn{c}))
			if err != nil {
				return
			}
			if c.wire, c.unclear = c.heads.take(r); c.way != explicit {
				c.heads = nil
			}
			req, fault := p.convert(r, c)
			if fault != nil {
				if fault.reason != authz.MalformedRequest && fault.reason != authz.DestinationMismatch || fault.detail == "" {
					t.Fatalf("%q: fault %+v", head, fault)
				}
				continue
			}
			d := req.Destination
			if c.way != explicit && (d.Host() != c.host || d.Port() != c.port || d.Scheme() != c.scheme) {
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

// FuzzParameter removes a parameter: no parser may find it afterwards, and the
// others stay as they were.
func FuzzParameter(f *testing.F) {
	f.Add("a=1&key=2&KEY=3&%6bey=4&b;key=5;c=6&key")
	f.Add("&&;;=;key&%zz=1&keys=2")
	f.Fuzz(func(t *testing.T, query string) {
		left := withoutParameter(query, "key")
		for _, separators := range []string{"&", "&;"} {
			for part := range strings.FieldsFuncSeq(left, func(r rune) bool { return strings.ContainsRune(separators, r) }) {
				name, _, _ := strings.Cut(part, "=")
				if plain, err := url.QueryUnescape(name); err == nil {
					name = plain
				}
				if strings.EqualFold(strings.TrimSpace(name), "key") {
					t.Fatalf("%q became %q", query, left)
				}
			}
		}
	})
}

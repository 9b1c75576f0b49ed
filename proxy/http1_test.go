package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// origin is an upstream whose answers a test writes byte for byte, under
// api.weather.example, over TLS and without.
type origin struct {
	t       testing.TB
	ca      *testenv.CA
	address map[bool]netip.AddrPort // by whether it is TLS
}

// newOrigin serves each connection with handle, and closes it when that returns.
func newOrigin(t testing.TB, handle func(c *originConn)) *origin {
	t.Helper()
	ca, err := testenv.NewCA("upstream")
	testenv.Must(t, err)
	pair, err := ca.Issue("api.weather.example", "127.0.0.1")
	testenv.Must(t, err)
	o := &origin{t: t, ca: ca, address: make(map[bool]netip.AddrPort)}
	for _, secure := range []bool{false, true} {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		testenv.Must(t, err)
		t.Cleanup(func() { _ = l.Close() })
		o.address[secure] = netip.MustParseAddrPort(l.Addr().String())
		go func() {
			for number := 1; ; number++ {
				raw, err := l.Accept()
				if err != nil {
					return
				}
				_ = raw.SetDeadline(time.Now().Add(2 * time.Minute)) // longer than any test waits
				c := &originConn{Conn: raw, raw: raw.(*net.TCPConn), number: number}
				if secure {
					c.Conn = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}})
				}
				c.in = bufio.NewReader(c.Conn)
				go func() {
					defer c.Close()
					handle(c)
				}()
			}
		}()
	}
	return o
}

// originConn is a connection to an origin.
type originConn struct {
	net.Conn
	raw    *net.TCPConn
	in     *bufio.Reader
	number int // of the origin's connections of this kind, from 1
}

// head reads the head of a request. After the last one it returns nil.
func (c *originConn) head() *http.Request {
	r, err := http.ReadRequest(c.in)
	if err != nil {
		return nil
	}
	return r
}

func (c *originConn) say(s string) { _, _ = io.WriteString(c.Conn, s) }

// reset closes the connection with a reset.
func (c *originConn) reset() {
	_ = c.raw.SetLinger(0)
	_ = c.raw.Close()
}

// rules grant the origin over https and http.
func (o *origin) rules(change func(*authz.Rule)) []authz.Rule {
	rules := make([]authz.Rule, 0, 2)
	for secure, address := range o.address {
		r := authz.Rule{
			ID: fmt.Sprintf("tls-%t", secure), Reason: "a test", Methods: []string{"*"}, Paths: []string{"/**"},
			To: authz.To{
				Hosts: []string{"api.weather.example", "127.0.0.1"}, Ports: []uint16{address.Port()},
				Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			},
		}
		if secure {
			r.To.TLS = authz.TLS{CA: string(o.ca.PEM()), CAFile: "ca.pem"}
		} else {
			r.To.Scheme = authz.SchemeHTTP
		}
		if change != nil {
			change(&r)
		}
		rules = append(rules, r)
	}
	return rules
}

func (o *origin) authority(secure bool) string {
	return fmt.Sprintf("api.weather.example:%d", o.address[secure].Port())
}

// door is a way for a plugin's request to reach the proxy.
type door struct {
	name                string
	transparent, secure bool
}

var doors = []door{
	{"explicit http", false, false},
	{"explicit https", false, true},
	{"transparent http", true, false},
	{"transparent https", true, true},
}

// through returns a world with the origin granted, and how to connect by a door.
func (o *origin) through(t *testing.T, d door, change func(*authz.Rule)) (w *world, dial func() *rawConn) {
	t.Helper()
	input := authz.Input{Grants: []authz.Grant{{
		Name: "weather", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: o.rules(change),
	}}}
	w = newWorld(t, setup{input: input, config: func(c *proxy.Config) {
		if d.transparent {
			c.Identify = func(net.Conn) (session.Peer, bool) {
				return session.Peer{PID: 7, UID: 1000, Exe: "/bin/plugin", Original: o.address[d.secure]}, true
			}
		}
	}})
	return w, func() *rawConn {
		var c *rawConn
		switch {
		case d.transparent || !d.secure:
			c = w.raw()
		default:
			c = w.tunnel(o.authority(true))
		}
		if d.secure {
			return c.tls("api.weather.example")
		}
		return c
	}
}

// target returns a path as a request by the door names it.
func (o *origin) target(d door, path string) string {
	if d.transparent || d.secure {
		return path
	}
	return "http://" + o.authority(false) + path
}

// send writes a request; fields are lines that end in CR LF.
func (o *origin) send(c *rawConn, d door, method, path, fields, body string) {
	c.t.Helper()
	c.write(method + " " + o.target(d, path) + " HTTP/1.1\r\nHost: " + o.authority(d.secure) + "\r\n" + fields + "\r\n" + body)
}

// byEachDoor runs a test by each door.
func byEachDoor(t *testing.T, o *origin, change func(*authz.Rule), test func(t *testing.T, d door, w *world, dial func() *rawConn)) {
	t.Helper()
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			w, dial := o.through(t, d, change)
			test(t, d, w, dial)
		})
	}
}

// echoing answers every request with the protocol that it asked to change to.
func echoing(c *originConn) {
	for r := c.head(); r != nil; r = c.head() {
		_, _ = io.Copy(io.Discard, r.Body)
		body := "upgrade:" + strings.Join(r.Header["Upgrade"], "|")
		c.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	}
}

// TestUpgradeOffers sends offers of other protocols, each followed by an ordinary request
// on the same connection: the offer is refused, dropped or forwarded, and the connection
// stays open.
func TestUpgradeOffers(t *testing.T) {
	o := newOrigin(t, echoing)
	const upgrade = "Connection: Upgrade\r\nUpgrade: "
	cases := []struct {
		fields string
		status int
		passed string // the part of the offer that reaches the upstream
	}{
		{upgrade + "TLS/1.2\r\n", 200, ""},
		{upgrade + "TLS/1.3, TLS/1.2\r\n", 200, ""},
		{"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", 200, ""},
		{upgrade + "HTTP/2.0\r\n", 200, ""},
		{upgrade + "HTTP/2.0, SHTTP/1.3, IRC/6.9\r\n", 200, ""},
		{upgrade + "irc/6.9\r\n", 403, ""},
		{upgrade + "websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", 403, ""},
		{upgrade + "h2c, websocket\r\n", 403, ""},
		{upgrade + "irc/6.9, websocket\r\n", 403, ""},
		{upgrade + "SPDY/3.1\r\n", 200, "SPDY/3.1"},
		{upgrade + "irc/6.9, SPDY/3.1\r\n", 200, "SPDY/3.1"},
		{upgrade + "h2c\r\nUpgrade: SPDY/3.1\r\n", 200, "SPDY/3.1"},
		{"Upgrade: websocket\r\n", 200, ""}, // without the option of Connection it was for another hop
		{"Upgrade: h2c\r\n", 200, ""},
		{upgrade + "\r\n", 200, ""},
		{upgrade + "a/b/c\r\n", 400, ""},
	}
	grant := func(r *authz.Rule) { r.Upgrades = []string{"spdy/3.1"} }
	byEachDoor(t, o, grant, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		for _, test := range cases {
			c := dial()
			for range 2 {
				o.send(c, d, "GET", "/", test.fields, "")
				if response, body := c.read(); response.StatusCode != test.status || response.StatusCode == 200 && body != "upgrade:"+test.passed {
					t.Errorf("%q: %s %s", test.fields, response.Status, body)
				}
				o.send(c, d, "POST", "/", "Content-Length: 3\r\n", "abc")
				if response, body := c.read(); response.StatusCode != 200 {
					t.Errorf("after %q: %s %s", test.fields, response.Status, body)
				}
			}
		}
	})
}

// TestConnectAfterARefusedOne sends another request on the connection of a refused
// CONNECT, as clients do that send their token only when challenged.
func TestConnectAfterARefusedOne(t *testing.T) {
	o := newOrigin(t, echoing)
	w, _ := o.through(t, door{secure: true}, nil)
	c := w.raw()
	for range 2 {
		if response := c.connect("nobody.example:443"); response.StatusCode != http.StatusForbidden {
			t.Fatalf("CONNECT to what is not granted: %s", response.Status)
		} else if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
	}
	if response := c.connect(o.authority(true)); response.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT after it: %s", response.Status)
	}
	inner := c.tls("api.weather.example")
	o.send(inner, door{secure: true}, "GET", "/", "", "")
	if response, body := inner.read(); response.StatusCode != 200 {
		t.Errorf("%s %s", response.Status, body)
	}
}

// TestUpgradeHalfClose ends one direction of an upgraded connection, from either
// end. The other direction goes on, as docker exec -i needs it.
func TestUpgradeHalfClose(t *testing.T) {
	const sent = 100_000
	received := make(chan int64, 1) // by the origin after it ended its own direction
	o := newOrigin(t, func(c *originConn) {
		r := c.head()
		if r == nil {
			return
		}
		c.say("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		if r.URL.Path == "/first" {
			c.say("done")
			_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite()
			n, _ := io.Copy(io.Discard, c.in)
			received <- n
			return
		}
		n, _ := io.Copy(io.Discard, c.in)
		c.say(fmt.Sprint("counted ", n))
	})
	grant := func(r *authz.Rule) { r.Upgrades = []string{"tcp"} }
	byEachDoor(t, o, grant, func(t *testing.T, d door, w *world, dial func() *rawConn) {
		const fields = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n"
		c := dial()
		o.send(c, d, "POST", "/exec/1/start", fields, strings.Repeat("a", sent/2))
		if response, err := http.ReadResponse(c.in, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer is %+v, %v", response, err)
		}
		c.write(strings.Repeat("z", sent/2))
		testenv.Must(t, c.Conn.(interface{ CloseWrite() error }).CloseWrite())
		if got, err := io.ReadAll(c.in); err != nil || string(got) != fmt.Sprint("counted ", sent) {
			t.Errorf("after the end of the plugin's input: %q, %v", got, err)
		}
		w.settled()

		c = dial()
		o.send(c, d, "POST", "/first", fields, "")
		if response, err := http.ReadResponse(c.in, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer is %+v, %v", response, err)
		}
		if got, err := io.ReadAll(c.in); err != nil || string(got) != "done" {
			t.Errorf("the upstream ends first: %q, %v", got, err)
		}
		c.write(strings.Repeat("z", sent))
		_ = c.Close()
		if got := <-received; got != sent {
			t.Errorf("%d bytes arrived after the upstream's end", got)
		}
		w.settled()
		ends := w.records.of(authz.KindEnd)
		if last := ends[len(ends)-1]; last.SentBytes != sent || last.Bytes != 4 {
			t.Errorf("recorded %d bytes to the upstream and %d to the plugin", last.SentBytes, last.Bytes)
		}
	})
}

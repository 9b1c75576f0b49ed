package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// preamble is the content of a PROXY protocol header.
type preamble struct{ from, to netip.AddrPort }

// readPreamble reads a header of version 2 (haproxy, doc/proxy-protocol.txt).
func readPreamble(r io.Reader) (preamble, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return preamble{}, err
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, rest); err != nil {
		return preamble{}, err
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[head[13]]
	if string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || head[12] != 0x21 || size == 0 || len(rest) != 2*size+4 {
		return preamble{}, fmt.Errorf("header is %x %x", head, rest)
	}
	src, _ := netip.AddrFromSlice(rest[:size])
	dst, _ := netip.AddrFromSlice(rest[size : 2*size])
	return preamble{
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(rest[2*size:])),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(rest[2*size+2:])),
	}, nil
}

// relayTo starts a substitute for an Envoy, for tests about bytes only.
func relayTo(t testing.TB, serve func(preamble, net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay") //nolint:usetesting // a socket needs a short path
	testenv.Must(t, err)
	path := filepath.Join(dir, "plugin.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	testenv.Must(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				said, err := readPreamble(c)
				if err != nil {
					t.Error(err)
					return
				}
				serve(said, c)
			})
		}
	})
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Cleanup(running.Wait)
	t.Cleanup(func() { _ = listener.Close() })
	return path
}

// relayed is a configuration with a relay, for a plugin that is proved while original
// returns true, and that dialled the address that original returns.
func relayed(path string, original func() (netip.AddrPort, bool)) func(*proxy.Config) {
	return func(c *proxy.Config) {
		c.Relay = path
		c.Identify = func(net.Conn) (session.Peer, bool) {
			to, ok := original()
			return session.Peer{PID: 7, UID: 1000, Original: to}, ok
		}
	}
}

func TestRelay(t *testing.T) {
	saw := make(chan preamble, 1)
	path := relayTo(t, func(said preamble, c net.Conn) {
		saw <- said
		greeter(c)
	})
	var original atomicAddr
	original.store(netip.AddrPort{})
	w := newWorld(t, setup{config: relayed(path, func() (netip.AddrPort, bool) { return original.load(), true })})
	for _, test := range []struct{ name, original, want string }{
		{"explicit", "", w.addr.String()},
		{"explicit, as the kernel says", w.addr.String(), w.addr.String()},
		{"a virtual address", "240.0.0.1:443", "240.0.0.1:443"},
		{"its IPv4-mapped form", "[::ffff:240.0.0.1]:443", "240.0.0.1:443"},
		{"an address of IPv6", "[2001:db8::1]:8080", "[2001:db8::1]:8080"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.original != "" {
				original.store(netip.MustParseAddrPort(test.original))
			}
			c := w.raw()
			speak(t, c)
			said, from := <-saw, netip.MustParseAddrPort(c.LocalAddr().String())
			if said.to.String() != test.want {
				t.Errorf("got the destination %s in the PROXY header, want %s", said.to, test.want)
			}
			if said.from.Port() != from.Port() || said.from.Addr().Unmap() != from.Addr() {
				t.Errorf("got the source %s in the PROXY header, want %s", said.from, from)
			}
		})
	}
	w.settled()
	if n := len(w.records.of(authz.KindDecision)); n != 0 {
		t.Errorf("%d accesses were decided, which is for the Envoy to ask", n)
	}
}

// TestRelayMovesEverything moves much both ways at once.
func TestRelayMovesEverything(t *testing.T) {
	path := relayTo(t, func(_ preamble, c net.Conn) { _, _ = io.Copy(c, c) })
	w := newWorld(t, setup{config: relayed(path, func() (netip.AddrPort, bool) { return netip.AddrPort{}, true })})
	c := w.raw()
	sent, got := sha256.New(), sha256.New()
	var writing sync.WaitGroup
	writing.Go(func() {
		random := io.LimitReader(rand.NewChaCha8([32]byte{1}), 32<<20+17)
		if _, err := io.Copy(io.MultiWriter(c.Conn, sent), random); err != nil {
			t.Error(err)
		}
		_ = c.Conn.(*net.TCPConn).CloseWrite() // the other end reads it or not
	})
	n, err := io.Copy(got, c.in)
	writing.Wait()
	if err != nil || n != 32<<20+17 || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	w.settled()
}

// TestRelayEndsWithThePlugin checks that connections of the relay outlive other rules.
func TestRelayEndsWithThePlugin(t *testing.T) {
	path := relayTo(t, func(_ preamble, c net.Conn) { greeter(c) })
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read")), config: relayed(path, func() (netip.AddrPort, bool) { return netip.AddrPort{}, true })})
	c := w.raw()
	if _, err := c.in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for _, spared := range []authz.Revocation{
		{ID: "rule", Plugin: plugin, Rule: "read", Level: authz.LevelHalt},
		{ID: "pause", Plugin: plugin, Level: authz.LevelPause},
	} {
		w.engine.Revoke(spared)
		if cut := w.proxy.Revalidate(); cut != 0 || w.proxy.Open() != 1 {
			t.Errorf("%s: %d were cut, %d are open", spared.ID, cut, w.proxy.Open())
		}
	}
	c.write("still here\r\n")
	if line, err := c.in.ReadString('\n'); err != nil || line != "still here\r\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	w.engine.Revoke(quarantine)
	if cut := w.proxy.Revalidate(); cut != 1 {
		t.Errorf("%d were cut", cut)
	}
	if !c.gone() {
		t.Error("the connection goes on")
	}
	w.settled()
	// Further ones are refused here, in words.
	c = w.raw()
	c.write("GET http://api.weather.example/ HTTP/1.1\r\nHost: api.weather.example\r\n\r\n")
	response, body := c.read()
	wantRefusal(t, response, body, authz.Revoked)
}

// TestRelayRefuses checks that connections that the Envoy does not receive are refused as
// all others are, and not carried out.
func TestRelayRefuses(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	plain := upstream(t, testenv.UpstreamConfig{Plain: true})
	plainRule := rule(plain, "plain")
	plainRule.To.Scheme, plainRule.To.TLS, plainRule.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	through := tcpRule(api.Addr, authz.SchemeTLS, "other.weather.example")
	greet := tcpServer(t, greeter)
	var original atomicAddr
	var proved atomic.Bool
	w := newWorld(t, setup{
		input: granted(rule(api, "read"), plainRule, through, tcpRule(greet, authz.SchemeTCP, "api.weather.example")),
		config: relayed(filepath.Join(t.TempDir(), "nobody.sock"), func() (netip.AddrPort, bool) {
			return original.load(), proved.Load()
		}),
	})
	address := func(name string) netip.Addr {
		return netip.MustParseAddr(w.ask(name, dns.TypeA).Answer[0].(*dns.A).A.String())
	}
	virtual, other := address("api.weather.example"), address("other.weather.example")
	get := "GET / HTTP/1.1\r\nHost: api.weather.example:%d\r\n\r\n"
	for _, test := range []struct {
		name     string
		unproved bool
		to       netip.AddrPort
		tls      string
		say      string
		want     authz.Reason
	}{
		{"not proved", true, netip.AddrPort{}, "", "GET http://api.weather.example/ HTTP/1.1\r\nHost: api.weather.example\r\n\r\n", authz.IdentityUnknown},
		{"explicit", false, netip.AddrPort{}, "", "GET http://api.weather.example/ HTTP/1.1\r\nHost: api.weather.example\r\n\r\n", authz.NotReady},
		{"CONNECT", false, netip.AddrPort{}, "", "CONNECT api.weather.example:443 HTTP/1.1\r\nHost: api.weather.example:443\r\n\r\n", authz.NotReady},
		{"redirected http", false, netip.AddrPortFrom(virtual, plain.Addr.Port()), "", fmt.Sprintf(get, plain.Addr.Port()), authz.NotReady},
		{"redirected https", false, netip.AddrPortFrom(virtual, api.Addr.Port()), "api.weather.example", fmt.Sprintf(get, api.Addr.Port()), authz.NotReady},
		{"redirected tls", false, netip.AddrPortFrom(other, api.Addr.Port()), "other.weather.example", "", authz.NotReady},
		{"redirected tcp", false, netip.AddrPortFrom(virtual, greet.Port()), "", "", authz.NotReady},
	} {
		t.Run(test.name, func(t *testing.T) {
			proved.Store(!test.unproved)
			original.store(test.to)
			before := len(w.refused())
			if test.say == "" && test.tls == "" { // it may be reset while it is being made
				if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", w.addr.String()); err == nil {
					if _, err := io.ReadAll(c); err == nil {
						t.Error("the connection ended as if it had been served")
					}
					_ = c.Close()
				}
				for late := testDeadline(); len(w.refused()) == before && !late(); {
				}
				checkRefused(t, w.refused()[before:], test.want)
				return
			}
			c := w.raw()
			switch {
			case test.say == "":
				if _, err := c.over(t, api.Pool(), test.tls); err == nil || !strings.Contains(err.Error(), "access denied") {
					t.Errorf("handshake ended with %v", err)
				}
			default:
				if test.tls != "" {
					c = c.tls(test.tls)
				}
				c.write(test.say)
				response, body := c.read()
				wantRefusal(t, response, body, test.want)
			}
			_ = c.Close()
			checkRefused(t, w.refused()[before:], test.want)
		})
	}
	w.settled()
	if api.Total()+plain.Total() > 0 || len(w.records.of(authz.KindEnd)) > 0 {
		t.Error("the proxy carried something out itself")
	}
}

// TestRelayComesBack checks that a client that keeps its connections is served by the
// Envoy once it has started.
func TestRelayComesBack(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	path := relayTo(t, func(_ preamble, c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprint(c, "HTTP/1.1 204 Served\r\nConnection: close\r\n\r\n")
		}
	})
	away := path + ".away"
	testenv.Must(t, os.Rename(path, away))
	defer os.Rename(away, path) //nolint:errcheck // it is there already
	w := newWorld(t, setup{input: granted(rule(api, "read")), config: relayed(path, func() (netip.AddrPort, bool) { return netip.AddrPort{}, true })})
	client := w.client(nil)
	url := "http://api.weather.example/x"
	response, body := send(t, client, request(t, "GET", url, ""))
	wantRefusal(t, response, body, authz.NotReady)
	testenv.Must(t, os.Rename(away, path))
	if response, body := send(t, client, request(t, "GET", url, "")); response.StatusCode != http.StatusNoContent {
		t.Errorf("afterwards: %s %s", response.Status, body)
	}
	w.settled()
}

// TestRelayIsSlowedDown checks that relayed bytes wait for the plugin's limits, in both
// directions, and that a cut does not wait.
func TestRelayIsSlowedDown(t *testing.T) {
	const enough, most = 64 << 10, 8 << 20 // unlimited, it would be hundreds of megabytes
	var sunk atomic.Int64
	flood := func(to io.Writer) {
		for _, err := to.Write(make([]byte, 4096)); err == nil; {
			_, err = to.Write(make([]byte, 4096))
		}
	}
	path := relayTo(t, func(_ preamble, c net.Conn) {
		go flood(c)
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if sunk.Add(int64(n)); err != nil {
				return
			}
		}
	})
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{
		input:  throttled(authz.Limit{Count: enough, Period: time.Second}, rule(api, "read")),
		config: relayed(path, func() (netip.AddrPort, bool) { return netip.AddrPort{}, true }),
	}).sampled()
	c := w.raw()
	var arrived atomic.Int64
	var running sync.WaitGroup
	running.Go(func() { flood(c) })
	running.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, err := c.Read(buf)
			if arrived.Add(int64(n)); err != nil {
				return
			}
		}
	})
	for late := testDeadline(); (arrived.Load() < enough || sunk.Load() < enough) && !late(); {
	}
	time.Sleep(300 * time.Millisecond)
	for way, n := range map[string]int64{"received": arrived.Load(), "sent": sunk.Load()} {
		if n < enough || n > most {
			t.Errorf("%d bytes were %s under a limit of %d a second", n, way, enough)
		}
	}
	w.engine.Revoke(quarantine)
	if cut := w.proxy.Revalidate(); cut != 1 {
		t.Errorf("%d were cut", cut)
	}
	running.Wait()
	w.settled()
}

// TestRelayToNobodyReady checks that a queue that is full for a moment does not cause a
// refusal.
func TestRelayToNobodyReady(t *testing.T) {
	answered := func(said preamble, c net.Conn) { fmt.Fprint(c, "hello\r\n") }
	path := relayTo(t, answered)
	w := newWorld(t, setup{config: relayed(path, func() (netip.AddrPort, bool) { return netip.AddrPort{}, true })})
	var running sync.WaitGroup
	for range 300 {
		running.Go(func() {
			c, err := net.Dial("tcp", w.addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if all, err := io.ReadAll(c); err != nil || string(all) != "hello\r\n" {
				t.Errorf("read %q, %v", all, err)
			}
		})
	}
	running.Wait()
	w.settled()
}

func checkRefused(t *testing.T, refusals []authz.Refusal, want authz.Reason) {
	t.Helper()
	if len(refusals) != 1 || refusals[0].Reason != want {
		t.Errorf("refused as %+v", refusals)
	}
}

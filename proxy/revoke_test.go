package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

var quarantine = authz.Revocation{ID: "r", Plugin: plugin, Level: authz.LevelQuarantine, Reason: "a test"}

// TestRevocationCutsWhatIsLive revokes while a download, a tunnel and a
// request that waits for its answer are live.
func TestRevocationCutsWhatIsLive(t *testing.T) {
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		t.Run(name, func(t *testing.T) {
			api := upstream(t, testenv.UpstreamConfig{})
			server := tcpServer(t, greeter)
			w := newWorld(t, setup{input: granted(rule(api, "read"), tcpRule(server, authz.SchemeTCP, "other.weather.example"))})
			download, err := w.client(change).Do(request(t, "GET", api.URL("api.weather.example", "/stream"), ""))
			testenv.Must(t, err)
			defer download.Body.Close()
			tunnel := w.tunnel(fmt.Sprintf("other.weather.example:%d", server.Port()))
			if _, err := tunnel.in.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			type answer struct {
				response *http.Response
				err      error
			}
			waiting := make(chan answer, 1)
			go func() {
				response, err := w.client(change).Do(request(t, "GET", api.URL("api.weather.example", "/slow?wait=1h"), ""))
				waiting <- answer{response, err}
			}()
			testenv.Must(t, api.WaitStreams(t.Context(), 2))

			w.engine.Revoke(authz.Revocation{ID: "p", Plugin: plugin, Level: authz.LevelPause})
			if cut := w.proxy.Revalidate(); cut != 0 || w.proxy.Open() != 3 {
				t.Errorf("a pause cut %d, and %d are open", cut, w.proxy.Open())
			}
			w.engine.Revoke(quarantine)
			if cut := w.proxy.Revalidate(); cut != 3 {
				t.Errorf("%d accesses were cut, want 3", cut)
			}
			if _, err := io.Copy(io.Discard, download.Body); err == nil {
				t.Error("the download looks complete")
			}
			if _, err := tunnel.in.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the tunnel ends with %v, want a reset", err)
			}
			// A request without an answer gets the refusal.
			got := <-waiting
			testenv.Must(t, got.err)
			defer got.response.Body.Close()
			body, err := io.ReadAll(got.response.Body)
			testenv.Must(t, err)
			wantRefusal(t, got.response, string(body), authz.Revoked)
			testenv.Must(t, api.WaitStreams(t.Context(), 0)) // the upstream's side too

			w.settled()
			for _, end := range w.records.of(authz.KindEnd) {
				if end.Reason != "revoked" || end.Allowed || end.Detail == "" {
					t.Errorf("end record is %+v", end)
				}
			}
			response, text := send(t, w.client(change), request(t, "GET", api.URL("api.weather.example", "/x"), ""))
			wantRefusal(t, response, text, authz.Revoked)
		})
	}
}

// TestCutWhileThePluginDoesNotRead cuts a download that is stuck in writing.
func TestCutWhileThePluginDoesNotRead(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	c := w.tunnel(authority).tls("api.weather.example")
	c.write("GET /stream HTTP/1.1\r\nHost: " + authority + "\r\n\r\n")
	if _, err := http.ReadResponse(c.in, nil); err != nil {
		t.Fatal(err)
	}
	testenv.Must(t, api.WaitStreams(t.Context(), 1))
	w.engine.Revoke(quarantine)
	testenv.Must(t, api.WaitStreams(t.Context(), 0))
	w.settled()
}

// TestCutWhileAnHTTP2PluginDoesNotRead does the same if the reset of the stream cannot be
// written.
func TestCutWhileAnHTTP2PluginDoesNotRead(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	c := w.tunnel(authority)
	inner := tls.Client(c.Conn, &tls.Config{ServerName: "api.weather.example", InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	testenv.Must(t, inner.HandshakeContext(t.Context()))
	_, err := io.WriteString(inner, http2.ClientPreface)
	testenv.Must(t, err)
	framer := http2.NewFramer(inner, inner)
	testenv.Must(t, framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	testenv.Must(t, framer.WriteWindowUpdate(0, 1<<30))
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for name, value := range map[string]string{":method": "GET", ":scheme": "https", ":path": "/stream", ":authority": authority} {
		testenv.Must(t, encoder.WriteField(hpack.HeaderField{Name: name, Value: value}))
	}
	testenv.Must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
	testenv.Must(t, api.WaitStreams(t.Context(), 1))
	time.Sleep(300 * time.Millisecond) // the buffers fill up; if they do not, the test is only weaker
	w.engine.Revoke(quarantine)
	testenv.Must(t, api.WaitStreams(t.Context(), 0))
	w.settled()
}

// slowRecorder revokes between the decision and what follows it.
type slowRecorder struct {
	*recorder
	after func()
	once  sync.Once
}

func (r *slowRecorder) Record(record *authz.Record) error {
	if record.Kind == authz.KindDecision {
		r.once.Do(r.after)
	}
	return r.recorder.Record(record)
}

// TestRevocationBetweenDecisionAndRegistration revokes, and revalidates the live
// accesses, after Admit has decided and before the access is registered.
func TestRevocationBetweenDecisionAndRegistration(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	server := tcpServer(t, greeter)
	for name, open := range map[string]func(*world) authz.Reason{
		"request": func(w *world) authz.Reason {
			response, body := send(t, w.client(nil), request(t, "GET", api.URL("api.weather.example", "/stream"), ""))
			wantRefusal(t, response, body, authz.Revoked)
			return authz.Revoked
		},
		"tunnel": func(w *world) authz.Reason {
			c := w.raw()
			c.write(fmt.Sprintf("CONNECT other.weather.example:%d HTTP/1.1\r\n\r\n", server.Port()))
			response, body := c.read()
			wantRefusal(t, response, body, authz.Revoked)
			return authz.Revoked
		},
	} {
		t.Run(name, func(t *testing.T) {
			slow := &slowRecorder{recorder: new(recorder)}
			w := newWorld(t, setup{
				input: granted(rule(api, "read"), tcpRule(server, authz.SchemeTCP, "other.weather.example")),
				config: func(c *proxy.Config) {
					gate, err := authz.NewGate(authz.GateConfig{
						Engine: c.Engine, Ledger: authz.NewLedger(), Recorder: slow, Credentials: &credentials{value: apiKey}, Now: time.Now,
					})
					testenv.Must(t, err)
					c.Gate = gate
				},
			})
			slow.after = func() {
				w.engine.Revoke(quarantine)
				w.proxy.Revalidate()
			}
			open(w)
			w.settled()
			if api.Total() > 0 {
				t.Error("the upstream was asked")
			}
		})
	}
}

// TestExpiryCuts ends a download when its grant does.
func TestExpiryCuts(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	input := granted(rule(api, "read"))
	input.Grants[0].NotAfter = time.Now().Add(1500 * time.Millisecond)
	w := newWorld(t, setup{input: input})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = w.engine.Run(ctx, time.Now) })
	defer running.Wait()
	defer cancel()
	response, err := w.client(nil).Do(request(t, "GET", api.URL("api.weather.example", "/stream"), ""))
	testenv.Must(t, err)
	defer response.Body.Close()
	if response.StatusCode != 200 {
		t.Fatalf("answer is %s", response.Status)
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("the download looks complete")
	}
	w.settled()
	if ends := w.records.of(authz.KindEnd); len(ends) != 1 || ends[0].Reason != "grant_expired" {
		t.Errorf("end records are %+v", ends)
	}
}

// TestTimeout bounds the whole exchange.
func TestTimeout(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	r := rule(api, "read")
	r.Timeout = authz.Duration(200 * time.Millisecond)
	w := newWorld(t, setup{input: granted(r)})
	response, body := send(t, w.client(nil), request(t, "GET", api.URL("api.weather.example", "/slow?wait=1h"), ""))
	wantRefusal(t, response, body, authz.UpstreamTimeout)
	response, err := w.client(nil).Do(request(t, "GET", api.URL("api.weather.example", "/stream"), ""))
	testenv.Must(t, err)
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("the download looks complete")
	}
	w.settled()
	ends := w.records.of(authz.KindEnd)
	if len(ends) != 2 || ends[0].Reason != "upstream_timeout" || ends[1].Reason != "upstream_timeout" {
		t.Errorf("end records are %+v", ends)
	}
}

// TestDrain waits for live accesses, and cuts them after the drain time.
func TestDrain(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read")), config: func(c *proxy.Config) { c.Drain = 20 * time.Second }})
	client := w.client(nil)
	got := make(chan error, 1)
	go func() {
		response, err := client.Do(request(t, "GET", api.URL("api.weather.example", "/slow?wait=300ms"), ""))
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			err = errors.Join(err, response.Body.Close())
		}
		got <- err
	}()
	testenv.Must(t, api.WaitStreams(t.Context(), 1))
	w.stop()
	testenv.Must(t, <-got)
}

// TestThousandTunnels cuts a thousand tunnels at once.
func TestThousandTunnels(t *testing.T) {
	const count = 1000
	server := tcpServer(t, greeter)
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "api.weather.example"))})
	authority := fmt.Sprintf("api.weather.example:%d", server.Port())
	tunnels := make([]*rawConn, count)
	for i := range tunnels {
		tunnels[i] = w.tunnel(authority)
		if _, err := tunnels[i].in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	var ended atomic.Int64
	var last atomic.Int64
	var reading sync.WaitGroup
	var start time.Time
	revoked := make(chan struct{})
	for _, c := range tunnels {
		reading.Go(func() {
			_, err := c.in.ReadByte()
			<-revoked
			if err != nil && !isTimeout(err) {
				ended.Add(1)
				last.Store(max(last.Load(), int64(time.Since(start))))
			}
		})
	}
	start = time.Now()
	close(revoked)
	w.engine.Revoke(quarantine)
	cut := w.proxy.Revalidate()
	took := time.Since(start)
	reading.Wait()
	if cut != count || ended.Load() != count {
		t.Errorf("%d tunnels were cut and %d ended, want %d", cut, ended.Load(), count)
	}
	t.Logf("cut in %s, the last one seen to end after %s", took, time.Duration(last.Load()))
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// TestAddresses resolves names to addresses that are not allowed. All are loopback, so
// that a mistake dials no other host.
func TestAddresses(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	names := testenv.MustDNS(t)
	bad := netip.MustParseAddr("127.0.0.2")
	names.Set("good.example", loopback)
	names.Set("bad.example", bad)
	names.Set("mixed.example", bad, loopback)
	names.Set("mapped.example", netip.MustParseAddr("::ffff:127.0.0.2"))
	names.Set("zero.example", netip.MustParseAddr("0.0.0.0"))
	names.Set("six.example", netip.MustParseAddr("::1"))
	names.Set("empty.example")
	names.SetSequence("rebound.example", []netip.Addr{loopback}, []netip.Addr{bad})
	testenv.Must(t, names.SetRecords("chain.example", "chain.example. 5 IN CNAME bad.example.", "bad.example. 5 IN A 127.0.0.2"))
	names.Fail("broken.example", 2)
	hosts := []string{"good", "bad", "mixed", "mapped", "zero", "six", "empty", "rebound", "chain", "broken", "missing", "own"}
	for i := range hosts {
		hosts[i] += ".example"
	}
	names.Set("own.example", netip.MustParseAddr("127.0.0.3"))
	r := rule(api, "read", hosts...)
	r.Credential = ""
	r.To.Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("127.0.0.3/32")}
	r.To.Scheme, r.To.TLS = authz.SchemeTCP, authz.TLS{}
	r.Methods, r.Paths, r.Upgrades = nil, nil, nil
	w := newWorld(t, setup{input: granted(r), config: func(c *proxy.Config) {
		c.Upstream.Servers, c.Upstream.Hosts = []netip.AddrPort{names.Addr}, nil
		c.Upstream.Forbidden = func(to netip.AddrPort) bool { return to.Addr() == netip.MustParseAddr("127.0.0.3") }
	}})
	for _, test := range []struct {
		host string
		want authz.Reason
	}{
		{"good", authz.Granted},
		{"bad", authz.AddressNotAllowed},
		{"mixed", authz.Granted},
		{"mapped", authz.AddressNotAllowed},
		{"zero", authz.AddressNotAllowed},
		{"six", authz.AddressNotAllowed},
		{"empty", authz.UpstreamUnreachable},
		{"rebound", authz.Granted},
		{"rebound", authz.AddressNotAllowed},
		{"chain", authz.AddressNotAllowed},
		{"broken", authz.UpstreamUnreachable},
		{"missing", authz.UpstreamUnreachable},
		{"own", authz.AddressNotAllowed},
	} {
		c := w.raw()
		c.write(fmt.Sprintf("CONNECT %s.example:%d HTTP/1.1\r\n\r\n", test.host, api.Addr.Port()))
		method := "GET"
		if test.want == authz.Granted {
			method = "CONNECT"
		}
		response, err := http.ReadResponse(c.in, &http.Request{Method: method})
		testenv.Must(t, err)
		if test.want == authz.Granted {
			if response.StatusCode != 200 {
				t.Errorf("%s: %s", test.host, response.Status)
			}
			continue
		}
		body, err := io.ReadAll(response.Body)
		testenv.Must(t, err)
		wantRefusal(t, response, string(body), test.want)
		if test.host == "bad" && !strings.Contains(string(body), "addresses: [127.0.0.2/32]") {
			t.Errorf("got a refusal without a remedy: %s", body)
		}
	}
	for _, q := range names.Queries() {
		if strings.Count(q.Name, ".") != 2 {
			t.Errorf("%s was asked for: a search list was applied", q.Name)
		}
	}
}

// TestUpstreamFailures checks that a refusal names the failure and quotes no part of the
// request.
func TestUpstreamFailures(t *testing.T) {
	wrong := upstream(t, testenv.UpstreamConfig{}) // its authority is not the rule's
	plain := upstream(t, testenv.UpstreamConfig{Plain: true})
	closing := tcpServer(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) })
	nothing := netip.AddrPortFrom(loopback, 1)
	good := upstream(t, testenv.UpstreamConfig{})
	for _, test := range []struct {
		name   string
		to     netip.AddrPort
		host   string
		detail string
	}{
		{"unknown authority", wrong.Addr, "api.weather.example", "authority that is not trusted"},
		{"other name", good.Addr, "example.com", "for another name"},
		{"no TLS", plain.Addr, "api.weather.example", "does not speak TLS"},
		{"closes", closing, "api.weather.example", "closed the connection"},
		{"nobody listens", nothing, "api.weather.example", "connection refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := rule(good, "read", test.host)
			r.To.Ports = []uint16{test.to.Port()}
			w := newWorld(t, setup{input: granted(r)})
			response, body := send(t, w.client(nil), request(t, "GET", fmt.Sprintf("https://%s:%d/", test.host, test.to.Port()), ""))
			wantRefusal(t, response, body, authz.UpstreamUnreachable)
			if !strings.Contains(body, test.detail) {
				t.Errorf("detail is not %q: %s", test.detail, body)
			}
		})
	}
}

// TestPools counts connections: they are kept, and not used beyond their purpose.
func TestPools(t *testing.T) {
	var mu sync.Mutex
	remotes := make(map[string]int)
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		remotes[r.RemoteAddr]++
		w.Header().Set("X-Remote", r.RemoteAddr)
	}))
	defer api.Close()
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	client := w.client(func(t *http.Transport) { t.MaxIdleConnsPerHost = 32 })
	var sending sync.WaitGroup
	for range 32 {
		sending.Go(func() {
			for range 20 {
				response, err := client.Do(request(t, "GET", urlOf(api, "/"), ""))
				if err != nil {
					t.Error(err)
					return
				}
				_ = response.Body.Close()
			}
		})
	}
	sending.Wait()
	mu.Lock()
	if len(remotes) > 160 { // a pool of the default size makes one of most of the 640 requests
		t.Errorf("640 requests made %d connections", len(remotes))
	}
	mu.Unlock()
	// one sends a request and reports whether its connection had been used.
	one := func() bool {
		response, _ := send(t, client, request(t, "GET", urlOf(api, "/"), ""))
		mu.Lock()
		defer mu.Unlock()
		return remotes[response.Header.Get("X-Remote")] > 1
	}
	for name, change := range map[string]func(){
		"credential": func() { w.credentials.set("wk_canary_second") },
		"policy":     func() { w.engine.Bump() },
	} {
		change()
		if one() {
			t.Errorf("a connection of an earlier %s was used again", name)
		}
		if !one() {
			t.Errorf("after a change of %s connections are not kept", name)
		}
	}
}

// TestDeadDependencies refuses when the audit log or the credential fails.
func TestDeadDependencies(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	client := w.client(nil)
	w.credentials.err = errors.New("vault is sealed")
	response, body := send(t, client, request(t, "GET", api.URL("api.weather.example", "/"), ""))
	wantRefusal(t, response, body, authz.CredentialUnavailable)
	w.credentials.err, w.records.fail = nil, errors.New("disk full")
	response, body = send(t, client, request(t, "GET", api.URL("api.weather.example", "/"), ""))
	wantRefusal(t, response, body, authz.AuditUnavailable)
	if api.Total() > 0 {
		t.Error("the upstream was asked")
	}
	w.records.fail = nil
	if response, _ := send(t, client, request(t, "GET", api.URL("api.weather.example", "/"), "")); response.StatusCode != 200 {
		t.Errorf("afterwards the answer is %s", response.Status)
	}
	if got := w.refused(); !slices.ContainsFunc(got, func(r authz.Refusal) bool { return r.Reason == authz.AuditUnavailable }) {
		t.Errorf("refusals are %+v", got)
	}
}

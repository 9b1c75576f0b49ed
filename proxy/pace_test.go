package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// throttled grants rules under limits on the plugin's bytes that throttle.
func throttled(limit authz.Limit, rules ...authz.Rule) authz.Input {
	input := granted(rules...)
	bytes := authz.ByteLimit(limit)
	input.Grants[0].Limits = authz.Limits{SentBytes: bytes, ReceivedBytes: bytes, OnExceeded: authz.OnExceededThrottle}
	return input
}

// sampled gives the ledger a reading of the kernel's counters: without one,
// limits on bytes refuse.
func (w *world) sampled() *world {
	w.ledger.Observe(w.engine.Current(), plugin, authz.Sample{}, time.Now())
	return w
}

// flow is one kind of transfer, whose bytes are counted where they arrive.
type flow struct {
	name string
	// start opens a stream, whose bytes go to arrived until ctx ends.
	start func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64)
}

// floods are servers that send without end, or read everything.
type floods struct {
	upgrading atomic.Int32 // upgrades that are not answered yet

	api       *httptest.Server
	out, sink netip.AddrPort
	arrived   sync.Map // a sink's counters, by the stream's number
	streams   atomic.Int64
}

var flood = make([]byte, 64<<10)

func newFloods(t *testing.T) *floods {
	f := new(floods)
	f.api = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.api.EnableHTTP2 = true
	f.api.StartTLS()
	t.Cleanup(f.api.Close)
	f.out = tcpServer(t, func(c net.Conn) { pour(c) })
	f.sink = tcpServer(t, func(c net.Conn) {
		var key [8]byte
		if _, err := io.ReadFull(c, key[:]); err == nil {
			f.drain(string(key[:]), c)
		}
	})
	return f
}

// key names a stream to a server that counts its bytes.
func (f *floods) key(arrived *atomic.Int64) string {
	key := fmt.Sprintf("%08d", f.streams.Add(1))
	f.arrived.Store(key, arrived)
	return key
}

func (f *floods) drain(key string, from io.Reader) {
	if arrived, ok := f.arrived.Load(key); ok {
		count(arrived.(*atomic.Int64), from)
	}
}

func pour(to io.Writer) {
	for {
		if _, err := to.Write(flood); err != nil {
			return
		}
	}
}

func count(arrived *atomic.Int64, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		arrived.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func (f *floods) serve(w http.ResponseWriter, r *http.Request) {
	switch key := r.URL.Query().Get("key"); r.URL.Path {
	case "/down":
		w.Header()["Content-Type"] = []string{"application/octet-stream"}
		pour(w)
	case "/up":
		f.drain(key, r.Body)
	case "/upgrade":
		c, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if key == "" {
			pour(c)
		}
		f.drain(key, in)
	}
}

// endless is a body that ends with its context.
type endless struct{ done <-chan struct{} }

func (e endless) Read(b []byte) (int, error) {
	select {
	case <-e.done:
		return 0, io.ErrUnexpectedEOF
	default:
		return len(b), nil
	}
}

func flows() []flow {
	all := []flow{
		{"tunnel download", func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64) {
			c := w.tunnel(fmt.Sprintf("api.weather.example:%d", f.out.Port())).lasting()
			context.AfterFunc(ctx, func() { _ = c.Close() })
			count(arrived, c.in)
		}},
		{"tunnel upload", func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64) {
			c := w.tunnel(fmt.Sprintf("api.weather.example:%d", f.sink.Port())).lasting()
			context.AfterFunc(ctx, func() { _ = c.Close() })
			c.write(f.key(arrived))
			pour(c)
		}},
		{"upgraded download", func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64) {
			count(arrived, upgraded(ctx, w, f, "").in)
		}},
		{"upgraded upload", func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64) {
			pour(upgraded(ctx, w, f, f.key(arrived)))
		}},
	}
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		all = append(all, flow{name + " download", func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64) {
			r := request(w.t, "GET", urlOf(f.api, "/down"), "").WithContext(ctx)
			if response, err := w.shared(change).Do(r); err == nil {
				defer response.Body.Close()
				count(arrived, response.Body)
			}
		}}, flow{name + " upload", func(ctx context.Context, w *world, f *floods, arrived *atomic.Int64) {
			r, err := http.NewRequestWithContext(ctx, "POST", urlOf(f.api, "/up?key="+f.key(arrived)), endless{ctx.Done()})
			testenv.Must(w.t, err)
			if response, err := w.shared(change).Do(r); err == nil {
				_ = response.Body.Close()
			}
		}})
	}
	return all
}

// shared returns a client that all streams of a world share.
func (w *world) shared(change func(*http.Transport)) *http.Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.one == nil {
		w.one = w.client(change)
	}
	return w.one
}

// upgraded changes a connection to another protocol.
func upgraded(ctx context.Context, w *world, f *floods, key string) *rawConn {
	f.upgrading.Add(1)
	defer f.upgrading.Add(-1)
	authority := fmt.Sprintf("example.com:%d", f.api.Listener.Addr().(*net.TCPAddr).Port)
	c := w.tunnel(authority).lasting().tls("example.com")
	context.AfterFunc(ctx, func() { _ = c.Conn.(*tls.Conn).NetConn().Close() })
	c.write("GET /upgrade?key=" + key + " HTTP/1.1\r\nHost: " + authority + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(c.Conn)
	if response, err := http.ReadResponse(in, nil); err != nil || response.StatusCode != 101 {
		w.t.Errorf("upgrade: %v, %v", response, err)
	}
	c.in = in
	return c
}

// TestThrottle runs every kind of transfer, alone and by eight, under a limit that
// throttles: the bytes that arrive never exceed the limit, in the long run are not far
// below it, and every stream gets its share.
func TestThrottle(t *testing.T) {
	const rate, period = 512 << 10, 250 * time.Millisecond
	limit := authz.Limit{Count: rate / 4, Period: period}
	f := newFloods(t)
	api := ruleFor(f.api)
	api.Upgrades = []string{"websocket"}
	out, sink := tcpRule(f.out, authz.SchemeTCP, "api.weather.example"), tcpRule(f.sink, authz.SchemeTCP, "api.weather.example")
	sink.ID = "sink"
	var measuring, ready sync.WaitGroup
	for _, flow := range flows() {
		for _, streams := range []int{1, 8} {
			w := newWorld(t, setup{input: throttled(limit, api, out, sink)}).sampled()
			ready.Add(1)
			measuring.Go(func() {
				measureThrottled(t, fmt.Sprintf("%s by %d", flow.name, streams), streams, float64(rate), period, &ready, func(ctx context.Context, arrived *atomic.Int64) {
					flow.start(ctx, w, f, arrived)
				})
			})
		}
	}
	measuring.Wait()
}

// measureThrottled measures streams against the rate.
func measureThrottled(t *testing.T, name string, streams int, rate float64, period time.Duration, ready *sync.WaitGroup, start func(context.Context, *atomic.Int64)) {
	const settling, measured = 500 * time.Millisecond, 1500 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	arrived, before := make([]atomic.Int64, streams), make([]int64, streams)
	total := func() (sum, least int64) {
		for i := range arrived {
			n := arrived[i].Load()
			sum += n
			if moved := n - before[i]; i == 0 || moved < least {
				least = moved
			}
		}
		return sum, least
	}
	began := time.Now()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for i := range arrived {
		running.Go(func() { start(ctx, &arrived[i]) })
	}
	// until checks that the arrived bytes do not exceed the limit, until done. Its own
	// gaps reveal whether the machine was too busy for that.
	var gap time.Duration
	until := func(done func(sum, least int64) bool) (sum, least int64) {
		for last := time.Now(); ; last = time.Now() {
			sum, least := total() // before the clock, so that later bytes do not count
			if most := rate * (period + time.Since(began)).Seconds(); float64(sum) > most {
				t.Errorf("%s: %d bytes have arrived after %s, at most %.0f may", name, sum, time.Since(began), most)
			}
			if done(sum, least) {
				return sum, least
			}
			time.Sleep(2 * time.Millisecond)
			gap = max(gap, time.Since(last))
		}
	}
	late := testDeadline()
	until(func(_, least int64) bool { return least > 0 || late() })
	ready.Done() // connecting takes the CPU that pacing needs to be on time
	ready.Wait()
	settled := time.Now()
	first, _ := until(func(int64, int64) bool { return time.Since(settled) > settling })
	late = testDeadline()
	arrives := func(past int64) func(int64, int64) bool {
		return func(sum, _ int64) bool {
			stalled := sum == past && late()
			if stalled {
				t.Errorf("%s: no byte arrives after %d", name, past)
			}
			return sum != past || stalled
		}
	}
	first, _ = until(arrives(first)) // from arrival to arrival
	gap = 0
	for i := range arrived {
		before[i] = arrived[i].Load()
	}
	since := time.Now()
	last, _ := until(func(int64, int64) bool { return time.Since(since) > measured })
	last, least := until(arrives(last))
	goodput := float64(last-first) / time.Since(since).Seconds() / rate
	share := float64(least) * float64(streams) / float64(last-first)
	t.Logf("%-28s %5.1f %% of the rate, the least of the streams got %3.0f %% of its share", name, 100*goodput, 100*share)
	if gap > 20*time.Millisecond {
		t.Logf("%s: nothing ran for %s; the machine is too busy to judge", name, gap)
		return
	}
	if goodput < 0.95 {
		t.Errorf("%s: the goodput is %.1f %% of the rate", name, 100*goodput)
	}
	if share < 0.5 {
		t.Errorf("%s: a stream got %d bytes of %d", name, least, last-first)
	}
}

// TestThrottledEndsAtOnce ends transfers whose next bytes are seconds away.
func TestThrottledEndsAtOnce(t *testing.T) {
	f := newFloods(t)
	api := ruleFor(f.api)
	api.Upgrades = []string{"websocket"}
	out, sink := tcpRule(f.out, authz.SchemeTCP, "api.weather.example"), tcpRule(f.sink, authz.SchemeTCP, "api.weather.example")
	sink.ID = "sink"
	ends := map[string]func(w *world, hangUp func()){
		"revoked": func(w *world, _ func()) { w.engine.Revoke(quarantine) },
		"stopped": func(w *world, _ func()) { w.stop() },
		"hung up": func(_ *world, hangUp func()) { hangUp() },
	}
	for _, flow := range flows() {
		var ending sync.WaitGroup
		for name, end := range ends {
			if name == "hung up" && (strings.HasSuffix(flow.name, "upload") || strings.HasPrefix(flow.name, "tunnel")) {
				continue // bytes that were sent before still arrive, and a tunnel may be half-closed
			}
			w := newWorld(t, setup{input: throttled(authz.Limit{Count: 30 << 10, Period: time.Minute}, api, out, sink)}).sampled()
			ending.Go(func() {
				endThrottled(t, flow.name+" "+name, w, func(ctx context.Context) { flow.start(ctx, w, f, new(atomic.Int64)) }, func() bool { return w.proxy.Open() > 0 && f.upgrading.Load() == 0 }, end)
			})
		}
		ending.Wait()
	}
}

// endThrottled starts a transfer, ends it and looks how long that takes.
func endThrottled(t *testing.T, name string, w *world, start func(context.Context), started func() bool, end func(*world, func())) {
	ctx, hangUp := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer hangUp()
	running.Go(func() { start(ctx) })
	for late := testDeadline(); !started(); {
		if late() {
			t.Errorf("%s: got %d open accesses after two minutes, want a transfer", name, w.proxy.Open())
			return
		}
	}
	time.Sleep(200 * time.Millisecond) // now it waits for its turn
	if w.proxy.Open() != 1 {
		t.Errorf("%s: it ended by itself", name)
	}
	began := time.Now()
	end(w, hangUp)
	for late := testDeadline(); w.proxy.Open() > 0 && !late(); {
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("%s: ended after %s, want at once", name, took)
	}
}

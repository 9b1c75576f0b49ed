package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// testForwarder is a way in to a server of the test's own, which stands on another port
// of the loopback in the plugin's place.
type testForwarder struct {
	*Forwarder

	t       *testing.T
	port    uint16
	mu      sync.Mutex
	records []authz.Record
	full    bool // the audit log takes nothing
}

// newTestForwarder runs the way in on a free port and leads it to serve.
func newTestForwarder(t *testing.T, serve func(net.Conn)) *testForwarder {
	t.Helper()
	plugin := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = plugin.Close() })
	go func() {
		for {
			conn, err := plugin.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	w := &testForwarder{t: t, port: testenv.FreePort(t)}
	w.Forwarder = New(Config{
		Plugin: "weather", Record: w.keep, Drain: 100 * time.Millisecond, Log: zap.NewNop(),
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, plugin.Addr().String())
		},
	})
	testenv.Must(t, w.Listen([]uint16{w.port}, nil))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		testenv.Must(t, <-ended)
	})
	testenv.Eventually(t, "it listens", func() (int, bool) { return 0, w.isOpen(w.port) })
	return w
}

func (w *testForwarder) keep(r *authz.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full {
		return errors.New("no space left on device")
	}
	w.records = append(w.records, *r)
	return nil
}

func (w *testForwarder) recorded() []authz.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]authz.Record(nil), w.records...)
}

func (w *testForwarder) connect(host string) *net.TCPConn {
	w.t.Helper()
	conn := testenv.MustGet(net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(w.port))))(w.t)
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// refused checks that a connection that is made now comes to nothing.
func (w *testForwarder) refused(host string) {
	w.t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(w.port)))
	if err != nil {
		return // the reset came before the connection was looked at
	}
	defer conn.Close()
	testenv.CutOff(w.t, conn)
}

// echo answers with everything it was sent, once it has all of it.
func echo(conn net.Conn) {
	defer conn.Close()
	all, err := io.ReadAll(conn)
	if err == nil {
		_, _ = conn.Write(all)
	}
}

// TestInboundHalfClose sends all of a request, ends it, and hears the answer.
func TestInboundHalfClose(t *testing.T) {
	w := newTestForwarder(t, echo)
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn := w.connect(host)
		sent := strings.Repeat("0123456789", 20_000)
		go func() {
			_, _ = io.WriteString(conn, sent)
			_ = conn.CloseWrite()
		}()
		if got := testenv.MustGet(io.ReadAll(conn))(t); string(got) != sent {
			t.Errorf("over %s: %d bytes came back, not %d", host, len(got), len(sent))
		}
	}
	r := testenv.Eventually(t, "both are recorded", func() ([]authz.Record, bool) { r := w.recorded(); return r, len(r) == 4 })
	first := r[0]
	last := r[1+slices.IndexFunc(r[1:], func(other authz.Record) bool { return other.Decision == first.Decision })]
	if first.Detail != "began" || last.Detail != "ended" || first.Decision != last.Decision || first.Decision == "" {
		t.Errorf("recorded: %+v, %+v", first, last)
	}
	if last.Bytes != 200_000 || last.SentBytes != 200_000 || last.Port != w.port || last.Address == "" {
		t.Errorf("the end: %+v", last)
	}
}

// TestInboundRevoked revokes access: a pause spares open connections, a quarantine
// cuts them, and both refuse new ones.
func TestInboundRevoked(t *testing.T) {
	w := newTestForwarder(t, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
	conn := w.connect("127.0.0.1")
	answers := func() bool {
		testenv.MustGet(conn.Write([]byte("?")))(t)
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err == nil
	}
	if !answers() {
		t.Fatal("the plugin does not answer")
	}
	if n := w.Enforce(authz.LevelPause); n != 0 || !answers() {
		t.Errorf("a pause cut %d", n)
	}
	w.refused("127.0.0.1")
	if n := w.Enforce(authz.LevelQuarantine); n != 1 {
		t.Errorf("a quarantine cut %d, not 1", n)
	}
	testenv.CutOff(t, conn)
	w.refused("::1")
	w.Enforce("")
	conn = w.connect("127.0.0.1")
	if !answers() {
		t.Error("after the restoration the plugin does not answer")
	}
}

// TestInboundUnrecorded lets nothing in that cannot be recorded.
func TestInboundUnrecorded(t *testing.T) {
	reached := make(chan struct{}, 1)
	w := newTestForwarder(t, func(net.Conn) { reached <- struct{}{} })
	w.mu.Lock()
	w.full = true
	w.mu.Unlock()
	w.refused("127.0.0.1")
	select {
	case <-reached:
		t.Error("the plugin was reached")
	default:
	}
}

// TestInboundRefused checks what cannot be listened on.
func TestInboundRefused(t *testing.T) {
	taken := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).AddrPort().Port()
	in := New(Config{Log: zap.NewNop()})
	if err := in.Listen([]uint16{port}, nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d of 127.0.0.1 is taken", port)) {
		t.Errorf("a port that is taken: %v", err)
	}
	if err := in.Listen([]uint16{15001}, []uint16{53, 15001}); err == nil || !strings.Contains(err.Error(), "15001 is the sidecar's own") {
		t.Errorf("a port of the sidecar's: %v", err)
	}
}

// TestInboundReset passes a reset of the plugin's on, also to a host that only
// listens.
func TestInboundReset(t *testing.T) {
	w := newTestForwarder(t, func(conn net.Conn) { resetConn(conn) })
	w.refused("127.0.0.1")
}

// TestInboundMany has a thousand connections open at once.
func TestInboundMany(t *testing.T) {
	const many = 1000
	w := newTestForwarder(t, echo)
	conns := make([]*net.TCPConn, many)
	for i := range conns {
		conns[i] = w.connect("127.0.0.1")
		testenv.MustGet(conns[i].Write([]byte("hello")))(t)
	}
	testenv.Eventually(t, "all are open", func() (int, bool) { n := w.Open(Service{Port: w.port}); return n, n == many })
	for _, conn := range conns {
		testenv.Must(t, conn.CloseWrite())
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
	}
	testenv.Eventually(t, "all have left", func() (int, bool) { n := w.Open(Service{Port: w.port}); return n, n == 0 })
	if n := len(w.recorded()); n != 2*many {
		t.Errorf("%d records, not %d", n, 2*many)
	}
}

package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestInboundDoor opens and shuts one port again and again, with connections open
// and just ended: while it is shut a connection is refused and nobody else gets
// the port.
func TestInboundDoor(t *testing.T) {
	for _, host := range Loopbacks {
		port := testenv.FreePort(t)
		address := net.JoinHostPort(host, fmt.Sprint(port))
		d := testenv.MustGet(bindPort(host, port))(t)
		defer d.close()
		for round := range 20 {
			if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("round %d: a shut port answers %v", round, err)
			}
			if l, err := net.Listen("tcp", address); err == nil {
				l.Close()
				t.Fatalf("round %d: somebody else got the port", round)
			}
			l := testenv.MustGet(d.open())(t)
			if again, err := d.open(); again != nil || err != nil {
				t.Fatalf("opened twice: %v, %v", again, err)
			}
			conn := testenv.MustGet(net.Dial("tcp", address))(t)
			taken := testenv.MustGet(l.Accept())(t)
			testenv.MustGet(taken.Write([]byte("x")))(t)
			if round%2 == 0 {
				_ = taken.Close() // leaves TIME-WAIT on the port
			} else {
				t.Cleanup(func() { _ = taken.Close() })
			}
			testenv.MustGet(io.ReadFull(conn, make([]byte, 1)))(t)
			_ = conn.Close()
			d.stopListening()
			if _, err := l.Accept(); !errors.Is(err, syscall.EINVAL) {
				t.Fatalf("after the shut the listener returns %v", err)
			}
			_ = l.Close()
		}
	}
}

// TestInboundFollows refuses connections while the plugin does not listen, opens
// when it is about to, and waits for one that takes a moment.
func TestInboundFollows(t *testing.T) {
	var mu sync.Mutex
	ports := map[uint16]bool{}
	listens := func(port uint16, on bool) {
		mu.Lock()
		defer mu.Unlock()
		ports[port] = on
	}
	port, inside := testenv.FreePort(t), testenv.FreePort(t)
	w := &testForwarder{t: t, port: port}
	in := New(Config{
		Plugin: "weather", Record: w.keep, Log: zap.NewNop(), Interval: 10 * time.Millisecond,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", inside))
		},
		Listening: func() (map[uint16]bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return map[uint16]bool{port: ports[port]}, nil
		},
	})
	w.Forwarder = in
	testenv.Must(t, in.Listen([]uint16{port}, nil))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- in.Run(ctx) }()
	defer func() {
		stop()
		testenv.Must(t, <-ended)
	}()
	address := fmt.Sprintf("127.0.0.1:%d", port)
	refused := func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	if !refused() {
		t.Error("a port that the plugin does not listen on is open")
	}
	in.Serving(port)
	testenv.Eventually(t, "the port opens when the plugin binds it", func() (int, bool) { return 0, in.isOpen(port) })
	conn := testenv.MustGet(net.Dial("tcp", address))(t)
	defer conn.Close()
	time.AfterFunc(50*time.Millisecond, func() {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", inside))
		if err != nil {
			return
		}
		listens(port, true)
		defer l.Close()
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte("x"))
			_ = c.Close()
		}
	})
	testenv.MustGet(io.ReadFull(conn, make([]byte, 1)))(t)
	listens(port, false)
	testenv.Eventually(t, "the port is shut when the plugin listens no more", func() (int, bool) { return 0, refused() })
}

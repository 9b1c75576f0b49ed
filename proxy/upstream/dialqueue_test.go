package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// burst is many requests that dial at once by a queue.
type burst struct {
	queue     dialQueue
	requests  []*request
	dialled   atomic.Int32
	dialling  atomic.Int32
	most      atomic.Int32 // dials at one time
	onlyHTTP1 atomic.Bool
}

type request struct {
	connections atomic.Int32
	err         error
	took        time.Duration
}

// dial dials for all requests with dial, and returns when all have ended.
func (b *burst) dial(ctx context.Context, dial func() error) {
	dialer := b.queue.dialer(func(context.Context, string, string) (net.Conn, error) {
		b.dialled.Add(1)
		now := b.dialling.Add(1)
		defer b.dialling.Add(-1)
		for most := b.most.Load(); now > most && !b.most.CompareAndSwap(most, now); most = b.most.Load() {
		}
		if err := dial(); err != nil {
			return nil, err
		}
		plugin, upstream := net.Pipe()
		return plugin, upstream.Close()
	}, func(string) bool { return b.onlyHTTP1.Load() })
	var all sync.WaitGroup
	for _, r := range b.requests {
		all.Go(func() {
			began := time.Now()
			var conn net.Conn
			conn, r.err = dialer(context.WithoutCancel(WithAccess(ctx, &authz.Admission{}, &r.connections)), "tcp", "api.example:443")
			r.took = time.Since(began)
			if conn != nil {
				_ = conn.Close()
			}
		})
	}
	all.Wait()
}

// TestDialQueue has 100 requests of a burst dial.
func TestDialQueue(t *testing.T) {
	const requests, handshake = 100, time.Second
	refused := errors.New("refused")
	for name, c := range map[string]struct {
		dial    func(*burst) error
		dialled int32
		most    int32         // dials at one time, at most
		served  int           // requests that have another connection
		failed  int           // requests whose dial failed
		longest time.Duration // that a request waits
	}{
		"HTTP/2": {
			dial: func(b *burst) error {
				time.Sleep(handshake)
				time.AfterFunc(settling/2, func() { // net/http gives them the connection
					for _, r := range b.requests {
						r.connections.Add(1)
					}
				})
				return nil
			},
			dialled: maxDialling, most: maxDialling, served: requests - maxDialling, longest: handshake + settling,
		},
		"HTTP/1.1": {
			dial:    func(b *burst) error { time.Sleep(handshake); b.onlyHTTP1.Store(true); return nil },
			dialled: requests, most: requests, longest: 2 * handshake,
		},
		"no connection is shared": {
			dial:    func(*burst) error { time.Sleep(handshake); return nil },
			dialled: requests, most: maxDialling, longest: requests / maxDialling * (handshake + settling),
		},
		"refused": {
			dial:    func(*burst) error { time.Sleep(10 * time.Millisecond); return refused },
			dialled: requests, most: maxDialling, failed: requests, longest: requests * 10 * time.Millisecond,
		},
		"unanswered": {
			dial:    func(*burst) error { time.Sleep(handshakeTimeout); return refused },
			dialled: maxDialling, most: maxDialling, failed: requests, longest: handshakeTimeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := new(burst)
				for range requests {
					b.requests = append(b.requests, new(request))
				}
				b.dial(t.Context(), func() error { return c.dial(b) })
				var served, failed int
				var longest time.Duration
				for _, r := range b.requests {
					switch {
					case errors.Is(r.err, errServed):
						served++
					case r.err != nil:
						failed++
					}
					longest = max(longest, r.took)
				}
				if b.dialled.Load() != c.dialled || b.most.Load() > c.most || served != c.served || failed != c.failed || longest > c.longest {
					t.Errorf("dialled %d, %d at a time, %d are served, %d failed, the longest took %v; want %+v", b.dialled.Load(), b.most.Load(), served, failed, longest, c)
				}
				if len(b.queue.of) != 0 {
					t.Errorf("%d addresses are kept", len(b.queue.of))
				}
			})
		})
	}
}

// TestDialQueueOfEndedAccess has a burst end while its first connections are made.
func TestDialQueueOfEndedAccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &burst{requests: []*request{{}, {}, {}, {}}}
		ctx, end := context.WithCancelCause(t.Context())
		revoked := errors.New("revoked")
		time.AfterFunc(time.Second, func() { end(revoked) })
		b.dial(ctx, func() error { time.Sleep(time.Minute); return nil })
		for _, r := range b.requests {
			if r.took == time.Second && !errors.Is(r.err, revoked) {
				t.Errorf("a request ended with %v", r.err)
			}
		}
		if b.dialled.Load() != maxDialling {
			t.Errorf("%d connections are dialled", b.dialled.Load())
		}
	})
}

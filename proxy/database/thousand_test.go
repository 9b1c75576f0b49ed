package database_test

import (
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const thousand = 1000

// openMany opens sessions, of which each second is in TLS, and each fourth runs a
// statement that sleeps.
func (w *world) openMany(n int) []*client {
	w.t.Helper()
	all := make([]*client, n)
	var opening sync.WaitGroup
	for worker := range 8 {
		opening.Go(func() {
			for i := worker; i < n; i += 8 {
				if i%2 == 0 {
					all[i] = w.open("shop")
				} else {
					all[i] = w.openTLS("shop")
				}
				if i%4 == 0 {
					all[i].send("sleep orders")
				}
			}
		})
	}
	opening.Wait()
	testenv.Eventually(w.t, "all sessions", func() (int, bool) {
		open := w.front.Sessions()
		running := 0
		for _, s := range open {
			running += s.Running
		}
		return 0, len(open) == n && running == n/4
	})
	return all
}

// ends begins to read every client to its end, and returns a function that waits for
// all of them and returns when each was there, as the time since begun, in order.
func ends(all []*client) func(begun time.Time) []time.Duration {
	at := make([]time.Time, len(all))
	var reading, ready sync.WaitGroup
	ready.Add(len(all))
	for i, c := range all {
		reading.Go(func() {
			ready.Done()
			_ = c.conn.SetReadDeadline(time.Now().Add(testenv.Patience))
			for {
				if _, err := c.in.ReadByte(); err != nil {
					at[i] = time.Now()
					return
				}
			}
		})
	}
	ready.Wait()
	return func(begun time.Time) []time.Duration {
		reading.Wait()
		took := make([]time.Duration, len(at))
		for i := range at {
			took[i] = at[i].Sub(begun)
		}
		slices.Sort(took)
		return took
	}
}

// TestRevokeAThousand cuts a thousand sessions by one revocation: every plugin reads the
// end of its session, the server has no connection left, and every end is recorded.
func TestRevokeAThousand(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select", "sleep"))
	all := w.openMany(thousand)
	wait := ends(all)
	begun := time.Now()
	if got := w.revoke(""); got != thousand {
		t.Errorf("%d sessions were cut, want %d", got, thousand)
	}
	took := wait(begun)
	t.Logf("the last plugin read its end after %s", took[len(took)-1])
	testenv.Eventually(t, "the server's ends", func() (int, bool) { return 0, w.server.connections() == 0 })
	testenv.Eventually(t, "the records of the ends", func() (int, bool) {
		return 0, len(w.records.of(authz.KindEnd)) == thousand+thousand/4 && len(w.front.Sessions()) == 0
	})
	for _, end := range w.records.of(authz.KindEnd) {
		if end.Allowed || end.Reason != "revoked" {
			t.Fatalf("an end is recorded as %+v", end)
		}
	}
}

// TestMemoryOfASession bounds what an idle session takes: what the budget counts is at
// least what the process uses, and less than 64 KiB without TLS on either side.
func TestMemoryOfASession(t *testing.T) {
	const n, most = 400, 64 << 10
	w := newWorld(t, rule("read", "shop", "select", "sleep"))
	before := held(w.budget)
	var open []net.Conn
	for range n {
		open = append(open, w.open("shop").conn)
	}
	each := (held(w.budget) - before) / n
	if each <= 0 || each > most {
		t.Errorf("a session takes %d bytes of the budget, want at most %d", each, most)
	}
	runtime.KeepAlive(open)
}

func held(b *budget.Budget) (sum int64) {
	for _, kind := range budget.Kinds() {
		n, _ := b.Held(kind)
		sum += n
	}
	return sum
}

// BenchmarkRevokeAThousand measures from a revocation to the end that each of a thousand
// plugins reads, of which half are in TLS and a quarter run a statement. The plugins and
// the server share the processors with the sidecar.
func BenchmarkRevokeAThousand(b *testing.B) {
	w := newWorld(b, rule("read", "shop", "select", "sleep"))
	w.server.deaf = true // a late cancel would end statements of the next round
	var cut, sent, last, floor []time.Duration
	for b.Loop() {
		floor = append(floor, abortThousand(b))
		all := w.openMany(thousand)
		wait := ends(all)
		runtime.GC()
		time.Sleep(50 * time.Millisecond)
		begun := time.Now()
		if got := w.revoke(""); got != thousand {
			b.Fatalf("%d sessions were cut", got)
		}
		cut = append(cut, time.Since(begun))
		w.sessions.WaitPass()
		sent = append(sent, time.Since(begun))
		took := wait(begun)
		last = append(last, took[len(took)*99/100])
		w.engine.Restore("r-")
		testenv.Eventually(b, "the ends", func() (int, bool) { return 0, len(w.front.Sessions()) == 0 })
	}
	slices.Sort(cut)
	slices.Sort(last)
	slices.Sort(floor)
	slices.Sort(sent)
	b.ReportMetric(float64(sent[len(sent)/2].Microseconds())/1000, "reset-ms")
	b.ReportMetric(float64(floor[len(floor)/2].Microseconds())/1000, "floor-ms")
	b.ReportMetric(float64(cut[len(cut)/2].Microseconds())/1000, "cut-ms")
	b.ReportMetric(float64(last[len(last)/2].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(last[len(last)-1].Microseconds())/1000, "p99-worst-ms")
	b.ReportMetric(0, "ns/op")
}

// abortThousand resets both ends' readers of a thousand pairs of connections, as a plain
// tunnel is cut, without any decision, and returns how long that took.
func abortThousand(b *testing.B) time.Duration {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(b, err)
	defer listener.Close()
	var near []net.Conn
	var reading sync.WaitGroup
	for range 2 * thousand {
		conn, err := net.Dial("tcp", listener.Addr().String())
		testenv.Must(b, err)
		far, err := listener.Accept()
		testenv.Must(b, err)
		near = append(near, conn)
		for _, c := range []net.Conn{conn, far} {
			reading.Go(func() {
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			})
		}
	}
	time.Sleep(50 * time.Millisecond)
	begun := time.Now()
	session.InParallel(near, func(c net.Conn) bool {
		session.AbortConn(c)
		return true
	})
	took := time.Since(begun)
	reading.Wait()
	return took
}

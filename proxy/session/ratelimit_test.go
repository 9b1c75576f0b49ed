package session

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

type discarded struct{}

func (discarded) Record(*authz.Record) error { return nil }

// paced returns the rates of a plugin with a limit, by the clock of the test's bubble.
func paced(t testing.TB, limit authz.Limit) *RateLimits {
	t.Helper()
	engine := new(authz.Engine)
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: discarded{}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	p := NewRateLimits("weather", gate, engine, new(BufferPool))
	p.limit(t, limit)
	return p
}

func (p *RateLimits) limit(t testing.TB, limit authz.Limit) {
	t.Helper()
	var limits authz.Limits
	if !limit.IsZero() {
		limits = authz.Limits{ReceivedBytes: authz.ByteLimit(limit), OnExceeded: authz.OnExceededThrottle}
	}
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{{
		Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(24 * time.Hour),
		Rules: []authz.Rule{{
			ID: "tcp", Reason: "a test",
			To: authz.To{Scheme: authz.SchemeTCP, Hosts: []string{"example.com"}, Ports: []uint16{1}},
		}},
		Limits: limits,
	}}}, time.Now())
	if len(problems) > 0 {
		t.Fatalf("compile: %+v", problems)
	}
	p.engine.Install(policy)
}

// TestPacersShareARate moves 4 MiB by one and by eight at 64 KiB a second. The
// clock is false, the arithmetic exact.
func TestPacersShareARate(t *testing.T) {
	const rate, total = 64 << 10, 4 << 20
	for _, streams := range []int{1, 8} {
		synctest.Test(t, func(t *testing.T) {
			p := paced(t, authz.Limit{Count: rate, Period: time.Second})
			began := time.Now()
			var running sync.WaitGroup
			ends := make([]time.Duration, streams)
			for i := range streams {
				running.Go(func() {
					pace := p.Limiter(authz.LimitReceivedBytes, nil)
					n, err := pace.Copy(&smooth{t: t, last: began}, bytes.NewReader(make([]byte, total/streams)), make([]byte, BufferSize))
					if n != total/int64(streams) || err != nil {
						t.Errorf("moved %d bytes, %v", n, err)
					}
					ends[i] = time.Since(began)
				})
			}
			running.Wait()
			// 98 of 100 bytes of the rate, after a burst of half a second's worth.
			const want = total*time.Second*100/98/rate - time.Second/2
			if took := time.Since(began); took < want*99/100 || took > want*101/100 {
				t.Errorf("%d streams took %s, want %s", streams, took, want)
			}
			for _, end := range ends { // the first one has had the burst
				if end < want*8/10 {
					t.Errorf("one of %d streams ended after %s of %s", streams, end, want)
				}
			}
		})
	}
}

// smooth checks that bytes come in pieces and without long gaps.
type smooth struct {
	t      *testing.T
	last   time.Time
	writes int
}

func (s *smooth) Write(b []byte) (int, error) {
	gap := time.Since(s.last)
	s.last = time.Now()
	// The first pieces after the burst are still large.
	if s.writes++; s.writes > 6 && gap > 2*longWait {
		s.t.Errorf("write %d of %d bytes came after %s", s.writes, len(b), gap)
	}
	return len(b), nil
}

// TestWaitIsCutShort ends waits of an hour by what ends them.
func TestWaitIsCutShort(t *testing.T) {
	hourly := authz.Limit{Count: 4 << 10, Period: time.Hour}
	for name, test := range map[string]struct {
		end  func(p *RateLimits, ended chan struct{})
		want error
		took time.Duration
	}{
		"the end of the access": {func(_ *RateLimits, ended chan struct{}) { close(ended) }, errEndedWhileThrottled, 0},
		"a limit that is gone":  {func(p *RateLimits, _ chan struct{}) { p.limit(t, authz.Limit{}) }, nil, 0},
		"a higher limit": {func(p *RateLimits, _ chan struct{}) {
			p.limit(t, authz.Limit{Count: 4 << 10, Period: 10 * time.Second})
		}, nil, 20 * time.Second},
		"a policy with the same limit": {func(p *RateLimits, _ chan struct{}) { p.limit(t, hourly) }, nil, 62 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := paced(t, hourly)
				ended := make(chan struct{})
				pace := p.Limiter(authz.LimitReceivedBytes, ended)
				result := make(chan error)
				go func() {
					_, err := pace.Wait(4 << 10)
					result <- err
				}()
				synctest.Wait()
				began := time.Now()
				test.end(p, ended)
				if err := <-result; !errors.Is(err, test.want) || time.Since(began) > test.took {
					t.Errorf("the wait ended after %s with %v, want %s and %v", time.Since(began), err, test.took, test.want)
				}
			})
		})
	}
}

// TestNoLimitCostsNothing wants no timer and no garbage where nothing is slowed.
func TestNoLimitCostsNothing(t *testing.T) {
	p := paced(t, authz.Limit{})
	pace := p.Limiter(authz.LimitReceivedBytes, nil)
	if n := pace.Chunk(BufferSize); n != BufferSize {
		t.Errorf("%d bytes are moved at a time", n)
	}
	allocs := testing.AllocsPerRun(100, func() {
		if waited, err := pace.Wait(BufferSize); waited || err != nil {
			t.Errorf("waited: %v, %v", waited, err)
		}
	})
	if allocs != 0 || pace.timer != nil {
		t.Errorf("a chunk costs %v allocations, and a timer: %v", allocs, pace.timer != nil)
	}
}

// BenchmarkPass is what pacing adds to a chunk of 32 KiB.
func BenchmarkPass(b *testing.B) {
	for name, limit := range map[string]authz.Limit{"no limit": {}, "a limit far away": {Count: 1 << 50, Period: time.Second}} {
		b.Run(name, func(b *testing.B) {
			p := paced(b, limit)
			pace := p.Limiter(authz.LimitReceivedBytes, nil)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := pace.Wait(pace.Chunk(BufferSize)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package authz

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// stream sends chunks one after the other, each after its wait.
type stream struct {
	at    time.Time // when its next chunk goes
	chunk uint64    // its payload
	bytes uint64    // that went
}

// flow is traffic through the gate beside the kernel's own arithmetic.
type flow struct {
	*world
	limit   Limit
	kernel  reference
	streams []*stream
	header  func(payload uint64) uint64 // IP bytes beyond the payload
	counted uint64                      // by the kernel
	dropped int
}

func newFlow(t *testing.T, limit Limit, streams int, header func(uint64) uint64) *flow {
	t.Helper()
	f := &flow{limit: limit, header: header, world: limitedWorld(t, Limits{SentBytes: ByteLimit(limit), OnExceeded: OnExceededThrottle}, Limits{})}
	for range streams {
		f.streams = append(f.streams, &stream{at: noon})
	}
	return f
}

// run sends until the end, with a reading of the kernel's counters four times
// a second.
func (f *flow) run(t *testing.T, lasts time.Duration, chunk func() uint64) {
	t.Helper()
	sample := noon
	for {
		s := slices.MinFunc(f.streams, func(a, b *stream) int { return a.at.Compare(b.at) })
		for ; !sample.After(s.at); sample = sample.Add(250 * time.Millisecond) {
			f.ledger.Observe(f.engine.Current(), "weather", Sample{SentBytes: f.counted}, sample)
		}
		if s.at.After(noon.Add(lasts)) {
			return
		}
		f.now = s.at
		if s.chunk > 0 {
			size := s.chunk + f.header(s.chunk)
			if !f.kernel.spend(f.limit, size, f.now, false) {
				f.dropped++
			} else {
				f.counted += size
				s.bytes += s.chunk
			}
		}
		s.chunk = chunk()
		wait := f.gate.ThrottleBytes("weather", LimitSentBytes, int(s.chunk))
		if wait < 0 {
			t.Fatalf("wait %s", wait)
		}
		s.at = f.now.Add(wait)
	}
}

func (f *flow) sent() (bytes uint64) {
	for _, s := range f.streams {
		bytes += s.bytes
	}
	return bytes
}

// TestPaceStaysBelow: paced traffic whose headers are two bytes of a hundred
// never exceeds what the kernel allows, whatever its chunks and however
// many its streams; it makes use of nearly all of it, and streams share it.
func TestPaceStaysBelow(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		limit := Limit{1 << (14 + random.IntN(10)), []time.Duration{
			200 * time.Millisecond, time.Second, 1020 * time.Millisecond, 7 * time.Second, time.Minute,
		}[random.IntN(5)]}
		limit.Count += random.Uint64N(limit.Count)
		streams := 1 + random.IntN(8)
		most := max(min(limit.Count*24/25, 1<<15), 1)
		f := newFlow(t, limit, streams, func(n uint64) uint64 { return n / 50 })
		const lasts = 15 * time.Second
		f.run(t, lasts, func() uint64 { return 1 + random.Uint64N(most) })
		if f.dropped > 0 {
			t.Errorf("%v: %d streams of up to %d: the kernel drops %d", limit, streams, most, f.dropped)
		}
		fair := float64(limit.Count) * lasts.Seconds() / limit.Period.Seconds()
		if share := float64(f.sent()) / fair; fair > 100*float64(most) && (share < 0.95 || share > 1.1) {
			t.Errorf("%v: %d streams of up to %d: %.3f of the rate is used", limit, streams, most, share)
		}
		for _, s := range f.streams {
			if share := float64(s.bytes) * float64(streams) / float64(f.sent()); fair > 1000*float64(most) && (share < 0.7 || share > 1.3) {
				t.Errorf("%v: a stream has %.2f of its share", limit, share)
			}
		}
	}
}

// TestPaceSmallPackets: where headers are a third of what is sent, the kernel's
// own count slows the doors down, and nothing is dropped either.
func TestPaceSmallPackets(t *testing.T) {
	for _, test := range []struct {
		limit   Limit
		streams int
		chunk   uint64
	}{
		{Limit{1 << 20, time.Second}, 4, 1000},
		{Limit{10 << 20, 10 * time.Second}, 4, 1000},
		{Limit{1 << 20, time.Minute}, 4, 1000},
	} {
		limit := test.limit
		f := newFlow(t, limit, test.streams, func(n uint64) uint64 { return 52 * (n/100 + 1) })
		const lasts = 20 * time.Second
		f.run(t, lasts, func() uint64 { return test.chunk })
		share := float64(f.counted) * limit.Period.Seconds() / (float64(limit.Count) * lasts.Seconds())
		if f.dropped > 0 || share < 0.9 {
			t.Errorf("%v: the kernel drops %d, and %.3f of the rate is used", limit, f.dropped, share)
		}
	}
}

// TestPaceOnlyThrottles: nothing else slows a stream down.
func TestPaceOnlyThrottles(t *testing.T) {
	full := Limits{
		SentBytes: ByteLimit{1000, time.Second}, ReceivedBytes: ByteLimit{1000, 0}, Requests: Limit{1, time.Second},
		Connections: Limit{1, time.Second}, OnExceeded: OnExceededThrottle,
	}
	denying := full
	denying.OnExceeded = OnExceededDeny
	for _, test := range []struct {
		name   string
		limits Limits
		plugin Principal
		kind   LimitKind
		n      int
		want   time.Duration
	}{
		{"within the burst", full, "weather", LimitSentBytes, 490, 0},
		{"twice the burst", full, "weather", LimitSentBytes, 980, time.Second / 2},
		{"no bytes", full, "weather", LimitSentBytes, 0, 0},
		{"fewer than none", full, "weather", LimitSentBytes, -1, 0},
		{"a total", full, "weather", LimitReceivedBytes, 1 << 20, 0},
		{"requests", full, "weather", LimitRequests, 100, 0},
		{"connections", full, "weather", LimitConnections, 100, 0},
		{"denied", denying, "weather", LimitSentBytes, 1 << 20, 0},
		{"another plugin", full, "other", LimitSentBytes, 1 << 20, 0},
	} {
		w := limitedWorld(t, test.limits, Limits{})
		if got := w.gate.ThrottleBytes(test.plugin, test.kind, test.n); got != test.want {
			t.Errorf("%s: wait %s, not %s", test.name, got, test.want)
		}
	}
	// A minute's limit lets half a second's worth through at once; an ended grant all.
	w := limitedWorld(t, Limits{ReceivedBytes: ByteLimit{60_000, time.Minute}, OnExceeded: OnExceededThrottle}, Limits{})
	if got := w.gate.ThrottleBytes("weather", LimitReceivedBytes, 3*490); got != time.Second {
		t.Errorf("wait %s", got)
	}
	w.advance(365 * 24 * time.Hour)
	if got := w.gate.ThrottleBytes("weather", LimitReceivedBytes, 1<<20); got != 0 {
		t.Errorf("an ended grant has it wait %s", got)
	}
	in := input(forecast())
	in.Grants[0].Limits = full
	in.Observe, in.ObserveUntil = true, noon.Add(time.Hour)
	if got := newWorld(t, in).gate.ThrottleBytes("weather", LimitSentBytes, 1<<20); got != 0 {
		t.Errorf("an observing sidecar has it wait %s", got)
	}
	// Two grants, both throttling: the slower one holds. A third denies.
	second, third := forecast(), forecast()
	second.Name, second.Limits = "second", full
	second.Limits.SentBytes.Count = 490
	third.Name, third.Limits = "third", denying
	first := forecast()
	first.Limits = full
	w = newWorld(t, input(first, second, third))
	if got := w.gate.ThrottleBytes("weather", LimitSentBytes, 240); got != 0 {
		t.Errorf("within two limits it waits %s", got)
	}
	if got := w.gate.ThrottleBytes("weather", LimitSentBytes, 490); got < time.Second || got > 1100*time.Millisecond {
		t.Errorf("under two limits it waits %s", got)
	}
}

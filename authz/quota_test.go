package authz

import (
	"math"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRate: COUNT/PERIOD lets a burst of COUNT through, then one each
// PERIOD/COUNT, and so at most twice COUNT in any PERIOD.
func TestRate(t *testing.T) {
	for _, l := range []Limit{{1, time.Second}, {3, time.Second}, {7, time.Second}, {100, time.Minute}, {1000, time.Second}, {999, 7 * time.Millisecond}} {
		var b bucket
		var let []time.Time
		for range 5 * l.Count {
			// Ask at once, and again at the very moment that the refusal names.
			now := noon
			if len(let) > 0 {
				now = let[len(let)-1]
			}
			ok, retry := b.spend(l, 1, now, false)
			if !ok {
				if early, _ := b.spend(l, 1, now.Add(retry-1), false); early {
					t.Fatalf("%s allowed a request before %s", l, retry)
				}
				now = now.Add(retry)
				if ok, _ = b.spend(l, 1, now, false); !ok {
					t.Fatalf("%s allows no request after %s", l, retry)
				}
			}
			let = append(let, now)
		}
		if burst := let[l.Count-1].Sub(noon); burst != 0 {
			t.Errorf("%s allowed its burst in %s", l, burst)
		}
		for i := range let {
			until := let[i].Add(l.Period)
			j, _ := slices.BinarySearchFunc(let, until, time.Time.Compare)
			if in := uint64(j - i); in > 2*l.Count {
				t.Fatalf("%s let %d through within a period", l, in)
			}
		}
		// The rest comes at an even pace, without a drift by rounding.
		want := time.Duration(uint64(l.Period) * (4 * l.Count) / l.Count)
		if got := let[5*l.Count-1].Sub(noon); got < want || got > want+1 {
			t.Errorf("%s let 5 times its count through in %s, not %s", l, got, want)
		}
	}
}

// reference is the rate as it is defined, in exact fractions: spent holds how
// full the bucket is, in requests.
type reference struct {
	full *big.Rat
	at   time.Time
}

func (r *reference) spend(l Limit, cost uint64, now time.Time, force bool) bool {
	if r.full == nil {
		r.full, r.at = new(big.Rat), now
	}
	if now.After(r.at) {
		drained := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(int64(now.Sub(r.at))), new(big.Int).SetUint64(l.Count)), big.NewInt(int64(l.Period)))
		if r.full.Sub(r.full, drained); r.full.Sign() < 0 {
			r.full = new(big.Rat)
		}
		r.at = now
	}
	after := new(big.Rat).Add(r.full, new(big.Rat).SetInt(new(big.Int).SetUint64(cost)))
	ok := after.Cmp(new(big.Rat).SetInt(new(big.Int).SetUint64(l.Count))) <= 0
	if ok || force {
		r.full = after
	}
	return ok
}

// FuzzRate compares the arithmetic of rates with exact fractions.
func FuzzRate(f *testing.F) {
	f.Add(uint64(3), int64(time.Second), []byte{1, 0, 1, 0, 1, 0, 1, 200, 1, 255, 1, 13})
	f.Add(uint64(math.MaxInt64), int64(1), []byte{255, 255, 255, 255})
	f.Add(uint64(1), int64(maxPeriod), []byte{1, 1, 1, 1})
	f.Add(uint64(10<<30), int64(time.Minute), []byte{128, 3, 129, 4, 130, 5, 131, 6})
	f.Add(uint64(7), int64(3), []byte{1, 1, 1, 2, 1, 1, 3, 1, 1, 1, 9, 9, 1, 0})
	f.Fuzz(func(t *testing.T, count uint64, period int64, steps []byte) {
		l := Limit{count & math.MaxInt64, time.Duration(period & math.MaxInt64)}
		if l.Count == 0 || l.Period == 0 || l.Period > maxPeriod {
			return
		}
		var b bucket
		var exact reference
		now := noon
		for i := 0; i+1 < len(steps) && i < 400; i += 2 {
			// Costs and waits of every size: a few, or a power of two of them.
			cost := uint64(steps[i] & 0x7f)
			if steps[i] >= 0x80 {
				cost = 1 << (steps[i] & 0x3f)
			}
			wait := time.Duration(steps[i+1] & 0x7f)
			if steps[i+1] >= 0x80 {
				wait = 1 << (steps[i+1] % 56)
			}
			now = now.Add(wait)
			force := steps[i]&1 == 1
			if charge, _ := l.charge(cost, 0); charge == maxCharge {
				force = false // debts of centuries are cut off, which fractions are not
			}
			want := exact.spend(l, cost, now, force)
			got, retry := b.spend(l, cost, now, force)
			if got != want {
				t.Fatalf("step %d: %d of %d/%s at %s is %t, exactly %t", i, cost, l.Count, l.Period, now.Sub(noon), got, want)
			}
			if got != (retry == 0) || retry < 0 {
				t.Fatalf("step %d: %t and retry in %s", i, got, retry)
			}
			if used := b.usedOf(l, now); got && used > l.Count {
				t.Fatalf("step %d: %d of %d are used", i, used, l.Count)
			}
		}
	})
}

// TestRateExtremes: no cost, count or period overflows into a free pass.
func TestRateExtremes(t *testing.T) {
	const most = math.MaxInt64
	for _, test := range []struct {
		limit  Limit
		cost   uint64
		within bool
	}{
		{Limit{1, 1}, 1, true},
		{Limit{1, 1}, 2, false},
		{Limit{most, 1}, most, true},
		{Limit{most, maxPeriod}, most, true},
		{Limit{most, maxPeriod}, most + 1, false},
		{Limit{1, maxPeriod}, 1, true},
		{Limit{1, maxPeriod}, math.MaxUint64, false},
		{Limit{10_000, 30 * 24 * time.Hour}, 100_000_000, false},
		{Limit{most, 0}, most, true},
		{Limit{most, 0}, math.MaxUint64, false},
	} {
		var b bucket
		if ok, _ := b.spend(test.limit, test.cost, noon, true); ok != test.within {
			t.Errorf("%d of %+v is within: %t", test.cost, test.limit, ok)
		}
		if used := b.usedOf(test.limit, noon); test.within != (used <= test.limit.Count) {
			t.Errorf("%d of %+v: %d are used", test.cost, test.limit, used)
		}
		for range 3 {
			b.spend(test.limit, math.MaxUint64, noon, true)
		}
		if ok, _ := b.spend(test.limit, 1, noon, false); ok {
			t.Errorf("%+v allows one more than there is", test.limit)
		}
		if used := b.usedOf(test.limit, noon); used < test.limit.Count {
			t.Errorf("%+v: %d are used after all there is", test.limit, used)
		}
	}
	// A forced charge is paid back in full: 100 MB at 10 kB in 30 days takes
	// centuries, and not five days.
	slow := Limit{10_000, 30 * 24 * time.Hour}
	var b bucket
	b.spend(slow, 100_000_000, noon, true)
	if ok, _ := b.spend(slow, 1, noon.AddDate(100, 0, 0), false); ok {
		t.Error("a debt of centuries is paid in one")
	}
}

// TestRateReload: a bucket that is half full stays half full when a reload
// changes its limit.
func TestRateReload(t *testing.T) {
	for _, test := range []struct{ old, new Limit }{
		{Limit{1000, time.Hour}, Limit{10, time.Minute}},
		{Limit{10, time.Minute}, Limit{1000, time.Hour}},
		{Limit{10, time.Minute}, Limit{10, time.Minute}},
		{Limit{math.MaxInt64 / 2, maxPeriod}, Limit{4, 1 << 40}},
	} {
		var b bucket
		b.spend(test.old, test.old.Count/2, noon, true)
		left := uint64(0)
		for ok := true; ok && left <= test.new.Count; left++ {
			ok, _ = b.spend(test.new, 1, noon, false)
		}
		if left--; left < test.new.Count/2 || left > test.new.Count/2+1 {
			t.Errorf("%v half used leaves %d of %v", test.old, left, test.new)
		}
	}
	var b bucket
	b.spend(Limit{1, 1}, 1<<40, noon, true)
	if ok, _ := b.spend(Limit{1, maxPeriod}, 1, noon, false); ok {
		t.Error("a debt without end fits a longer period")
	}
}

// limitedWorld is a plugin with the given limits, and one of a rule.
func limitedWorld(t *testing.T, plugin, rule Limits) *world {
	t.Helper()
	g := forecast()
	g.Limits, g.Rules[0].Limits = plugin, rule
	return newWorld(t, input(g))
}

// TestAllOrNothing: a request that one limit refuses spends from none.
func TestAllOrNothing(t *testing.T) {
	w := limitedWorld(t, Limits{Requests: Limit{5, time.Hour}}, Limits{Requests: Limit{2, time.Hour}})
	for i, want := range []Reason{Granted, Granted, QuotaExceeded, QuotaExceeded, QuotaExceeded, QuotaExceeded} {
		if got := w.admit(t, get(t, forecastURL)).Decision.Reason; got != want {
			t.Fatalf("request %d is %s", i, got)
		}
	}
	var used []uint64
	for _, u := range w.ledger.Report(w.engine.Current(), "weather", noon) {
		used = append(used, u.Used)
	}
	if !slices.Equal(used, []uint64{2, 2}) {
		t.Errorf("%v of the plugin's and the rule's limits are used", used)
	}
}

// TestCrossing: a limit is reported once when it is crossed, and again only
// after it has recovered.
func TestCrossing(t *testing.T) {
	w := limitedWorld(t, Limits{}, Limits{Requests: Limit{2, time.Minute}, OnExceeded: OnExceededKill})
	crossing := Crossing{Plugin: "weather", Grant: "weather", Rule: "read-forecast", Kind: LimitRequests, Limit: Limit{2, time.Minute}, Action: OnExceededKill}
	ask := func(n int, want ...Crossing) {
		t.Helper()
		w.crossed = nil
		for range n {
			w.admit(t, get(t, forecastURL))
		}
		if diff := cmp.Diff(want, w.crossed); diff != "" {
			t.Error(diff)
		}
	}
	ask(2)
	ask(3, crossing)
	ask(3)
	w.advance(30 * time.Second)
	ask(1)
	ask(3, crossing)
}

// TestCrossingWhileObserving: what is only observed kills nothing.
func TestCrossingWhileObserving(t *testing.T) {
	kill := Limits{Requests: Limit{1, time.Minute}, Syscalls: Limit{1, time.Minute}, Connections: Limit{1, time.Minute}, OnExceeded: OnExceededKill}
	g := forecast()
	g.Limits = kill
	in := input(g)
	in.Observe, in.ObserveUntil = true, noon.Add(time.Hour)
	w := newWorld(t, in)
	w.ledger.samples["weather"] = reading{at: noon}
	for range 3 {
		if d := w.admit(t, get(t, forecastURL)).Decision; !d.Allowed() {
			t.Errorf("an observing sidecar reports %s", d.Reason)
		}
	}
	for _, want := range []int{2, 0} { // each is reported once
		more, _ := w.ledger.Observe(w.engine.Current(), "weather", Sample{Connections: 9, Syscalls: 5}, noon)
		if len(more) != want {
			t.Errorf("crossed %+v", more)
		}
		w.crossed = append(w.crossed, more...)
	}
	if len(w.crossed) != 3 || slices.ContainsFunc(w.crossed, func(c Crossing) bool { return c.Action != "" }) {
		t.Errorf("crossed %+v", w.crossed)
	}
	if metered := w.ledger.Metered(w.engine.Current(), "weather", noon); metered != nil {
		t.Errorf("an observing sidecar has the kernel enforce %+v", metered)
	}

	// A rule that observes does not kill for its own limit, but does for the plugin's.
	g = forecast()
	g.Limits = Limits{Requests: Limit{2, time.Minute}, OnExceeded: OnExceededKill}
	g.Rules[0].Limits = Limits{Requests: Limit{1, time.Minute}, OnExceeded: OnExceededKill}
	g.Rules[0].Mode, g.Rules[0].ObserveUntil = ModeObserve, noon.Add(time.Hour)
	w = newWorld(t, input(g))
	for i, want := range []Reason{Granted, Observed, QuotaExceeded} {
		if got := w.admit(t, get(t, forecastURL)).Decision.Reason; got != want {
			t.Errorf("request %d is %s", i, got)
		}
	}
	if len(w.crossed) != 2 || w.crossed[0].Rule == "" || w.crossed[0].Action != "" || w.crossed[1].Rule != "" || w.crossed[1].Action != OnExceededKill {
		t.Errorf("crossed %+v", w.crossed)
	}
}

// TestObserve feeds the kernel's counters.
func TestObserve(t *testing.T) {
	w := limitedWorld(t, Limits{
		SentBytes: ByteLimit{100, time.Second}, ReceivedBytes: ByteLimit{1000, 0}, Syscalls: Limit{10, time.Second}, OnExceeded: OnExceededKill,
	}, Limits{})
	s := w.engine.Current()
	decide := func(at time.Time) Reason { return s.Decide(get(t, forecastURL), w.ledger.Usage(), at).Reason }
	if got := decide(noon); got != UsageUnknown {
		t.Errorf("without a reading it is %s", got)
	}
	for i, step := range []struct {
		after     time.Duration
		sample    Sample
		exhausted bool
		want      Reason
	}{
		{0, Sample{}, false, Granted},
		{0, Sample{SentBytes: 50, ReceivedBytes: 500, Syscalls: 5}, false, Granted},
		{0, Sample{SentBytes: 200, ReceivedBytes: 500, Syscalls: 5}, false, QuotaExceeded},
		{0, Sample{SentBytes: 300, ReceivedBytes: 500, Syscalls: 5}, false, QuotaExceeded},
		{3 * time.Second, Sample{SentBytes: 300, ReceivedBytes: 500, Syscalls: 5}, false, Granted},
		{3 * time.Second, Sample{SentBytes: 450, ReceivedBytes: 500, Syscalls: 5}, false, QuotaExceeded},
		{7 * time.Second, Sample{SentBytes: 10, ReceivedBytes: 10, Syscalls: 1}, false, Granted}, // a new start of the plugin
		{7 * time.Second, Sample{SentBytes: 10, ReceivedBytes: 499, Syscalls: 20}, false, QuotaExceeded},
		{11 * time.Second, Sample{SentBytes: 10, ReceivedBytes: 520, Syscalls: 20}, true, QuotaExceeded},
		{11 * time.Second, Sample{SentBytes: 10, ReceivedBytes: 900, Syscalls: 20}, false, QuotaExceeded},
	} {
		now := noon.Add(step.after)
		crossings, exhausted := w.ledger.Observe(s, "weather", step.sample, now)
		if crossings != nil || exhausted != step.exhausted {
			t.Errorf("step %d crosses %v, which the kernel reports, exhausted %t", i, crossings, exhausted)
		}
		if got := decide(now); got != step.want {
			t.Errorf("step %d: %s", i, got)
		}
		if got := decide(now.Add(staleAfter + 1)); got != UsageUnknown && got != QuotaExceeded {
			t.Errorf("step %d: %s when the meter is stale", i, got)
		}
	}
	report := w.ledger.Report(s, "weather", noon.Add(11*time.Second))
	want := []UsageOf{
		{Plugin: "weather", Grant: "weather", Kind: LimitSentBytes, Limit: Limit{100, time.Second}, Known: true, Action: OnExceededKill},
		{Plugin: "weather", Grant: "weather", Kind: LimitReceivedBytes, Limit: Limit{1000, 0}, Used: 1400, Recent: 1400, Known: true, Exceeded: true, Action: OnExceededKill},
		{Plugin: "weather", Grant: "weather", Kind: LimitSyscalls, Limit: Limit{10, time.Second}, Known: true, Action: OnExceededKill},
	}
	if diff := cmp.Diff(want, report); diff != "" {
		t.Error(diff)
	}
	if report := w.ledger.Report(s, "weather", noon.Add(time.Minute)); report[0].Known {
		t.Error("a reading of a minute ago is fresh")
	}
	// The grant's end ends its limits.
	later := noon.AddDate(1, 0, 0)
	if _, exhausted := w.ledger.Observe(s, "weather", Sample{Syscalls: 1 << 40}, later); exhausted || w.ledger.Metered(s, "weather", later) != nil {
		t.Error("an ended grant's limits are enforced")
	}
}

// TestNoLedger: without a ledger nothing has been used.
func TestNoLedger(t *testing.T) {
	s := limitedWorld(t, Limits{Syscalls: Limit{1, 1}}, Limits{Requests: Limit{1, 1}}).engine.Current()
	if d := s.Decide(get(t, forecastURL), Usage{}, noon); d.Reason != Granted {
		t.Errorf("it is %s", d.Reason)
	}
}

// TestHasLimit checks which meters are needed.
func TestHasLimit(t *testing.T) {
	s := limitedWorld(t, Limits{Syscalls: Limit{1, 1}}, Limits{}).engine.Current()
	if !s.HasLimit("weather", LimitSyscalls) || s.HasLimit("weather", LimitSentBytes) || s.HasLimit("other", LimitSyscalls) {
		t.Error("HasLimit is wrong")
	}
}

// TestSpendTogether: however many ask at once, no more pass than there are.
func TestSpendTogether(t *testing.T) {
	w := limitedWorld(t, Limits{Requests: Limit{80, 0}}, Limits{Requests: Limit{50, time.Hour}})
	var mu sync.Mutex
	passed := 0
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 20 {
				if a, _ := w.gate.Admit(t.Context(), get(t, forecastURL), Source{}); a.Decision.Allowed() {
					mu.Lock()
					passed++
					mu.Unlock()
				}
				w.ledger.Observe(w.engine.Current(), "weather", Sample{}, noon)
				w.ledger.Report(w.engine.Current(), "weather", noon)
				w.ledger.State(noon)
			}
		})
	}
	group.Wait()
	if passed != 50 {
		t.Errorf("%d passed", passed)
	}
}

func TestLimitKindNames(t *testing.T) {
	for kind, want := range map[LimitKind]string{
		LimitRequests: "requests", LimitConnections: "connections", LimitSentBytes: "sentBytes",
		LimitReceivedBytes: "receivedBytes", LimitSyscalls: "syscalls", LimitProcesses: "processes", 9: "unknown",
	} {
		if kind.String() != want {
			t.Errorf("kind %d is %s", kind, kind)
		}
	}
	if (Sample{1, 2, 3, 4, 5}).count(LimitRequests) != 0 {
		t.Error("the kernel counts requests")
	}
}

func TestLimitsString(t *testing.T) {
	for want, l := range map[string]Limits{
		"": {}, "requests: 100/1m": {Requests: Limit{100, time.Minute}},
		"sentBytes: 1MiB/1s, processes: 5, onExceeded: stop": {SentBytes: ByteLimit{1 << 20, time.Second}, Processes: Limit{5, 0}, OnExceeded: OnExceededStop},
	} {
		if got := l.String(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

// TestMetered: what the kernel is to enforce, with what is used of totals.
func TestMetered(t *testing.T) {
	second := forecast()
	second.Name, second.NotAfter = "second", noon.Add(time.Hour)
	second.Limits = Limits{Processes: Limit{8, 0}}
	first := forecast()
	first.Limits = Limits{
		Requests: Limit{1, time.Second}, Connections: Limit{2, time.Second}, SentBytes: ByteLimit{3, 0}, ReceivedBytes: ByteLimit{4, time.Minute},
		Syscalls: Limit{5, time.Second}, CountSyscalls: CountExact, Processes: Limit{6, time.Hour}, OnExceeded: OnExceededStop,
	}
	w := newWorld(t, input(first, second))
	s := w.engine.Current()
	w.ledger.Observe(s, "weather", Sample{1, 2, 3, 4, 5}, noon)
	want := []MeteredLimit{
		{"second", LimitProcesses, Limit{8, 0}, 5, 0, OnExceededDeny, false},
		{"weather", LimitConnections, Limit{2, time.Second}, 0, 500 * time.Millisecond, OnExceededStop, false},
		{"weather", LimitSentBytes, Limit{3, 0}, 2, 0, OnExceededStop, false},
		{"weather", LimitReceivedBytes, Limit{4, time.Minute}, 0, 45 * time.Second, OnExceededStop, false},
		{"weather", LimitSyscalls, Limit{5, time.Second}, 0, 800 * time.Millisecond, OnExceededStop, true},
		{"weather", LimitProcesses, Limit{6, time.Hour}, 0, 50 * time.Minute, OnExceededStop, false},
	}
	if diff := cmp.Diff(want, w.ledger.Metered(s, "weather", noon)); diff != "" {
		t.Error(diff)
	}
	for i := range want {
		want[i].Debt = 0 // an hour later nothing is in use
	}
	if diff := cmp.Diff(want[1:], w.ledger.Metered(s, "weather", noon.Add(time.Hour))); diff != "" {
		t.Errorf("an ended grant: %s", diff)
	}
	if got := w.ledger.Metered(s, "other", noon); got != nil {
		t.Errorf("another plugin: %v", got)
	}
}

// TestUsedUp: what being used up does to requests, by kind and consequence.
func TestUsedUp(t *testing.T) {
	over := Sample{10, 10, 10, 10, 10}
	kinds := map[LimitKind]func(Limit) Limits{
		LimitConnections:   func(l Limit) Limits { return Limits{Connections: l} },
		LimitSentBytes:     func(l Limit) Limits { return Limits{SentBytes: ByteLimit(l)} },
		LimitReceivedBytes: func(l Limit) Limits { return Limits{ReceivedBytes: ByteLimit(l)} },
		LimitSyscalls:      func(l Limit) Limits { return Limits{Syscalls: l} },
		LimitProcesses:     func(l Limit) Limits { return Limits{Processes: l} },
	}
	for _, action := range []OnExceeded{"", OnExceededDeny, OnExceededThrottle, OnExceededStop, OnExceededKill} {
		for kind, with := range kinds {
			for _, limit := range []Limit{{10, 0}, {10, time.Hour}} {
				limits := with(limit)
				limits.OnExceeded = action
				w := limitedWorld(t, limits, Limits{})
				s := w.engine.Current()
				if got := s.Decide(get(t, forecastURL), w.ledger.Usage(), noon).Reason; got != UsageUnknown {
					t.Errorf("%s %s %q before a reading: %s", kind, limit, action, got)
				}
				_, exhausted := w.ledger.Observe(s, "weather", over, noon)
				prepaid := kind == LimitConnections || kind == LimitProcesses
				want := QuotaExceeded
				if prepaid || action == OnExceededThrottle && limit.Period > 0 {
					want = Granted
				}
				got := s.Decide(get(t, forecastURL), w.ledger.Usage(), noon)
				if got.Reason != want || (got.RetryAfter > 0) != (want != Granted && limit.Period > 0) {
					t.Errorf("%s %s %q used up: %s, retry in %s", kind, limit, action, got.Reason, got.RetryAfter)
				}
				if exhausted != (limit.Period == 0 && !prepaid) {
					t.Errorf("%s %s %q used up: a new generation: %t", kind, limit, action, exhausted)
				}
			}
		}
	}
}

// TestRefund: what is given back is as if it had not been taken.
func TestRefund(t *testing.T) {
	for _, l := range []Limit{{7, time.Second + 3}, {1, time.Minute}, {1000, 999}, {3, 0}} {
		for n := uint64(1); n < 20; n++ {
			var with, without bucket
			for i := range n {
				with.spend(l, 1, noon, true)
				if i > 0 {
					without.spend(l, 1, noon, true)
				}
			}
			with.refund(l, noon)
			if with.used != without.used || n > 1 && (!with.tat.Equal(without.tat) || with.rest != without.rest) {
				t.Fatalf("%d of %v, less one: %+v, not %+v", n, l, with, without)
			}
		}
	}
	// Time that has passed is not given back, nor a debt of another period.
	l := Limit{2, time.Second}
	var b bucket
	b.spend(l, 2, noon, true)
	full := b
	b.refund(l, noon.Add(time.Second))
	b.refund(Limit{2, time.Minute}, noon)
	if b != full {
		t.Errorf("%+v, not %+v", b, full)
	}
}

package authz

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// disk is what survives a crash: a sidecar's state as it was last written.
type disk struct {
	state  State
	writes int
	full   bool
}

var errFull = errors.New("no space left on device")

// keep writes the reserve of a ledger down.
func (d *disk) keep(l *Ledger, now func() time.Time) func() error {
	return func() error {
		if d.full {
			return errFull
		}
		state, due := l.Reserve(now())
		if due {
			d.state, d.writes = state, d.writes+1
			l.MarkPersisted(state)
		}
		return nil
	}
}

// restarted returns a world that goes on at a time with what is on the disk.
func restarted(t *testing.T, d *disk, plugin, rule Limits, now time.Time) *world {
	t.Helper()
	w := limitedWorld(t, plugin, rule)
	w.now = now
	w.gate.cfg.Persist = d.keep(w.ledger, w.clock)
	w.ledger.Restore(d.state, now)
	w.ledger.MarkPersisted(d.state)
	return w
}

// TestRatesOutliveRestarts asks at random times, ends the sidecar at random times,
// with what is used written down or by a kill, and checks that no period ever has
// more than twice the count.
func TestRatesOutliveRestarts(t *testing.T) {
	for _, rate := range []Limit{{1, time.Hour}, {3, time.Hour}, {10, time.Second}, {60, time.Minute}, {1000, time.Minute}, {7, 1500 * time.Millisecond}} {
		for seed := range uint64(6) {
			random := rand.New(rand.NewPCG(seed, rate.Count))
			d, now := &disk{}, noon
			limits := Limits{Requests: rate}
			w := restarted(t, d, Limits{}, limits, now)
			var allowed []time.Time
			for range 1500 {
				switch random.IntN(12) {
				case 0: // a kill
					w = restarted(t, d, Limits{}, limits, now)
				case 1: // an orderly end
					d.state = w.ledger.State(now)
					w = restarted(t, d, Limits{}, limits, now)
				case 2:
					now = now.Add(time.Duration(random.Int64N(int64(rate.Period) / 2)))
				default:
					now = now.Add(time.Duration(random.Int64N(int64(rate.Period)/int64(rate.Count)/4 + 2)))
				}
				w.now = now
				if w.admit(t, get(t, forecastURL)).Decision.Allowed() {
					allowed = append(allowed, now)
				}
			}
			if len(allowed) == 0 {
				t.Errorf("%s, seed %d: nothing was allowed", rate, seed)
			}
			if most := mostWithin(allowed, rate.Period); most > 2*int(rate.Count) {
				t.Errorf("%s, seed %d: %d within a period", rate, seed, most)
			}
		}
	}
}

// mostWithin returns how many of some times, which are in order, lie within the
// period at most.
func mostWithin(times []time.Time, period time.Duration) (most int) {
	for i, first := range times {
		after, _ := slices.BinarySearchFunc(times[i:], first.Add(period), time.Time.Compare)
		most = max(most, after)
	}
	return most
}

// TestRatesAfterAnOrderlyEnd goes on as if the sidecar had not ended, to the last
// request, under each action.
func TestRatesAfterAnOrderlyEnd(t *testing.T) {
	for _, action := range []OnExceeded{OnExceededDeny, OnExceededKill} {
		limits := Limits{Requests: Limit{5, time.Minute}, OnExceeded: action}
		d := &disk{}
		w := restarted(t, d, limits, Limits{}, noon)
		for range 3 {
			w.admit(t, get(t, forecastURL))
		}
		d.state = w.ledger.State(noon)
		w = restarted(t, d, limits, Limits{}, noon)
		for i, want := range []Reason{Granted, Granted, QuotaExceeded} {
			if got := w.admit(t, get(t, forecastURL)).Decision.Reason; got != want {
				t.Errorf("%s: request %d after it is %s", action, i, got)
			}
		}
		w.advance(12 * time.Second)
		if got := w.admit(t, get(t, forecastURL)).Decision.Reason; got != Granted {
			t.Errorf("%s: a fifth of a period later it is %s", action, got)
		}
	}
}

// TestRateOfAnotherPeriod keeps the share that is used when a restart brings another
// period or count.
func TestRateOfAnotherPeriod(t *testing.T) {
	d := &disk{}
	w := restarted(t, d, Limits{}, Limits{Requests: Limit{4, time.Hour}}, noon)
	for range 3 {
		w.admit(t, get(t, forecastURL))
	}
	d.state = w.ledger.State(noon)
	for now, want := range map[Limit]int{{4, time.Hour}: 1, {8, time.Hour}: 2, {4, time.Minute}: 1, {100, 24 * time.Hour}: 25} {
		w := restarted(t, &disk{state: d.state}, Limits{}, Limits{Requests: now}, noon)
		got := 0
		for w.admit(t, get(t, forecastURL)).Decision.Allowed() {
			got++
		}
		if got != want {
			t.Errorf("%d of %s are allowed, not %d", got, now, want)
		}
	}
}

// TestTotalsOutliveAKill never allows more of a total than its count.
func TestTotalsOutliveAKill(t *testing.T) {
	limits := Limits{Requests: Limit{1000, 0}}
	d := &disk{}
	allowed := 0
	for kill := range 50 {
		w := restarted(t, d, Limits{}, limits, noon)
		for range 30 + kill {
			if w.admit(t, get(t, forecastURL)).Decision.Allowed() {
				allowed++
			}
		}
	}
	if allowed > 1000 || allowed < 900 {
		t.Errorf("%d are allowed of a total of 1000", allowed)
	}
}

// TestReserveIsBounded writes seldom where a rate is large, and after many kills
// takes no more than the whole burst.
func TestReserveIsBounded(t *testing.T) {
	limits := Limits{Requests: Limit{1000, time.Minute}}
	d := &disk{}
	w := restarted(t, d, Limits{}, limits, noon)
	for range 1000 {
		w.admit(t, get(t, forecastURL))
	}
	if d.writes > 20 {
		t.Errorf("%d writes for a burst", d.writes)
	}
	for range 100 {
		w = restarted(t, d, Limits{}, limits, noon)
		w.admit(t, get(t, forecastURL))
	}
	w.advance(2 * time.Minute)
	if got := w.admit(t, get(t, forecastURL)).Decision.Reason; got != Granted {
		t.Errorf("two periods later it is %s", got)
	}
}

// TestFullDisk refuses what cannot be written down, and takes nothing for it.
func TestFullDisk(t *testing.T) {
	for _, limits := range []Limits{{Requests: Limit{3, time.Hour}}, {Requests: Limit{3, 0}}, {Requests: Limit{3, time.Hour}, OnExceeded: OnExceededThrottle}} {
		d := &disk{full: true}
		w := restarted(t, d, limits, Limits{}, noon)
		for range 5 {
			a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{Door: DoorProxy, UID: -1})
			if !errors.Is(err, errFull) || a.Decision.Reason != UsageUnknown || a.Refusal == nil {
				t.Fatalf("%s: %s, %v", limits, a.Decision.Reason, err)
			}
		}
		d.full = false
		for range 3 {
			if got := w.admit(t, get(t, forecastURL)).Decision.Reason; got != Granted {
				t.Errorf("%s: with room again it is %s", limits, got)
			}
		}
	}
}

// TestRatesOfTheKernel restores the standing of every kind that the kernel counts,
// and hands it to the kernel.
func TestRatesOfTheKernel(t *testing.T) {
	const period = time.Hour
	limits := Limits{
		Connections: Limit{10, period}, SentBytes: ByteLimit{20, period}, ReceivedBytes: ByteLimit{40, period},
		Syscalls: Limit{50, period}, Processes: Limit{100, period},
	}
	for _, action := range []OnExceeded{OnExceededDeny, OnExceededThrottle, OnExceededStop, OnExceededKill} {
		limits.OnExceeded = action
		before := limitedWorld(t, limits, Limits{})
		before.ledger.Begin("weather", Sample{})
		before.ledger.Observe(before.engine.Current(), "weather", Sample{5, 10, 20, 25, 50}, noon)
		w := limitedWorld(t, limits, Limits{})
		w.ledger.Restore(before.ledger.State(noon), noon)
		w.ledger.Begin("weather", Sample{}) // its counters are new
		for elapsed, debt := range map[time.Duration]time.Duration{0: period / 2, period / 4: period / 4, period: 0} {
			for _, m := range w.ledger.Metered(w.engine.Current(), "weather", noon.Add(elapsed)) {
				if m.Debt != debt {
					t.Errorf("%s %s: the kernel begins with %v used %v later", action, m.Kind, m.Debt, elapsed)
				}
			}
		}
	}
}

// TestKeptRates lists what is in use, by name, and no rate that is empty.
func TestKeptRates(t *testing.T) {
	w := limitedWorld(t, Limits{Requests: Limit{60, time.Minute}}, Limits{Requests: Limit{120, time.Minute}})
	w.admit(t, get(t, forecastURL))
	want := []Rate{
		{"weather", "weather", "", "requests", time.Minute, noon.Add(time.Second)},
		{"weather", "weather", "read-forecast", "requests", time.Minute, noon.Add(time.Second / 2)},
	}
	if diff := cmp.Diff(want, w.ledger.State(noon).Rates); diff != "" {
		t.Error(diff)
	}
	for elapsed, n := range map[time.Duration]int{600 * time.Millisecond: 1, time.Second: 0} {
		if got := w.ledger.State(noon.Add(elapsed)).Rates; len(got) != n {
			t.Errorf("%v later: %v", elapsed, fmt.Sprint(got))
		}
	}
}

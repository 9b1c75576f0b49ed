package authz

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// throttled is a gate in a synctest bubble, whose clock is the bubble's.
type throttled struct {
	*world
	started time.Time
}

func newThrottled(t *testing.T, g Grant) *throttled {
	t.Helper()
	g.NotAfter = time.Now().AddDate(1, 0, 0)
	w := &world{engine: &Engine{}, ledger: NewLedger(), recorder: &recorder{}, source: &source{credential: apiKey("hunter2")}}
	w.engine.Install(compile(t, input(g)))
	var err error
	w.gate, err = NewGate(GateConfig{
		Engine: w.engine, Ledger: w.ledger, Recorder: w.recorder, Credentials: w.source, Now: time.Now,
		Crossed: func(c Crossing) { w.mu.Lock(); defer w.mu.Unlock(); w.crossed = append(w.crossed, c) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &throttled{w, time.Now()}
}

// ask admits a request and returns what came of it and when.
func (w *throttled) ask(ctx context.Context, t *testing.T) string {
	t.Helper()
	a, err := w.gate.Admit(ctx, get(t, forecastURL), Source{})
	if err != nil {
		t.Error(err)
	}
	if a.Decision.Allowed() != (a.Refusal == nil) {
		t.Errorf("%s with refusal %v", a.Decision.Reason, a.Refusal)
	}
	text := fmt.Sprintf("%s at %s", a.Decision.Reason, time.Since(w.started))
	if a.Decision.RetryAfter > 0 {
		text += fmt.Sprint(", retry ", a.Decision.RetryAfter)
	}
	return text
}

// line asks n times at once, one after the other, and returns the answers in
// that order.
func (w *throttled) line(ctx context.Context, t *testing.T, n int) []string {
	t.Helper()
	answers := make([]string, n)
	for i := range answers {
		go func() { answers[i] = w.ask(ctx, t) }()
		synctest.Wait() // it has been answered, or waits
	}
	time.Sleep(2 * longestWait)
	synctest.Wait() // the written state is read
	return answers
}

// rate returns a grant with a limit on requests that has them wait.
func rate(plugin, rule Limit) Grant {
	g := forecast()
	g.Limits, g.Rules[0].Limits = Limits{Requests: plugin, OnExceeded: OnExceededThrottle}, Limits{Requests: rule}
	if plugin.IsZero() {
		g.Limits = Limits{}
	}
	return g
}

// TestThrottle: requests beyond a rate wait their turn, in the order in which
// they came, and those that would wait too long are refused at once.
func TestThrottle(t *testing.T) {
	for _, test := range []struct {
		name         string
		plugin, rule Limits
		want         []string
	}{
		{"a rate", Limits{Requests: Limit{2, time.Second}}, Limits{}, []string{
			"granted at 0s", "granted at 0s", "granted at 500ms", "granted at 1s", "granted at 1.5s",
		}},
		{"too long a wait", Limits{Requests: Limit{2, 40 * time.Second}}, Limits{}, []string{
			"granted at 0s", "granted at 0s", "granted at 20s", "quota_exceeded at 0s, retry 40s", "quota_exceeded at 0s, retry 40s",
		}},
		{"the rule's own rate", Limits{}, Limits{Requests: Limit{1, time.Second}, OnExceeded: OnExceededThrottle}, []string{
			"granted at 0s", "granted at 1s", "granted at 2s",
		}},
		{"the slower of two", Limits{Requests: Limit{1, time.Second}}, Limits{Requests: Limit{2, 10 * time.Second}, OnExceeded: OnExceededThrottle}, []string{
			"granted at 0s", "granted at 1s", "granted at 5s", "granted at 10s",
		}},
		{"a rule that denies", Limits{Requests: Limit{1, time.Second}}, Limits{Requests: Limit{2, time.Minute}}, []string{
			"granted at 0s", "granted at 1s", "quota_exceeded at 0s, retry 30s",
		}},
		{"a total", Limits{Requests: Limit{1, 0}}, Limits{}, []string{"granted at 0s", "quota_exceeded at 0s"}},
		{"a total of the rule", Limits{Requests: Limit{1, time.Second}}, Limits{Requests: Limit{2, 0}}, []string{
			"granted at 0s", "granted at 1s", "quota_exceeded at 0s",
		}},
		{"a stale meter", Limits{Requests: Limit{1, time.Second}, Syscalls: Limit{1, 0}}, Limits{}, []string{"usage_unknown at 0s"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := forecast()
				g.Limits, g.Rules[0].Limits = test.plugin, test.rule
				if !g.Limits.Requests.IsZero() {
					g.Limits.OnExceeded = OnExceededThrottle
				}
				w := newThrottled(t, g)
				if diff := cmp.Diff(test.want, w.line(t.Context(), t, len(test.want))); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestThrottleCrossing: a throttle is reported once, and again only after a tenth
// of the limit was free.
func TestThrottleCrossing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := Limit{20, 10 * time.Second}
		w := newThrottled(t, rate(limit, Limit{}))
		for _, step := range []struct {
			used uint64 // before
			want int
		}{{0, 1}, {19, 1}, {18, 2}, {0, 3}} {
			w.ledger.bucket(w.engine.Current().pluginLimits("weather")[0].key).spend(limit, step.used, time.Now(), true)
			w.line(t.Context(), t, 30)
			if len(w.crossed) != step.want || w.crossed[0].Action != OnExceededThrottle {
				t.Errorf("from %d on: crossed %+v, not %d times", step.used, w.crossed, step.want)
			}
		}
	})
}

// TestThrottleGivesUp: who gives up gives back his place.
func TestThrottleGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newThrottled(t, rate(Limit{1, 10 * time.Second}, Limit{}))
		w.ask(t.Context(), t)
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan string)
		go func() { got <- w.ask(ctx, t) }()
		time.Sleep(time.Second)
		cancel()
		if answer := <-got; answer != "quota_exceeded at 1s, retry 10s" {
			t.Error(answer)
		}
		// A caller that would be gone by then is refused at once.
		soon, done := context.WithTimeout(t.Context(), 8*time.Second)
		defer done()
		if answer := w.ask(soon, t); answer != "quota_exceeded at 1s, retry 9s" {
			t.Error(answer)
		}
		if answer := w.ask(t.Context(), t); answer != "granted at 10s" {
			t.Error(answer)
		}
	})
}

// TestThrottleOvertaken: what happens to a request while it waits.
func TestThrottleOvertaken(t *testing.T) {
	const limited = 10 * time.Second
	other := func(change func(*Grant)) func(*testing.T, *throttled) {
		return func(t *testing.T, w *throttled) {
			g := rate(Limit{1, limited}, Limit{})
			g.NotAfter = time.Now().AddDate(1, 0, 0)
			change(&g)
			w.engine.Install(compile(t, input(g)))
		}
	}
	for _, test := range []struct {
		name      string
		meanwhile func(*testing.T, *throttled)
		want      string
		used      uint64 // of the plugin's limit, right after
	}{
		{"nothing", func(*testing.T, *throttled) {}, "granted at 10s", 1},
		{"a generation of the same", func(_ *testing.T, w *throttled) { w.engine.Bump() }, "granted at 10s", 1},
		{"a revocation", func(_ *testing.T, w *throttled) {
			w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Level: LevelPause})
		}, "revoked at 4s", 1},
		{"its rule goes", other(func(g *Grant) { g.Rules[0].Paths = []string{"/other"} }), "path_not_granted at 4s", 1},
		{"its limit goes", other(func(g *Grant) { g.Limits = Limits{} }), "granted at 4s", 0},
		{"its limit is raised", other(func(g *Grant) { g.Limits.Requests = Limit{10, limited} }), "granted at 4s", 7},
		{"its limit is lowered", other(func(g *Grant) { g.Limits.Requests = Limit{1, 2 * limited} }), "granted at 16s", 1},
		{"it is to be refused now", other(func(g *Grant) { g.Limits.OnExceeded = OnExceededDeny }), "quota_exceeded at 4s, retry 6s", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newThrottled(t, rate(Limit{1, limited}, Limit{}))
				w.ask(t.Context(), t)
				got := make(chan string)
				go func() { got <- w.ask(t.Context(), t) }()
				time.Sleep(4 * time.Second)
				test.meanwhile(t, w)
				if answer := <-got; answer != test.want {
					t.Errorf("it is %s, not %s", answer, test.want)
				}
				for _, u := range w.ledger.Report(w.engine.Current(), "weather", time.Now()) {
					if u.Used != test.used {
						t.Errorf("%d of %s are used, not %d", u.Used, u.Limit, test.used)
					}
				}
			})
		})
	}
}

// TestThrottleWhileObserving: what a rule observes beyond its own limit still waits
// for the plugin's, and stays without a credential.
func TestThrottleWhileObserving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := withKey(rate(Limit{2, 2 * time.Second}, Limit{1, time.Hour}))
		g.Rules[0].Mode, g.Rules[0].ObserveUntil = ModeObserve, time.Now().Add(time.Hour)
		w := newThrottled(t, g)
		want := []string{"granted at 0s", "observed at 0s", "observed at 1s", "observed at 2s"}
		if got := w.line(t.Context(), t, len(want)); !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		for _, r := range w.recorder.all()[1:] {
			if r.Credential != "" {
				t.Errorf("with %s", r.Credential)
			}
		}
		// An access that the rule only observes does not use up its own limit.
		g.Rules[0].Limits = Limits{Requests: Limit{3, 0}}
		w = newThrottled(t, g)
		if a, _ := w.gate.Admit(t.Context(), get(t, "POST "+forecastURL), Source{}); a.Decision.Reason != Observed {
			t.Errorf("it is %s", a.Decision.Reason)
		}
		if totals := w.ledger.State(noon).Totals; totals != nil {
			t.Errorf("%+v are used", totals)
		}
	})
}

package authz

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestZeroValues: what nobody made denies.
func TestZeroValues(t *testing.T) {
	req := get(t, forecastURL)
	var engine Engine
	for name, d := range map[string]Decision{
		"Decision": {}, "Snapshot": (&Snapshot{}).Decide(req, Usage{}, noon), "Engine": engine.Current().Decide(req, Usage{}, noon),
	} {
		if d.Allowed() || d.Reason != NotReady || !d.Cuts() || d.CheckAddress(req.Destination.Address()) != NotReady {
			t.Errorf("the zero %s = %+v", name, d)
		}
		if terms := d.Terms(); terms.TLSMin != "1.2" {
			t.Errorf("the terms of the zero %s are %+v", name, terms)
		}
	}
	var a Admission
	if a.StillAllowed() || a.Decision.Allowed() || a.Injection.Kind != InjectNone || a.End(Outcome{}) == nil {
		t.Error("the zero Admission allows")
	}
	if r := a.Refuse(AddressNotAllowed, ""); r.Status() != 403 || r.Reason != AddressNotAllowed {
		t.Errorf("the zero Admission refuses with %+v", r)
	}
	if engine.Current().Ready() || engine.Current().Generation() != 0 {
		t.Error("the zero Engine is ready")
	}
	if e := (&Snapshot{}).Explain(req, Usage{}, noon); e.Decision.Allowed() || e.Detail == "" || e.Remedy == "" {
		t.Errorf("the zero Snapshot explains %+v", e)
	}
	for _, zero := range []Request{{}, {Principal: "weather"}, {Destination: req.Destination}} {
		e := snapshot(t, input(forecast())).Explain(zero, Usage{}, noon)
		if e.Decision.Allowed() || e.Detail == "" || e.Remedy == "" {
			t.Errorf("%+v is %+v", zero, e)
		}
	}
	if (Revocation{Until: noon}).inForce(noon) || !(Revocation{}).inForce(noon) {
		t.Error("a revocation ends at its time, or never")
	}
	if level := (&Snapshot{revocations: []Revocation{{Plugin: "weather", Level: "unheard-of"}, {Plugin: "weather", Level: LevelPause}}}).RevokedLevel("weather", noon); level != "unheard-of" {
		t.Errorf("the hardest level is %q", level)
	}
	if level := (&Snapshot{}).RevokedLevel("weather", noon); level != "" {
		t.Errorf("no plugin revoked at level %q", level)
	}
}

// TestGenerations: every change that revokes, and every change that grants, is a generation and
// closes the channel of the one before, once.
func TestGenerations(t *testing.T) {
	var engine Engine
	first := engine.Current()
	policy := compile(t, input(forecast()))
	pause := Revocation{ID: "r1", Plugin: "weather", Level: LevelPause}
	for i, step := range []struct {
		name string
		do   func() uint64
		want Reason
	}{
		{"install", func() uint64 { return engine.Install(policy) }, Granted},
		{"revoke", func() uint64 { return engine.Revoke(pause) }, Revoked},
		{"revoke again", func() uint64 { return engine.Revoke(pause, Revocation{ID: "r2", Plugin: "weather", Level: LevelHalt}) }, Revoked},
		{"install again", func() uint64 { return engine.Install(compile(t, input(forecast()))) }, Revoked},
		{"restore", func() uint64 { engine.Restore("r2"); return engine.Current().Generation() }, Revoked},
		{"bump", engine.Bump, Revoked},
		{"restore the other", func() uint64 { engine.Restore("r1"); return engine.Current().Generation() }, Granted},
		{"install nothing", func() uint64 { return engine.Install(nil) }, NotReady},
	} {
		before := engine.Current()
		select {
		case <-before.Changed():
			t.Fatalf("%s: the snapshot in force reports that it is not", step.name)
		default:
		}
		if got := step.do(); got != uint64(i+1) || engine.Current().Generation() != got {
			t.Errorf("%s makes generation %d", step.name, got)
		}
		<-before.Changed()
		d := engine.Current().Decide(get(t, forecastURL), Usage{}, noon)
		if d.Reason != step.want || d.Generation != uint64(i+1) {
			t.Errorf("after %s it is %s by generation %d", step.name, d.Reason, d.Generation)
		}
	}
	<-first.Changed()
	if engine.Restore("r1") {
		t.Error("an unknown revocation is restored")
	}
}

func TestRevocationsAreKept(t *testing.T) {
	var engine Engine
	engine.Revoke(Revocation{ID: "a", Plugin: "weather"}, Revocation{ID: "b", Plugin: "weather"})
	engine.Revoke(Revocation{ID: "b", Plugin: "weather", Reason: "worse"}, Revocation{ID: "c", Plugin: "other"})
	got := engine.Current().Revocations()
	ids := []string{got[0].ID, got[1].ID, got[2].ID}
	if !slices.Equal(ids, []string{"a", "b", "c"}) || got[1].Reason != "worse" {
		t.Errorf("revocations are %+v", got)
	}
	got[0].Plugin = "changed"
	if engine.Current().Revocations()[0].Plugin != "weather" {
		t.Error("a copy is no copy")
	}
}

// TestExpiryIsAGeneration: at the end of a grant, a rule, a rule's or the
// sidecar's observing and a revocation there is a generation, and none between.
func TestExpiryIsAGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		g := forecast()
		g.NotAfter = start.Add(5 * time.Hour)
		g.Rules[0].NotAfter = start.Add(3 * time.Hour)
		g.Rules[0].Mode, g.Rules[0].ObserveUntil = ModeObserve, start.Add(time.Hour)
		more := g.Rules[0]
		more.ID, more.NotAfter = "same-end", time.Time{}
		g.Rules = append(g.Rules, more)
		in := input(g)
		in.Observe, in.ObserveUntil = true, start.Add(2*time.Hour)
		policy, problems := Compile(in, start)
		if problems != nil {
			t.Fatal(problems)
		}
		var engine Engine
		engine.Install(policy)
		engine.Revoke(
			Revocation{ID: "until", Plugin: "weather", Level: LevelPause, Until: start.Add(4*time.Hour + 30*time.Second)},
			Revocation{ID: "ever", Plugin: "other", Level: LevelPause},
		)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- engine.Run(ctx, time.Now) }()
		synctest.Wait()
		for i, after := range []time.Duration{time.Hour, 2 * time.Hour, 3 * time.Hour, 4*time.Hour + 30*time.Second, 5 * time.Hour} {
			s := engine.Current()
			time.Sleep(time.Until(start.Add(after)) - time.Nanosecond)
			synctest.Wait()
			if engine.Current() != s {
				t.Errorf("expiry %d comes early", i)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if engine.Current().Generation() != s.Generation()+1 {
				t.Errorf("expiry %d makes generation %d of %d", i, engine.Current().Generation(), s.Generation())
			}
			<-s.Changed()
		}
		last := engine.Current()
		time.Sleep(1000 * time.Hour)
		synctest.Wait()
		if engine.Current() != last {
			t.Error("there is a generation after the last expiry")
		}

		// A later installation or revocation is noticed at once.
		g.NotAfter = time.Now().Add(time.Minute)
		g.Rules = g.Rules[1:]
		policy, _ = Compile(input(g), time.Now())
		engine.Install(policy)
		engine.Revoke(Revocation{ID: "brief", Plugin: "weather", Level: LevelPause, Until: time.Now().Add(time.Second)})
		synctest.Wait()
		last = engine.Current()
		time.Sleep(time.Second)
		synctest.Wait()
		if engine.Current() == last {
			t.Error("a later revocation's end makes no generation")
		}
		last = engine.Current()
		time.Sleep(time.Minute)
		synctest.Wait()
		if engine.Current() == last {
			t.Error("a later policy's end makes no generation")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returns %v", err)
		}
	})
}

// TestExpiryBeforeRun: what ended before anyone looked is made a generation of.
func TestExpiryBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := forecast()
		g.NotAfter = time.Now().Add(time.Second)
		policy, _ := Compile(input(g), time.Now())
		var engine Engine
		engine.Install(policy)
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = engine.Run(ctx, time.Now) }()
		synctest.Wait()
		if got := engine.Current().Generation(); got != 2 {
			t.Errorf("the generation is %d", got)
		}
		cancel()
		synctest.Wait()
	})
}

// TestSteppedClock: the wall clock may jump, and is looked at every minute.
func TestSteppedClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var step time.Duration
		clock := func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(step)
		}
		set := func(by time.Duration) {
			mu.Lock()
			step += by
			mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		g := forecast()
		g.NotAfter = time.Now().Add(time.Hour)
		policy, _ := Compile(input(g), time.Now())
		var engine Engine
		engine.Install(policy)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = engine.Run(ctx, clock) }()
		synctest.Wait()
		for i, by := range []time.Duration{2 * time.Hour, -2 * time.Hour, 2 * time.Hour} {
			before := engine.Current().Generation()
			set(by)
			ended := by > 0
			if (engine.Current().Generation() > before) != ended {
				t.Errorf("step %d of %s: generation %d after %d", i, by, engine.Current().Generation(), before)
			}
		}
		cancel()
		synctest.Wait()
	})
}

// TestRevokeWhileInstalling: however replacements land together, no revocation
// is lost and every change is seen.
func TestRevokeWhileInstalling(t *testing.T) {
	var engine Engine
	policy := compile(t, input(forecast()))
	engine.Install(policy)
	ctx, cancel := context.WithCancel(t.Context())
	var watchers, writers sync.WaitGroup
	for range 4 {
		watchers.Go(func() {
			last := uint64(0)
			for {
				s := engine.Current()
				if s.Generation() < last {
					t.Errorf("generation %d after %d", s.Generation(), last)
				}
				last = s.Generation()
				select {
				case <-s.Changed():
				case <-ctx.Done():
					return
				}
			}
		})
	}
	watchers.Go(func() { _ = engine.Run(ctx, time.Now) })
	const each = 200
	for writer := range 4 {
		writers.Go(func() {
			for i := range each {
				engine.Revoke(Revocation{ID: fmt.Sprint(writer, "-", i), Plugin: "weather", Level: LevelPause})
				engine.Install(policy)
				engine.Bump()
				if i%2 == 0 && !engine.Restore(fmt.Sprint(writer, "-", i)) {
					t.Error("a revocation was lost")
				}
			}
		})
	}
	writers.Wait()
	if got := len(engine.Current().Revocations()); got != 4*each/2 {
		t.Errorf("%d revocations are left", got)
	}
	if got := engine.Current().Generation(); got != 1+4*each*3+4*each/2 {
		t.Errorf("the generation is %d", got)
	}
	cancel()
	watchers.Wait()
}

// TestFirstUseTogether: an Engine made of nothing has one first snapshot.
func TestFirstUseTogether(t *testing.T) {
	for range 100 {
		var engine Engine
		var got [4]*Snapshot
		var group sync.WaitGroup
		for i := range got {
			group.Go(func() { got[i] = engine.Current() })
		}
		group.Wait()
		if got[0] != got[1] || got[1] != got[2] || got[2] != got[3] {
			t.Fatal("there are two first snapshots")
		}
	}
}

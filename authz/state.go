package authz

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unique"
)

// State is what a [Ledger] keeps across restarts: what is used of totals, and
// the readings of the kernel's counters up to which that is so. Written down
// together and read back together, they charge what a plugin used while its
// sidecar was away once, and only once.
//
// Rates are written down apart, first, and by whoever knows the clock: they are
// moments, which a file can only state from the moment on at which it was written.
type State struct {
	Totals  []Total        `json:"totals,omitempty"`
	Samples []PluginSample `json:"samples,omitempty"`
	Rates   []Rate         `json:"-"`
}

// Rate is how one rate stands.
type Rate struct {
	Plugin string
	Grant  string
	Rule   string // "" for a rate of the whole plugin
	Kind   string
	Period time.Duration // that Empty was reckoned with
	Empty  time.Time     // when nothing of the rate is in use any more
}

// Total is what has been used of one total.
type Total struct {
	Plugin string `json:"plugin"`
	Grant  string `json:"grant"`
	Rule   string `json:"rule,omitempty"`
	Kind   string `json:"kind"`
	Used   uint64 `json:"used"`
}

// PluginSample is where a plugin's counters stood when they were last read.
type PluginSample struct {
	Plugin string    `json:"plugin"`
	At     time.Time `json:"at,omitzero"`
	Sample
}

// UnmarshalJSON reads a state, and a list of totals alone as versions before
// this one wrote it. What it does not know is an error: a state of another
// version says something that would be lost.
func (s *State) UnmarshalJSON(data []byte) error {
	type state State // without this method
	into := any((*state)(s))
	if data = bytes.TrimSpace(data); bytes.HasPrefix(data, []byte("[")) {
		into = &s.Totals
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("read what is used: %w", err)
	}
	return nil
}

// State returns every total that has been used from, every rate of which something
// is in use at now, and the last reading of every plugin's counters, in a stable
// order.
func (l *Ledger) State(now time.Time) State {
	s, _ := l.state(now, func(b *bucket) durable { return durable{b.empty(), b.used} })
	return s
}

// Reserve returns the state to write down while a plugin runs: with a little more
// used than is, so that not each access has to wait for a disk, and nothing is
// forgotten by a sidecar that is killed. due reports whether anything is used, or
// soon will be, beyond what was written down before; without it there is nothing
// to write but readings.
//
// Set aside of a rate are 2 seconds, or a 16th of its period where that is more,
// and never more than the period; of a total a 256th of what is used. A sidecar
// that is killed counts that as used.
func (l *Ledger) Reserve(now time.Time) (s State, due bool) {
	return l.state(now, func(b *bucket) durable {
		want := b.persisted
		if margin, empty := b.margin(), b.empty(); empty.After(now) && empty.Add(margin/2).After(want.tat) {
			want.tat = latest(latest(want.tat, empty), earliest(empty.Add(margin), now.Add(b.period)))
		}
		if ahead := b.used / totalShare; b.used+ahead/2 > want.used {
			want.used = b.used + ahead
		}
		return want
	})
}

// MarkPersisted takes notice that a state of [Ledger.Reserve] was written down, and that it
// survives a crash.
func (l *Ledger) MarkPersisted(s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range s.Totals {
		if b := l.named(t.Plugin, t.Grant, t.Rule, t.Kind); b != nil {
			b.persisted.used = max(b.persisted.used, t.Used)
		}
	}
	for _, r := range s.Rates {
		if b := l.named(r.Plugin, r.Grant, r.Rule, r.Kind); b != nil && b.period == r.Period {
			b.persisted.tat = latest(b.persisted.tat, r.Empty)
		}
	}
}

// Shares of limits that are set aside, see [Ledger.Reserve].
const (
	rateShare  = 16
	leastAhead = 2 * time.Second
	totalShare = 256
)

// empty returns when nothing of a rate is in use any more, rounded up.
func (b *bucket) empty() time.Time {
	if b.rest > 0 {
		return b.tat.Add(1)
	}
	return b.tat
}

// margin is what is set aside of a rate, as the time in which it lets that through.
func (b *bucket) margin() time.Duration {
	return min(max(b.period/rateShare, leastAhead), b.period)
}

// persisted reports whether what is used of some limits on requests was written down.
func (l *Ledger) persisted(own, shared []limit, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lim := range limitsOfKind(own, shared, LimitRequests, now) {
		b := l.bucket(lim.key)
		switch {
		case lim.spec.Period == 0 && b.used > b.persisted.used:
			return false
		case lim.spec.Period > 0 && b.tat.After(now) && b.empty().After(b.persisted.tat):
			return false
		}
	}
	return true
}

// state returns the state with each bucket as of decides, and whether that is
// beyond what was written down.
func (l *Ledger) state(now time.Time, of func(*bucket) durable) (s State, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, b := range l.buckets {
		name, want := key.Value(), of(b)
		if want.used > 0 {
			s.Totals = append(s.Totals, Total{name.plugin, name.grant, name.rule, name.kind.String(), want.used})
			due = due || want.used > b.persisted.used
		}
		if b.period > 0 && want.tat.After(now) {
			s.Rates = append(s.Rates, Rate{name.plugin, name.grant, name.rule, name.kind.String(), b.period, want.tat})
			due = due || want.tat.After(b.persisted.tat)
		}
	}
	for plugin, last := range l.samples {
		s.Samples = append(s.Samples, PluginSample{string(plugin), last.at.Round(0), last.sample})
	}
	slices.SortFunc(s.Totals, func(a, b Total) int {
		return byName([...]string{a.Plugin, a.Grant, a.Rule, a.Kind}, [...]string{b.Plugin, b.Grant, b.Rule, b.Kind})
	})
	slices.SortFunc(s.Rates, func(a, b Rate) int {
		return byName([...]string{a.Plugin, a.Grant, a.Rule, a.Kind}, [...]string{b.Plugin, b.Grant, b.Rule, b.Kind})
	})
	slices.SortFunc(s.Samples, func(a, b PluginSample) int { return strings.Compare(a.Plugin, b.Plugin) })
	return s, due
}

func byName(a, b [4]string) int { return slices.Compare(a[:], b[:]) }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// named returns the bucket of a limit, making it if it is missing; nil for a kind
// that is not known. The caller holds l.mu.
func (l *Ledger) named(plugin, grant, rule, kind string) *bucket {
	for _, k := range limitKinds() {
		if k.String() == kind {
			return l.bucket(unique.Make(limitName{plugin, grant, rule, k}))
		}
	}
	return nil
}

// Restore takes in what an earlier run has written down, or what the kernel still
// holds of it. Nothing used is given back by it. Where the plugin's counters are
// replaced, [Ledger.Begin] follows.
func (l *Ledger) Restore(s State, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range s.Totals {
		if b := l.named(t.Plugin, t.Grant, t.Rule, t.Kind); b != nil {
			b.used = max(b.used, t.Used)
		}
	}
	for _, r := range s.Rates {
		if b := l.named(r.Plugin, r.Grant, r.Rule, r.Kind); b != nil && r.Period > 0 {
			b.restore(r, now)
		}
	}
	for _, last := range s.Samples {
		l.samples[Principal(last.Plugin)] = reading{sample: last.Sample, at: last.At, restored: true}
	}
}

// restore fills a rate up to where it stood, unless it is fuller.
func (b *bucket) restore(r Rate, now time.Time) {
	here := max(b.tat.Sub(now), 0)
	if b.period != r.Period { // as large a share is used of one period as of the other
		here, b.rest, b.persisted.tat = rescale(here, b.period, r.Period), 0, time.Time{}
	}
	b.period = r.Period
	if b.tat = now.Add(here); r.Empty.After(b.tat) {
		b.tat, b.rest = r.Empty, 0
	}
}

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

// State is the part of a [Ledger] that survives restarts: the usage of totals,
// and the readings of the kernel's counters up to which it holds. They are written
// and read together, so that usage while the sidecar was down is charged exactly once.
//
// Rates are written separately and first, by a caller with a clock: they
// are points in time, valid from the moment of writing.
type State struct {
	Totals  []Total        `json:"totals,omitempty"`
	Samples []PluginSample `json:"samples,omitempty"`
	Rates   []Rate         `json:"-"`
}

// Rate is the state of one rate.
type Rate struct {
	Plugin string
	Grant  string
	Rule   string // "" for a rate of the whole plugin
	Kind   string
	Period time.Duration // the period that Empty was computed with
	Empty  time.Time     // when the rate will be unused
}

// Total is the usage of one total.
type Total struct {
	Plugin string `json:"plugin"`
	Grant  string `json:"grant"`
	Rule   string `json:"rule,omitempty"`
	Kind   string `json:"kind"`
	Used   uint64 `json:"used"`
}

// PluginSample is the last reading of a plugin's counters.
type PluginSample struct {
	Plugin string    `json:"plugin"`
	At     time.Time `json:"at,omitzero"`
	Sample
}

// UnmarshalJSON reads a state, or a list of totals as earlier versions wrote it.
// An unknown field is an error: it holds usage of another version that would be
// lost.
func (s *State) UnmarshalJSON(data []byte) error {
	type state State // without this method
	into := any((*state)(s))
	if data = bytes.TrimSpace(data); bytes.HasPrefix(data, []byte("[")) {
		into = &s.Totals
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("read limit usage: %w", err)
	}
	return nil
}

// State returns every total that is used, every rate that is in use at now, and
// the last reading of every plugin's counters, in a stable order.
func (l *Ledger) State(now time.Time) State {
	s, _ := l.state(now, func(b *bucket) durable { return durable{b.empty(), b.used} })
	return s
}

// Reserve returns the state to persist while a plugin runs. It contains a little
// more usage than there is, so that not every access waits for a disk and a killed
// sidecar forgets nothing. due reports whether usage exceeds, or soon will exceed,
// the persisted state; otherwise only readings have changed.
//
// Reserve adds to a rate 2 seconds, or a 16th of its period if that is more, but
// at most one period; to a total a 256th of its usage. A sidecar that is killed
// counts that as used.
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

// MarkPersisted records that a state of [Ledger.Reserve] is on disk and survives a
// crash.
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

// Shares of limits that [Ledger.Reserve] adds.
const (
	rateShare  = 16
	leastAhead = 2 * time.Second
	totalShare = 256
)

// empty returns when a rate will be unused, rounded up.
func (b *bucket) empty() time.Time {
	if b.rest > 0 {
		return b.tat.Add(1)
	}
	return b.tat
}

// margin returns the share of a rate that Reserve adds, as the time that the rate takes for it.
func (b *bucket) margin() time.Duration {
	return min(max(b.period/rateShare, leastAhead), b.period)
}

// persisted reports whether the usage of some limits on requests is on disk.
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

// state returns the state of each bucket according to of, and whether it exceeds
// the persisted state.
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

// named returns the bucket of a limit, creating it if it is missing; nil for an
// unknown kind. The caller holds l.mu.
func (l *Ledger) named(plugin, grant, rule, kind string) *bucket {
	for _, k := range limitKinds() {
		if k.String() == kind {
			return l.bucket(unique.Make(limitName{plugin, grant, rule, k}))
		}
	}
	return nil
}

// Restore adds the state that an earlier run persisted, or that the kernel still
// holds of it. It never lowers usage. If the plugin's counters are recreated,
// [Ledger.Begin] follows.
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

// restore fills a rate up to its earlier state, unless it is already fuller.
func (b *bucket) restore(r Rate, now time.Time) {
	here := max(b.tat.Sub(now), 0)
	if b.period != r.Period { // keep the same share of the period in use
		here, b.rest, b.persisted.tat = rescale(here, b.period, r.Period), 0, time.Time{}
	}
	b.period = r.Period
	if b.tat = now.Add(here); r.Empty.After(b.tat) {
		b.tat, b.rest = r.Empty, 0
	}
}

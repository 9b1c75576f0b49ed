package authz

import (
	"bytes"
	"cmp"
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
type State struct {
	Totals  []Total    `json:"totals,omitempty"`
	Samples []Standing `json:"samples,omitempty"`
}

// Total is what has been used of one total.
type Total struct {
	Plugin string `json:"plugin"`
	Grant  string `json:"grant"`
	Rule   string `json:"rule,omitempty"`
	Kind   string `json:"kind"`
	Used   uint64 `json:"used"`
}

// Standing is where a plugin's counters stood when they were last read.
type Standing struct {
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

// State returns every total that has been used from and the last reading of
// every plugin's counters, in a stable order.
func (l *Ledger) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s State
	for key, b := range l.buckets {
		if name := key.Value(); b.used > 0 {
			s.Totals = append(s.Totals, Total{name.plugin, name.grant, name.rule, name.kind.String(), b.used})
		}
	}
	for plugin, last := range l.samples {
		s.Samples = append(s.Samples, Standing{string(plugin), last.at.Round(0), last.sample})
	}
	slices.SortFunc(s.Totals, func(a, b Total) int {
		return cmp.Or(strings.Compare(a.Plugin, b.Plugin), strings.Compare(a.Grant, b.Grant),
			strings.Compare(a.Rule, b.Rule), strings.Compare(a.Kind, b.Kind))
	})
	slices.SortFunc(s.Samples, func(a, b Standing) int { return strings.Compare(a.Plugin, b.Plugin) })
	return s
}

// Restore takes in what an earlier run has left. Nothing used is given back by
// it. Where the plugin's counters are made anew, [Ledger.Begin] follows.
func (l *Ledger) Restore(s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range s.Totals {
		for _, kind := range limitKinds() {
			if kind.String() == t.Kind {
				b := l.bucket(unique.Make(limitName{t.Plugin, t.Grant, t.Rule, kind}))
				b.used = max(b.used, t.Used)
			}
		}
	}
	for _, last := range s.Samples {
		l.samples[Principal(last.Plugin)] = reading{sample: last.Sample, at: last.At, past: true}
	}
}

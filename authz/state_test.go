package authz

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTotals: what is used of totals survives a restart.
func TestTotals(t *testing.T) {
	total := Limits{Requests: Limit{3, 0}, ReceivedBytes: ByteLimit{100, 0}}
	w := limitedWorld(t, total, Limits{Requests: Limit{2, 0}})
	w.ledger.samples["weather"] = reading{at: noon}
	generation := w.engine.Current().Generation()
	changed := w.engine.Current().Changed()
	w.admit(t, get(t, forecastURL))
	if w.engine.Current().Generation() != generation {
		t.Error("a total that is not used up makes a generation")
	}
	last := w.admit(t, get(t, forecastURL))
	if w.engine.Current().Generation() != generation+1 {
		t.Error("a total that is used up makes no generation")
	}
	<-changed
	if !last.StillAllowed() {
		t.Error("the last request of a total is cut by itself")
	}
	if r := w.admit(t, get(t, forecastURL)).Decision; r.Reason != QuotaExceeded || !r.Cuts() || r.RetryAfter != 0 {
		t.Errorf("%+v", r)
	}
	w.ledger.Observe(w.engine.Current(), "weather", Sample{ReceivedBytes: 40}, noon)

	want := State{
		Totals: []Total{
			{Plugin: "weather", Grant: "weather", Kind: "receivedBytes", Used: 40},
			{Plugin: "weather", Grant: "weather", Kind: "requests", Used: 2},
			{Plugin: "weather", Grant: "weather", Rule: "read-forecast", Kind: "requests", Used: 2},
		},
		Samples: []PluginSample{{Plugin: "weather", At: noon, Sample: Sample{ReceivedBytes: 40}}},
	}
	state := w.ledger.State(noon)
	if diff := cmp.Diff(want, state); diff != "" {
		t.Error(diff)
	}
	data, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	var read State
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	again := limitedWorld(t, total, Limits{Requests: Limit{2, 0}})
	read.Totals = append(read.Totals, Total{Plugin: "weather", Kind: "cookies", Used: 7})
	again.ledger.Restore(read, noon)
	again.ledger.Restore(State{Totals: []Total{{Plugin: "zz", Grant: "g", Kind: "processes", Used: 9}}}, noon)
	want.Totals = append(want.Totals, Total{Plugin: "zz", Grant: "g", Kind: "processes", Used: 9})
	again.ledger.Restore(State{Totals: []Total{{Plugin: "weather", Grant: "weather", Kind: "requests", Used: 1}}}, noon) // no usage is returned
	if diff := cmp.Diff(want, again.ledger.State(noon)); diff != "" {
		t.Error(diff)
	}
	if r := again.admit(t, get(t, forecastURL)).Decision.Reason; r != QuotaExceeded {
		t.Errorf("after a restart it is %s", r)
	}
}

// TestStateForms reads a state of this version, and one of those before it.
func TestStateForms(t *testing.T) {
	for _, test := range []struct {
		text string
		want State
		err  string
	}{
		{`{}`, State{}, ""},
		{` [{"plugin": "weather", "grant": "g", "kind": "requests", "used": 3}]`, State{Totals: []Total{{Plugin: "weather", Grant: "g", Kind: "requests", Used: 3}}}, ""},
		{
			`{"samples": [{"plugin": "weather", "at": "2026-11-21T12:00:00Z", "connections": 1, "sentBytes": 2, "receivedBytes": 3, "syscalls": 4, "processes": 5}]}`,
			State{Samples: []PluginSample{{"weather", noon, Sample{1, 2, 3, 4, 5}}}},
			"",
		},
		{`{"totals": [], "later": 1}`, State{}, "later"},
		{`[{"plugin": "weather", "later": 1}]`, State{}, "later"},
		{`7`, State{}, "read limit usage"},
	} {
		var got State
		err := json.Unmarshal([]byte(test.text), &got)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v", test.text, err)
			}
			continue
		}
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", test.text, err, diff)
		}
	}
}

// TestAway: what was used while the sidecar was away is charged once.
func TestAway(t *testing.T) {
	limits := Limits{Syscalls: Limit{100, 0}, SentBytes: ByteLimit{1000, time.Second}}
	before := limitedWorld(t, limits, Limits{})
	before.ledger.Begin("weather", Sample{Syscalls: 5}) // counters that were there before
	before.ledger.Observe(before.engine.Current(), "weather", Sample{Syscalls: 15, SentBytes: 10}, noon)

	after := limitedWorld(t, limits, Limits{})
	after.ledger.Restore(before.ledger.State(noon), noon)
	s, now := after.engine.Current(), noon.Add(10*time.Second)
	if r := s.Decide(get(t, forecastURL), after.ledger.Usage(), noon).Reason; r != UsageUnknown {
		t.Errorf("before the counters are read in the new run it is %s", r)
	}
	for range 2 {
		after.ledger.Observe(s, "weather", Sample{Syscalls: 35, SentBytes: 8010}, now)
	}
	report := after.ledger.Report(s, "weather", now)
	if report[1].Used != 30 {
		t.Errorf("%d of the total are used, not 10 and 20", report[1].Used)
	}
	// The 8000 bytes were sent in the ten seconds, which is within the rate.
	if report[0].Used != 0 {
		t.Errorf("%d of the rate are used by what was sent over ten seconds", report[0].Used)
	}
	// Counters that are recreated begin at 0, even if more is used of some than was.
	after.ledger.Begin("weather", Sample{})
	after.ledger.Observe(s, "weather", Sample{Syscalls: 40, SentBytes: 500}, now)
	if report := after.ledger.Report(s, "weather", now); report[1].Used != 70 || report[0].Used != 500 {
		t.Errorf("%+v", report)
	}
	after.ledger.Observe(s, "weather", Sample{Syscalls: 41, SentBytes: 1}, now)
	if report := after.ledger.Report(s, "weather", now); report[1].Used != 111 || report[0].Used != 501 {
		t.Errorf("after a smaller reading: %+v", report)
	}
}

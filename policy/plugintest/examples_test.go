package plugintest

import (
	"context"
	"testing"
	"time"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// load loads suites as of noon.
func load(t *testing.T, paths ...string) []*Suite {
	t.Helper()
	suites, err := Load(Options{Now: noon}, paths...)
	if err != nil {
		t.Fatal(err)
	}
	return suites
}

// TestExamples runs the PluginTests of the examples: they use every part of every rule,
// and notice every change.
func TestExamples(t *testing.T) {
	suites := load(t, "../../examples")
	results := Run(context.Background(), suites)
	for _, r := range results {
		if r.Status != Pass {
			t.Errorf("%s:%d: %s: want %s, got %s", r.File, r.Line, r.Name, r.Expected, r.Got)
		}
	}
	if len(results) == 0 {
		t.Error("the examples hold no expectation")
	}
	if c := Cover(suites); c.Percent != 100 {
		t.Errorf("the coverage is %v", c.Text())
	}
	if m := Mutate(context.Background(), suites, nil); len(m.Survived) > 0 || m.Undecided > 0 {
		t.Errorf("Mutate = %+v, want each change noticed", m)
	}
}

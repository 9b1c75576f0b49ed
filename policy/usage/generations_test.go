package usage

import (
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// A rule is granted since the first of the generations that follow each other and have it
// unchanged.
func TestGenerations(t *testing.T) {
	at := func(n int) time.Time {
		return time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(n) * day)
	}
	generations := []Generation{{Digest: "3"}, {Digest: "2", Rules: []string{"a", "b"}}, {Digest: "1", Rules: []string{"a"}}}
	load := func(digests ...string) *loads {
		l := &loads{since: map[string]time.Time{}}
		for i, digest := range digests {
			l.add(map[string]string{"guardrail": "g", "grant": digest}, generations, at(i))
		}
		return l
	}
	for name, test := range map[string]struct {
		loaded []string
		want   []time.Time
	}{
		"in their order":        {[]string{"1", "1", "2", "3", "3"}, []time.Time{at(3), at(2), at(0)}},
		"another one between":   {[]string{"1", "x", "2", "3"}, []time.Time{at(3), at(2), at(2)}},
		"not the present one":   {[]string{"1", "2", "x"}, []time.Time{{}, {}, {}}},
		"an earlier one again":  {[]string{"1", "2", "3", "1", "3"}, []time.Time{at(4), at(4), at(0)}},
		"the present one alone": {[]string{"x", "3"}, []time.Time{at(1), at(1), at(1)}},
	} {
		if got := load(test.loaded...).back; !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	for rule, want := range map[string]bool{"a": true, "b": false, "c": false} { // 3 since day 30, 2 since day 20, 1 since day 0
		l := &loads{since: map[string]time.Time{}}
		l.add(map[string]string{"grant": "1"}, generations, at(0))
		l.add(map[string]string{"grant": "2"}, generations, at(20))
		l.add(map[string]string{"grant": "3"}, generations, at(30))
		r := &reading{options: Options{Generations: generations, Now: at(36), After: 30 * day}, loaded: map[string]*loads{"log": l}}
		r.logs = map[string]*logSpan{"log": {first: at(0), last: at(36), plugins: []string{"p"}}}
		spec := authz.Rule{ID: rule}
		why, err := r.proof(&tally{subject: &policy.Subject{Plugin: "p"}}, &ruleTally{spec: &spec}, nil)
		if err != nil || (why == "") != want {
			t.Errorf("rule %s: %q, %v", rule, why, err)
		}
	}
}

package vault

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/authz"
)

func at(mono, wall time.Duration) dualTime { return dualTime{int64(mono), int64(wall)} }

// both returns an instant at which both clocks say the same.
func both(d time.Duration) dualTime { return at(d, d) }

func TestInstant(t *testing.T) {
	t.Parallel()
	deadline := both(time.Hour)
	for name, test := range map[string]struct {
		now    dualTime
		before bool
		left   time.Duration
	}{
		"before":                        {both(time.Minute), true, 59 * time.Minute},
		"at":                            {both(time.Hour), false, 0},
		"after":                         {both(2 * time.Hour), false, -time.Hour},
		"suspended past it":             {at(time.Minute, 2*time.Hour), false, -time.Hour},
		"wall clock stepped back":       {at(2*time.Hour, time.Minute), false, -time.Hour},
		"wall clock stepped back a bit": {at(30*time.Minute, 20*time.Minute), true, 30 * time.Minute},
	} {
		if got := test.now.before(deadline); got != test.before {
			t.Errorf("%s: before = %v", name, got)
		}
		if got := test.now.until(deadline); got != test.left {
			t.Errorf("%s: until = %s", name, got)
		}
	}
	if !both(math.MaxInt64-1).before(never()) || never().add(time.Hour) != never() || never().add(-time.Hour) != never() {
		t.Error("never is not after everything")
	}
	if got := both(math.MaxInt64 - 5).add(time.Hour); got != never() {
		t.Errorf("an instant beyond the last is %v", got)
	}
	if !never().time().IsZero() {
		t.Error("never has a wall time")
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	issued := both(1000 * time.Hour)
	for _, test := range []struct {
		name                       string
		ttl, lifetime              time.Duration
		usable, refresh, spreadMax time.Duration // from issued
		capped                     bool
	}{
		{"an hour", time.Hour, 0, 57 * time.Minute, 38 * time.Minute, 38 * time.Minute / 10, false},
		{"a minute", time.Minute, 0, 57 * time.Second, 38 * time.Second, 38 * time.Second / 10, false},
		{"ten seconds", 10 * time.Second, 0, 8 * time.Second, 8 * time.Second * 2 / 3, 534 * time.Millisecond, false},
		{"a second", time.Second, 0, 500 * time.Millisecond, time.Second / 3, 34 * time.Millisecond, false},
		{"nothing", 0, 0, 0, 0, 0, false},
		{"ceiling below", time.Hour, 10 * time.Minute, 9*time.Minute + 30*time.Second, 380 * time.Second, 38 * time.Second, true},
		{"ceiling above", time.Hour, 2 * time.Hour, 57 * time.Minute, 38 * time.Minute, 38 * time.Minute / 10, false},
		{"ten years", seconds(math.MaxInt), 0, seconds(math.MaxInt) / 20 * 19, seconds(math.MaxInt) / 30 * 19, seconds(math.MaxInt) / 300 * 19, false},
	} {
		for _, random := range []float64{-1, 0, 1} {
			w := newWindow(issued, test.ttl, ceiling(issued, test.lifetime), random)
			if got := issued.until(w.notAfter); got != test.usable {
				t.Errorf("%s: usable for %s, want %s", test.name, got, test.usable)
			}
			want := test.refresh + time.Duration(random*float64(test.spreadMax))
			if got := issued.until(w.refreshAt); (got - want).Abs() > time.Millisecond+test.refresh/1000 {
				t.Errorf("%s: refreshed after %s, want %s", test.name, got, want)
			}
			if w.capped != test.capped || w.ends != issued.add(test.ttl) {
				t.Errorf("%s: %+v", test.name, w)
			}
		}
	}
	if w := newWindow(issued, math.MaxInt64, never(), 0); w.notAfter != never() || w.refreshAt != never() {
		t.Errorf("without an end: got %+v", w)
	}
	if seconds(-1) != 0 || seconds(math.MaxInt) <= 0 {
		t.Errorf("durations out of range: %s %s", seconds(-1), seconds(math.MaxInt))
	}
}

// A Vault that grants what it is asked for up to a maximum since the lease was
// made, followed for a day: a lease is in use at every moment, never past its
// end, and no more are made than the maximum and the ceiling require.
func TestScheduleOfADay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name                 string
		ttl, maxTTL, ceiling time.Duration
		renewable            bool
		mints                int // at most
	}{
		{"renewed for ever", time.Hour, 1000 * time.Hour, 0, true, 1},
		{"maximum of a day", time.Hour, 24 * time.Hour, 0, true, 2},
		{"maximum of an hour and a half", time.Hour, 90 * time.Minute, 0, true, 24},
		{"not renewable", time.Hour, time.Hour, 0, false, 44},
		{"ceiling below", time.Hour, 24 * time.Hour, 15 * time.Minute, true, 170},
		{"ceiling above", 10 * time.Minute, 24 * time.Hour, 3 * time.Hour, true, 12},
	} {
		t.Run(test.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			spread := func() float64 { return 2*random.Float64() - 1 }
			now, endOfDay := both(0), both(24*time.Hour)
			s := sessionUntil(never())
			mints := 0
			var l *lease
			for now.before(endOfDay) {
				if l != nil && !now.before(l.usableUntil()) {
					t.Fatalf("at %s there is no lease", time.Duration(now.mono))
				}
				if l != nil && l.renews() {
					asked := l.increment(now, test.ceiling)
					granted := min(asked, now.until(l.minted.add(test.maxTTL)))
					l = l.renewed(now, asked, granted.Truncate(time.Second), test.ceiling, spread())
				} else {
					l = &lease{id: "x", session: s, minted: now, granted: test.ttl, renewable: test.renewable}
					l.window = newWindow(now, test.ttl, ceiling(now, test.ceiling), spread())
					mints++
				}
				if held := now.until(l.notAfter) + l.minted.until(now); test.ceiling > 0 && held > test.ceiling {
					t.Fatalf("a lease may be held for %s", held)
				}
				if vaults := min(l.issuedFor(now), l.minted.until(l.notAfter)); vaults > test.maxTTL {
					t.Fatalf("a lease may be used for %s", vaults)
				}
				now = l.refreshAt.add(50 * time.Millisecond) // the request takes a while
			}
			if mints > test.mints {
				t.Errorf("%d leases were made, want at most %d", mints, test.mints)
			}
		})
	}
}

func (l *lease) issuedFor(now dualTime) time.Duration { return now.until(l.ends) }

func TestTokenIsFit(t *testing.T) {
	t.Parallel()
	s := sessionUntil(both(57 * time.Minute))
	s.ttl = time.Hour
	for _, test := range []struct {
		now, need time.Duration
		fit       bool
	}{
		{0, 0, true},
		{28 * time.Minute, 0, true},
		{29 * time.Minute, 0, false},
		{29 * time.Minute, 24 * time.Hour, false},
		{29 * time.Minute, 5 * time.Minute, true},
		{53 * time.Minute, 5 * time.Minute, false},
		{57 * time.Minute, time.Second, false},
	} {
		if got := s.outlives(both(test.now), test.need); got != test.fit {
			t.Errorf("after %s, for a lease of %s: fit = %v", test.now, test.need, got)
		}
	}
	if !sessionUntil(never()).outlives(both(0), time.Hour) {
		t.Error("a token that does not end is not fit")
	}
	dead := sessionUntil(never())
	dead.dead.Store(true)
	if dead.outlives(both(0), 0) || (*session)(nil).outlives(both(0), 0) {
		t.Error("a dead token is fit")
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for failures, longest := range map[int]time.Duration{
		0: 500 * time.Millisecond, 1: 500 * time.Millisecond, 2: time.Second, 5: 8 * time.Second, 7: 30 * time.Second,
		8: 30 * time.Second, 1000: 30 * time.Second, math.MaxInt: 30 * time.Second,
	} {
		if got := backoff(failures, 0); got != 250*time.Millisecond {
			t.Errorf("after %d failures at least %s", failures, got)
		}
		if got := backoff(failures, 1); got != longest {
			t.Errorf("after %d failures at most %s, want %s", failures, got, longest)
		}
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, answer string
		trim         bool
		fields       map[string]string
		pem          []string
		withheld     []string
		err          string
	}{
		{name: "version 2", answer: `{"data":{"data":{"k":"v"},"metadata":{"version":3}}}`, fields: map[string]string{"k": "v"}},
		{name: "version 1", answer: `{"data":{"k":"v"}}`, fields: map[string]string{"k": "v"}},
		{name: "version 1 with a field data", answer: `{"data":{"data":"v"}}`, fields: map[string]string{"data": "v"}},
		{
			name: "numbers as written", answer: `{"data":{"a":10000000000000000001,"b":1.50,"c":true,"d":null,"e":{},"f":[]}}`,
			fields: map[string]string{"a": "10000000000000000001", "b": "1.50", "c": "true"},
		},
		{name: "beyond ASCII", answer: `{"data":{"k":"pässword 世"}}`, fields: map[string]string{"k": "pässword 世"}},
		{
			name: "withheld", answer: `{"data":{"k":"v","pem":"a\nb","z":"","nul":"a\u0000","del":"\u007f"}}`,
			fields: map[string]string{"k": "v"}, withheld: []string{"del", "nul", "pem", "z"},
		},
		{name: "a line break, declared", trim: true, answer: `{"data":{"k":"v\n"}}`, fields: map[string]string{"k": "v"}},
		{name: "a line break of Windows, declared", trim: true, answer: `{"data":{"k":"v\r\n"}}`, fields: map[string]string{"k": "v"}},
		{name: "a carriage return alone", trim: true, answer: `{"data":{"k":"v\r"}}`, err: `field "k"`},
		{
			name: "nested", answer: `{"data":{"db":{"user":"u","tls":{"mode":"full"},"n":1},"db.n":"flat","x":["a"]}}`,
			fields: map[string]string{"db.user": "u", "db.tls.mode": "full", "db.n": "flat"},
		},
		{
			name: "version 1 like version 2", answer: `{"lease_duration":2764800,"data":{"data":{"k":"v"},"metadata":{"version":1}}}`,
			fields: map[string]string{"data.k": "v", "metadata.version": "1"},
		},
		{name: "two line breaks, one declared", trim: true, answer: `{"data":{"k":"v\n\n"}}`, err: `field "k"`},
		{name: "a line break alone", trim: true, answer: `{"data":{"k":"\n"}}`, err: `field "k"`},
		{
			name: "PEM", answer: `{"data":{"k":"v","crt":"-----BEGIN A-----\nAAAA\n-----END A-----","ca_chain":["-----BEGIN A-----\nAAAA\n-----END A-----\n"]}}`,
			fields: map[string]string{"k": "v"}, pem: []string{"ca_chain", "crt"},
		},
		{
			name: "not only PEM", answer: `{"data":{"k":"v","crt":"-----BEGIN A-----\nAAAA\n-----END A-----\nX-Evil: 1\n"}}`,
			fields: map[string]string{"k": "v"}, withheld: []string{"crt"},
		},
		{name: "all withheld", answer: `{"data":{"k":"v\n"}}`, err: `field "k"`},
		{name: "header injection", answer: `{"data":{"k":"v\r\nX-Evil: 1"}}`, err: `field "k"`},
		{name: "deleted", answer: `{"data":{"data":null,"metadata":{"version":3}}}`, err: "deleted"},
		{name: "no data", answer: `{"lease_id":"a/b"}`, err: "no fields"},
		{name: "nothing usable", answer: `{"data":{"a":{}}}`, err: "no fields that are text"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := fieldsOf(parse(t, test.answer), test.trim)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("err = %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.fields, revealed(got.text)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.pem, slices.Sorted(maps.Keys(got.pem))); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.withheld, got.unsendableNames); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func parse(t testing.TB, text string) *api.Secret {
	t.Helper()
	answer, err := api.ParseSecret(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func revealed(fields map[string]authz.Secret) map[string]string {
	out := make(map[string]string, len(fields))
	for name, value := range fields {
		out[name] = value.Reveal()
	}
	return out
}

func FuzzFields(f *testing.F) {
	for _, seed := range []string{
		`{"data":{"data":{"k":"v"},"metadata":{"version":3}}}`, `{"data":{"k":"v\n","n":1e400}}`, `{"data":null}`, `{}`, `null`, `[]`,
		`{"data":{"data":[],"metadata":{"version":{}}}}`, `{"lease_id":1}`, `{"lease_duration":1e9}`, `{"errors":["a"],"data":{}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		answer, err := api.ParseSecret(strings.NewReader(text))
		if err != nil {
			return
		}
		fields, err := fieldsOf(answer, len(text)%2 == 0)
		if (err == nil) != (len(fields.text)+len(fields.pem) > 0) {
			t.Fatalf("fields %v, error %v", slices.Collect(maps.Keys(fields.text)), err)
		}
		for name, value := range fields.text {
			if slices.Contains(fields.unsendableNames, name) {
				t.Errorf("field %q is both served and withheld", name)
			}
			if v := value.Reveal(); v == "" || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("field %q would end a header", name)
			}
		}
	})
}

func TestMask(t *testing.T) {
	t.Parallel()
	got := mask("database/creds/reader/5Zb1sJ2tMockedUniquePart")
	if !strings.HasPrefix(got, "database/creds/reader/#") || strings.Contains(got, "5Zb1") {
		t.Errorf("mask = %q", got)
	}
	if got := mask("accessor"); strings.Contains(got, "accessor") || got == mask("accessor2") {
		t.Errorf("mask = %q", got)
	}
}

// sessionUntil returns a session whose token ends at an instant.
func sessionUntil(end dualTime) *session {
	s := &session{}
	s.life.Store(&tokenLife{notAfter: end})
	return s
}

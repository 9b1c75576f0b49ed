package sidecar

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestWrittenRates reads rates back when time has passed, on each clock.
func TestWrittenRates(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	rate := authz.Rate{Plugin: "weather", Grant: "g", Rule: "r", Kind: "requests", Period: time.Hour, Empty: at.Add(time.Minute)}
	written := writeRates([]authz.Rate{rate}, at)
	written.Boot, written.SinceBoot = "one", 100*time.Second
	data := testenv.MustGet(json.Marshal(written))(t)
	for name, c := range map[string]struct {
		now       time.Duration // since at, on the wall
		boot      string
		sinceBoot time.Duration
		left      time.Duration
	}{
		"at once":                        {0, "one", 100 * time.Second, time.Minute},
		"later":                          {20 * time.Second, "one", 120 * time.Second, 40 * time.Second},
		"the wall clock was set forward": {24 * time.Hour, "one", 101 * time.Second, 59 * time.Second},
		"the wall clock was set back":    {-24 * time.Hour, "one", 101 * time.Second, 59 * time.Second},
		"emptied":                        {time.Hour, "one", 200 * time.Second, 0},
		"another boot":                   {20 * time.Second, "two", 5 * time.Second, 40 * time.Second},
		"another boot, set back":         {-time.Hour, "two", 5 * time.Second, time.Minute},
		"a machine put back":             {0, "one", 50 * time.Second, time.Minute},
		"no boot clock":                  {20 * time.Second, "", 0, 40 * time.Second},
	} {
		var read writtenRates
		testenv.Must(t, json.Unmarshal(data, &read))
		now := at.Add(c.now)
		got, err := read.standing(now, c.boot, c.sinceBoot)
		var want []authz.Rate
		if c.left > 0 {
			want = []authz.Rate{rate}
			want[0].Empty = now.Add(c.left)
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	for _, bad := range []writtenRate{{Period: 0, Debt: 1}, {Period: 1, Debt: -1}} {
		if _, err := (&writtenRates{Rates: []writtenRate{bad}}).standing(at, "", 0); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

package audit_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/audit"
)

// Times are as the standard library formats them, whichever was formatted before.
func TestTimesAreRFC3339(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		second := rapid.Int64Range(-62135596800, 253402300799) // years 1 to 9999
		nano := rapid.OneOf(rapid.Int64Range(0, 999_999_999), rapid.SampledFrom([]int64{0, 1, 1e3, 1e8, 999_999_000}))
		zone := rapid.SampledFrom([]*time.Location{time.UTC, time.Local, time.FixedZone("", -3600*11)})
		var times []time.Time
		at := second.Draw(t, "second")
		for range rapid.IntRange(1, 8).Draw(t, "times") {
			at += rapid.Int64Range(-1, 1).Draw(t, "step")
			times = append(times, time.Unix(at, nano.Draw(t, "nano")).In(zone.Draw(t, "zone")))
		}
		for i, got := range audit.FormatTimes(times) {
			if want := times[i].UTC().Format(time.RFC3339Nano); got != want {
				t.Fatalf("%v after %v: got %s, want %s", times[i], times[:i], got, want)
			}
		}
	})
}

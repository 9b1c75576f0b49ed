package database

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestIdleNeeded lets sessions end only once they are due, asks for less and less idleness
// towards the end of the value, and never for less than a test and its statement take.
func TestIdleNeeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := time.Unix(1<<30, 0)
		window := time.Duration(rapid.Int64Range(int64(time.Second), int64(time.Hour)).Draw(t, "window"))
		r := retirement{from, from.Add(window)}
		share := rapid.Float64Range(0, 1).Draw(t, "share")
		a := time.Duration(rapid.Int64Range(0, int64(window)).Draw(t, "a"))
		b := time.Duration(rapid.Int64Range(int64(a), int64(window)).Draw(t, "b"))
		earlier, dueEarlier := r.idleNeeded(from.Add(a), share)
		later, dueLater := r.idleNeeded(from.Add(b), share)
		switch {
		case dueEarlier && !dueLater:
			t.Fatal("a session that was due is not due later")
		case dueEarlier && later > earlier:
			t.Fatalf("%s of idleness are needed later, and %s before", later, earlier)
		case dueLater && (later < shortestIdle || later > longestIdle):
			t.Fatalf("%s of idleness are needed", later)
		}
		if _, due := r.idleNeeded(r.to, share); !due {
			t.Fatal("a session is not due when its value ends")
		}
		if needed, _ := r.idleNeeded(r.to, share); needed != shortestIdle {
			t.Fatalf("%s of idleness are needed at the end", needed)
		}
	})
}

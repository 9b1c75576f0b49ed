package sidecar

import (
	"testing"
	"time"
)

// TestClock has a clock that does not go back behind the latest time that it saw, and
// goes on from there.
func TestClock(t *testing.T) {
	var c clock
	if d := time.Since(c.Now()); d < -time.Second || d > time.Second {
		t.Errorf("the zero clock is off by %s", d)
	}
	ahead := time.Now().Add(time.Hour)
	if got := c.see(ahead); !got.Equal(ahead) {
		t.Errorf("saw %s, and it is %s", ahead, got)
	}
	first := c.Now()
	time.Sleep(2 * time.Millisecond)
	if second := c.Now(); first.Before(ahead) || !second.After(first) || second.Sub(ahead) > time.Minute {
		t.Errorf("after %s it is %s and then %s", ahead, first, second)
	}
	if got := c.see(time.Now()); got.Before(first) {
		t.Errorf("an earlier time sets it back to %s", got)
	}
}

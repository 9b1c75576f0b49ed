package report

import (
	"testing"
	"time"
)

// TestSummary counts evidence that is older than its submission as no wait.
func TestSummary(t *testing.T) {
	at := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	s := summary([]Request{{Submitted: at, Evidence: at.Add(-time.Hour)}, {Submitted: at, Evidence: at.Add(time.Hour)}})
	if want := (Times{2, 0, time.Hour.Seconds()}); s.ToEvidence != want {
		t.Errorf("got %+v, want %+v", s.ToEvidence, want)
	}
}

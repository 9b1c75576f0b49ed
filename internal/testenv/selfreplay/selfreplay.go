// Package selfreplay checks the audit logs that tests produce: every access that can be
// replayed must be decided again as it was, by the same rule and for the same reason,
// under the policy that was in force. A difference is a field that the log lacks.
package selfreplay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/replay"
)

// AtEnd checks the log of a Sidecar's file when the test ends. The caller has created the
// test's folder before, and starts sidecars after.
func AtEnd(t testing.TB, sidecar string) {
	t.Helper()
	t.Cleanup(func() { check(t, sidecar) })
}

// load is a load of files that the log records.
type load struct {
	seq        uint64
	generation uint64
	start      bool // of a sidecar, whose generations begin again
	present    bool // the files have the same content now
}

// check replays the accesses that were decided by the files as they are now. Tests change
// files, remove logs and damage them, and what is gone is left out.
func check(t testing.TB, sidecar string) {
	subjects, err := policy.Load(time.Now(), policy.Options{}, sidecar)
	if err != nil || len(subjects) != 1 {
		t.Logf("self-replay left out: %v", err)
		return
	}
	file := subjects[0].Sidecar.Audit.File
	if _, err := os.Stat(file); err != nil {
		return
	}
	var loads []load
	reader, err := accesslog.Open(accesslog.Options{
		Paths: []string{file}, StateDir: subjects[0].Sidecar.StateDir, Unverified: true,
		Event: func(e *accesslog.Event) error {
			if e.Kind == string(authz.KindReload) && len(e.Files) > 0 {
				loads = append(loads, load{e.Seq, e.Generation, e.Actor == "start", present(e.Files)})
			}
			return nil
		},
	})
	if err != nil {
		t.Logf("self-replay left out: %v", err)
		return
	}
	r, err := replay.New(subjects, replay.Options{})
	if err != nil {
		t.Error(err)
		return
	}
	left := 0
	for a, err := range reader.Accesses(context.Background()) {
		switch {
		case err != nil:
			t.Logf("self-replay ended: %v", err)
		case a.NotReplayable == "" && !inForce(loads, a):
			left++
		default:
			if err := r.Take(a); err != nil {
				t.Error(err)
			}
		}
	}
	report(t, r.Result(), left)
}

// present reports whether files have the recorded digests.
func present(files map[string]string) bool {
	for path, digest := range files {
		data, err := os.ReadFile(path)
		sum := sha256.Sum256(data)
		if err != nil || hex.EncodeToString(sum[:]) != digest {
			return false
		}
	}
	return true
}

// inForce reports whether the files, as they are now, decided the access.
func inForce(loads []load, a *accesslog.Access) bool {
	found := false
	for i, l := range loads {
		switch {
		case l.seq < a.Seq && l.start:
			found = l.present // a sidecar started
		case l.seq < a.Seq || l.generation <= a.Generation && !startsBetween(loads[:i+1], a.Seq):
			found = l.present // the record of a load is written after it
		}
	}
	return found
}

// startsBetween reports whether a sidecar started behind seq.
func startsBetween(loads []load, seq uint64) bool {
	return slices.ContainsFunc(loads, func(l load) bool { return l.start && l.seq > seq })
}

func report(t testing.TB, r replay.Result, left int) {
	for _, list := range []struct {
		what    string
		changes []replay.Change
	}{{"refused", r.Breaks}, {"allowed", r.Widens}, {"decided by another rule", r.Changed}, {"refused for another reason", r.OtherReason}} {
		for _, c := range list.changes {
			t.Errorf("self-replay: %d accesses are %s: got %+v, recorded %+v, as %s %s (decision %s, %s:%d)",
				c.Count, list.what, c.New, c.Old, c.Sample.Method, c.Sample.URL, c.Sample.Decision, c.Sample.File, c.Sample.Line)
		}
	}
	var text strings.Builder
	for _, why := range slices.Sorted(maps.Keys(r.NotReplayable)) {
		fmt.Fprintf(&text, ", %s %d", why, r.NotReplayable[why])
	}
	t.Logf("self-replay: %d accesses, %d by other files%s", r.Accesses, left, text.String())
}

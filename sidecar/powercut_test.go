package sidecar

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// discard records nothing.
type discard struct{}

func (discard) Record(*authz.Record) error      { return nil }
func (discard) RecordAll([]*authz.Record) error { return nil }

// newTestControl returns a PolicyControl with a stateDir of fsys, started: what earlier
// ones have kept is in force.
func newTestControl(t *testing.T, fsys atomicfile.FS, dir string) *PolicyControl {
	t.Helper()
	c := &PolicyControl{
		cfg:    PolicyConfig{Plugin: "weather", Recorder: func() authz.BatchRecorder { return discard{} }, Log: zap.NewNop()},
		engine: new(authz.Engine), ledger: authz.NewLedger(), state: &state{dir: dir, files: fsys},
	}
	testenv.Must(t, c.state.revocationsInto(c.engine))
	testenv.Must(t, c.restoreUsed())
	return c
}

// atEveryCut calls use with a disk whose power is cut after 0, 1, 2 ... operations,
// until use reports that it was not cut short; check then starts on what is left.
func atEveryCut(t *testing.T, use func(t *testing.T, disk *powercut.Disk, dir string) (whole bool), check func(t *testing.T, dir string)) {
	t.Helper()
	for _, loss := range powercut.Losses() {
		t.Run(loss.String(), func(t *testing.T) {
			whole := false
			for after := 0; !whole; after++ {
				dir := t.TempDir()
				before := newTestControl(t, nil, dir) // something was kept before
				before.engine.Revoke(revocationOf("old"))
				before.ledger.Restore(usedOf(100), time.Now())
				if failed := before.keepRevocation(revocationOf("old"), ""); len(failed) > 0 {
					t.Fatal(failed)
				}
				testenv.Must(t, before.saveUsed())
				disk := testenv.MustGet(powercut.New(dir))(t)
				disk.CutAfter(after)
				whole = use(t, disk, dir)
				testenv.Must(t, disk.Cut(loss))
				check(t, dir)
			}
		})
	}
}

func revocationOf(id string) authz.Revocation {
	return authz.Revocation{ID: id, Plugin: "weather", Level: authz.LevelQuarantine, Reason: "test", At: time.Unix(1, 0).UTC()}
}

func usedOf(bytes uint64) authz.State {
	return authz.State{Totals: []authz.Total{{Plugin: "weather", Grant: "g", Kind: authz.LimitSentBytes.String(), Used: bytes}}}
}

// TestRevocationsSurvivePowerCut checks that a revocation that was confirmed is in
// force at the next start, and an earlier one whenever the power is cut.
func TestRevocationsSurvivePowerCut(t *testing.T) {
	confirmed := false
	atEveryCut(t, func(t *testing.T, disk *powercut.Disk, dir string) bool {
		c := newTestControl(t, disk, dir)
		c.engine.Revoke(revocationOf("new"))
		confirmed = len(c.keepRevocation(revocationOf("new"), "")) == 0
		return confirmed
	}, func(t *testing.T, dir string) {
		var ids []string
		for _, r := range newTestControl(t, nil, dir).engine.Current().Revocations() {
			ids = append(ids, r.ID)
		}
		if !slices.Contains(ids, "old") || confirmed && !slices.Contains(ids, "new") {
			t.Errorf("got revocations %q in force, want old and, if it was confirmed (%v), new", ids, confirmed)
		}
	})
}

// TestTotalsSurvivePowerCut checks that no total is lower at the next start than it was
// when it was last written down.
func TestTotalsSurvivePowerCut(t *testing.T) {
	var saved error
	atEveryCut(t, func(t *testing.T, disk *powercut.Disk, dir string) bool {
		c := newTestControl(t, disk, dir)
		c.ledger.Restore(usedOf(250), time.Now())
		saved = c.saveUsed()
		if saved != nil && !errors.Is(saved, powercut.ErrCut) {
			t.Fatal(saved)
		}
		return saved == nil
	}, func(t *testing.T, dir string) {
		want := uint64(100)
		if saved == nil {
			want = 250
		}
		totals := newTestControl(t, nil, dir).ledger.State(time.Now()).Totals
		if len(totals) != 1 || totals[0].Used < want {
			t.Errorf("got totals %+v, want at least %d (saved: %v)", totals, want, saved)
		}
	})
}

// TestTemporaryFilesAreRemoved checks that a start removes the temporary files of
// earlier ones that a crash left.
func TestTemporaryFilesAreRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	whole := false
	for after := 0; !whole; after++ {
		first := testenv.MustGet(openState(dir))(t)
		disk := testenv.MustGet(powercut.New(dir))(t)
		first.files = disk
		disk.CutAfter(after)
		whole = first.save(revocationsFile, nil) == nil
		testenv.Must(t, first.Close())
		second := testenv.MustGet(openState(dir))(t)
		left := testenv.MustGet(filepath.Glob(filepath.Join(dir, ".*")))(t)
		if len(left) > 0 {
			t.Errorf("got %q after %d operations, want no temporary file", left, after)
		}
		testenv.Must(t, second.Close())
	}
}

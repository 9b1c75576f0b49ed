package hostrevocations

import (
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func revocationOf(id string) authz.Revocation {
	return authz.Revocation{ID: id, Level: authz.LevelQuarantine, Reason: "a test", At: time.Unix(1, 0).UTC()}
}

// atEveryCut calls change with a store that has the revocation "old" and whose power is
// cut after 0, 1, 2 ... operations, until one is not cut short; check gets the ids that
// are in force for a plugin at the next start.
func atEveryCut(t *testing.T, change func(*Store) error, check func(t *testing.T, confirmed bool, inForce []string)) {
	t.Helper()
	for _, loss := range powercut.Losses() {
		t.Run(loss.String(), func(t *testing.T) {
			for after, confirmed := 0, false; !confirmed; after++ {
				dir := t.TempDir()
				testenv.MustGet(New(dir).Revoke(revocationOf("old")))(t)
				disk := testenv.MustGet(powercut.New(dir))(t)
				disk.CutAfter(after)
				confirmed = change(&Store{dirs: []string{dir}, files: disk}) == nil
				testenv.Must(t, disk.Cut(loss))
				var ids []string
				for _, r := range testenv.MustGet(New(dir).Read())(t).InForce("weather") {
					ids = append(ids, r.ID)
				}
				check(t, confirmed, ids)
			}
		})
	}
}

// TestRevocationsSurvivePowerCut checks that a confirmed revocation is in force at the
// next start, and an earlier one whenever the power is cut.
func TestRevocationsSurvivePowerCut(t *testing.T) {
	atEveryCut(t, func(s *Store) error {
		_, err := s.Revoke(revocationOf("new"))
		return err
	}, func(t *testing.T, confirmed bool, inForce []string) {
		if !slices.Contains(inForce, "old") || confirmed && !slices.Contains(inForce, "new") {
			t.Errorf("got revocations %q in force, want old and, if it was confirmed (%v), new", inForce, confirmed)
		}
	})
}

// TestRestorationsSurvivePowerCut checks that a confirmed restoration lifts its revocation
// at the next start too, and one that was cut short leaves a file that can be read.
func TestRestorationsSurvivePowerCut(t *testing.T) {
	atEveryCut(t, func(s *Store) error {
		return s.Restore(Restoration{ID: "old", Reason: "a test"})
	}, func(t *testing.T, confirmed bool, inForce []string) {
		if confirmed && len(inForce) > 0 {
			t.Errorf("got revocations %q in force after a confirmed restoration, want none", inForce)
		}
	})
}

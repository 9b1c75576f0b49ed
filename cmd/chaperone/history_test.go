package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestStateHistory starts a sidecar on a stateDir to which something has happened
// since the last run: its history is not lost in silence.
func TestStateHistory(t *testing.T) {
	cp := func(t *testing.T, from, to string) {
		t.Helper()
		testenv.Must(t, exec.CommandContext(t.Context(), "cp", "-a", from, to).Run())
	}
	first := newEnv(t, "off", "")
	for _, c := range []struct {
		name    string
		happens func(t *testing.T, w *env, state string) // after a revocation and a copy made before it
		says    string
		left    int // revocations
	}{
		{"moved away", func(*testing.T, *env, string) {}, "it is missing", 0},
		{"an older copy", func(t *testing.T, _ *env, state string) { cp(t, state+".before", state) }, "it is an older copy", 0},
		{"its revocations removed", func(t *testing.T, _ *env, state string) {
			cp(t, state+".gone", state)
			testenv.Must(t, os.Remove(filepath.Join(state, "revocations.json")))
		}, "revocations.json is missing", 0},
		{"its key and log removed", func(t *testing.T, _ *env, state string) {
			cp(t, state+".gone", state)
			for _, name := range []string{"audit.key", "audit.head", "audit.jsonl"} {
				testenv.Must(t, os.Remove(filepath.Join(state, name)))
			}
		}, "audit.key is missing", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := first.another(t, "")
			state := w.File("state")
			if r := w.Run("true"); r.Status != 0 {
				t.Fatalf("status %d\n%s", r.Status, r.Stderr)
			}
			cp(t, state, state+".before")
			w.Revoke("--level", "halt")
			testenv.Must(t, os.Rename(state, state+".gone"))
			c.happens(t, w, state)

			r := w.Run("true")
			if r.Status != exitSidecar {
				t.Errorf("status %d\n%s", r.Status, r.Stderr)
			}
			scenario.Contains(t, r.Stderr, "stateDir "+state+" has lost its history: "+c.says, "left 1 revocation in force", "chaperone statedir accept --config "+w.File("sidecar.yaml"))

			// Put back, it is what it was.
			aside := state + ".aside"
			_ = os.Rename(state, aside) // one that is missing was not made
			testenv.Must(t, os.Rename(state+".gone", state))
			if r := w.Run("true"); r.Status != exitSidecar || !strings.Contains(r.Stderr, "weather is halted") {
				t.Errorf("put back: status %d\n%s", r.Status, r.Stderr)
			}

			// Accepted as it is, it is started with.
			testenv.Must(t, os.RemoveAll(state))
			_ = os.Rename(aside, state)
			if r := w.Chaperone("statedir", "accept", "--config", w.File("sidecar.yaml")); r.Status != exitUsage {
				t.Errorf("without a reason: status %d\n%s", r.Status, r.Stderr)
			}
			r = w.Chaperone("statedir", "accept", "--config", w.File("sidecar.yaml"), "--reason", "the disk died")
			if r.Status != 0 {
				t.Errorf("status %d\n%s", r.Status, r.Stderr)
			}
			scenario.Contains(t, r.Stdout, "has lost its history: ", "accepted; "+phrase.Counted(c.left, "revocation is", "revocations are")+" in force")
			if r := w.Run("true"); (r.Status == 0) != (c.left == 0) {
				t.Errorf("accepted: status %d\n%s", r.Status, r.Stderr)
			}
			scenario.Contains(t, w.audit(), "accepted by chaperone statedir accept", "the disk died")
			scenario.Contains(t, w.Chaperone("statedir", "accept", "--config", w.File("sidecar.yaml"), "--reason", "again").Stdout, "it is unchanged")
		})
	}
}

// TestStateHistoryOffline revokes and restores while no sidecar runs, which is no
// history that is lost.
func TestStateHistoryOffline(t *testing.T) {
	w := newEnv(t, "off", "")
	for range 2 {
		if r := w.Run("true"); r.Status != 0 {
			t.Fatalf("status %d\n%s", r.Status, r.Stderr)
		}
		id := w.Revoke("--level", "halt").ID
		if r := w.Run("true"); r.Status != exitSidecar || !strings.Contains(r.Stderr, "weather is halted") {
			t.Errorf("status %d\n%s", r.Status, r.Stderr)
		}
		if r := w.Chaperone("restore", id, "--config", w.File("sidecar.yaml"), "--reason", "done"); r.Status != 0 {
			t.Errorf("restore: status %d\n%s", r.Status, r.Stderr)
		}
	}
}

// TestStateBegunAgain: who may alone remove a stateDir may begin afresh, unless it is
// missing with revocations in it, which a disk that is not mounted looks like.
func TestStateBegunAgain(t *testing.T) {
	first := newEnv(t, "off", "")
	for _, c := range []struct {
		name             string
		revoked, emptied bool
		says             string
	}{
		{"removed", false, false, "it is missing; the last change"},
		{"emptied", false, true, "it is empty; the last change"},
		{"emptied with a revocation in it", true, true, "left 1 revocation in force"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := first.another(t, "")
			if r := w.Run("true"); r.Status != 0 {
				t.Fatalf("status %d\n%s", r.Status, r.Stderr)
			}
			if c.revoked {
				w.Revoke("--level", "halt")
			}
			testenv.Must(t, os.RemoveAll(w.File("state")))
			if c.emptied {
				testenv.Must(t, os.Mkdir(w.File("state"), 0o700))
			}
			r := w.Run("true")
			if r.Status != 0 {
				t.Fatalf("status %d\n%s", r.Status, r.Stderr)
			}
			scenario.Contains(t, r.Stderr, c.says, "it was begun again")
			scenario.Contains(t, w.audit(), c.says)
			if r := w.Run("true"); r.Status != 0 || strings.Contains(r.Stderr, "begun again") {
				t.Errorf("once more: status %d\n%s", r.Status, r.Stderr)
			}
		})
	}
}

// TestReplaceableState: a stateDir in a folder of the plugin's user is started on,
// and none that the plugin puts in its place, or puts back once a revocation was
// lost by that.
func TestReplaceableState(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	w := newEnv(t, "off", "")
	testenv.Must(t, os.Mkdir(w.File("home"), 0o755))
	testenv.Must(t, os.Chown(w.File("home"), 54321, 54321))
	state := w.File("home/state")
	w.Write("sidecar.yaml", strings.NewReplacer(
		"stateDir: state", "stateDir: home/state", `metrics: "127.0.0.1:0"}`, `metrics: "127.0.0.1:0", admin: "unix:admin.sock"}`,
	).Replace(w.Read("sidecar.yaml")))
	r := w.Run("true")
	if r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	scenario.Contains(t, r.Stderr, "state replaceable", "belongs to uid 54321", "stops the next start")
	testenv.Must(t, os.Rename(state, state+".gone"))
	if r := w.Run("true"); r.Status != exitSidecar || !strings.Contains(r.Stderr, "has lost its history: it is missing") {
		t.Errorf("moved away: status %d\n%s", r.Status, r.Stderr)
	}
	testenv.Must(t, os.Mkdir(state, 0o700))
	if r := w.Run("true"); r.Status != exitSidecar || !strings.Contains(r.Stderr, "has lost its history: it is empty") {
		t.Errorf("replaced: status %d\n%s", r.Status, r.Stderr)
	}
}

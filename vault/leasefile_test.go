package vault

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// newWithFile makes a broker over a leases file, which need not exist.
func newWithFile(path string, change func(*Config)) (*Broker, error) {
	cfg := Config{Plugin: plugin, Address: "http://127.0.0.1:1", StateFile: path, Auth: Auth{Method: MethodToken, TokenFile: "/dev/null"}}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

// TestLeaseFileQueuesRevocations checks that the leases of an earlier sidecar are
// queued to be revoked.
func TestLeaseFileQueuesRevocations(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases.json")
	testenv.Must(t, os.WriteFile(path, []byte(`{"leases":[{"id":"a/1","ends":"1970-01-01T00:00:01Z"},{"id":"b/2"}],"spent":"hash"}`), 0o600))
	b := testenv.MustGet(newWithFile(path, nil))(t)
	now := b.clock.now()
	if r := b.revocations.pending["a/1"]; r == nil || now.before(r.ends) || !r.urgent {
		t.Errorf("a/1: got %+v, want an urgent revocation of an ended lease", r)
	}
	if r := b.revocations.pending["b/2"]; r == nil || r.ends != never() {
		t.Errorf("b/2: got %+v, want a revocation of a lease without an end", r)
	}
	if got := b.store.usedWrap(); got != "hash" {
		t.Errorf("got hash %q of the wrapping token, want %q", got, "hash")
	}
}

// TestLeasesSurvivePowerCut cuts the power after each operation on the disk: each
// lease that was added before is known afterwards.
func TestLeasesSurvivePowerCut(t *testing.T) {
	t.Parallel()
	for _, loss := range powercut.Losses() {
		t.Run(loss.String(), func(t *testing.T) {
			for cut := 0; ; cut++ {
				path := filepath.Join(t.TempDir(), "leases.json")
				disk := testenv.MustGet(powercut.New(filepath.Dir(path)))(t)
				disk.CutAfter(cut)
				b := testenv.MustGet(newWithFile(path, nil))(t)
				b.store.fsys = disk
				var stored []string
				for _, id := range []string{"database/creds/reader/1", "database/creds/reader/2", "database/creds/reader/3"} {
					b.store.add(&lease{id: id})
					if b.store.failure() == nil {
						stored = append(stored, id)
					}
				}
				testenv.Must(t, disk.Cut(loss))
				next, err := newWithFile(path, nil)
				if err != nil {
					t.Fatalf("cut after %d operations: %v", cut, err)
				}
				for _, id := range stored {
					if next.revocations.pending[id] == nil {
						t.Errorf("cut after %d operations: lease %s is not known, want it revoked", cut, id)
					}
				}
				if aside := asideOf(t, path); len(aside) > 0 {
					t.Errorf("cut after %d operations: got damaged file %q", cut, aside)
				}
				if len(stored) == 3 {
					return
				}
			}
		})
	}
}

// asideOf returns the names of the damaged files beside path.
func asideOf(t *testing.T, path string) []string {
	t.Helper()
	return testenv.MustGet(filepath.Glob(path + damagedSuffix + "*"))(t)
}

// TestDamagedLeaseFile starts over files that cannot be read as leases.
func TestDamagedLeaseFile(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"empty": "", "cut off": `{"leases":[{"id":"a/1"`, "zeros": strings.Repeat("\x00", 64), "another form": `[]`, "no id": `{"leases":[{"id":""}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leases.json")
			testenv.Must(t, os.WriteFile(path, []byte(content), 0o600))
			var audited journal
			core, logged := observer.New(zap.ErrorLevel)
			b, err := newWithFile(path, func(cfg *Config) { cfg.Recorder, cfg.Logger = &audited, zap.New(core) })
			if err != nil {
				t.Fatalf("got %v, want a broker", err)
			}
			aside := asideOf(t, path)
			if len(aside) != 1 || string(testenv.MustGet(os.ReadFile(aside[0]))(t)) != content {
				t.Fatalf("got set aside %q, want one file with the damaged content", aside)
			}
			if entries := logged.FilterMessage("leases file damaged and set aside").All(); len(entries) != 1 || entries[0].ContextMap()["renamed_to"] != aside[0] {
				t.Errorf("got log %v, want one line with the new name", logged.All())
			}
			if audited.count("incident") != 1 || !strings.Contains(audited.String(), aside[0]) {
				t.Errorf("got records %s, want one incident with the new name", &audited)
			}
			b.store.add(&lease{window: window{ends: never()}, id: "b/1"})
			if got := stateOf(t, path); !slices.Equal(got, []string{"b/1"}) {
				t.Errorf("got leases %q in the new file, want b/1", got)
			}
		})
	}
}

// TestLeaseFileOfOthers refuses a file that another user may have written.
func TestLeaseFileOfOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases.json")
	testenv.Must(t, os.WriteFile(path, []byte(`{}`), 0o600))
	testenv.Must(t, os.Chmod(path, 0o602))
	if _, err := newWithFile(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want an error that names the file", err)
	}
	testenv.Must(t, os.Chmod(path, 0o600))
	testenv.Must(t, os.WriteFile(atomicTemporary(t, path), []byte("{"), 0o600))
	testenv.MustGet(newWithFile(path, nil))(t)
	if names := testenv.MustGet(os.ReadDir(filepath.Dir(path)))(t); len(names) != 1 {
		t.Errorf("got %d files, want the temporary file of a killed sidecar removed", len(names))
	}
}

// atomicTemporary returns a name that atomicfile gives to a temporary file of path.
func atomicTemporary(t *testing.T, path string) string {
	t.Helper()
	disk := testenv.MustGet(powercut.New(filepath.Dir(path)))(t)
	disk.CutAfter(2)
	_ = atomicfile.WriteFS(disk, path, []byte("{"), 0o600)
	names := testenv.MustGet(filepath.Glob(filepath.Join(filepath.Dir(path), "*.tmp")))(t)
	names = append(names, testenv.MustGet(filepath.Glob(filepath.Join(filepath.Dir(path), ".*.tmp")))(t)...)
	if len(names) == 0 {
		t.Fatal("atomicfile left no temporary file")
	}
	return names[0]
}

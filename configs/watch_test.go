package configs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// watched is a Watch of a folder's sidecar.yaml that runs until the test ends.
type watched struct {
	t     *testing.T
	calls chan struct{}
}

func startWatch(t *testing.T, dir string) watched {
	t.Helper()
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := watched{t, make(chan struct{}, 1000)}
	done := make(chan error)
	go func() { done <- Watch(ctx, c, func() { w.calls <- struct{}{} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	// Watching has begun once a change is seen.
	write(t, filepath.Join(dir, "grants", "canary.yaml"), strings.Replace(minimalGrant, "{name: weather}", "{name: canary}", 1))
	w.once("the first change")
	return w
}

// once waits for exactly one call.
func (w watched) once(after string) {
	w.t.Helper()
	select {
	case <-w.calls:
	case <-time.After(2 * time.Minute):
		w.t.Fatalf("no call after %s", after)
	}
	w.noCall(after)
}

// noCall checks that no further call comes, for as long as a burst may take.
func (w watched) noCall(after string) {
	w.t.Helper()
	select {
	case <-w.calls:
		w.t.Errorf("one call too many after %s", after)
	case <-time.After(3 * quiet):
	}
}

func watchedFolder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "outer", "inner")
	write(t, filepath.Join(dir, "sidecar.yaml"), minimalSidecar)
	write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant)
	return dir
}

func TestWatch(t *testing.T) {
	t.Parallel()
	dir := watchedFolder(t)
	grant := filepath.Join(dir, "grants", "weather.yaml")
	w := startWatch(t, dir)

	for _, line := range []string{"# 1\n", "# 2\n", "# 3\n"} {
		write(t, grant, line+minimalGrant)
	}
	w.once("three writes in a row")

	write(t, filepath.Join(dir, "grants", "new.yaml~"), "a text editor's own file")
	write(t, filepath.Join(dir, "grants", "notes.txt"), "no document")
	write(t, filepath.Join(dir, "audit.jsonl"), "{}")
	write(t, filepath.Join(dir, "state", "x"), "the sidecar's own file")
	write(t, grant, "# 3\n"+minimalGrant)
	w.noCall("changes of other files, and a write of the same content")

	broken := filepath.Join(dir, "grants", "broken.yaml")
	write(t, broken, "broken")
	w.once("a file was added")
	write(t, broken, "broken still")
	w.once("the added file was changed")
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	w.once("the added file was removed")

	write(t, filepath.Join(dir, "new"), minimalSidecar+"# changed\n")
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "sidecar.yaml")); err != nil {
		t.Fatal(err)
	}
	w.once("a file was replaced")

	if err := os.Remove(grant); err != nil {
		t.Fatal(err)
	}
	w.once("a file was removed")
	write(t, grant, minimalGrant)
	w.once("it came back")
}

// TestWatchFollows makes the Sidecar name another folder, which does not load
// at first.
func TestWatchFollows(t *testing.T) {
	t.Parallel()
	dir := watchedFolder(t)
	w := startWatch(t, dir)
	other := filepath.Join(t.TempDir(), "grants")
	write(t, filepath.Join(dir, "sidecar.yaml"), strings.Replace(minimalSidecar, "[grants]", "["+other+"]", 1))
	w.once("the Sidecar names a folder that is not there")
	write(t, filepath.Join(other, "weather.yaml"), "broken")
	w.once("the folder was made")
	write(t, filepath.Join(other, "weather.yaml"), minimalGrant)
	w.once("its file was repaired")
	write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant+"# changed\n")
	w.noCall("a change of what is no longer named")
	write(t, filepath.Join(dir, "sidecar.yaml"), "broken")
	w.once("the Sidecar was broken")
	write(t, filepath.Join(other, "weather.yaml"), minimalGrant+"# changed\n")
	w.once("a change of what was named last")
}

func TestWatchFolderRemade(t *testing.T) {
	t.Parallel()
	dir := watchedFolder(t)
	w := startWatch(t, dir)
	for range 2 {
		if err := os.RemoveAll(filepath.Join(dir, "grants")); err != nil {
			t.Fatal(err)
		}
		w.once("the folder was removed")
		write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant)
		w.once("the folder was created again")
		write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant+"# changed\n")
		w.once("a file of the new folder was changed")
	}
}

// TestWatchMoved moves what holds everything away and back.
func TestWatchMoved(t *testing.T) {
	t.Parallel()
	dir := watchedFolder(t)
	w := startWatch(t, dir)
	for _, moved := range []string{filepath.Dir(dir), dir} {
		if err := os.Rename(moved, moved+".old"); err != nil {
			t.Fatal(err)
		}
		w.once(moved + " was moved away")
		if err := os.Rename(moved+".old", moved); err != nil {
			t.Fatal(err)
		}
		w.once("it came back")
	}
}

func TestWatchConfigMap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sidecar.yaml"), minimalSidecar)
	grants := filepath.Join(dir, "grants")
	configMap(t, grants, "1", map[string]string{"weather.yaml": minimalGrant})
	w := startWatch(t, dir)
	for _, version := range []string{"2", "3"} {
		configMap(t, grants, version, map[string]string{"weather.yaml": minimalGrant + "# version " + version + "\n"})
		w.once("the ConfigMap was replaced")
	}
	write(t, filepath.Join(grants, "..v3", "weather.yaml"), minimalGrant+"# in place\n")
	w.once("the link's target was changed")
}

// TestWatchBetween changes a file after Load and before Watch.
func TestWatchBetween(t *testing.T) {
	t.Parallel()
	dir := watchedFolder(t)
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant+"# changed\n")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	if err := Watch(ctx, c, func() { calls++; cancel() }); err != nil || calls != 1 {
		t.Errorf("got %v and %d calls, want one", err, calls)
	}
}

func TestWatchNothing(t *testing.T) {
	t.Parallel()
	dir := watchedFolder(t)
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, c, func() { t.Error("called") }); err != nil {
		t.Errorf("got %v, want nil when ctx has ended", err)
	}
}

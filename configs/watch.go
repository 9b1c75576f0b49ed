package configs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A burst of changes ends when nothing has changed for quiet, and is not
// waited for longer than patience: an editor writes, renames and sets modes;
// a mounted ConfigMap is swapped in several steps.
const (
	quiet    = 100 * time.Millisecond
	patience = time.Second
)

// Watch calls changed when what c was loaded from is no longer what it was:
// a file was written, added, taken away or replaced, once for each burst of
// changes. A change between Load and Watch counts. It returns nil when ctx
// ends, and an error when the folders cannot be watched at all.
//
// After a reload that succeeded, end this Watch and begin one with the new
// Config, which may name other files. After one that failed, go on with this
// one: it calls again when the files change again.
func Watch(ctx context.Context, c *Config, changed func()) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	defer func() { _ = notify.Close() }()
	w := &watch{notify: notify, seen: maps.Clone(c.looked)}
	if err := w.cover(); err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	for {
		if w.differs() {
			changed()
		}
		if err := w.wait(ctx); err != nil {
			return nil //nolint:nilerr // the end of ctx is the end of the watch
		}
		// Folders that were made anew have no watch yet. One that cannot be
		// watched now is covered by the watch on what it is in.
		_ = w.cover()
	}
}

// watch is a running Watch.
type watch struct {
	notify *fsnotify.Watcher
	seen   map[string]string // by path: its state when it was last looked at
	names  map[string]bool   // of files and folders whose change may matter
}

// wait returns when a burst of changes has ended, or with ctx's error.
func (w *watch) wait(ctx context.Context) error {
	timer := time.NewTimer(0)
	if !timer.Stop() {
		<-timer.C
	}
	defer timer.Stop()
	var deadline time.Time
	for {
		relevant := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case e := <-w.notify.Events:
			relevant = w.matters(filepath.Base(e.Name))
		case <-w.notify.Errors:
			relevant = true // events were lost: look
		}
		if !relevant {
			continue
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(patience)
		}
		timer.Reset(max(0, min(quiet, deadline.Sub(now))))
	}
}

// matters reports whether a change of the entry called name may change what is
// loaded. The sidecar writes its own state, possibly next to its files.
func (w *watch) matters(name string) bool {
	return w.names[name] || holdsDocuments(name) || strings.HasPrefix(name, "..")
}

// differs looks at every path again and reports whether any has changed.
func (w *watch) differs() bool {
	changed := false
	for path, before := range w.seen {
		if now := observe(path); now != before {
			w.seen[path] = now
			changed = true
		}
	}
	return changed
}

// cover watches the folders that hold the paths and, where a path or a folder
// on the way is a link, those that hold what it leads to. Of a path that is
// absent it watches the nearest folder that is there.
func (w *watch) cover() error {
	w.names = make(map[string]bool)
	var failed error
	covered := 0
	for path := range w.seen {
		for _, folder := range w.folders(path) {
			if err := w.notify.Add(folder); err != nil {
				failed = err
			} else {
				covered++
			}
		}
	}
	if covered == 0 {
		return failed
	}
	return nil
}

// folders returns the folders to watch for one path, and notes the names that
// matter in them.
func (w *watch) folders(path string) []string {
	paths := []string{path}
	if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
		paths = append(paths, target)
	}
	var folders []string
	for _, p := range paths {
		for part := range strings.SplitSeq(p, string(filepath.Separator)) {
			w.names[part] = true
		}
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			folders = append(folders, p)
		}
		parent := filepath.Dir(p)
		for !exists(parent) && parent != filepath.Dir(parent) {
			parent = filepath.Dir(parent)
		}
		// Whoever replaces a whole folder does so in the one it is in.
		folders = append(folders, parent, filepath.Dir(parent))
	}
	return folders
}

// observe returns what tells one state of a file or folder from another: what
// a file holds, and which files a folder has.
func observe(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return plain(err)
	}
	hash := sha256.New()
	if !info.IsDir() {
		data, err := readFile(path)
		if err != nil {
			return plain(err)
		}
		hash.Write(data)
		return hex.EncodeToString(hash.Sum(nil))
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return plain(err)
	}
	for _, e := range entries {
		if holdsDocuments(e.Name()) {
			hash.Write([]byte(e.Name() + "\x00"))
		}
	}
	return "folder " + hex.EncodeToString(hash.Sum(nil))
}

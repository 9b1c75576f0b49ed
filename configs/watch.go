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

// Watch calls changed after a change of c's files: a file was written, added, removed
// or replaced, once for each burst of changes. A change between Load and Watch
// counts. The set of files follows the Sidecar's file, whether it can be loaded or
// not; one Watch lasts for any number of reloads. It returns nil when ctx ends, and
// an error when the folders cannot be watched at all.
func Watch(ctx context.Context, c *Config, changed func()) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	defer func() { _ = notify.Close() }()
	w := &watch{notify: notify, path: c.Path, seen: maps.Clone(c.seen)}
	if err := w.cover(); err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	for {
		// Changes before the folder was covered made no event.
		if w.wait(ctx, w.differs()); ctx.Err() != nil {
			return nil
		}
		if w.differs() {
			w.follow()
			changed()
		}
		// Folders that were created again have no watch yet. One that cannot be
		// watched now is covered by the watch on what it is in.
		_ = w.cover()
	}
}

// watch is a running Watch.
type watch struct {
	notify *fsnotify.Watcher
	path   string            // of the Sidecar's file
	seen   map[string]string // by path: its state when it was last looked at
	names  map[string]bool   // of files and folders whose change may matter
}

// wait returns when a burst of changes, which may have begun already, has
// ended, or ctx.
func (w *watch) wait(ctx context.Context, begun bool) {
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	if !begun {
		timer.Stop()
	}
	var deadline time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case e := <-w.notify.Events:
			if !w.matters(filepath.Base(e.Name)) {
				continue
			}
		case lost := <-w.notify.Errors:
			_ = lost // after any error, all files are checked
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

// differs looks at the paths again and reports whether any has changed.
func (w *watch) differs() bool {
	for path, before := range w.seen {
		if observe(path) != before {
			return true
		}
	}
	return false
}

// follow records the state of the files that the Sidecar's file names now. The former
// ones stay watched while it cannot be loaded.
func (w *watch) follow() {
	l := newLoader(time.Now())
	l.load(w.path)
	for path := range w.seen {
		if _, ok := l.seen[path]; !ok && len(l.errs) > 0 {
			l.seen[path] = observe(path)
		}
	}
	w.seen = l.seen
}

// cover watches the folders that hold the paths and, where a path or a folder
// on the way is a link, those that hold its target. Of a path that is
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
		// A whole folder is replaced in the one that holds it.
		folders = append(folders, parent, filepath.Dir(parent))
	}
	return folders
}

// observe returns the state of a file or folder: the content of the file, or of each
// file that is read of the folder.
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
		name := filepath.Join(path, e.Name())
		if !holdsDocuments(e.Name()) {
			continue
		}
		if info, err := os.Stat(name); err != nil || !info.IsDir() {
			hash.Write([]byte(e.Name() + "\x00" + observe(name) + "\x00"))
		}
	}
	return "folder " + hex.EncodeToString(hash.Sum(nil))
}

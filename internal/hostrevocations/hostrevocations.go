// Package hostrevocations keeps the revocations of a whole host in one file, so
// that they outlive the sidecars: one that is down when access is revoked reads
// the file when it starts.
//
// The file is JSON, replaced whole (write, fsync, rename, fsync of the folder) by
// root under a lock beside it:
//
//	{"version":1,"revocations":[{"id":"...","plugin":"","level":"quarantine",...}],
//	 "restored":[{"id":"...","plugin":"weather",...}]}
//
// A revocation without a plugin is of every plugin. A restoration lifts the
// revocation with its id, for its plugin or without one for all. It stays when the
// revocation is removed: a sidecar that kept the revocation in its own state and was
// down when it was lifted learns of it there. A revocation is therefore lifted by a
// restoration only and never because a file is missing.
package hostrevocations

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// FileName is the name of the file in its folder.
const FileName = "host-revocations.json"

// Bounds of the file. Beyond maxRestored the oldest restorations are forgotten,
// which leaves revoked what they lifted.
const (
	fileVersion    = 1
	maxFile        = 8 << 20
	maxRevocations = 10_000
	maxRestored    = 1000
)

// lockPatience is how long a change waits for another process's change.
const lockPatience = 2 * time.Second

// Restoration lifts a revocation.
type Restoration struct {
	ID     string    `json:"id"`               // of the revocation
	Plugin string    `json:"plugin,omitempty"` // for which it is lifted; "" is all
	Reason string    `json:"reason"`
	Actor  string    `json:"actor"`
	At     time.Time `json:"at"`
}

// State is what the files hold.
type State struct {
	Revocations []authz.Revocation `json:"revocations,omitempty"`
	Restored    []Restoration      `json:"restored,omitempty"`
}

// file is a State as it is written.
type file struct {
	Version int `json:"version"`
	State
}

// InForce returns the revocations of a plugin that are not lifted for it, each with
// the plugin's name. Those whose time is over are among them.
func (s State) InForce(plugin string) []authz.Revocation {
	var out []authz.Revocation
	for _, r := range s.Revocations {
		if r.Plugin != "" && r.Plugin != plugin {
			continue
		}
		if _, lifted := s.Lifted(r.ID, plugin); lifted {
			continue
		}
		r.Plugin = plugin
		out = append(out, r)
	}
	return out
}

// Lifted returns the restoration of a revocation for a plugin.
func (s State) Lifted(id, plugin string) (Restoration, bool) {
	for _, r := range s.Restored {
		if r.ID == id && (r.Plugin == "" || r.Plugin == plugin) {
			return r, true
		}
	}
	return Restoration{}, false
}

// Find returns the revocation with an id.
func (s State) Find(id string) (authz.Revocation, bool) {
	i := slices.IndexFunc(s.Revocations, func(r authz.Revocation) bool { return r.ID == id })
	if i < 0 {
		return authz.Revocation{}, false
	}
	return s.Revocations[i], true
}

// Store is the file, or one in each of several folders: what is read is all of
// them together, what is written is written to the first that takes it.
type Store struct {
	dirs  []string
	files atomicfile.FS // nil: the system's
}

// New returns the store in the folders, the preferred one first. It opens nothing.
func New(dirs ...string) *Store { return &Store{dirs: dirs} }

// Paths returns where the files are, whether they exist or not.
func (s *Store) Paths() []string {
	paths := make([]string, len(s.dirs))
	for i, dir := range s.dirs {
		paths[i] = filepath.Join(dir, FileName)
	}
	return paths
}

// Stamp returns a text that changes whenever a file does.
func (s *Store) Stamp() string {
	var stamp []byte
	for _, path := range s.Paths() {
		var stat syscall.Stat_t
		err := syscall.Stat(path, &stat)
		stamp = fmt.Appendf(stamp, "%d %d %d %v %v;", stat.Ino, stat.Size, stat.Ctim, stat.Mode, err)
	}
	return string(stamp)
}

// Read returns what the files hold together. A file that is missing holds nothing.
// One that cannot be read, is damaged, or may be written by anybody but root and
// this process's user is an error: the caller denies.
func (s *Store) Read() (State, error) {
	var all State
	var errs []error
	for _, path := range s.Paths() {
		one, err := read(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all.Revocations = append(all.Revocations, one.Revocations...)
		all.Restored = append(all.Restored, one.Restored...)
	}
	return all, errors.Join(errs...)
}

func read(path string) (State, error) {
	data, err := atomicfile.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("read host revocations: %w", err)
	}
	state, err := decode(data)
	if err != nil {
		return State{}, fmt.Errorf("read host revocations: %s is damaged: %w", path, err)
	}
	return state, nil
}

// decode is strict: what is not understood may be a revocation.
func decode(data []byte) (State, error) {
	if len(data) > maxFile {
		return State{}, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	var f file
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		return State{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return State{}, errors.New("something follows its JSON object")
	}
	if f.Version != fileVersion {
		return State{}, fmt.Errorf("its version %d is not %d", f.Version, fileVersion)
	}
	if len(f.Revocations) > maxRevocations {
		return State{}, fmt.Errorf("it has more than %d revocations", maxRevocations)
	}
	for _, r := range f.Revocations {
		if r.ID == "" || r.Level == "" {
			return State{}, errors.New("a revocation has no id or no level")
		}
	}
	for _, r := range f.Restored {
		if r.ID == "" {
			return State{}, errors.New("a restoration has no id")
		}
	}
	return f.State, nil
}

// Revoke adds a revocation, and returns the file that holds it. With an error and
// a path, it is held by a folder that is not the preferred one, for the reason given.
func (s *Store) Revoke(r authz.Revocation) (path string, err error) {
	var errs []error
	for _, dir := range s.dirs {
		err := s.change(dir, true, func(state *State) bool {
			if len(state.Revocations) >= maxRevocations {
				return false
			}
			state.Revocations = append(state.Revocations, r)
			return true
		})
		if err == nil {
			return filepath.Join(dir, FileName), errors.Join(errs...)
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// Restore lifts revocations by their ids for a plugin, "" being all.
func (s *Store) Restore(restored ...Restoration) error {
	var errs []error
	for _, dir := range s.dirs {
		errs = append(errs, s.change(dir, false, func(state *State) bool { return state.restore(restored) }))
	}
	return errors.Join(errs...)
}

// restore reports whether any of the revocations is here.
func (s *State) restore(restored []Restoration) bool {
	changed := false
	for _, r := range restored {
		if _, here := s.Find(r.ID); !here {
			continue
		}
		changed = true
		s.Restored = append(s.Restored, r)
		s.Revocations = slices.DeleteFunc(s.Revocations, func(v authz.Revocation) bool {
			return v.ID == r.ID && (r.Plugin == "" || r.Plugin == v.Plugin)
		})
	}
	if extra := len(s.Restored) - maxRestored; extra > 0 {
		s.Restored = slices.Delete(s.Restored, 0, extra)
	}
	return changed
}

// errNotTaken means that a change was not made.
var errNotTaken = errors.New("there are too many revocations; restore some")

// change rewrites the file in a folder under its lock. If create is not set, a
// folder without a file is left as it is.
func (s *Store) change(dir string, create bool, edit func(*State) bool) (err error) {
	path := filepath.Join(dir, FileName)
	defer func() {
		if err != nil {
			err = fmt.Errorf("change host revocations %s: %w", path, err)
		}
	}()
	if !create {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err := prepare(dir); err != nil {
		return err
	}
	held, err := lock(filepath.Join(dir, "."+FileName+".lock"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	state, err := read(path)
	if err != nil {
		return err
	}
	now := time.Now()
	state.Revocations = slices.DeleteFunc(state.Revocations, func(r authz.Revocation) bool {
		return !r.Until.IsZero() && r.Until.Before(now)
	})
	switch {
	case edit(&state):
		return s.replace(path, file{fileVersion, state})
	case create:
		return errNotTaken
	}
	return nil
}

// prepare makes the folder if it is missing. Others may enter it and not write to
// it or to what is above it.
func prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // stateDirs of other users may be below it
		return err
	}
	return unixsock.CheckDir(dir)
}

// lock takes the lock of a file. A process that holds it and hangs is waited for
// only so long: revoking must not hang with it.
func lock(path string) (*unixsock.FileLock, error) {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) {
		held, err := unixsock.Acquire(path)
		if err == nil || !errors.Is(err, unixsock.ErrLocked) || time.Now().After(deadline) {
			return held, err
		}
	}
}

// replace writes the file; a power cut leaves the old one or the new one.
func (s *Store) replace(path string, value any) error {
	data, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		return err
	}
	if len(data) >= maxFile {
		return errNotTaken
	}
	return atomicfile.WriteFS(s.files, path, append(data, '\n'), 0o600)
}

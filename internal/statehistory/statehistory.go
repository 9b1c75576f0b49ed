// Package statehistory remembers, outside of a state directory, that the directory
// has a history: revocations, what is used of limits, an audit log. One that was
// moved away, emptied or replaced by an older copy would restore revoked access,
// so that a sidecar does not start on it.
//
// A mark in the state directory (identity.json) holds a random id and how many
// changes there were: starts, orderly ends, revocations and their restorations. The
// memory of it, a file for each state directory below a folder that is root's,
// holds the same. The mark is written first: it may be ahead of the memory, after a
// crash, and is behind it only where it could not be written.
package statehistory

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

const (
	// MarkName is the name of the mark in a state directory.
	MarkName = "identity.json"
	// folder is where memories lie, below one of the roots.
	folder      = "states"
	fileVersion = 1
	maxFile     = 1 << 16
)

// mark is the identity of a state directory, inside it.
type mark struct {
	Version int      `json:"version"`
	ID      string   `json:"id"`
	Changes uint64   `json:"changes"`
	Files   []string `json:"files,omitempty"` // that were there, and have to be
}

// memory is what is remembered of a state directory.
type memory struct {
	Version     int       `json:"version"`
	StateDir    string    `json:"stateDir"`
	Plugin      string    `json:"plugin"`
	ID          string    `json:"id"`
	Changes     uint64    `json:"changes"`
	Revocations int       `json:"revocations"` // in force at the last change
	At          time.Time `json:"at"`
}

// LostError means that a state directory is not the one that is remembered.
type LostError struct {
	StateDir string
	Why      string // the fault, for example "it is empty"
	// Of the history that is missing: when it last changed, how many revocations
	// were in force then, and the file that remembers it.
	At          time.Time
	Revocations int
	Memory      string
	// Missing and Empty say that nothing at all of it is there.
	Missing, Empty bool
}

// Error states what is missing.
func (e *LostError) Error() string {
	text := fmt.Sprintf("stateDir %s has lost its history: %s", e.StateDir, e.Why)
	if !e.At.IsZero() {
		text += fmt.Sprintf("; the last change of %s left %s in force (remembered in %s)", e.At.Format(time.RFC3339), revocations(e.Revocations), e.Memory)
	}
	return text
}

func revocations(n int) string {
	if n == 1 {
		return "1 revocation"
	}
	return fmt.Sprintf("%d revocations", n)
}

// History is the history of one state directory. Its user holds the directory's
// lock. It is safe for concurrent use.
type History struct {
	dir, plugin string
	path        string        // of the memory; "" without one
	Unkept      error         // why nothing is remembered outside; nil: it is
	files       atomicfile.FS // nil: the system's

	mu   sync.Mutex
	mark mark
}

// Open compares a state directory with what is remembered of it below
// the roots, the preferred one first. The error is a [*LostError] where the two do
// not fit, and any other where that is not known. Open writes no file.
func Open(dir, plugin string, roots ...string) (*History, error) {
	h := &History{dir: dir, plugin: plugin}
	id, err := identify(dir)
	if err != nil {
		return nil, err
	}
	var remembered memory
	found := ""
	for _, root := range roots {
		path := filepath.Join(root, folder, id+".json")
		one, err := readMemory(path)
		switch {
		case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0: // root's
		case err != nil:
			return nil, &LostError{StateDir: dir, Why: "its record cannot be read: " + err.Error(), Memory: path}
		case one.Changes > remembered.Changes:
			remembered, found = one, path
		}
	}
	if err := h.readMark(); err != nil {
		return nil, &LostError{StateDir: dir, Why: err.Error(), At: remembered.At, Revocations: remembered.Revocations, Memory: found}
	}
	if why := h.mark.differs(&remembered, dir); why != "" {
		return nil, &LostError{
			StateDir: dir, Why: why, At: remembered.At, Revocations: remembered.Revocations, Memory: found,
			Missing: why == isMissing, Empty: why == isEmptied,
		}
	}
	if h.path, err = choose(roots, id); err != nil {
		h.Unkept = err
	}
	return h, nil
}

// identify names a state directory, also one that is missing: what lies above it is
// the same folder by any name.
func identify(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("name the state: %w", err)
	}
	if above, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(above, filepath.Base(path))
	}
	return runtimedir.ID(path)
}

// Why a state directory of which nothing is there is not the one that is remembered.
const (
	isMissing = "it is missing"
	isEmptied = "it is empty"
)

// differs returns why a mark does not match the record; "" if it does.
func (m *mark) differs(r *memory, dir string) string {
	for _, name := range m.Files {
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			return name + " is missing"
		}
	}
	_, err := os.Lstat(dir)
	switch {
	case r.ID == "":
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return isMissing
	case m.ID == "" && isEmpty(dir):
		return isEmptied
	case m.ID == "":
		return MarkName + " is missing"
	case m.ID != r.ID:
		return "it is another one than it was"
	case m.Changes < r.Changes:
		return fmt.Sprintf("it is an older copy, with %d of %d changes", m.Changes, r.Changes)
	}
	return ""
}

// isEmpty reports whether a state directory holds nothing but its lock.
func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "lock" })
}

// choose returns where a state directory is to be remembered: below the first root
// that nobody but root and this process's user can change, and that can be written.
func choose(roots []string, id string) (path string, err error) {
	for _, root := range roots {
		dir := filepath.Join(root, folder)
		one := os.MkdirAll(root, 0o755) //nolint:gosec // others of the host's files are below it
		if one == nil {
			one = unixsock.CheckDir(root)
		}
		if one == nil {
			if one = os.Mkdir(dir, 0o700); errors.Is(one, fs.ErrExist) {
				one = unixsock.CheckDir(dir)
			}
		}
		if one == nil {
			one = unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		}
		if one == nil {
			return filepath.Join(dir, id+".json"), nil
		}
		err = errors.Join(err, one)
	}
	return "", err
}

// Advance counts one more change, after it was made. files are names in the state
// directory that have to be there from now on if they are there now; revocations is
// how many are in force.
func (h *History) Advance(revocations int, files ...string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.advance(revocations, files)
}

func (h *History) advance(revocations int, files []string) error {
	next := h.mark
	next.Version = fileVersion
	next.Changes++
	next.Files = slices.Clone(next.Files)
	if next.ID == "" {
		next.ID = rand.Text()
	}
	for _, name := range files {
		if _, err := os.Lstat(filepath.Join(h.dir, name)); err == nil && !slices.Contains(next.Files, name) {
			next.Files = append(next.Files, name)
		}
	}
	unmarked := h.write(filepath.Join(h.dir, MarkName), next)
	if unmarked != nil {
		unmarked = fmt.Errorf("write state history: %w", unmarked)
	}
	h.mark = next
	if h.path == "" {
		return unmarked
	}
	// Also where the mark could not be written: a directory that was moved away, and
	// is moved back once a revocation could not be written into it, is then behind.
	err := h.write(h.path, memory{
		Version: fileVersion, StateDir: h.dir, Plugin: h.plugin, ID: next.ID, Changes: next.Changes,
		Revocations: revocations, At: time.Now().UTC().Truncate(time.Second),
	})
	if err != nil {
		err = fmt.Errorf("remember state: %w", err)
	}
	return errors.Join(unmarked, err)
}

// Accept takes a state directory for the one that is remembered, as it is: what it
// has lost stays lost. It returns what was wrong with it, nil for nothing.
func Accept(dir, plugin string, revocations int, roots ...string) (lost, err error) {
	_, err = Open(dir, plugin, roots...)
	if err == nil {
		return nil, nil
	}
	if _, is := errors.AsType[*LostError](err); !is {
		return nil, err
	}
	lost = err
	id, err := identify(dir)
	if err != nil {
		return nil, err
	}
	h := &History{dir: dir, plugin: plugin}
	if h.path, err = choose(roots, id); err != nil {
		return nil, fmt.Errorf("remember state: %w", err)
	}
	changes := uint64(0)
	for _, root := range roots {
		path := filepath.Join(root, folder, id+".json")
		if one, err := readMemory(path); err == nil {
			changes = max(changes, one.Changes)
		}
		if path != h.path {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("forget state: %w", err)
			}
		}
	}
	h.mark.Changes = changes // its id and files are new
	return lost, h.advance(revocations, nil)
}

// Forget removes what is remembered of a state directory that its maker removes: one of a
// single run, to which no sidecar returns.
func Forget(dir string, roots ...string) error {
	id, err := identify(dir)
	if err != nil {
		return err
	}
	for _, root := range roots {
		if rerr := os.Remove(filepath.Join(root, folder, id+".json")); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("forget state: %w", err)
	}
	return nil
}

func (h *History) readMark() error {
	err := read(filepath.Join(h.dir, MarkName), &h.mark)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && (h.mark.Version != fileVersion || h.mark.ID == "") {
		err = fmt.Errorf("version %d is not %d, or it has no id", h.mark.Version, fileVersion)
	}
	if err != nil {
		return fmt.Errorf("%s is damaged: %w", MarkName, err)
	}
	return nil
}

func readMemory(path string) (m memory, err error) {
	err = read(path, &m)
	if errors.Is(err, fs.ErrNotExist) {
		return memory{}, nil
	}
	if err == nil && (m.Version != fileVersion || m.ID == "") {
		err = fmt.Errorf("version %d is not %d, or it has no id", m.Version, fileVersion)
	}
	return m, err
}

// read decodes a file of root's or of this process's user that nobody else may write.
func read(path string, value any) error {
	data, err := atomicfile.Read(path, maxFile)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, value)
}

// write replaces a file; a power cut leaves the old one or the new one.
func (h *History) write(path string, value any) error {
	data, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFS(h.files, path, append(data, '\n'), 0o600)
}

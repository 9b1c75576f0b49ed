// Package powercut is a file system for tests that loses, at a simulated power cut,
// what was not synced.
//
// A [Disk] writes to a real directory, so that the code under test may read it in any
// way, and records what has reached the medium: the content of a file after Sync, a
// name after SyncDir of its directory. [Disk.Cut] turns the directory back into that.
// Data that was written past the Disk counts as never synced.
//
//	disk, err := powercut.New(dir)
//	// run the code under test on disk
//	err = disk.Cut(powercut.Everything)
//	// start the code under test again on dir and check what it remembers
//
// [Disk.CutAfter] ends the power in the middle: a test that repeats its run with
// 0, 1, 2 ... operations visits every state that a crash can leave.
//
// Directories are not modelled: one that was made stays.
package powercut

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// ErrCut is the error of every operation after the power was cut.
var ErrCut = errors.New("power cut")

// Loss is what a power cut destroys of what was not synced. A file system may do any
// of it.
type Loss uint8

// The losses.
const (
	Everything Loss = iota // neither names nor data that were not synced survive
	Data                   // names survive and data does not: new files are empty
	HalfOfData             // names survive, and half of the data
)

// Losses returns all losses, for tests that check each.
func Losses() []Loss { return []Loss{Everything, Data, HalfOfData} }

// String names the loss.
func (l Loss) String() string {
	return [...]string{"everything unsynced lost", "unsynced data lost", "half of unsynced data lost"}[l]
}

// content is a file, whatever its names.
type content struct {
	synced []byte
	mode   fs.FileMode
}

// Disk is an [atomicfile.FS] in one directory. It is safe for concurrent use.
type Disk struct {
	root string

	mu     sync.Mutex
	names  map[string]*content // by path: what the running system sees
	stored map[string]*content // by path: what is on the medium
	steps  int
	limit  int // operations until the power is cut; negative is no limit
	dead   bool
}

var _ atomicfile.FS = (*Disk)(nil)

// New returns a Disk in the directory root. Its present content counts as synced.
func New(root string) (*Disk, error) {
	d := &Disk{root: filepath.Clean(root), names: make(map[string]*content), stored: make(map[string]*content), limit: -1}
	err := d.walk(func(path string, info fs.FileInfo) error {
		data, err := os.ReadFile(path)
		d.names[path] = &content{synced: data, mode: info.Mode()}
		return err
	})
	d.stored = maps.Clone(d.names)
	return d, err
}

// walk calls do for each regular file below the root.
func (d *Disk) walk(do func(path string, info fs.FileInfo) error) error {
	return filepath.Walk(d.root, func(path string, info fs.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		return do(path, info)
	})
}

// CutAfter cuts the power after n more operations; those that follow do nothing and
// return [ErrCut]. Each write, sync, rename, link, removal and opening is one.
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = d.steps + n
}

// Steps returns how many operations there were.
func (d *Disk) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// step counts an operation. The caller holds mu.
func (d *Disk) step() error {
	if d.dead || d.limit >= 0 && d.steps >= d.limit {
		d.dead = true
		return ErrCut
	}
	d.steps++
	return nil
}

// Cut cuts the power, if that has not happened, and leaves in the directory what
// survives. The Disk ends with it: [New] makes one of what is left.
func (d *Disk) Cut(loss Loss) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	survive := make(map[string]*content)
	if loss == Everything {
		maps.Copy(survive, d.stored)
	}
	err := d.walk(func(path string, info fs.FileInfo) error {
		if loss != Everything {
			left, err := d.left(path, info, loss)
			if err != nil {
				return err
			}
			survive[path] = left
		}
		return os.Remove(path)
	})
	for path, file := range survive {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700))
		err = errors.Join(err, os.WriteFile(path, file.synced, 0o600), os.Chmod(path, file.mode.Perm()))
	}
	if err != nil {
		return fmt.Errorf("cut power: %w", err)
	}
	return nil
}

// left returns what is left of a file whose name survives.
func (d *Disk) left(path string, info fs.FileInfo, loss Loss) (*content, error) {
	left := content{mode: info.Mode()}
	if known := d.names[path]; known != nil {
		left.synced = known.synced
	}
	if loss != HalfOfData {
		return &left, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	same := 0
	for same < len(data) && same < len(left.synced) && data[same] == left.synced[same] {
		same++
	}
	if same < len(data) {
		left.synced = data[:same+(len(data)-same)/2]
	}
	return &left, nil
}

// OpenFile opens a file. One that is made has no stored name yet.
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (atomicfile.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	path := filepath.Clean(name)
	known := d.names[path]
	if known == nil {
		known = &content{}
		d.names[path] = known
	}
	return &file{File: f, disk: d, content: known}, nil
}

// Rename renames a file; the new name is stored by SyncDir.
func (d *Disk) Rename(from, to string) error {
	return d.change("rename", from, func() error {
		if err := os.Rename(from, to); err != nil {
			return err
		}
		d.names[filepath.Clean(to)] = d.names[filepath.Clean(from)]
		delete(d.names, filepath.Clean(from))
		return nil
	})
}

// Link gives a file a second name, which is stored by SyncDir.
func (d *Disk) Link(from, to string) error {
	return d.change("link", from, func() error {
		if err := os.Link(from, to); err != nil {
			return err
		}
		d.names[filepath.Clean(to)] = d.names[filepath.Clean(from)]
		return nil
	})
}

// Remove removes a name; it comes back at a power cut unless SyncDir follows.
func (d *Disk) Remove(name string) error {
	return d.change("remove", name, func() error {
		delete(d.names, filepath.Clean(name))
		return os.Remove(name)
	})
}

// SyncDir stores the names in one directory.
func (d *Disk) SyncDir(dir string) error {
	return d.change("sync", dir, func() error {
		dir = filepath.Clean(dir)
		maps.DeleteFunc(d.stored, func(path string, _ *content) bool { return filepath.Dir(path) == dir })
		for path, file := range d.names {
			if filepath.Dir(path) == dir {
				d.stored[path] = file
			}
		}
		return nil
	})
}

func (d *Disk) change(op, path string, do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return do()
}

// file is an open file of a Disk.
type file struct {
	*os.File
	disk    *Disk
	content *content
}

// Write writes; the data is lost unless Sync follows.
func (f *file) Write(data []byte) (n int, err error) {
	err = f.disk.change("write", f.Name(), func() (err error) {
		n, err = f.File.Write(data)
		return err
	})
	return n, err
}

// WriteString is Write.
func (f *file) WriteString(data string) (int, error) { return f.Write([]byte(data)) }

// Truncate changes the size; it has its old one at a power cut unless Sync follows.
func (f *file) Truncate(size int64) error {
	return f.disk.change("truncate", f.Name(), func() error { return f.File.Truncate(size) })
}

// Chmod changes the mode; it is stored with the content.
func (f *file) Chmod(mode fs.FileMode) error {
	return f.disk.change("chmod", f.Name(), func() error { return f.File.Chmod(mode) })
}

// Sync stores the content as it is.
func (f *file) Sync() error {
	return f.disk.change("sync", f.Name(), func() error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) // it may be open for writing only, or have another name
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		f.content.synced, f.content.mode = data, info.Mode()
		return nil
	})
}

package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// File is an open file. [*os.File] is one.
type File interface {
	io.ReadWriteCloser
	io.StringWriter
	Name() string
	Stat() (fs.FileInfo, error)
	Chmod(mode fs.FileMode) error
	Truncate(size int64) error
	// Sync stores the content of the file, but not its name (fsync(2)).
	Sync() error
}

// FS is a file system that files are written to. [OS] is the operating system's;
// where a nil FS is accepted, it means OS.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Rename(from, to string) error
	Link(from, to string) error
	Remove(name string) error
	// SyncDir stores the names in a directory.
	SyncDir(dir string) error
}

// OS is the file system of the operating system.
type OS struct{}

// OpenFile is [os.OpenFile].
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err // and no File that is not nil
	}
	return f, nil
}

// Rename is [os.Rename].
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Link is [os.Link].
func (OS) Link(from, to string) error { return os.Link(from, to) }

// Remove is [os.Remove].
func (OS) Remove(name string) error { return os.Remove(name) }

// SyncDir opens the directory and syncs it.
func (OS) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncDir stores the names in a directory of the operating system's file system.
func SyncDir(dir string) error { return OS{}.SyncDir(dir) }

// OrOS returns fsys, or [OS] if it is nil.
func OrOS(fsys FS) FS {
	if fsys == nil {
		return OS{}
	}
	return fsys
}

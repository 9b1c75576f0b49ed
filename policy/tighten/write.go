package tighten

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// Diff returns the edits of the file as a unified diff.
func (f *File) Diff() string { return string(diff.Diff(f.Name, f.Before, f.Name, f.After)) }

// Backup is the copy of a file as it was before it was tightened.
type Backup struct{ File, Copy string }

// Write writes the edited files, each at once and after a copy of what it was, which stands
// beside it as FILE.before-tighten-TIME and is no file that a folder of grants loads. No file
// is written if any was changed since it was read. If a write fails, the files that were
// written are put back; after a crash some may be written, and each such state is narrower
// than the first.
func (r *Result) Write(now time.Time) (backups []Backup, err error) {
	for i := range r.Files {
		if err := r.Files[i].unchanged(); err != nil {
			return nil, err
		}
	}
	stamp := now.UTC().Format("20060102T150405Z")
	for i := range r.Files {
		f := &r.Files[i]
		backup := Backup{f.Path, f.Path + ".before-tighten-" + stamp}
		if err = f.write(backup.Copy); err != nil {
			for j := range r.Files[:i] {
				done := &r.Files[j]
				err = errors.Join(err, replace(done.Path, done.Before))
			}
			return nil, err
		}
		backups = append(backups, backup)
	}
	return backups, nil
}

// unchanged returns an error if the file is not what was read.
func (f *File) unchanged() error {
	data, err := os.ReadFile(f.Path)
	switch {
	case err != nil:
		return fmt.Errorf("read file to tighten: %w", err)
	case !bytes.Equal(data, f.Before):
		return fmt.Errorf("%s was changed since it was read; no file was written, tighten again", f.Name)
	}
	return nil
}

func (f *File) write(backup string) error {
	info, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	if err := atomicfile.Create(backup, f.Before, info.Mode().Perm()); err != nil {
		return err
	}
	if err := keepOwner(backup, info); err != nil {
		return err
	}
	if err := f.unchanged(); err != nil {
		return errors.Join(err, os.Remove(backup))
	}
	return replace(f.Path, f.After)
}

// replace replaces the content of a file, and keeps its mode and its owner.
func replace(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, data, info.Mode().Perm()); err != nil {
		return err
	}
	return keepOwner(path, info)
}

// keepOwner gives a new file the owner of the one that it is a copy of.
func keepOwner(path string, like fs.FileInfo) error {
	stat, ok := like.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == os.Geteuid() && int(stat.Gid) == os.Getegid() {
		return nil
	}
	return os.Chown(path, int(stat.Uid), int(stat.Gid))
}

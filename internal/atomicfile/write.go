package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// temporarySuffix ends the names of temporary files, which are never read.
const temporarySuffix = ".tmp"

// Write replaces the file at path by data, or creates it, with exactly the given
// mode, whatever the umask. Other processes see the old file or the new one.
//
// With an error the old file is in place and the temporary file is removed, except
// after a failed sync of the directory: the new file is in place then, and a power
// cut may bring back the old one.
func Write(path string, data []byte, mode fs.FileMode) error {
	return WriteFS(OS{}, path, data, mode)
}

// WriteFS is [Write] in fsys.
func WriteFS(fsys FS, path string, data []byte, mode fs.FileMode) error {
	return write(OrOS(fsys), path, data, mode, FS.Rename)
}

// Create is [Write] for a path that must not exist. If it exists, the error is
// [fs.ErrExist] and the file there is unchanged.
func Create(path string, data []byte, mode fs.FileMode) error {
	return CreateFS(OS{}, path, data, mode)
}

// CreateFS is [Create] in fsys.
func CreateFS(fsys FS, path string, data []byte, mode fs.FileMode) error {
	return write(OrOS(fsys), path, data, mode, func(fsys FS, temporary, path string) error {
		// link(2) fails on a name that exists, where rename(2) replaces it.
		if err := fsys.Link(temporary, path); err != nil {
			return err
		}
		return fsys.Remove(temporary)
	})
}

// write writes a temporary file and gives it the final name by publish.
func write(fsys FS, path string, data []byte, mode fs.FileMode, publish func(fsys FS, temporary, path string) error) error {
	temporary, err := writeTemporary(fsys, path, data, mode)
	if err == nil {
		err = publish(fsys, temporary, path)
	}
	if err != nil {
		if removed := fsys.Remove(temporary); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fsys.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: sync directory: %w", path, err)
	}
	return nil
}

// writeTemporary writes and syncs a new file beside path and returns its name, also
// with an error.
func writeTemporary(fsys FS, path string, data []byte, mode fs.FileMode) (name string, err error) {
	name = temporaryPrefix(path) + rand.Text()[:10] + temporarySuffix
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return name, err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return name, errors.Join(err, f.Close())
}

func temporaryPrefix(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".")
}

// RemoveTemporary removes the temporary files of path that a crash left. The caller
// is the only writer of path, as the holder of its directory's lock is.
func RemoveTemporary(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := filepath.Join(filepath.Dir(path), entry.Name())
		if entry.Type().IsRegular() && strings.HasPrefix(name, temporaryPrefix(path)) && strings.HasSuffix(name, temporarySuffix) {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return err
}

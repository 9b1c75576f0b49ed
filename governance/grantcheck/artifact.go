package grantcheck

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// Bounds of a tree.
const (
	maxTreeFiles = 200_000
	maxTreePath  = 4096
)

// FileDigest returns the digest of an artifact that is one file.
func FileDigest(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", fmt.Errorf("digest file: %w", err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// TreeDigest returns the digest of an artifact that is a folder: the SHA-256 over one
// line for each regular file, in the order of fs.WalkDir: its path quoted as in Go, its
// permission bits in octal, and its digest. A link, a device or any other entry that is
// neither a regular file nor a folder is an error, since its content is elsewhere.
func TreeDigest(tree fs.FS) (string, error) {
	sum := sha256.New()
	files := 0
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%q is neither a regular file nor a folder", path)
		case files == maxTreeFiles || len(path) > maxTreePath:
			return fmt.Errorf("at %q: it has more than %d files, or paths longer than %d bytes", path, maxTreeFiles, maxTreePath)
		}
		files++
		mode, digest, err := treeFile(tree, path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(sum, "%q %04o %s\n", path, mode, digest)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("digest tree: %w", err)
	}
	if files == 0 {
		return "", errors.New("digest tree: it has no file")
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// treeFile returns the mode and the digest of a file as it was opened.
func treeFile(tree fs.FS, path string) (fs.FileMode, string, error) {
	f, err := tree.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	if !info.Mode().IsRegular() {
		return 0, "", fmt.Errorf("%q is no longer a regular file", path)
	}
	digest, err := FileDigest(f)
	// The set-user-ID, set-group-ID and sticky bits are content too.
	mode := info.Mode().Perm()
	for bit, value := range map[fs.FileMode]fs.FileMode{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if info.Mode()&bit != 0 {
			mode |= value
		}
	}
	return mode, digest, err
}

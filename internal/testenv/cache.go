package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const modulePath = "github.com/chaperone-proxy/chaperone"

// Root returns the folder of the repository: the nearest one above the working
// directory, or above this file, that holds the module's go.mod.
func Root() (string, error) {
	var from []string
	if wd, err := os.Getwd(); err == nil {
		from = append(from, wd)
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		from = append(from, filepath.Dir(file))
	}
	for _, dir := range from {
		for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
			text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(text), "module "+modulePath+"\n") {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("find the repository: no go.mod of %s above %s", modulePath, strings.Join(from, " or "))
}

// CacheDir returns the folder in which built and fetched programs are kept:
// CHAPERONE_CACHE, or .cache in the repository. It is created if it is not there.
func CacheDir() (string, error) {
	dir := os.Getenv("CHAPERONE_CACHE")
	if dir == "" {
		root, err := Root()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, ".cache")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	return dir, nil
}

// cached returns the path of name in the cache. If it is not there, build is
// called to write it to the path that it is given; of several processes that
// want the same file one builds and the others wait.
func cached(name string, build func(path string) error) (string, error) {
	dir, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("lock %s: %w", path, err)
	}
	defer lock.Close()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return "", fmt.Errorf("lock %s: %w", path, err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	part := path + ".part"
	if err := build(part); err != nil {
		return "", errors.Join(err, os.RemoveAll(part))
	}
	if err := os.Rename(part, path); err != nil {
		return "", fmt.Errorf("keep %s: %w", path, err)
	}
	return path, nil
}

// BuildVault builds the test Vault if the cache does not have it and returns
// the path of the program. The first build downloads 1.2 GB of modules and
// takes about 190 seconds of CPU time; progress, which may be nil, gets a line
// when it begins.
func BuildVault(ctx context.Context, progress io.Writer) (string, error) {
	return buildModule(ctx, progress, "vaultdev", "building a real Vault for the tests and the demo (once: 1.2 GB of modules, a few minutes)",
		"internal", "testenv", "vaultdev")
}

// hashSources returns a short hash of every file below dir that a build reads
// and of the version of Go.
func hashSources(dir string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) == ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, name, len(text))
		_, err = sum.Write(text)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:16], err
}

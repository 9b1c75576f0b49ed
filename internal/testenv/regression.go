package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// The source distribution of pglast on PyPI carries libpg_query with the scripts of
// PostgreSQL's regression suite, which no package of Debian has.
const (
	regressionVersion = "8.7"
	regressionFolder  = "pglast-" + regressionVersion + "/libpg_query/test/sql/postgres_regress"
)

// InstallPostgresRegression installs the scripts of PostgreSQL's regression suite, if the
// cache does not have them, and returns their folder. Progress, which may be nil, gets a
// line when the installation begins.
func InstallPostgresRegression(ctx context.Context, progress io.Writer) (string, error) {
	return cached("postgres-regress-"+regressionVersion, func(path string) error {
		if progress != nil {
			fmt.Fprintln(progress, "installing PostgreSQL's regression suite (once)")
		}
		command, err := pip()
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "chaperone-regress-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		args := append(command[1:], "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "pglast",
			"--dest", dir, "pglast=="+regressionVersion)
		if out, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput(); err != nil {
			return fmt.Errorf("download pglast: %w\n%s", err, out)
		}
		archive := filepath.Join(dir, "pglast-"+regressionVersion+".tar.gz")
		if out, err := exec.CommandContext(ctx, "tar", "-xzf", archive, "-C", dir, regressionFolder).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack pglast: %w\n%s", err, out)
		}
		return errors.Join(os.RemoveAll(path), os.CopyFS(path, os.DirFS(filepath.Join(dir, regressionFolder))))
	})
}

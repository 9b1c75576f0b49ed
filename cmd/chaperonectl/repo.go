package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
)

// repo is an open repository: a folder that is read through [os.Root], which does not leave
// it by any link.
type repo struct {
	*governance.Repository
	dir  string // absolute
	root *os.Root
}

// repoFlag adds --repo.
func (c *cli) repoFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.repo, "repo", "", "the `FOLDER` of trust.yaml (default the nearest one upward)")
	return cmd
}

// findRepo returns the folder of --repo, or the nearest one from dir upward that has a
// trust.yaml.
func (c *cli) findRepo(dir string) (string, error) {
	if c.repo != "" {
		return filepath.Abs(c.repo)
	}
	start, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find repository: %w", err)
	}
	for at := start; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(filepath.Join(at, governance.FileTrust)); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no %s in %s or a folder above it; name the repository with --repo, or make one: chaperonectl plugin trust init", governance.FileTrust, dir)
		}
	}
}

// openRepo opens the repository that dir is in. The caller closes it.
func (c *cli) openRepo(dir string) (*repo, error) {
	r, err := c.openFolder(dir)
	if err != nil {
		return nil, err
	}
	if r.Repository, err = governance.Open(r.files()); err != nil {
		return nil, errors.Join(fmt.Errorf("open repository %s:\n%w", r.dir, err), r.root.Close())
	}
	return r, nil
}

// openFolder opens the folder of the repository, and verifies nothing in it.
func (c *cli) openFolder(dir string) (*repo, error) {
	found, err := c.findRepo(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(found)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	return &repo{dir: found, root: root}, nil
}

// files returns the files of the repository.
func (r *repo) files() fs.FS {
	return repoFS{r.root.FS().(linkFS), r.root} //nolint:forcetypeassert // as os.Root.FS documents
}

// linkFS are the interfaces of [os.Root.FS] that are used.
type linkFS interface {
	fs.ReadLinkFS
	fs.ReadDirFS
}

// repoFS opens files without waiting: somebody who may write to the repository could put a named
// pipe in the place of a file after its type was looked at.
type repoFS struct {
	linkFS
	root *os.Root
}

// Open opens a file for reading (fs.FS).
func (f repoFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err // and no *os.File, which would not be nil
	}
	return file, nil
}

// openRegular opens a regular file that an operator names, without waiting for the writer of a
// named pipe.
func openRegular(name string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(filepath.Clean(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("read %s: it is not a regular file (%s)", name, info.Mode().Type())
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

func (r *repo) close() { _ = r.root.Close() } // it was opened for reading only

// rel returns the path of a folder in the repository, with slashes.
func (r *repo) rel(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", dir, err)
	}
	rel, err := filepath.Rel(r.dir, abs)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%s is not in the repository %s; name a folder in it, or another --repo", dir, r.dir)
	}
	return filepath.ToSlash(rel), nil
}

// request reads the request in a folder.
func (r *repo) request(dir string) (*governance.Request, error) {
	rel, err := r.rel(dir)
	if err != nil {
		return nil, err
	}
	return r.Request(rel)
}

// openRequest opens the repository that a folder is in, and reads the request of the folder.
// The caller closes the repository.
func (c *cli) openRequest(dir string) (*repo, *governance.Request, error) {
	r, err := c.openRepo(dir)
	if err != nil {
		return nil, nil, err
	}
	q, err := r.request(dir)
	if err != nil {
		r.close()
		return nil, nil, err
	}
	return r, q, nil
}

// withRequest opens the repository and the request of a folder, and evaluates it.
func (c *cli) withRequest(ctx context.Context, dir string, do func(*repo, *governance.Evaluation) error) error {
	r, q, err := c.openRequest(dir)
	if err != nil {
		return err
	}
	defer r.close()
	e, err := r.Evaluate(ctx, q, c.now())
	if err != nil {
		return err
	}
	return do(r, e)
}

// maxPublic is the mode of files that everybody who has the repository reads.
const maxPublic = 0o644

// write replaces a file of the repository, whose folders it makes. A link in their place is
// refused: what is signed stays where it was looked for.
func (r *repo) write(name string, data []byte) error { return r.put(name, data, atomicfile.WriteFS) }

// create is write for a file that must not be there.
func (r *repo) create(name string, data []byte) error { return r.put(name, data, atomicfile.CreateFS) }

// createOnce is create for a file whose name follows from its content: the same one may be there,
// and another one may not, since what was signed would be nowhere.
func (r *repo) createOnce(name string, data []byte) error {
	err := r.create(name, data)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if there, rerr := governance.ReadFile(r.files(), name); rerr != nil || !bytes.Equal(there, data) {
		return fmt.Errorf("%s is there and is another file, so that nothing was written; remove it, and sign again", name)
	}
	return nil
}

func (r *repo) put(name string, data []byte, put func(atomicfile.FS, string, []byte, fs.FileMode) error) error {
	if err := r.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := r.root.Lstat(dir); err != nil || !info.IsDir() {
			return fmt.Errorf("write %s: %s is not a folder of the repository itself", name, dir)
		}
	}
	return put(rooted{r.root}, name, data, maxPublic)
}

// rooted writes below a folder alone, also while somebody puts a link in the place of a folder
// that was looked at.
type rooted struct{ *os.Root }

// OpenFile opens a file (atomicfile.FS).
func (r rooted) OpenFile(name string, flag int, perm fs.FileMode) (atomicfile.File, error) {
	f, err := r.Root.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err // and no *os.File, which would not be nil
	}
	return f, nil
}

// SyncDir stores the names in a folder (atomicfile.FS).
func (r rooted) SyncDir(dir string) error {
	f, err := r.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// duration is a flag of a duration in days too, as in 14d.
type duration struct{ *authz.Duration }

// String returns the duration (pflag.Value).
func (d duration) String() string {
	if d.Duration == nil || *d.Duration == 0 {
		return ""
	}
	return d.Duration.String()
}

// Type names the flag's type (pflag.Value).
func (duration) Type() string { return "duration" }

// Set reads a duration (pflag.Value).
func (d duration) Set(s string) error { return d.UnmarshalText([]byte(s)) }

// oneFolder wants one argument, the folder of a request.
func oneFolder() cobra.PositionalArgs {
	return command.Exactly(1, "the folder of a request, as in plugins/weather/1.4.0")
}

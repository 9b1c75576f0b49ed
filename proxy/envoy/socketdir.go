package envoy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

const socketSuffix = ".sock"

// socketDir is a directory of Unix sockets that only the sidecar's own user, root and,
// where there is one, a group can reach.
type socketDir struct {
	path  string
	group string
	gid   int // -1 for none
}

// openSocketDir makes a directory, or takes over the one that an earlier sidecar left,
// and removes the sockets that no process serves any more. A directory that another user
// owns or can replace is an error.
func openSocketDir(ctx context.Context, path, group string) (socketDir, error) {
	if !filepath.IsAbs(path) {
		return socketDir{}, fmt.Errorf("directory %q is relative; write an absolute path", path)
	}
	gid, err := unixsock.GroupID(group)
	if err != nil {
		return socketDir{}, err
	}
	d := socketDir{path: filepath.Clean(path), group: group, gid: gid}
	if err := unixsock.CheckPath(d.path); err != nil { // before anything is made there
		return socketDir{}, err
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil { //nolint:gosec // the group looks the directory up in it
		return socketDir{}, err
	}
	if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return socketDir{}, err
	}
	if err := unixsock.CheckPath(d.path); err != nil {
		return socketDir{}, err
	}
	if err := d.own(); err != nil {
		return socketDir{}, err
	}
	return d, d.sweep(ctx)
}

// own opens the directory to the group, and refuses a file or a symbolic link.
func (d socketDir) own() error {
	info, err := os.Lstat(d.path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory; remove it, or choose another path", d.path)
	}
	if d.gid < 0 {
		return os.Chmod(d.path, 0o700) //nolint:gosec // a directory is entered
	}
	return errors.Join(os.Chown(d.path, -1, d.gid), os.Chmod(d.path, 0o750)) //nolint:gosec // the group enters it
}

// sweep removes the sockets of a dead sidecar.
func (d socketDir) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Type() != fs.ModeSocket || !strings.HasSuffix(entry.Name(), socketSuffix) {
			continue
		}
		if err := unixsock.RemoveStale(ctx, filepath.Join(d.path, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// listen binds a socket in the directory.
func (d socketDir) listen(ctx context.Context, path string) (net.Listener, error) {
	return unixsock.Listen(ctx, path, unixsock.Config{Group: d.group})
}

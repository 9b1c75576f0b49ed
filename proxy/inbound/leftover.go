package inbound

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// socketList are the Unix sockets of the host that are forwarded to the plugin,
// as the state directory records them: a sidecar that is killed leaves their
// files. Its zero value records nothing.
type socketList struct {
	mu    sync.Mutex
	keep  func(paths []string) error // writes the paths down; nil: nothing is written
	paths []string
	saved []string // that are written down: these and some that have gone since
}

// add records a path before a socket is made there. A plugin that makes the same
// socket again and again has nothing written.
func (h *socketList) add(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paths = append(h.paths, path) // twice, while one socket takes the place of another
	if slices.Contains(h.saved, path) {
		return nil
	}
	return h.save()
}

// remove drops a path whose socket is gone. Its entry is removed with
// the next change, or by [socketList.settle].
func (h *socketList) remove(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at := slices.Index(h.paths, path); at >= 0 {
		h.paths = slices.Delete(h.paths, at, at+1)
	}
}

// settle writes down what there is. A path that could not be dropped is looked at
// once more by the next sidecar.
func (h *socketList) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.paths, h.saved) {
		_ = h.save() // see above
	}
}

func (h *socketList) save() error {
	if h.keep == nil {
		return nil
	}
	if err := h.keep(h.paths); err != nil {
		return err
	}
	h.saved = slices.Clone(h.paths)
	return nil
}

// RemoveLeftovers removes the sockets of the host that an earlier sidecar left, and
// that no process listens on.
func RemoveLeftovers(paths []string) error {
	var errs []error
	for _, path := range paths {
		if err := removeDeadSocket(path); err != nil {
			errs = append(errs, fmt.Errorf("remove a socket that a killed sidecar left: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeDeadSocket removes a Unix socket that refuses connections, since its
// process has ended. Any other file stays.
func removeDeadSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 || !filepath.IsAbs(path) {
		return nil //nolint:nilerr // it is gone, or something else
	}
	stale, err := unixsock.IsStale(context.Background(), path, uids(info)...) //nolint:forbidigo // it is bounded to a second
	if err != nil || !stale {
		return nil //nolint:nilerr // a process serves it
	}
	return os.Remove(path)
}

// uids returns the owner of a file, whoever that is: the path was written down by a
// sidecar that had made the socket.
func uids(info fs.FileInfo) []int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return []int{int(stat.Uid)}
	}
	return nil
}

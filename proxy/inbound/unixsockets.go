package inbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

const (
	maxSockets     = 256         // Unix sockets on the host at once
	socketInterval = time.Second // between looks whether the plugin's still exist
)

// PluginSocket is a Unix socket that the plugin is about to listen on.
type PluginSocket struct {
	// Path is where its file lies, absolute and without links, in the plugin's view.
	Path string
	// File is the file that the socket is bound to, open with O_PATH. The Forwarder
	// closes it.
	File *os.File
	// Inode is the inode number of the socket.
	Inode uint64
}

// hostSocket is one Unix socket on the host that is forwarded to one of the
// plugin's.
type hostSocket struct {
	*net.UnixListener

	service Service      // the entry of process.listen
	path    string       // the same on the host and in the plugin's view
	plugin  PluginSocket // the plugin's socket
	remove  func()       // removes the host's file
}

// unixPeer is the process at the other end of a Unix socket.
type unixPeer struct {
	pid, uid int
	exe      string
}

// peerOf returns who connected; uid -1: not over a Unix socket.
func peerOf(conn net.Conn) unixPeer {
	peer := unixPeer{uid: -1}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return peer
	}
	credentials, err := unixsock.PeerOf(c)
	if err != nil {
		return peer
	}
	peer.pid, peer.uid = credentials.PID, credentials.UID
	if exe, err := os.Readlink("/proc/" + strconv.Itoa(peer.pid) + "/exe"); err == nil && peer.pid > 0 {
		peer.exe = exe
	}
	return peer
}

// serviceOf returns the entry of process.listen that a path matches.
func serviceOf(services []Service, path string) (Service, bool) {
	for _, service := range services {
		if service.Socket == "" {
			continue
		}
		dir, name := filepath.Split(service.Socket)
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			dir = resolved
		}
		if filepath.Dir(path) == filepath.Clean(dir) && matchesName(name, filepath.Base(path)) {
			return service, true
		}
	}
	return Service{}, false
}

// matchesName reports whether a name matches one with at most one *.
func matchesName(pattern, name string) bool {
	before, after, wild := strings.Cut(pattern, "*")
	if !wild {
		return name == pattern
	}
	return len(name) >= len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}

// ServingUnix listens on the host under the path that the plugin is about to
// listen on, if process.listen names it. The plugin waits for this to return.
func (in *Forwarder) ServingUnix(l PluginSocket, services []Service) {
	service, ok := serviceOf(services, l.Path)
	if !ok || sharedWithHost(l) || in.forwards(l) {
		_ = l.File.Close() // it was only open to be looked at
		return
	}
	if err := in.forward(l, service); err != nil {
		_ = l.File.Close() // likewise
		in.Log.Error("unix socket not forwarded to the plugin", zap.String("path", l.Path), zap.Error(err))
	}
}

// forwards reports whether a socket is forwarded already: listen(2) a second time
// changes the backlog.
func (in *Forwarder) forwards(l PluginSocket) bool {
	return slices.ContainsFunc(in.forwarded(), func(d *hostSocket) bool { return d.plugin.Inode == l.Inode })
}

// sharedWithHost reports whether the plugin's socket is the host's file of that
// name, as in a folder that stays visible in the plugin's view.
func sharedWithHost(l PluginSocket) bool {
	own, err := l.File.Stat()
	if err != nil {
		return false
	}
	info, err := os.Lstat(l.Path)
	return err == nil && os.SameFile(own, info)
}

// forward adds a socket on the host that is forwarded to a socket of the plugin's.
// It takes the plugin's file over unless it fails.
func (in *Forwarder) forward(l PluginSocket, service Service) error {
	if err := errors.Join(in.room(), listenable(l.Path)); err != nil { // before anything is written for it
		return err
	}
	if err := in.host.add(l.Path); err != nil {
		return err
	}
	host, remove, err := listenOnHost(l.Path)
	if err != nil {
		in.host.remove(l.Path)
		return err
	}
	d := &hostSocket{UnixListener: host, service: service, path: l.Path, plugin: l, remove: remove}
	if err := in.add(d); err != nil {
		_ = host.Close() // no connection was taken
		remove()
		in.host.remove(l.Path)
		return err
	}
	select {
	case in.arrivals <- d:
	case <-in.done:
		in.remove(d)
	}
	return nil
}

func (in *Forwarder) add(d *hostSocket) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.roomLocked(); err != nil {
		return err
	}
	in.sockets = append(in.sockets, d)
	return nil
}

// room reports why no socket more can be forwarded.
func (in *Forwarder) room() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.roomLocked()
}

func (in *Forwarder) roomLocked() error {
	switch {
	case in.closed:
		return errStopping
	case len(in.sockets) >= maxSockets:
		return fmt.Errorf("%d sockets are forwarded already", maxSockets)
	}
	return nil
}

// forwarded returns the Unix sockets on the host.
func (in *Forwarder) forwarded() []*hostSocket {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.Clone(in.sockets)
}

// HostAddresses returns where the host reaches a service.
func (in *Forwarder) HostAddresses(service Service) []string {
	var out []string
	for _, d := range in.ports {
		if service.Port != 0 && d.port == service.Port {
			out = append(out, d.Addr().String())
		}
	}
	for _, d := range in.forwarded() {
		if d.service == service {
			out = append(out, "unix:"+d.Addr().String())
		}
	}
	return out
}

// remove removes one Unix socket from the host, once.
func (in *Forwarder) remove(d *hostSocket) {
	in.mu.Lock()
	at := slices.Index(in.sockets, d)
	if at >= 0 {
		in.sockets = slices.Delete(in.sockets, at, at+1)
	}
	in.mu.Unlock()
	if at < 0 {
		return
	}
	_ = d.Close() // its accept ends in any case
	d.remove()
	in.host.remove(d.path)
	_ = d.plugin.File.Close() // it was not written to
}

// followSockets takes connections for the plugin's sockets as they come, and
// removes those that the plugin has closed.
func (in *Forwarder) followSockets(ctx context.Context, g *errgroup.Group, passing *sync.WaitGroup) {
	defer close(in.done)
	look := time.NewTicker(socketInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-in.arrivals:
			g.Go(func() error { return in.accept(ctx, d.service, d, d, passing) })
		case <-look.C:
			in.removeGone()
		}
	}
}

// removeGone removes the sockets that the plugin has closed, or removed itself.
func (in *Forwarder) removeGone() {
	doors := in.forwarded()
	if len(doors) == 0 {
		return
	}
	sockets := make([]uint64, len(doors))
	for i, d := range doors {
		sockets[i] = d.plugin.Inode
	}
	exist, err := in.Exist(sockets)
	if err != nil {
		in.Log.Error("forwarded sockets not checked", zap.Error(err))
		return
	}
	for _, d := range doors {
		if !exist[d.plugin.Inode] || isUnlinked(d.plugin.File) {
			in.remove(d)
		}
	}
}

// isUnlinked reports whether a file has no name any more.
func isUnlinked(file *os.File) bool {
	info, err := file.Stat()
	if err != nil {
		return true
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}

// dial connects to the plugin's socket by its file, so that no name is looked up.
func (d *hostSocket) dial(ctx context.Context) (conn net.Conn, err error) {
	raw, err := d.plugin.File.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reach the plugin's socket: %w", err)
	}
	held := raw.Control(func(fd uintptr) { // the file stays open until this returns
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	})
	if held != nil {
		return nil, fmt.Errorf("reach the plugin's socket: %w", held)
	}
	return conn, err
}

// listenable reports why a socket cannot be made at a path of the host: its name, the
// folder that it would lie in, or what lies there.
func listenable(path string) error {
	if err := printablePath(path); err != nil {
		return err
	}
	uid, _ := invokingUser()
	if _, err := unixsock.IsStale(context.Background(), path, uid, os.Geteuid()); err != nil { //nolint:forbidigo // it is bounded to a second
		return err
	}
	return checkPath(path, uid)
}

// listenOnHost listens on a path of the host, with mode 0600 and the user that
// started the sidecar as the owner. remove removes the file, if it is still the
// same.
func listenOnHost(path string) (l *net.UnixListener, remove func(), err error) {
	if err := listenable(path); err != nil {
		return nil, nil, err
	}
	uid, gid := invokingUser()
	if err := unixsock.RemoveStale(context.Background(), path, uid, os.Geteuid()); err != nil { //nolint:forbidigo // it is bounded to a second
		return nil, nil, fmt.Errorf("listen on the host: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		control := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }) // bind(2) gives the file this mode
		return errors.Join(control, err)
	}}
	listener, err := config.Listen(context.Background(), "unix", path) //nolint:forbidigo // it does not block
	if err != nil {
		return nil, nil, fmt.Errorf("listen on the host: %w", err)
	}
	l = listener.(*net.UnixListener) //nolint:forcetypeassert // of that network
	l.SetUnlinkOnClose(false)
	file, err := fileOf(l)
	if err == nil {
		err = chownAt(file, path, uid, gid)
	}
	if err != nil {
		_ = os.Remove(path) // it was made just now
		return nil, nil, errors.Join(fmt.Errorf("listen on the host: %w", err), l.Close())
	}
	return l, func() { removeSame(file, path) }, nil
}

// fileOf opens the file that a socket of the sidecar's is bound to, with O_PATH.
func fileOf(l *net.UnixListener) (file *os.File, err error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	control := raw.Control(func(fd uintptr) {
		var opened int
		if opened, err = unix.IoctlRetInt(int(fd), siocUnixFile); err == nil {
			file = os.NewFile(uintptr(opened), "socket")
		}
	})
	return file, errors.Join(control, err)
}

// siocUnixFile is SIOCUNIXFILE (include/uapi/linux/un.h).
const siocUnixFile = 0x89e0

// chownAt gives the file of a socket to a user, once it is proved to lie where it was
// to be made: a folder above may have been exchanged.
func chownAt(file *os.File, path string, uid, gid int) error {
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
	if err == nil && at != path {
		err = fmt.Errorf("%s was made as %s", path, strconv.Quote(at))
	}
	if err == nil {
		err = unix.Fchownat(int(file.Fd()), "", uid, gid, unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	return nil
}

// removeSame removes a path if it is still the file given, and closes that.
func removeSame(file *os.File, path string) {
	own, err := file.Stat()
	info, gone := os.Lstat(path)
	if err == nil && gone == nil && os.SameFile(own, info) {
		_ = os.Remove(path) // there is nothing more to do about it
	}
	_ = file.Close() // it was not written to
}

// printablePath reports a path that could not be printed as it is.
func printablePath(path string) error {
	for _, r := range path {
		if !strconv.IsPrint(r) {
			return fmt.Errorf("%q holds characters that cannot be printed", path)
		}
	}
	return nil
}

// invokingUser returns the user that started the sidecar, also by sudo.
func invokingUser() (uid, gid int) {
	if os.Geteuid() == 0 {
		u, noUser := strconv.Atoi(os.Getenv("SUDO_UID"))
		g, noGroup := strconv.Atoi(os.Getenv("SUDO_GID"))
		if noUser == nil && noGroup == nil && u > 0 && g > 0 {
			return u, g
		}
	}
	return os.Geteuid(), os.Getegid()
}

// checkPath reports a path at which a user other than root, the sidecar's and the one
// given could replace a socket. A path through a symbolic link is refused as well: the
// plugin names the socket by the path without links.
func checkPath(path string, uid int) error {
	dir := filepath.Dir(path)
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("inspect the directory of a socket: %w", err)
	}
	if resolved != dir {
		return fmt.Errorf("%s is reached through a symbolic link; listen in %s", dir, resolved)
	}
	return unixsock.CheckPath(path, uid, os.Geteuid())
}

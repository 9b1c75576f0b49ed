package ebpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// siocUnixFile is the ioctl that opens the file that a Unix socket is bound to,
// with O_PATH (SIOCUNIXFILE, include/uapi/linux/un.h). It needs CAP_NET_ADMIN.
const siocUnixFile = 0x89e0

// unixDiagInodeOffset is where struct unix_diag_msg has the socket's inode number.
const unixDiagInodeOffset = 4

// Bound returns which of some Unix sockets of the plugin's network still exist,
// by inode number.
func (c *Cage) Bound(sockets []uint64) (map[uint64]bool, error) {
	var all map[uint64]bool
	err := c.network.do(func() (err error) {
		if all, err = unixSockets(); err != nil { // CONFIG_UNIX_DIAG is not set
			all, err = unixSocketsByText()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list Unix sockets: %w", err)
	}
	bound := make(map[uint64]bool, len(sockets))
	for _, socket := range sockets {
		bound[socket] = all[socket]
	}
	return bound, nil
}

// unixSockets lists the Unix sockets of the thread's network namespace.
func unixSockets() (map[uint64]bool, error) {
	fd, err := openDiag()
	if err != nil {
		return nil, err
	}
	query := make([]byte, unixDiagRequest)
	query[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(query[4:], unixConnected|unixUnconnected)
	all := make(map[uint64]bool)
	err = dumpDiag(fd, make([]byte, 32<<10), query, func(body []byte) {
		if len(body) >= unixDiagAnswer {
			all[uint64(binary.NativeEndian.Uint32(body[unixDiagInodeOffset:]))] = true
		}
	})
	return all, errors.Join(err, unix.Close(fd))
}

// unixSocketsByText is unixSockets by a file that holds names as they are: a plugin
// can write lines of its own in one, and so have a socket of its own taken for there.
func unixSocketsByText() (map[uint64]bool, error) {
	file, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	all := make(map[uint64]bool)
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path
		if fields := strings.Fields(lines.Text()); len(fields) > 6 {
			if inode, err := strconv.ParseUint(fields[6], 10, 64); err == nil {
				all[inode] = true
			}
		}
	}
	return all, lines.Err()
}

// listens hands on what a process is about to listen on. The call goes on in any
// case: no permission depends on it, so that the process may exchange the socket
// under the number at the same time, to its own disadvantage.
func (e *ears) listens(n *notice, process uint32) {
	if e.listening == nil && e.serving == nil {
		return
	}
	l, port, err := listenerOf(int(n.PID), int(process), int(int32(n.Data.Args[0])))
	if l != nil && e.control(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.ID)) != nil { //nolint:gosec // its id
		_ = l.File.Close()
		return // the process was killed, and its number may be another's
	}
	switch {
	case err != nil:
		e.log.Warn("listening socket not followed", zap.Uint32("pid", process), zap.Error(err))
	case port != 0 && e.serving != nil:
		e.serving(port)
	case l != nil && e.listening != nil:
		e.listening(process, *l)
	case l != nil:
		_ = l.File.Close()
	}
}

// servingHandler is told of TCP ports of [Config.Serve] that the plugin is about
// to listen on, while the process waits; nil: nobody asks.
func (c *Cage) servingHandler() func(port uint16) {
	if !c.own || c.config.Serving == nil || len(c.config.Serve) == 0 {
		return nil
	}
	return func(port uint16) {
		if slices.Contains(c.config.Serve, port) {
			c.config.Serving(port)
		}
	}
}

// listenerOf describes a socket of a thread by its number: a Unix socket with a
// path, or the port of a TCP socket; neither: it is another.
func listenerOf(thread, process, number int) (l *Listener, port uint16, err error) {
	handle, err := unix.PidfdOpen(thread, unix.O_EXCL) // PIDFD_THREAD, since Linux 6.9
	if errors.Is(err, unix.EINVAL) {
		handle, err = unix.PidfdOpen(process, 0)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open process %d: %w", process, err)
	}
	defer func() { _ = unix.Close(handle) }()
	socket, err := unix.PidfdGetfd(handle, number, 0)
	if errors.Is(err, unix.EBADF) {
		return nil, 0, nil // listen(2) refuses it
	}
	if err != nil {
		return nil, 0, fmt.Errorf("take descriptor %d of process %d: %w", number, process, err)
	}
	defer func() { _ = unix.Close(socket) }()
	if address, err := unix.Getsockname(socket); err == nil {
		switch address := address.(type) {
		case *unix.SockaddrInet4:
			return nil, uint16(address.Port), nil
		case *unix.SockaddrInet6:
			return nil, uint16(address.Port), nil
		}
	}
	l, err = boundTo(socket)
	return l, 0, err
}

// boundTo describes a Unix socket with a path; nil: the socket is of another kind.
func boundTo(socket int) (*Listener, error) {
	if domain, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_UNIX {
		return nil, nil //nolint:nilnil,nilerr // no socket, or another family
	}
	fd, err := unix.IoctlRetInt(socket, siocUnixFile)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil //nolint:nilnil // it is not bound to a path
	}
	if err != nil {
		return nil, fmt.Errorf("open file of socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	var stat unix.Stat_t
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err == nil {
		err = unix.Fstat(socket, &stat)
	}
	name := ""
	if bound, err := unix.Getsockname(socket); err == nil {
		if bound, ok := bound.(*unix.SockaddrUnix); ok {
			name = bound.Name
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find path of socket: %w", err), file.Close())
	}
	return &Listener{Path: path, Name: name, File: file, Socket: stat.Ino}, nil
}

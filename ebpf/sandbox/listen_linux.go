package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// siocUnixFile is the ioctl that opens the file that a Unix socket is bound to,
// with O_PATH (SIOCUNIXFILE, include/uapi/linux/un.h). It needs CAP_NET_ADMIN.
const siocUnixFile = 0x89e0

// reportListen hands on what a process is about to listen on. The call goes on in any
// case: no permission depends on it, so that the process may exchange the socket
// under the number at the same time, to its own disadvantage.
func (e *notifyListener) reportListen(n *notification, process uint32) {
	if e.listenUnix == nil && e.listenTCP == nil {
		return
	}
	l, port, err := listenerOf(int(n.PID), int(process), int(int32(n.Data.Args[0])))
	if l != nil && e.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.ID)) != nil { //nolint:gosec // its id
		_ = l.File.Close()
		return // the process was killed, and its number may be another's
	}
	switch {
	case err != nil:
		e.log.Warn("listening socket not identified", zap.Uint32("pid", process), zap.Error(err))
	case port != 0 && e.listenTCP != nil:
		e.listenTCP(port)
	case l != nil && e.listenUnix != nil:
		e.listenUnix(process, *l)
	case l != nil:
		_ = l.File.Close()
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

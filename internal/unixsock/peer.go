package unixsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a Unix connection, as the kernel recorded
// it when the process connected (SO_PEERCRED, unix(7)).
type Peer struct {
	PID int
	UID int
	GID int
}

// PeerOf returns the peer of a Unix connection. With an error its UID is -1, which
// is no user.
func PeerOf(conn syscall.Conn) (Peer, error) {
	var credentials *unix.Ucred
	err := control(conn, func(fd int) (err error) {
		credentials, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil {
		return Peer{UID: -1, GID: -1}, fmt.Errorf("identify peer: %w", err)
	}
	return Peer{PID: int(credentials.Pid), UID: int(credentials.Uid), GID: int(credentials.Gid)}, nil
}

// CheckPeer returns an error unless the peer of a Unix connection is root, the
// effective user of the process, or a member of the group gid; -1 is no group. The
// mode of the socket decides the same; this holds also if the mode was changed.
func CheckPeer(conn net.Conn, gid int) error {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("identify peer: %T is not a Unix connection", conn)
	}
	peer, err := PeerOf(socket)
	if err != nil {
		return err
	}
	if peer.UID == 0 || peer.UID == os.Geteuid() || gid >= 0 && peer.GID == gid {
		return nil
	}
	if gid >= 0 {
		groups, err := PeerGroups(socket)
		if err != nil {
			return err
		}
		if slices.Contains(groups, gid) {
			return nil
		}
	}
	return fmt.Errorf("process %d of uid %d is neither of the socket's user nor of its group", peer.PID, peer.UID)
}

// PeerGroups returns the supplementary groups of the peer of a Unix connection, as
// they were when it connected (SO_PEERGROUPS, Linux 4.13).
func PeerGroups(conn syscall.Conn) ([]int, error) {
	var groups []int
	err := control(conn, func(fd int) (err error) {
		groups, err = peerGroups(fd)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read groups of peer: %w", err)
	}
	return groups, nil
}

func peerGroups(fd int) ([]int, error) {
	const sizeOfGID = 4
	buf := make([]byte, 64*sizeOfGID)
	for {
		size := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // as getsockopt(2) takes them
		switch {
		case errno == unix.ERANGE && int(size) > len(buf):
			buf = make([]byte, size)
			continue
		case errno != 0:
			return nil, errno
		}
		groups := make([]int, size/sizeOfGID)
		for i := range groups {
			groups[i] = int(binary.NativeEndian.Uint32(buf[i*sizeOfGID:]))
		}
		return groups, nil
	}
}

// control calls do with the file descriptor of a connection.
func control(conn syscall.Conn, do func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
}

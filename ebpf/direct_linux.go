package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// Of unix_diag (include/uapi/linux/unix_diag.h).
const (
	unixDiagRequest = 24     // sizeof(struct unix_diag_req)
	unixDiagAnswer  = 16     // sizeof(struct unix_diag_msg)
	unixDiagShowVFS = 1 << 1 // UDIAG_SHOW_VFS
	unixDiagVFS     = 1      // UNIX_DIAG_VFS
	unixConnected   = 1 << unix.BPF_TCP_ESTABLISHED
	unixUnconnected = 1<<unix.BPF_TCP_LISTEN | 1<<unix.BPF_TCP_CLOSE
)

// maxDirect is how many sockets with a path the plugin may listen on whose
// connections are followed.
const maxDirect = 1024

// direct are the connections that processes outside the plugin's cgroup have made
// to the Unix sockets that the plugin listens on.
type direct struct {
	mu        sync.Mutex
	listeners map[uint64]string     // path by inode number of the socket
	open      map[uint64]DirectConn // by inode number of the plugin's end
	own       map[uint64]bool       // connections of the plugin's and the sidecar's processes
	missing   bool                  // the kernel has no unix_diag
}

// unixFile is the file of a Unix socket, as unix_diag has it.
type unixFile struct{ inode, device uint32 }

// followDirect has connections to a socket followed from now on.
func (c *Confinement) followDirect(l sandbox.Listener) {
	d := &c.direct
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listeners == nil {
		d.listeners, d.open, d.own = make(map[uint64]string), make(map[uint64]DirectConn), make(map[uint64]bool)
	}
	if len(d.listeners) < maxDirect {
		d.listeners[l.Socket] = l.Path
	}
}

// CutDirect ends the connections that processes outside the plugin's cgroup have
// to its Unix sockets, and returns how many they were. One that the plugin has
// not accepted yet is ended by [Confinement.Run] once it is, while the plugin is blocked.
func (c *Confinement) CutDirect() (cut int, err error) { return c.scanDirect(true) }

// checkDirect looks at the connections, and cuts them while the plugin is blocked.
func (c *Confinement) checkDirect() {
	c.mu.Lock()
	shut, closed := c.blocked, c.closed
	c.mu.Unlock()
	if closed {
		return
	}
	if _, err := c.scanDirect(shut); err != nil {
		c.config.Logger.Error("connections to the plugin's sockets not checked", zap.Error(err))
	}
}

// scanDirect reports what has begun and ended since the last look.
func (c *Confinement) scanDirect(cut bool) (int, error) {
	d := &c.direct
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.listeners) == 0 && len(d.open) == 0 || d.missing {
		return 0, nil
	}
	now, err := c.connectedTo()
	if errors.Is(err, unix.ENOENT) {
		d.missing = true
		return 0, errors.New("the kernel has no unix_diag, by which they are found")
	}
	if err != nil {
		return 0, err
	}
	for socket, conn := range d.open {
		if _, there := now[socket]; !there {
			c.reportDirect(conn, DirectEnded)
			delete(d.open, socket)
		}
	}
	for socket := range d.own {
		if _, there := now[socket]; !there {
			delete(d.own, socket)
		}
	}
	for socket := range now {
		if _, known := d.open[socket]; known && !cut || d.own[socket] {
			delete(now, socket) // there is nothing to do
		}
	}
	if len(now) == 0 {
		return 0, nil
	}
	return c.endDirect(now, cut)
}

// endDirect reports connections that are new, and ends all of those given if they
// are to be cut. The caller holds c.direct.mu.
func (c *Confinement) endDirect(now map[uint64]string, cut bool) (count int, err error) {
	d := &c.direct
	err = c.eachSocket(now, func(socket uint64, fd int) {
		conn, known := d.open[socket]
		if !known {
			var outside bool
			if conn, outside = c.directConn(now[socket], fd); !outside {
				d.own[socket] = true
				return
			}
			d.open[socket] = conn
			c.reportDirect(conn, DirectBegan)
		}
		if cut && unix.Shutdown(fd, unix.SHUT_RDWR) == nil {
			count++
			delete(d.open, socket)
			c.reportDirect(conn, DirectCut)
		}
	})
	return count, err
}

func (c *Confinement) reportDirect(conn DirectConn, state DirectState) {
	if c.config.Direct != nil {
		conn.State = state
		c.config.Direct(conn)
	}
}

// directConn describes the process at the other end of a connection; false: it is
// the sidecar, or one of the plugin's.
func (c *Confinement) directConn(path string, fd int) (conn DirectConn, outside bool) {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(peer.Pid) == os.Getpid() {
		return conn, false
	}
	conn = DirectConn{Path: path, PID: int(peer.Pid), UID: int(peer.Uid)}
	pids, err := appendPIDs(nil, filepath.Join(c.group.Path, "cgroup.procs"))
	if err != nil || peer.Pid > 0 && slices.Contains(pids, int(peer.Pid)) {
		return conn, false
	}
	gone := unix.Kill(int(peer.Pid), 0) != nil
	if !c.own && gone && int(peer.Uid) == c.user.UID {
		return conn, false // a process of the plugin's that has ended
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", peer.Pid)); err == nil {
		conn.Exe = exe
	}
	return conn, true
}

// connectedTo returns the connected sockets, by inode number, that came from one
// of the plugin's listeners, with its path. A connection belongs to the network
// namespace of the process that made it: the sidecar's is looked at.
func (c *Confinement) connectedTo() (map[uint64]string, error) {
	paths := make(map[unixFile]string)
	there := make(map[uint64]bool)
	err := c.network.Do(func() error {
		return listUnixSockets(unixUnconnected, func(socket uint64, file unixFile) {
			if path, ok := c.direct.listeners[socket]; ok {
				paths[file], there[socket] = path, true
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the plugin's listeners: %w", err)
	}
	for socket := range c.direct.listeners {
		if !there[socket] {
			delete(c.direct.listeners, socket)
		}
	}
	now := make(map[uint64]string)
	err = listUnixSockets(unixConnected, func(socket uint64, file unixFile) {
		if path, ok := paths[file]; ok {
			now[socket] = path
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list connections to Unix sockets: %w", err)
	}
	return now, nil
}

// eachSocket calls f with a copy of each of the sockets that a process of the
// plugin's holds, once for each.
func (c *Confinement) eachSocket(sockets map[uint64]string, f func(socket uint64, fd int)) error {
	pids, err := appendPIDs(nil, filepath.Join(c.group.Path, "cgroup.procs"))
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	seen := make(map[uint64]bool)
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, entry := range entries {
			to, err := os.Readlink(filepath.Join(dir, entry.Name()))
			inode, isSocket := strings.CutPrefix(to, "socket:[")
			if err != nil || !isSocket {
				continue
			}
			socket, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64)
			if _, wanted := sockets[socket]; err != nil || !wanted || seen[socket] {
				continue
			}
			seen[socket] = withDescriptor(pid, entry.Name(), socket, f)
		}
	}
	return nil
}

// withDescriptor calls f with a copy of a process's descriptor if it is still the
// socket.
func withDescriptor(pid int, number string, socket uint64, f func(socket uint64, fd int)) bool {
	n, err := strconv.Atoi(number)
	if err != nil {
		return false
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(handle) }()
	fd, err := unix.PidfdGetfd(handle, n, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Ino != socket {
		return false
	}
	f(socket, fd)
	return true
}

// listUnixSockets calls f for each Unix socket with a file in the thread's network
// namespace whose state is one of those given, with the socket's inode number.
func listUnixSockets(states uint32, f func(socket uint64, file unixFile)) error {
	fd, err := openDiag()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request := make([]byte, unix.SizeofNlMsghdr+unixDiagRequest)
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], diagByFamily)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := request[unix.SizeofNlMsghdr:]
	body[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(body[4:], states)
	binary.NativeEndian.PutUint32(body[12:], unixDiagShowVFS)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for answer := make([]byte, 32<<10); ; {
		n, _, err := unix.Recvfrom(fd, answer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := readUnixDiag(answer[:n], f); done || err != nil {
			return err
		}
	}
}

var errDiagShort = errors.New("the kernel's answer is cut short")

func readUnixDiag(messages []byte, f func(socket uint64, file unixFile)) (done bool, err error) {
	for len(messages) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(messages))
		if length < unix.SizeofNlMsghdr || length > len(messages) {
			return false, errDiagShort
		}
		body := messages[unix.SizeofNlMsghdr:length]
		switch kind := binary.NativeEndian.Uint16(messages[4:]); {
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			return false, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case kind == diagByFamily && len(body) >= unixDiagAnswer:
			if file, ok := fileAttribute(body[unixDiagAnswer:]); ok {
				f(uint64(binary.NativeEndian.Uint32(body[4:])), file)
			}
		}
		messages = messages[min((length+3)&^3, len(messages)):]
	}
	return false, nil
}

// fileAttribute finds UNIX_DIAG_VFS among the attributes of an answer.
func fileAttribute(attributes []byte) (file unixFile, ok bool) {
	const header = 4
	for len(attributes) >= header {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < header || length > len(attributes) {
			return file, false
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == unixDiagVFS && length >= header+8 {
			return unixFile{binary.NativeEndian.Uint32(attributes[4:]), binary.NativeEndian.Uint32(attributes[8:])}, true
		}
		attributes = attributes[min((length+3)&^3, len(attributes)):]
	}
	return file, false
}

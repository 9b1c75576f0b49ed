package ebpf

import (
	"errors"
	"net"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// servedSockets are the sockets that the test plugin bound.
type servedSockets struct{ fds []int }

var ownServed = &servedSockets{}

// ownSockets are attempts at sockets that the plugin made itself.
func ownSockets() map[string]func([]string) error {
	s := ownServed
	return map[string]func([]string) error{
		"own-serve":   s.serve,
		"own-reach":   s.reach,
		"own-raw":     ownRaw,
		"own-mkdir":   func(args []string) error { return os.MkdirAll(args[0], 0o755) },
		"own-chdir":   func(args []string) error { return os.Chdir(args[0]) },
		"own-rename":  func(args []string) error { return os.Rename(args[0], args[1]) },
		"own-symlink": func(args []string) error { return os.Symlink(args[0], args[1]) },
		"own-link":    func(args []string) error { return unix.Linkat(unix.AT_FDCWD, args[0], unix.AT_FDCWD, args[1], 0) },
		"own-listen": func(args []string) error {
			l, err := net.Listen("tcp", args[0])
			if err == nil {
				err = l.Close()
			}
			return err
		},
		"own-listen-number": func(args []string) error {
			number, err := strconv.Atoi(args[0])
			if err != nil {
				return err
			}
			return unix.Listen(number, 1)
		},
		"own-close": func([]string) error {
			for _, fd := range s.fds {
				if err := unix.Close(fd); err != nil {
					return err
				}
			}
			s.fds = nil
			return nil
		},
		"own-remove": func(args []string) error { return os.Remove(args[0]) },
	}
}

func socketKind(name string) int {
	return map[string]int{"stream": unix.SOCK_STREAM, "seqpacket": unix.SOCK_SEQPACKET, "dgram": unix.SOCK_DGRAM, "sendto": unix.SOCK_DGRAM}[name]
}

// serve binds a socket: kind, name.
func (s *servedSockets) serve(args []string) error {
	kind := socketKind(args[0])
	fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return err
	}
	s.fds = append(s.fds, fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: args[1]}); err != nil {
		return err
	}
	if kind == unix.SOCK_DGRAM {
		return nil
	}
	return unix.Listen(fd, 4096)
}

// reach connects, or sends without, and makes sure that this process is at the
// other end: kind, name.
func (s *servedSockets) reach(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, socketKind(args[0]), 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrUnix{Name: args[1]}
	switch args[0] {
	case "sendto":
		if err := unix.Sendto(fd, []byte("mine"), 0, to); err != nil {
			return err
		}
		return s.arrived()
	case "dgram":
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("mine")); err != nil {
			return err
		}
		return s.arrived()
	}
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	return isOwn(fd)
}

// isOwn makes sure that this process is at the other end of a connection.
func isOwn(fd int) error {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if int(peer.Pid) != os.Getpid() {
		return errors.New("reached process " + strconv.Itoa(int(peer.Pid)))
	}
	return nil
}

// arrived takes a datagram from one of the bound sockets.
func (s *servedSockets) arrived() error {
	var poll []unix.PollFd
	for _, fd := range s.fds {
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && kind == unix.SOCK_DGRAM {
			poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	if _, err := unix.Poll(poll, int(time.Second/time.Millisecond)); err != nil {
		return err
	}
	for _, one := range poll {
		if one.Revents == 0 {
			continue
		}
		var text [8]byte
		n, _, err := unix.Recvfrom(int(one.Fd), text[:], unix.MSG_DONTWAIT)
		if err != nil || string(text[:n]) != "mine" {
			return errors.Join(err, errors.New("something else arrived"))
		}
		return nil
	}
	return errors.New("did not arrive")
}

// ownRaw connects with a name of any length and content: length, quoted text.
func ownRaw(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	length, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	text, err := strconv.Unquote(args[1])
	if err != nil {
		return err
	}
	var name [128]byte
	name[0] = unix.AF_UNIX
	copy(name[2:], text)
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(2+length))
	if errno != 0 {
		return errno
	}
	return isOwn(fd)
}

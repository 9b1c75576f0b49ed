package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Of sock_diag(7) (include/uapi/linux/sock_diag.h, inet_diag.h).
const (
	diagByFamily   = 20
	diagRequest    = 56 // sizeof(struct inet_diag_req_v2)
	diagPortOffset = 4  // of idiag_sport in struct inet_diag_msg
	listenState    = 1 << unix.BPF_TCP_LISTEN
)

// portWatch reports the TCP ports that are listened on in one network namespace:
// the one that its socket was made in.
type portWatch struct {
	mu       sync.Mutex
	socket   int
	response []byte
}

// openDiag opens a socket of sock_diag(7) in the thread's network namespace.
func openDiag() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return -1, fmt.Errorf("open socket diagnostics: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil { // it answers at once, or never
		return -1, errors.Join(fmt.Errorf("open socket diagnostics: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func newPortWatch(socket int) *portWatch {
	return &portWatch{socket: socket, response: make([]byte, 32<<10)}
}

// ports are those that are listened on over IPv4 or IPv6, on any address.
func (w *portWatch) ports() (map[uint16]bool, error) {
	if w == nil {
		return nil, errors.New("list listeners: there are no socket diagnostics")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.socket < 0 {
		return nil, fmt.Errorf("list listeners: %w", os.ErrClosed)
	}
	ports := make(map[uint16]bool)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := w.list(family, ports); err != nil {
			return nil, fmt.Errorf("list listeners: %w", err)
		}
	}
	return ports, nil
}

// list adds the ports of one family.
func (w *portWatch) list(family byte, ports map[uint16]bool) error {
	query := make([]byte, diagRequest)
	query[0], query[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(query[4:], listenState)
	return dumpDiag(w.socket, w.response, query, func(body []byte) {
		if len(body) >= diagPortOffset+2 {
			ports[binary.BigEndian.Uint16(body[diagPortOffset:])] = true
		}
	})
}

// dumpDiag asks for every socket that a query names, and calls each with what the
// kernel answers of one. The response is the buffer that datagrams are read into.
func dumpDiag(socket int, response, query []byte, each func(body []byte)) error {
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(query))
	binary.NativeEndian.PutUint32(request[0:], uint32(unix.SizeofNlMsghdr+len(query)))
	binary.NativeEndian.PutUint16(request[4:], diagByFamily)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	request = append(request, query...)
	if err := unix.Sendto(socket, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(socket, response, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := readDiag(response[:n], each); done || err != nil {
			return err
		}
	}
}

// readDiag reads the messages of one datagram, and reports whether they are the
// last of the response.
func readDiag(messages []byte, each func(body []byte)) (done bool, err error) {
	for len(messages) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(messages))
		if length < unix.SizeofNlMsghdr || length > len(messages) {
			return false, errors.New("the kernel's response is cut short")
		}
		body := messages[unix.SizeofNlMsghdr:length]
		switch binary.NativeEndian.Uint16(messages[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errors.New("the kernel's response is cut short")
			}
			return false, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case diagByFamily:
			each(body)
		}
		messages = messages[min((length+3)&^3, len(messages)):]
	}
	return false, nil
}

func (w *portWatch) close() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.socket < 0 {
		return nil
	}
	err := unix.Close(w.socket)
	w.socket = -1
	if err != nil {
		return fmt.Errorf("close socket diagnostics: %w", err)
	}
	return nil
}

// Listening returns the TCP ports that are listened on in the plugin's network
// namespace, those of the sidecar included. An error means that it is not known:
// the kernel has no socket diagnostics (CONFIG_INET_DIAG), or the confinement is closed.
func (c *Confinement) Listening() (map[uint16]bool, error) { return c.ports.ports() }

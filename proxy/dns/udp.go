package dns

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// maxQuestions is how many questions over UDP one pair of sockets answers at a
// time. Each waits for its record in the audit log, and none holds more than a
// packet and a goroutine. Faster queries wait in the socket's buffer, and are
// dropped there as on any network: a resolver library retries.
const maxQuestions = 32

// packetServer answers questions over UDP.
type packetServer struct {
	packets net.PacketConn
	handler dns.Handler
}

// serve answers questions until the socket is closed or ctx ends.
func (s *packetServer) serve(ctx context.Context) error {
	var answering sync.WaitGroup
	defer answering.Wait()
	defer func() { _ = s.packets.Close() }()
	buffers := make(chan []byte, maxQuestions) // a question has one until it is answered
	for range maxQuestions {
		buffers <- nil // made when it is needed
	}
	for {
		buf := <-buffers
		if buf == nil {
			buf = make([]byte, dns.MinMsgSize)
		}
		n, from, err := s.packets.ReadFrom(buf)
		if err == nil {
			answering.Go(func() {
				s.answer(buf[:n], from)
				buffers <- buf
			})
			continue
		}
		buffers <- buf
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		case session.IsTemporary(err), errors.Is(err, syscall.ECONNREFUSED): // of an answer to whoever has gone (udp(7))
		default:
			return err
		}
	}
}

// answer answers one packet. Another packet than a query gets no answer, or the
// error of the DNS (RFC 1035, section 4.1.1).
func (s *packetServer) answer(packet []byte, from net.Addr) {
	question := new(dns.Msg)
	err := question.Unpack(packet)
	switch {
	case len(packet) < headerSize || question.Response:
		return
	case err != nil || !questionCounts(question):
		bad := new(dns.Msg)
		bad.SetRcodeFormatError(question)
		bad.Opcode, bad.Zero = question.Opcode, false
		question = bad
	}
	w := &packetWriter{server: s, to: from}
	if question.Response {
		_ = w.WriteMsg(question) // an error means that the plugin has gone
		return
	}
	s.handler.ServeDNS(w, question)
}

// headerSize is how long the head of a message is (RFC 1035, section 4.1.1).
const headerSize = 12

// questionCounts reports whether a message has as many records as a question may:
// one question, and what EDNS, TSIG or NOTIFY add.
func questionCounts(m *dns.Msg) bool {
	return len(m.Question) == 1 && len(m.Answer) <= 1 && len(m.Ns) <= 1 && len(m.Extra) <= 2
}

// packetWriter is where the answer to one packet goes.
type packetWriter struct {
	dns.ResponseWriter // nil: the handler needs no more than what follows
	server             *packetServer
	to                 net.Addr
}

// RemoteAddr implements dns.ResponseWriter.
func (w *packetWriter) RemoteAddr() net.Addr { return w.to }

// WriteMsg implements dns.ResponseWriter.
func (w *packetWriter) WriteMsg(m *dns.Msg) error {
	packed, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = w.server.packets.WriteTo(packed, w.to)
	return err
}

// dropped returns how many packets the kernel dropped because the socket was full
// (sock_diag(7), SK_MEMINFO_DROPS); 0 where it does not say.
func dropped(packets net.PacketConn) uint64 {
	const index, words = 8, 9 // of SK_MEMINFO_DROPS, and of all
	socket, ok := packets.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	var info [words]uint32
	size := uint32(unsafe.Sizeof(info))
	_ = raw.Control(func(fd uintptr) { // a socket that is closed is not counted any more
		_, _, _ = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // as getsockopt(2) takes it; an older kernel leaves zeros
	})
	return uint64(info[index])
}

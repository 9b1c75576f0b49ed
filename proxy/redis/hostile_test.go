package redis_test

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// hostile is a server with answers of the test's, which keeps what it reads.
type hostile struct {
	ca   *testenv.CA
	port uint16

	mu   sync.Mutex
	read []byte
}

// newHostile starts a server that answers the first bytes that it reads with login, and the
// next with answers. Without a login it speaks no TLS.
func newHostile(t *testing.T, login, answers string) *hostile {
	t.Helper()
	ca, err := testenv.NewCA("hostile")
	testenv.Must(t, err)
	pair, err := ca.Issue(host)
	testenv.Must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	h := &hostile{ca: ca, port: uint16(listener.Addr().(*net.TCPAddr).Port)}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				if login != "" {
					conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
					h.answer(conn, login)
				}
				h.answer(conn, answers)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	return h
}

func (h *hostile) answer(conn net.Conn, text string) {
	b := make([]byte, 4096)
	n, _ := conn.Read(b)
	h.mu.Lock()
	h.read = append(h.read, b[:n]...)
	h.mu.Unlock()
	_, _ = io.WriteString(conn, text)
}

func (h *hostile) seen() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.read)
}

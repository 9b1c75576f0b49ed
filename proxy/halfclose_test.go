package proxy

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// TestEndOfInputBeforeServeHTTP ends the plugin's direction before ServeHTTP is
// called: net/http reads in the background from before that, and would cancel the
// request if it read an end of file.
func TestEndOfInputBeforeServeHTTP(t *testing.T) {
	l := testenv.MustGet(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	client := testenv.MustGet(new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String()))(t).(*net.TCPConn)
	defer client.Close()
	c := &conn{Conn: session.NewConn(&session.Socket{Raw: testenv.MustGet(l.Accept())(t)})}
	defer c.Close()
	c.rewriteRefusal = func(text []byte) []byte { return text } // as for every connection that net/http serves
	testenv.Must(t, client.CloseWrite())
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	select {
	case err := <-read:
		t.Fatalf("got %v from a connection that is half closed, want no return", err)
	case <-time.After(100 * time.Millisecond):
	}
	testenv.Must(t, client.SetLinger(0))
	testenv.Must(t, client.Close())
	if err := <-read; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v after the reset, want ECONNRESET", err)
	}
}

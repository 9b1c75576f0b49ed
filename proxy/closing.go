package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Bounds of a connection that is closed while the plugin still sends (RFC 9112, section
// 9.6). The kernel answers data for a closed socket with a reset, so a client that sends
// a whole body before it reads could lose the answer. The rest is therefore read and
// discarded, as nginx's lingering_close does.
const (
	maxLingering = 256 // connections; more are closed at once
	lingerAtMost = 30 * time.Second
	lingerQuiet  = 5 * time.Second // without a byte
	lingerBytes  = 512 << 20
	lingerBuffer = 16 << 10

	// Bounds for the rest of a body that is about to arrive when its request is refused,
	// and of one that an upstream has answered before its end.
	bodyPatience, maxFinished     = 20 * time.Millisecond, 256 << 10
	answerPatience, maxUnanswered = time.Second, 16 << 20

	// The delay, and the interval, at which the proxy tests whether a plugin that ended
	// its direction still waits for the answer.
	leavePatience, leaveAgain = 100 * time.Millisecond, 15 * time.Second
)

// lingerers counts the connections that linger.
type lingerers struct{ n atomic.Int64 }

func (l *lingerers) enter() bool {
	if l == nil || l.n.Add(1) <= maxLingering {
		return l != nil
	}
	l.n.Add(-1)
	return false
}

func (l *lingerers) leave() { l.n.Add(-1) }

// errReadingEnded is the error that net/http reads from a connection after endReading.
var errReadingEnded = errors.New("reading from the plugin has ended")

// endReading ends the reading of net/http from the connection, and a read that is
// under way; no further request is served on it. Data that still comes is
// discarded when it is closed.
func (c *conn) endReading() {
	c.ended.Store(true)
	_ = c.Raw.SetReadDeadline(time.Unix(1, 0)) // the pending read of net/http fails
}

// lingers reports whether the connection is closed only after data that still arrives has
// been discarded, and starts discarding.
func (c *conn) lingers() bool {
	if !c.ended.Load() || c.IsAbandoned() {
		return false
	}
	if c.lingering.Load() {
		return true
	}
	if !c.lingerers.enter() {
		return false
	}
	if c.Memory.Take(budget.Connection, lingerBuffer) != nil { // returned with the connection's memory
		c.lingerers.leave()
		return false
	}
	if c.lingering.Swap(true) {
		c.lingerers.leave()
		return true
	}
	go func() {
		defer c.lingerers.leave()
		_ = c.Conn.CloseWrite() // over TLS the close_notify
		_ = session.CloseWrite(c.Raw)
		c.discard()
		_ = c.Conn.Close()
	}()
	return true
}

// discard reads until the plugin has finished, within bounds. It reads below TLS.
func (c *conn) discard() {
	buf, end := make([]byte, lingerBuffer), time.Now().Add(lingerAtMost)
	for left := int64(lingerBytes); left > 0; {
		quiet := time.Now().Add(lingerQuiet)
		if quiet.After(end) {
			quiet = end
		}
		if c.Raw.SetReadDeadline(quiet) != nil {
			return
		}
		n, err := c.Raw.Read(buf)
		if err != nil {
			return
		}
		left -= int64(n)
	}
}

// finishBody reads the rest of a body that the plugin has already sent or is sending, and
// reports whether the body has ended: the connection can then be reused. Reading may
// continue after finishBody has returned false.
func finishBody(r *http.Request, atMost int64, within time.Duration) bool {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return true
	}
	if r.ContentLength > atMost || r.Header.Get("Expect") != "" {
		return false // reading would request the body (RFC 9110, section 10.1.1)
	}
	done := make(chan bool, 1)
	go func() {
		_, err := io.CopyN(io.Discard, r.Body, atMost+1)
		done <- errors.Is(err, io.EOF)
	}()
	patience := time.NewTimer(within)
	defer patience.Stop()
	select {
	case all := <-done:
		return all
	case <-patience.C:
		return false
	}
}

// closesEarly reports whether the connection ends with an answer that came before the end
// of the plugin's body. It ends if the upstream's connection does.
func (x *exchange) closesEarly(response *http.Response) bool {
	return x.r.ProtoMajor == 1 && (x.conn.ended.Load() || x.upload.unread.Load() && response.Close)
}

// endBody is called after an answer. If the upstream has not read the whole body, endBody
// reads the rest so that the connection can be reused, or ends the connection.
func (x *exchange) endBody(response *http.Response) {
	if x.r.ProtoMajor != 1 || !x.upload.unread.Load() || x.conn.ended.Load() {
		return
	}
	if !response.Close && response.ContentLength >= 0 && finishBody(x.r, maxUnanswered, answerPatience) {
		return
	}
	x.conn.endReading()
}

// allowHalfClose lets the plugin end its direction of the connection and wait for the
// answer, until the returned function is called. The proxy cannot see whether the plugin
// waits, so it sends a 100: every HTTP/1.1 client skips it (RFC 9110, section 15.2), and
// the kernel answers it with a reset if the client has closed its socket. Once an answer
// has begun its parts have the same effect, unless they are far apart.
func (x *exchange) allowHalfClose() (done func()) {
	if x.r.ProtoMajor != 1 {
		return func() {}
	}
	var timer *time.Timer
	ended := func() bool {
		if x.answer.streams.Load() {
			return false
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		if timer == nil && x.r.ProtoMinor > 0 {
			timer = time.AfterFunc(leavePatience, func() {
				if x.continues() {
					timer.Reset(leaveAgain)
				}
			})
		}
		return true
	}
	x.conn.halfClosed.begin(ended)
	return func() {
		x.conn.halfClosed.begin(nil)
		x.mu.Lock()
		defer x.mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
	}
}

// continues sends a 100 unless the answer has come, and reports whether it did.
func (x *exchange) continues() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.answer.settled {
		return false
	}
	x.inform(http.StatusContinue)
	return true
}

// halfClose connects the end of the plugin's direction with the exchange on the
// connection, in either order: a plugin may end its direction, or disconnect, before its
// request has been decided.
type halfClose struct {
	mu      sync.Mutex
	seen    bool
	waiting func() bool // reports whether the plugin may still wait; nil without an exchange
}

// begin sets the function that is called when the plugin ends its direction, and calls it
// at once if that has happened. Nil removes it.
func (h *halfClose) begin(waiting func() bool) {
	h.mu.Lock()
	h.waiting = waiting
	seen := h.seen
	h.mu.Unlock()
	if seen && waiting != nil {
		waiting()
	}
}

// end records that the plugin has ended its direction, and reports whether it may
// still wait for an answer.
func (h *halfClose) end() bool {
	h.mu.Lock()
	h.seen = true
	waiting := h.waiting
	h.mu.Unlock()
	return waiting == nil || waiting()
}

// awaitReset waits, after the plugin has ended its direction of the connection, until the
// whole connection is gone. A client may end its direction after its request and still
// wait for the answer (RFC 9112, section 9.6, calls it a half-close).
func (c *conn) awaitReset() error {
	if !c.halfClosed.end() {
		return io.EOF
	}
	raw, ok := c.Raw.(syscall.Conn)
	if !ok {
		return io.EOF
	}
	control, err := raw.SyscallConn()
	if err != nil {
		return io.EOF
	}
	// A reset is an event for the poller, and so is a deadline.
	if err := control.Read(isClosed); err != nil {
		return err
	}
	return syscall.ECONNRESET
}

// isClosed reports whether a TCP socket's connection is gone (tcp(7), TCP_INFO).
func isClosed(fd uintptr) bool {
	const tcpClose = 7 // TCP_CLOSE of linux/tcp_states.h
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == tcpClose
}

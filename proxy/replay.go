package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// maxReplayed bounds how much of a body is kept until the head of the answer has
// come, in bytes, so that the request can be sent again when the upstream has
// not processed it. It holds most unary calls of gRPC.
const maxReplayed = 64 << 10

// errReplaced is read by an attempt whose body another attempt, or none, reads on.
var errReplaced = errors.New("the attempt has ended")

// send sends the request, and again where an HTTP/2 upstream says that it has not
// processed it: with a GOAWAY whose last stream is before the request's, or with
// RST_STREAM and REFUSED_STREAM (RFC 9113, section 8.7). net/http repeats what has
// no body by itself. With http.Request.GetBody it would repeat what has one, but
// then after PROTOCOL_ERROR too, which promises nothing.
//
// The access stays registered all the time: a policy that takes it away cuts it
// between two attempts as it does within one.
func (x *exchange) send(through *upstream.Pool, out *http.Request) (response *http.Response, err error) {
	if through.Idle != nil {
		return x.overHTTP1(out, through.Idle)
	}
	defer func() { through.Note(out.URL.Host, response) }()
	if out.Body == nil || x.protocol() == upstream.HTTP1 {
		return through.Send(func() *http.Request { return out })
	}
	kept := &replayBody{from: out.Body, holding: x.reservation}
	kept.changed.L = &kept.mu
	x.mu.Lock()
	x.upstream.replay = kept
	x.mu.Unlock()
	defer kept.release() // nothing is sent again once there is an answer
	for attempt := 1; ; attempt++ {
		response, err := through.Send(func() *http.Request {
			try := *out
			try.Body = kept.attempt()
			return &try
		})
		if err == nil || attempt == maxAttempts || !notProcessed(err) || !kept.whole() || x.session.CutCause() != nil || !x.session.Live() {
			return response, err
		}
	}
}

// notProcessed reports whether the upstream said that it has not processed the
// request. net/http exports none of these errors, and quotes them in the one that
// it returns for a request with a body that was read
// (net/http.http2shouldRetryRequest). A text that is not known is one that
// promises nothing.
func notProcessed(err error) bool {
	text := err.Error()
	if text == "net/http: cannot rewind body after connection loss" {
		return true // net/http would have sent it again, since none of it was written
	}
	if !strings.HasPrefix(text, "http2: Transport: cannot retry err [") {
		return false
	}
	return strings.Contains(text, "[http2: Transport received Server's graceful shutdown GOAWAY]") ||
		strings.Contains(text, "; REFUSED_STREAM; received from peer]")
}

// replayBody is a body that several attempts may read from its beginning, one after
// the other. It is read by a goroutine of its own while it may be needed again:
// an attempt that ends must not wait for what the plugin has still to send, nor
// take it away from the next.
type replayBody struct {
	from    io.ReadCloser
	holding *budget.Holding

	mu      sync.Mutex
	changed sync.Cond
	current *attemptBody
	read    []byte // from the beginning
	err     error  // behind it
	filling bool   // a goroutine reads
	gone    bool   // no attempt follows the present one, so that nothing need be kept
	ended   bool   // so has the present attempt
	closed  bool
}

// whole reports whether another attempt can begin.
func (k *replayBody) whole() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.gone && (k.err == nil || errors.Is(k.err, io.EOF))
}

// attempt begins the next attempt.
func (k *replayBody) attempt() io.ReadCloser {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = false
	k.current = &attemptBody{kept: k}
	return k.current
}

// restart takes back that the present attempt has ended, if it has read nothing:
// net/http closes the body of a request that it has found no connection for, and
// then sends it over another.
func (k *replayBody) restart() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if b := k.current; b != nil && !b.begun && !k.closed {
		b.ended, k.ended = false, false
	}
}

// release ends the keeping.
func (k *replayBody) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = true
	_ = k.close() // the answer, or its failure, says what matters
	k.changed.Broadcast()
}

// close closes the body once no attempt reads it any more, and none will. The
// caller holds k.mu.
func (k *replayBody) close() error {
	if !k.gone || !k.ended || k.closed {
		return nil
	}
	k.closed = true
	return k.from.Close()
}

// fill reads once. The caller holds k.mu, and gets it back.
func (k *replayBody) fill() {
	k.filling = true
	go func() {
		buf := make([]byte, min(maxReplayed, session.BufferSize))
		n, err := k.from.Read(buf)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.read, k.err, k.filling = append(k.read, buf[:n]...), err, false
		if len(k.read) > maxReplayed || k.holding.Take(budget.Body, int64(n)) != nil {
			k.gone = true
		}
		k.changed.Broadcast()
	}()
}

// attemptBody is the body as one attempt reads it.
type attemptBody struct {
	kept  *replayBody
	next  int // of what was read
	begun bool
	ended bool
}

// Read implements io.Reader.
func (b *attemptBody) Read(p []byte) (int, error) {
	k := b.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		switch {
		case b.ended:
			return 0, errReplaced
		case !b.begun:
			b.begun = true
		case b.next < len(k.read):
			n := copy(p, k.read[b.next:])
			b.next += n
			return n, nil
		case k.err != nil:
			return 0, k.err
		case k.filling:
			k.changed.Wait()
		case k.gone:
			return b.readOn(p)
		default:
			k.fill()
		}
	}
}

// readOn reads what is not kept. The caller holds the lock of the body.
func (b *attemptBody) readOn(p []byte) (int, error) {
	k := b.kept
	k.holding.Give(budget.Body, int64(len(k.read)))
	k.read, b.next = nil, 0
	k.mu.Unlock()
	n, err := k.from.Read(p)
	k.mu.Lock()
	if err != nil {
		k.err = err
	}
	return n, err
}

// Close implements io.Closer. It ends the attempt; the body itself is closed
// once no attempt can follow.
func (b *attemptBody) Close() error {
	k := b.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	b.ended, k.ended = true, true
	k.changed.Broadcast()
	return k.close()
}

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

// maxReplayed bounds how much of a body is retained until the head of the answer arrives,
// in bytes, so that the request can be sent again if the upstream did not process it.
// Most unary gRPC calls fit.
const maxReplayed = 64 << 10

// errReplaced is returned to an attempt if another attempt continues with the body, or
// none does.
var errReplaced = errors.New("the attempt has ended")

// send sends the request, and repeats it if an HTTP/2 upstream reports that it did not
// process it: with a GOAWAY whose last stream precedes the request's, or with RST_STREAM
// and REFUSED_STREAM (RFC 9113, section 8.7). net/http itself repeats requests without a
// body. With http.Request.GetBody it would repeat those with one, but also after
// PROTOCOL_ERROR, which does not guarantee that the request was not processed.
//
// The access stays registered throughout: a policy that revokes it cuts it between two
// attempts as it does within one.
func (x *exchange) send(through *upstream.Pool, out *http.Request) (response *http.Response, err error) {
	if through.Idle != nil {
		return x.overHTTP1(out, through.Idle)
	}
	if out.Body == nil || x.protocol() == upstream.HTTP1 {
		return through.Send(func() *http.Request { return out })
	}
	kept := &replayBody{from: out.Body, holding: x.reservation}
	kept.changed.L = &kept.mu
	x.mu.Lock()
	x.upstream.replay = kept
	x.mu.Unlock()
	defer kept.release() // no attempt follows an answer
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

// notProcessed reports whether the upstream reported that it did not process the request.
// net/http does not export these errors. It quotes them in the error for a request whose
// body was read (net/http.http2shouldRetryRequest). An unknown text is not taken for such
// a report.
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

// replayBody is a body that several attempts may read from its beginning, one after the
// other. A separate goroutine reads it while it may be needed again: an attempt that ends
// must neither wait for data that the plugin has yet to send, nor consume data of the
// next attempt.
type replayBody struct {
	from    io.ReadCloser
	holding *budget.Holding

	mu      sync.Mutex
	changed sync.Cond
	current *attemptBody
	read    []byte // from the beginning
	err     error  // behind it
	filling bool   // a goroutine reads
	gone    bool   // no attempt follows the present one, and no data is retained
	ended   bool   // the present attempt has ended
	closed  bool
}

// whole reports whether another attempt can begin with the whole body.
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

// restart takes back the end of the present attempt if it has read no data. net/http closes
// the body of a request for which it found no connection, and then sends it over another.
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

// release ends the retention of the body.
func (k *replayBody) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = true
	_ = k.close() // the answer, or its failure, decides
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

// readOn reads data that is not retained. The caller holds the lock of the body.
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

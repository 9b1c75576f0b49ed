package proxy

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// maxHeld bounds what is held, for all requests of a plugin together, of bodies
// of which nothing may be sent before the end has been read: those that are
// signed, and compressed ones that are searched. Each has a bound of its own,
// but there may be hundreds of streams. In bytes, of which growing buffers take
// about twice as many.
const maxHeld = 64 << 20

// heldPatience is when to ask again once as much is held: bodies come and go.
const heldPatience = time.Second

// budget is what all requests together hold.
type budget struct{ taken atomic.Int64 }

// holding is one request's part of the budget.
type holding struct {
	budget *budget

	mu    sync.Mutex
	bytes int64
	ended bool // the transport may go on reading the body for a while
}

// take holds n more bytes, unless that is too many.
func (h *holding) take(n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended || h.budget.taken.Add(n) > maxHeld {
		if !h.ended {
			h.budget.taken.Add(-n)
		}
		return &dialError{
			reason: authz.NotReady, detail: "too much is held of bodies that have to be read whole before they are sent",
			remedy: "send fewer or shorter ones at a time, or uncompressed", retryAfter: heldPatience,
		}
	}
	h.bytes += n
	return nil
}

// give gives back up to n bytes: a filter may pass on more than it has taken.
func (h *holding) give(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n = min(n, h.bytes)
	h.bytes -= n
	h.budget.taken.Add(-n)
}

// end gives everything back, for good.
func (h *holding) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.budget.taken.Add(-h.bytes)
	h.bytes, h.ended = 0, true
}

// heldReader is a body whose bytes are held once they are read.
type heldReader struct {
	io.Reader
	holding *holding
}

func (r *heldReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if full := r.holding.take(int64(n)); full != nil {
		return 0, full
	}
	return n, err
}

// passedReader is what comes out of a filter, which holds it no more.
type passedReader struct {
	io.Reader
	holding *holding
}

func (r *passedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.holding.give(int64(n))
	return n, err
}

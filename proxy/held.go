package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// DefaultBudget is what a plugin and its upstreams can make a sidecar hold in all,
// in bytes. What is held takes some more than it is counted as, and garbage comes
// on top until it is collected: the process stays below 128 MiB over what it has
// when it is idle (measured by the floods of internal/e2e; bench/README.md).
const DefaultBudget = 72 << 20

// What is taken of the budget for each part, in bytes: as much as was measured of
// many that were held at once, with the stacks of their goroutines.
const (
	connectionCost = 14 << 10 // net/http's two buffers of 4 KiB, two stacks
	tlsCost        = 20 << 10 // a handshake's and a record's buffers, on either side
	http2Cost      = 40 << 10 // HPACK's tables, frames of 16 KiB, a stack
	streamCost     = 24 << 10 // of HTTP/2: the buffers of a stream on either side
	upstreamCost   = 16 << 10 // net/http's two buffers of 4 KiB, two stacks
	requestCost    = 16 << 10 // a stack, the request and its admission
	copyCost       = bufferSize
	tunnelCost     = 20 << 10 // two stacks, the admission
	// headFactor is how many times a head is there: as it was read, and as a map of
	// its lines.
	headFactor = 2
	// maxWholeSearches is how many compressed bodies are decompressed whole at a
	// time. Each is counted once, and the windows of those before it are there until
	// they are collected.
	maxWholeSearches = 2
	// freeHead is the head that is counted with its connection.
	freeHead = 4 << 10
)

// heldPatience is when to ask again once as much is held: bodies come and go.
const heldPatience = time.Second

// decodePatience is how long a body that is compressed waits for room: others
// are done with theirs, unless they are not read.
const decodePatience = 5 * time.Second

// errHeld refuses what there is no memory for.
func errHeld() *dialError {
	return &dialError{
		reason: authz.NotReady, detail: "as much is held in memory for the plugin as may be",
		remedy: "do less at a time: fewer connections and requests, shorter bodies or none that are compressed", retryAfter: heldPatience,
	}
}

// refusedFor turns an error of a budget into the refusal, and leaves any other.
func refusedFor(err error) error {
	if errors.Is(err, budget.ErrFull) || errors.Is(err, budget.ErrEnded) {
		return errHeld()
	}
	return err
}

// headCost is what a head takes.
func headCost(h http.Header) int64 {
	n := 0
	for name, values := range h {
		n += len(name) + 64 // of the map
		for _, value := range values {
			n += len(value) + 16
		}
	}
	return int64(max(0, headFactor*n-freeHead))
}

// requestSize is what a request takes, with the first of a connection over HTTP/2
// what that takes more.
func requestSize(r *http.Request, first bool) (request, connection int64) {
	request = requestCost + headCost(r.Header)
	if r.ProtoMajor != 2 {
		return request, 0
	}
	if first {
		connection = http2Cost
	}
	return request + streamCost, connection
}

// windowCost is what may come of the request's body before anybody takes it.
func windowCost(r *http.Request) int64 {
	switch {
	case r.ProtoMajor != 2 || r.ContentLength == 0:
		return 0
	case r.ContentLength > 0:
		return min(r.ContentLength, streamWindow)
	}
	return streamWindow
}

// heldReader is a body whose bytes are held once they are read.
type heldReader struct {
	io.Reader
	holding *budget.Holding
}

func (r *heldReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if full := r.holding.Take(budget.Body, int64(n)); full != nil {
		return 0, refusedFor(full)
	}
	return n, err
}

// decoders is the room of what is decompressed, for which a body waits a while.
type decoders struct {
	ctx     context.Context //nolint:containedctx // of the request
	holding *budget.Holding
	idle    func()        // closes idle connections, whose windows are held
	turns   chan struct{} // holds one for each body that is decompressed whole
}

// decoders returns the room of what is decompressed for the exchange.
func (x *exchange) decoders() decoders {
	return decoders{x.r.Context(), x.held, x.proxy.pools.closeIdle, x.proxy.wholeSearches}
}

// Take implements scrub.MemoryBudget.
func (d decoders) Take(n int64) error {
	if d.holding.Take(budget.Decoder, n) == nil {
		return nil
	}
	d.idle()
	return refusedFor(d.holding.TakeWithin(d.ctx, decodePatience, budget.Decoder, n))
}

// Give implements scrub.MemoryBudget.
func (d decoders) Give(n int64) { d.holding.Give(budget.Decoder, n) }

// turn takes n bytes for a body that is decompressed whole, when it is its turn,
// and returns what gives them back.
func (d decoders) turn(n int64) (done func(), err error) {
	late := time.NewTimer(decodePatience)
	defer late.Stop()
	select {
	case d.turns <- struct{}{}:
	case <-late.C:
		return nil, errHeld()
	case <-d.ctx.Done():
		return nil, context.Cause(d.ctx)
	}
	if err := d.Take(n); err != nil {
		<-d.turns
		return nil, err
	}
	return func() {
		d.Give(n)
		<-d.turns
	}, nil
}

// heldConn is a connection to an upstream, held until it is closed.
type heldConn struct {
	net.Conn
	holding *budget.Holding
}

// Close implements net.Conn.
func (c *heldConn) Close() error {
	defer c.holding.End()
	return c.Conn.Close()
}

// CloseWrite passes the end of file on.
func (c *heldConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

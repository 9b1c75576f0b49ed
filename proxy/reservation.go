package proxy

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// decodePatience is how long a compressed body waits for memory. Other bodies free theirs
// in this time, unless their readers have stopped.
const decodePatience = 5 * time.Second

// headCost is the memory of a head.
func headCost(h http.Header) int64 {
	n := 0
	for name, values := range h {
		n += len(name) + 64 // of the map
		for _, value := range values {
			n += len(value) + 16
		}
	}
	return int64(max(0, session.HeadFactor*n-session.FreeHead))
}

// requestSize is the memory of a request and, with the first request over HTTP/2, the
// additional memory of its connection.
func requestSize(r *http.Request, first bool) (request, connection int64) {
	request = session.RequestCost + headCost(r.Header)
	if r.ProtoMajor != 2 {
		return request, 0
	}
	if first {
		connection = session.Http2Cost
	}
	return request + session.StreamCost, connection
}

// windowCost is the memory of the request's body that may arrive before it is read.
func windowCost(r *http.Request) int64 {
	switch {
	case r.ProtoMajor != 2 || r.ContentLength == 0:
		return 0
	case r.ContentLength > 0:
		return min(r.ContentLength, upstream.StreamWindow)
	}
	return upstream.StreamWindow
}

// reservedReader reserves memory for a body as it is read.
type reservedReader struct {
	io.Reader
	holding *budget.Holding
}

func (r *reservedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if full := r.holding.Take(budget.Body, int64(n)); full != nil {
		return 0, session.AsRefusal(full)
	}
	return n, err
}

// decoderMemory is the memory for decompression, for which a body waits a while.
type decoderMemory struct {
	ctx     context.Context //nolint:containedctx // of the request
	holding *budget.Holding
	idle    func()        // closes idle connections, whose windows are held
	turns   chan struct{} // holds one for each body that is decompressed whole
}

// decoderMemory returns the memory for decompression of the exchange.
func (x *exchange) decoderMemory() decoderMemory {
	return decoderMemory{x.r.Context(), x.reservation, x.proxy.pools.CloseIdle, x.proxy.wholeSearches}
}

// Take implements scrub.MemoryBudget.
func (d decoderMemory) Take(n int64) error {
	if d.holding.Take(budget.Decoder, n) == nil {
		return nil
	}
	d.idle()
	return session.AsRefusal(d.holding.TakeWithin(d.ctx, decodePatience, budget.Decoder, n))
}

// Give implements scrub.MemoryBudget.
func (d decoderMemory) Give(n int64) { d.holding.Give(budget.Decoder, n) }

// turn reserves n bytes for a body that is decompressed as a whole, one body at a time,
// and returns the function that returns them.
func (d decoderMemory) turn(n int64) (done func(), err error) {
	late := time.NewTimer(decodePatience)
	defer late.Stop()
	select {
	case d.turns <- struct{}{}:
	case <-late.C:
		return nil, session.ErrOutOfMemory()
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

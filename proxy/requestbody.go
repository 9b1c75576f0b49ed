package proxy

import (
	"errors"
	"io"
	"net/http"

	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/proxy/sigv4"
)

// body attaches the plugin's body, which is counted, and its trailers.
func (x *exchange) body(out *http.Request) {
	if x.r.ProtoMajor == 1 {
		// Without it net/http would read the rest of the body before the
		// first byte of the answer, while the transport reads it too.
		_ = x.control.EnableFullDuplex() // HTTP/2 has it anyway
	}
	x.upload.unread.Store(true)
	body := &countedBody{ReadCloser: x.r.Body, exchange: x}
	body.from = x.r.Body
	if x.placeholders != nil {
		body.from = searchedBody(x.placeholders, x.r, x.r.Body, x.decoderMemory(), x.halt)
	}
	if x.r.Trailer != nil {
		out.Trailer = make(http.Header, len(x.r.Trailer))
		for name := range x.r.Trailer {
			if x.passesAsTrailer(name) {
				out.Trailer[name] = nil // announced; the values come after the body
			}
		}
		body.trailer = out.Trailer
	}
	out.Body = body
}

// passesAsTrailer reports whether a request trailer may pass. A field that is removed
// from the head must not follow as a trailer, nor may the credential.
func (x *exchange) passesAsTrailer(name string) bool {
	return httpclean.Classify(name) == httpclean.ClassNone && !inSlot(name, x.admission.Injection) &&
		!httpclean.SameHeader(name, "Cookie") && !sigv4.Replaces(canonicalHeader(name)) // Authorization is among those
}

// countedBody counts and rate-limits the plugin's body, and copies its trailers at its
// end.
type countedBody struct {
	io.ReadCloser
	from     io.Reader // it, searched
	exchange *exchange
	trailer  http.Header
}

// errBodyUnreadable reports that the plugin's body is malformed or incomplete.
var errBodyUnreadable = errors.New("the request's body could not be read")

func (b *countedBody) Read(buf []byte) (int, error) {
	up := &b.exchange.up
	n, err := b.from.Read(buf[:up.Chunk(len(buf))])
	if _, cut := up.Wait(n); cut != nil {
		return 0, cut
	}
	b.exchange.upload.sent.Add(int64(n))
	switch {
	case err == nil:
	case !errors.Is(err, io.EOF):
		b.exchange.upload.broken.Store(true)
		return n, errors.Join(errBodyUnreadable, err)
	default:
		b.exchange.upload.unread.Store(false)
		b.exchange.reservation.Give(budget.Window, b.exchange.upload.window)
		if e := b.exchange.trailerHolds(); e != nil {
			return n, e
		}
		for name, values := range b.exchange.r.Trailer {
			if _, announced := b.trailer[name]; announced {
				b.trailer[name] = values
			}
		}
	}
	return n, err
}

// Close ends the body. Over HTTP/1.1 net/http's own Close would continue to read for as
// long as the plugin sends, and net/http's server calls it by itself.
func (b *countedBody) Close() error {
	if b.exchange.r.ProtoMajor == 1 {
		return nil
	}
	return b.ReadCloser.Close()
}

// trailerHolds refuses a placeholder in the plugin's trailer. If the trailer has none,
// the result is an untyped nil.
func (x *exchange) trailerHolds() error {
	if x.placeholders == nil {
		return nil
	}
	if e := x.placeholders.InHeader(x.r.Trailer, "trailer"); e != nil {
		x.halt(e)
		return e
	}
	return nil
}

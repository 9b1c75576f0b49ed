package http2frames

import (
	"bytes"
	"io"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// block reads a header block that begins with the frame h, and passes it on. A
// block that net/http must judge passes unchanged: net/http ends the connection then.
func (r *frameReader) block(h http2.FrameHeader) error {
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r.filter.Source, payload); err != nil {
		return unwrapEOF(err)
	}
	fragment, priority, ok := unpad(h, payload)
	if !ok {
		r.pending = appendFrame(r.pending[:0], h.Type, h.Flags, h.StreamID, payload)
		return nil
	}
	held := r.filter.Budget.Hold()
	defer held.End()
	whole, done := fragment, h.Flags.Has(http2.FlagHeadersEndHeaders)
	for frames := 0; !done; frames++ {
		next, more, err := r.continuation(h)
		if err != nil || more == nil {
			return err
		}
		if frames > maxContinuations || len(whole)+len(more) > maxBlock || held.Take(budget.Request, blockFactor*int64(len(more))) != nil {
			r.filter.Report("a header block is too large")
			return io.EOF
		}
		whole, done = append(whole, more...), next.Flags.Has(http2.FlagContinuationEndHeaders)
	}
	if !r.decode(whole) {
		return r.undecodable(h)
	}
	return r.pass(h, priority)
}

// decode takes a whole block into the connection's table, and its fields into
// r.head. In parts the decoder would keep a copy of them, as large as they were,
// for as long as the connection is open.
func (r *frameReader) decode(block []byte) bool {
	r.head.begin(r.decoder)
	if _, err := r.decoder.Write(block); err != nil || r.decoder.Close() != nil {
		return false
	}
	r.decoder.SetEmitEnabled(false)
	_, _ = r.decoder.Write([]byte{0x82}) // an entry of the static table, in place of the block that the decoder still refers to
	return r.decoder.Close() == nil
}

// unpad takes the padding and the priority off the payload of a HEADERS frame
// (RFC 9113, section 6.2).
func unpad(h http2.FrameHeader, payload []byte) (fragment, priority []byte, ok bool) {
	padding := 0
	if h.Flags.Has(http2.FlagHeadersPadded) {
		if len(payload) == 0 {
			return nil, nil, false
		}
		padding, payload = int(payload[0]), payload[1:]
	}
	if h.Flags.Has(http2.FlagHeadersPriority) {
		const size = 5
		if len(payload) < size {
			return nil, nil, false
		}
		priority, payload = payload[:size], payload[size:]
	}
	if padding > len(payload) {
		return nil, nil, false
	}
	return payload[:len(payload)-padding], priority, true
}

// continuation reads the next frame of the block that h begins. Any other frame
// there passes, behind a block that is not complete, and fragment is nil.
func (r *frameReader) continuation(h http2.FrameHeader) (next http2.FrameHeader, fragment []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r.filter.Source, head[:]); err != nil {
		return next, nil, unwrapEOF(err)
	}
	next = parseFrame(head[:])
	if next.Type != http2.FrameContinuation || next.StreamID != h.StreamID || next.Length > MaxFrame {
		r.pending = appendFrame(r.pending[:0], http2.FrameHeaders, h.Flags&http2.FlagHeadersEndStream, h.StreamID, nil)
		r.pending, r.rest = append(r.pending, head[:]...), next.Length
		return next, nil, nil
	}
	fragment = make([]byte, next.Length)
	if _, err := io.ReadFull(r.filter.Source, fragment); err != nil {
		return next, nil, unwrapEOF(err)
	}
	return next, fragment, nil
}

// undecodable passes a block on that net/http cannot decode either: the index 0
// is invalid (RFC 7541, section 6.1).
func (r *frameReader) undecodable(h http2.FrameHeader) error {
	r.pending = appendFrame(r.pending[:0], http2.FrameHeaders, http2.FlagHeadersEndHeaders, h.StreamID, []byte{0x80})
	return nil
}

// pass passes the block on that was read: a head as it is, or as one that is to be
// refused, or trailers.
func (r *frameReader) pass(h http2.FrameHeader, priority []byte) error {
	fields, own := r.head.fields, ""
	if h.StreamID > r.last && h.StreamID%2 == 1 {
		r.last, own = h.StreamID, strconv.FormatUint(uint64(h.StreamID), 10)
		detail := r.head.malformed(h.Flags.Has(http2.FlagHeadersEndStream))
		if detail != "" {
			fields, own = r.head.refused(r.filter.Target()), own+" "+detail
		}
		r.filter.add(h.StreamID, &streamState{malformed: detail != ""})
	}
	for _, field := range fields {
		if field.Name != headerStream {
			r.encode(field.Name, field.Value)
		}
	}
	if own != "" {
		r.encode(headerStream, own)
	}
	block := append(append([]byte(nil), priority...), r.encoded.Bytes()...)
	r.encoded = bytes.Buffer{} // it may have been large
	if len(block) > MaxFrame && !r.reserved {
		// net/http's decoder keeps a copy of what comes in parts.
		if err := r.filter.Reserve(blockFactor * int64(r.filter.MaxHeaderBytes)); err != nil {
			return err
		}
		r.reserved = true
	}
	first := block[:min(len(block), MaxFrame)]
	flags := h.Flags & (http2.FlagHeadersEndStream | http2.FlagHeadersPriority)
	if len(first) == len(block) {
		flags |= http2.FlagHeadersEndHeaders
	}
	r.pending = appendFrame(make([]byte, 0, len(block)+frameHeader*(1+len(block)/MaxFrame)), http2.FrameHeaders, flags, h.StreamID, first)
	for block = block[len(first):]; len(block) > 0; {
		n := min(len(block), MaxFrame)
		flags = 0
		if n == len(block) {
			flags = http2.FlagContinuationEndHeaders
		}
		r.pending = appendFrame(r.pending, http2.FrameContinuation, flags, h.StreamID, block[:n])
		block = block[n:]
	}
	r.head.fields = nil
	return nil
}

// encode adds a field to the block that is passed on, and to no table.
func (r *frameReader) encode(name, value string) {
	_ = r.encoder.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true}) // a buffer takes everything
}

package http2frames

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// Filter stands between the HTTP/2 frames of one connection of the plugin and
// net/http, which resets a stream with a malformed head, and ends the connection
// of one that is too large, before any handler runs: without a record, and with
// all other streams. The filter reads header blocks first. A malformed one becomes a
// request that the proxy refuses and records; its stream is still reset (RFC 9113,
// section 8.1.1).
//
// Header blocks are passed on without compression, and with the number of their
// stream, so that the handler can choose how it is reset. All other frames pass
// as they are. A connection that does not begin with the preface of HTTP/2 is left
// alone.
type Filter struct {
	Config

	In  frameReader
	Out frameWriter

	mu      sync.Mutex
	streams map[uint32]*streamState        // those that are open to the handlers
	serving map[*http.Request]*streamState // by the request that was made of it
}

// streamState is a stream as the frames see it.
type streamState struct {
	malformed bool          // it is answered with a refusal, and reset
	reset     http2.ErrCode // the code of the handler's abort, in place of INTERNAL_ERROR
}

// headerStream carries the number of the stream to the handler and, behind a
// space, why its head is malformed. A plugin's own header of this name is dropped.
const headerStream = "chaperone-stream"

// MaxFrame is the least limit that may be stated (RFC 9113, section 6.5.2): each
// connection keeps a buffer of the largest frame that has come.
const MaxFrame = 16 << 10

const (
	frameHeader = 9 // bytes (RFC 9113, section 4.1)
	// maxBlock bounds the bytes of a header block that is read to its end, which
	// updates the connection's table, and refused.
	maxBlock = 2 << 20
	// maxContinuations bounds the frames of a header block: empty ones cost nothing
	// to send.
	maxContinuations = 512
	// rememberedShare is how many streams are remembered for each that may be open.
	rememberedShare = 4
	// blockFactor is how many times a header block is in memory: as it was read, and as fields.
	blockFactor = 2
)

// ErrPreface is returned by reads and writes of a connection that does not begin with the
// preface of HTTP/2 although it must.
var ErrPreface = errors.New("the connection preface of HTTP/2 is not valid")

// Config is what frames are made of. All is required but prefaced.
type Config struct {
	Source   io.Reader           // the connection
	Prefaced bool                // it must begin with the preface of HTTP/2
	Report   func(detail string) // records a refusal without a request
	// Budget takes the memory of a header block that comes in parts, and connection
	// that of the connection. An error of the latter ends the connection.
	Budget  *budget.Budget
	Reserve func(bytes int64) error
	// Target is what a request is shown to be for whose head is malformed.
	Target func() (scheme, authority string)
	// MaxHeaderBytes is how many bytes a head may have, as RFC 9113, section 6.5.2, counts them.
	MaxHeaderBytes uint32
	// MaxStreams is how many streams may be open at a time.
	MaxStreams int
}

// New returns the frames of a connection.
func New(cfg Config) *Filter {
	f := &Filter{
		Config:  cfg,
		streams: make(map[uint32]*streamState), serving: make(map[*http.Request]*streamState),
	}
	f.In = frameReader{filter: f, head: headFields{most: cfg.MaxHeaderBytes}}
	f.Out = frameWriter{filter: f}
	return f
}

// BeginRequest takes what was put into the head of a request out of it, and returns why
// it is to be refused, or "".
func (f *Filter) BeginRequest(r *http.Request) (detail string) {
	values := r.Header[http.CanonicalHeaderKey(headerStream)]
	delete(r.Header, http.CanonicalHeaderKey(headerStream))
	if len(values) != 1 {
		return "the head of the request was not read" // and nobody foresaw that
	}
	text, detail, _ := strings.Cut(values[0], " ")
	number, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return "the head of the request was not read"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if stream := f.streams[uint32(number)]; stream != nil {
		f.serving[r] = stream
	}
	return detail
}

// EndRequest forgets a request. The end of its stream is still to be written.
func (f *Filter) EndRequest(r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.serving, r)
}

// ResetWith has the abort of a request reset its stream with code.
func (f *Filter) ResetWith(r *http.Request, code http2.ErrCode) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if stream := f.serving[r]; stream != nil {
		stream.reset = code
	}
}

// add makes a stream known.
func (f *Filter) add(number uint32, stream *streamState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.streams) < rememberedShare*f.MaxStreams {
		f.streams[number] = stream
	}
}

// take returns a stream that ends with what is being written.
func (f *Filter) take(number uint32) *streamState {
	f.mu.Lock()
	defer f.mu.Unlock()
	stream := f.streams[number]
	delete(f.streams, number)
	return stream
}

// frameReader reads the plugin's frames.
type frameReader struct {
	filter      *Filter
	prefaceRead int  // bytes of the preface that have come
	bypass      bool // it is not HTTP/2
	pending     []byte
	rest        uint32 // of the payload of a frame that passes as it is
	last        uint32 // the highest stream
	reserved    bool   // memory was taken for heads of more than a frame
	err         error

	decoder *hpack.Decoder
	encoder *hpack.Encoder
	encoded bytes.Buffer
	head    headFields
}

// Read implements io.Reader.
func (r *frameReader) Read(p []byte) (int, error) {
	switch {
	case r.bypass:
		return r.filter.Source.Read(p)
	case r.prefaceRead < len(http2.ClientPreface):
		return r.preface(p)
	}
	if len(r.pending) == 0 && r.rest == 0 {
		if r.err == nil {
			r.err = r.next()
		}
		if len(r.pending) == 0 && r.err != nil {
			return 0, r.err
		}
	}
	if len(r.pending) > 0 {
		n := copy(p, r.pending)
		if r.pending = r.pending[n:]; len(r.pending) == 0 {
			r.pending = nil // it may have been a large head
		}
		return n, nil
	}
	n, err := r.filter.Source.Read(p[:min(uint32(len(p)), r.rest)])
	r.rest -= uint32(n)
	return n, err
}

// preface watches the preface pass.
func (r *frameReader) preface(p []byte) (int, error) {
	n, err := r.filter.Source.Read(p[:min(len(p), len(http2.ClientPreface)-r.prefaceRead)])
	if string(p[:n]) != http2.ClientPreface[r.prefaceRead:r.prefaceRead+n] {
		if r.filter.Prefaced {
			r.filter.Report("the connection preface of HTTP/2 is not valid")
			return 0, ErrPreface
		}
		r.bypass = true
		return n, err
	}
	if r.prefaceRead += n; r.prefaceRead == len(http2.ClientPreface) {
		r.decoder = hpack.NewDecoder(4096, nil) // the size of the table that net/http states too
		r.encoder = hpack.NewEncoder(&r.encoded)
		r.encoder.SetMaxDynamicTableSize(0)
		r.filter.Out.On.Store(true)
	}
	return n, err
}

// next reads the head of the next frame, and a header block whole.
func (r *frameReader) next() error {
	var head [frameHeader]byte
	if n, err := io.ReadFull(r.filter.Source, head[:]); err != nil {
		r.pending = append([]byte(nil), head[:n]...)
		return unwrapEOF(err)
	}
	h := parseFrame(head[:])
	if h.Type == http2.FrameRSTStream {
		r.filter.take(h.StreamID) // no more frames are written on it
	}
	if h.Type != http2.FrameHeaders || h.Length > MaxFrame || h.StreamID == 0 {
		r.pending, r.rest = append([]byte(nil), head[:]...), h.Length // net/http judges it
		return nil
	}
	return r.block(h)
}

// unwrapEOF returns the error of a connection that ended within a frame as the
// connection would have returned it.
func unwrapEOF(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

func parseFrame(b []byte) http2.FrameHeader {
	return http2.FrameHeader{
		Length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]), Type: http2.FrameType(b[3]), Flags: http2.Flags(b[4]),
		StreamID: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1),
	}
}

func appendFrame(b []byte, kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

package differential

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// addFramed serves HTTP/2 by hand: origins that end streams and connections in the
// ways that real servers do.
func addFramed(l *lab) {
	for name, answer := range map[string]func(*framed, uint32){
		"h2-cancel":   func(f *framed, id uint32) { f.reset(id, http2.ErrCodeCancel) },
		"h2-internal": func(f *framed, id uint32) { f.reset(id, http2.ErrCodeInternal) },
		"h2-calm":     func(f *framed, id uint32) { f.reset(id, http2.ErrCodeEnhanceYourCalm) },
		"h2-one":      func(f *framed, id uint32) { f.reset(id, http2.ErrCodeHTTP11Required) },
		"h2-cut": func(f *framed, id uint32) {
			f.begin(id, false)
			f.data(id, "part", false)
			f.reset(id, http2.ErrCodeInternal)
		},
		"h2-cancel-late": func(f *framed, id uint32) {
			f.begin(id, true)
			f.data(id, message, false)
			f.reset(id, http2.ErrCodeCancel)
		},
		"h2-early": func(f *framed, id uint32) { // an answer before the body was read (RFC 9113, 8.1)
			f.head(id, false, "413")
			f.data(id, "too large", true)
			f.reset(id, http2.ErrCodeNo)
		},
		"h2-204":   func(f *framed, id uint32) { f.head(id, true, "204", "content-length", "4") },
		"h2-large": func(f *framed, id uint32) { f.head(id, true, "200", "x-large", string(pattern(60_000))) },
		"h2-lost":  func(f *framed, id uint32) { f.begin(id, false); f.data(id, "part", false); f.lose() },
		"h2-lost-late": func(f *framed, id uint32) {
			f.begin(id, true)
			f.data(id, message, false)
			f.lose()
		},
		"h2-only-trailers": func(f *framed, id uint32) {
			f.head(id, true, "200", "content-type", "application/grpc", "grpc-status", "5", "grpc-message", "no such")
		},
		"h2-goaway-after": func(f *framed, id uint32) { f.goAway(id); time.Sleep(time.Second); f.ok(id); f.lose() },
	} {
		l.framed(name, answer)
	}
	// Each pair has its own, since they remember.
	for _, client := range []string{"", "-post", "-grpc"} {
		l.framed("h2-refused"+client, notProcessed(func(f *framed, id uint32) { f.reset(id, http2.ErrCodeRefusedStream) }))
		l.framed("h2-goaway"+client, notProcessed(func(f *framed, _ uint32) { f.goAway(0) }))
	}
}

// notProcessed does not process a request (RFC 9113, 8.7), and answers the next one
// if it follows soon: it is the same, sent again.
func notProcessed(refuse func(*framed, uint32)) func(*framed, uint32) {
	var (
		mu      sync.Mutex
		refused time.Time
	)
	return func(f *framed, id uint32) {
		mu.Lock()
		again := time.Since(refused) < 5*time.Second
		refused = time.Now()
		if again {
			refused = time.Time{}
		}
		mu.Unlock()
		if again {
			f.ok(id)
			return
		}
		refuse(f, id)
	}
}

// framed serves an origin by a function that is called for each request.
func (l *lab) framed(name string, answer func(*framed, uint32)) {
	l.t.Helper()
	l.script(l.address(name, "https", 443), func(conn net.Conn) {
		f := &framed{conn: conn, framer: http2.NewFramer(conn, conn)}
		f.serve(func(id uint32) { answer(f, id) })
	}, "h2")
}

// message is a frame of gRPC with an empty message.
const message = "\x00\x00\x00\x00\x00"

// framed is the server's side of a connection of HTTP/2.
type framed struct {
	conn   net.Conn
	mu     sync.Mutex // of writing
	framer *http2.Framer
}

// serve calls answer for each request: once its head is there, whether a body
// follows or not.
func (f *framed) serve(answer func(id uint32)) {
	if _, err := io.CopyN(io.Discard, f.conn, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	_ = f.framer.WriteSettings() // a failure shows when it reads
	for {
		frame, err := f.framer.ReadFrame()
		if err != nil {
			return
		}
		f.mu.Lock()
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.framer.WriteSettingsAck() // as above
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.framer.WritePing(true, frame.Data) // as above
			}
		case *http2.DataFrame:
			if n := frame.Length; n > 0 {
				_ = f.framer.WriteWindowUpdate(0, n) // as above
			}
		case *http2.HeadersFrame:
			if frame.HeadersEnded() {
				go answer(frame.StreamID)
			}
		case *http2.ContinuationFrame:
			if frame.HeadersEnded() {
				go answer(frame.StreamID)
			}
		}
		f.mu.Unlock()
	}
}

func (f *framed) head(id uint32, end bool, status string, fields ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	_ = encoder.WriteField(hpack.HeaderField{Name: ":status", Value: status}) // into a buffer
	for i := 0; i < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // as above
	}
	data := block.Bytes()
	first := data[:min(len(data), 16000)]
	_ = f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(first) == len(data)})
	for data = data[len(first):]; len(data) > 0; {
		next := data[:min(len(data), 16000)]
		data = data[len(next):]
		_ = f.framer.WriteContinuation(id, len(data) == 0, next)
	}
}

// begin sends the head of an answer that has a body.
func (f *framed) begin(id uint32, grpc bool) {
	kind := "text/plain"
	if grpc {
		kind = "application/grpc"
	}
	f.head(id, false, "200", "content-type", kind)
	time.Sleep(100 * time.Millisecond) // so that the client sees it on its own
}

func (f *framed) ok(id uint32) {
	f.head(id, false, "200", "content-type", "application/grpc", "content-length", strconv.Itoa(len(message)))
	f.data(id, message, false)
	f.head2(id)
}

// head2 sends the trailers of gRPC.
func (f *framed) head2(id uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	_ = encoder.WriteField(hpack.HeaderField{Name: "grpc-status", Value: "0"}) // into a buffer
	_ = f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
}

func (f *framed) data(id uint32, text string, end bool) {
	f.mu.Lock()
	_ = f.framer.WriteData(id, end, []byte(text)) // a failure shows when it reads
	f.mu.Unlock()
	time.Sleep(100 * time.Millisecond) // so that the client sees it on its own
}

func (f *framed) reset(id uint32, code http2.ErrCode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.framer.WriteRSTStream(id, code) // as above
}

func (f *framed) goAway(last uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.framer.WriteGoAway(last, http2.ErrCodeNo, nil) // as above
}

// lose ends the connection.
func (f *framed) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn.Close()
}

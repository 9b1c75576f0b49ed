package http2frames

import (
	"encoding/binary"
	"sync/atomic"

	"golang.org/x/net/http2"
)

// frameWriter watches the frames that net/http writes to the plugin. A stream
// whose head was malformed is reset behind its answer; the code of an abort is what
// the upstream's was; and what net/http itself refuses is recorded.
type frameWriter struct {
	filter *Filter
	On     atomic.Bool // it is HTTP/2

	head     [frameHeader + 8]byte // of the frame that is being written, with the first bytes of its payload
	got      int                   // bytes of it
	rest     uint32                // of the payload, behind them
	header   http2.FrameHeader
	trailing []byte // to be written behind the frame
}

// Write writes b, which need not end with a frame, by means of out.
func (w *frameWriter) Write(b []byte, out func([]byte) (int, error)) (int, error) {
	done, from := 0, 0 // of b: what has been written, and where that begins which has not
	flush := func(to int) error {
		if from == to {
			return nil
		}
		_, err := out(b[from:to])
		from = to
		return err
	}
	for done < len(b) {
		if w.rest > 0 {
			n := int(min(uint32(len(b)-done), w.rest))
			w.rest -= uint32(n)
			done += n
		} else {
			// The beginning of a frame is held until it is known what becomes of it.
			if w.got == 0 {
				if err := flush(done); err != nil {
					return 0, err
				}
			}
			n, text := w.begin(b[done:])
			done += n
			from = done
			if text == nil {
				continue
			}
			if _, err := out(text); err != nil {
				return 0, err
			}
		}
		if w.rest == 0 && w.got == 0 && w.trailing != nil {
			if err := flush(done); err != nil {
				return 0, err
			}
			if _, err := out(w.trailing); err != nil {
				return 0, err
			}
			w.trailing = nil
		}
	}
	if err := flush(done); err != nil {
		return 0, err
	}
	return len(b), nil
}

// begin takes in the head of a frame, and of RST_STREAM and GOAWAY the error code.
// It returns how much of b that took and, once it is whole, what is to be written.
func (w *frameWriter) begin(b []byte) (n int, text []byte) {
	n = copy(w.head[w.got:w.needed()], b)
	if w.got += n; w.got < w.needed() {
		return n, nil
	}
	if w.got == frameHeader {
		w.header = parseFrame(w.head[:])
		if w.needed() > frameHeader {
			more, text := w.begin(b[n:])
			return n + more, text
		}
	}
	text = w.head[:w.got]
	w.rest = w.header.Length - uint32(w.got-frameHeader)
	w.inspect(text)
	w.got, w.header = 0, http2.FrameHeader{}
	return n, text
}

// needed is how much of the frame that is being written decides about it.
func (w *frameWriter) needed() int {
	switch {
	case w.got < frameHeader:
	case w.header.Type == http2.FrameRSTStream && w.header.Length >= 4:
		return frameHeader + 4
	case w.header.Type == http2.FrameGoAway && w.header.Length >= 8:
		return frameHeader + 8
	}
	return frameHeader
}

// inspect looks at the beginning of a frame, and may change it.
func (w *frameWriter) inspect(text []byte) {
	h, f := w.header, w.filter
	switch {
	case h.Type == http2.FrameRSTStream && len(text) > frameHeader:
		code := http2.ErrCode(binary.BigEndian.Uint32(text[frameHeader:]))
		stream := f.take(h.StreamID)
		switch {
		case stream != nil && stream.malformed && code == http2.ErrCodeNo:
			binary.BigEndian.PutUint32(text[frameHeader:], uint32(http2.ErrCodeProtocol))
		case stream != nil && stream.reset != http2.ErrCodeNo && code == http2.ErrCodeInternal:
			binary.BigEndian.PutUint32(text[frameHeader:], uint32(stream.reset))
		case code == http2.ErrCodeProtocol || code == http2.ErrCodeFlowControl || code == http2.ErrCodeFrameSize:
			f.Report("an HTTP/2 stream was reset: " + code.String())
		}
	case h.Type == http2.FrameGoAway && len(text) > frameHeader:
		if code := http2.ErrCode(binary.BigEndian.Uint32(text[frameHeader+4:])); code != http2.ErrCodeNo {
			f.Report("an HTTP/2 connection was ended: " + code.String())
		}
	case (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) && h.Flags.Has(http2.FlagDataEndStream):
		if stream := f.take(h.StreamID); stream != nil && stream.malformed {
			w.trailing = appendFrame(nil, http2.FrameRSTStream, 0, h.StreamID, binary.BigEndian.AppendUint32(nil, uint32(http2.ErrCodeProtocol)))
		}
	}
}

package scrub

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrFrame is for a stream that is not in the declared frames, or whose frames cannot
// be searched.
var ErrFrame = errors.New("a frame cannot be searched")

// maxFrame is how long a frame may say that it is: far more than comes, and
// little enough for sums.
const maxFrame = 1 << 62

// frame is the head of a frame.
type frame struct {
	length int64   // of the payload, and of the head if that is searched too
	mask   [4]byte // that the payload is combined with; zeros for none
}

// Frames searches the payloads of a stream of frames and leaves all else as it
// is. Each frame is searched by itself: what is at its end is not held back
// for the next, which may be a long time coming. A secret that is split between
// two frames is not found. Of a frame that is not whole the end is held back,
// whatever it is: nobody can use it, and nobody learns from it what is looked for.
type Frames struct {
	from   io.Reader
	search Search
	// head reads the head of a frame and returns how long it is, 0 when more of
	// it is needed.
	head func(b []byte) (int, frame, error)

	current frame // of which length bytes are still to come
	buf     []byte
	done    int   // bytes of buf that may pass
	filled  int   // bytes of buf in all
	err     error // once everything before it was returned
}

func newFrames(r io.Reader, s Search, head func([]byte) (int, frame, error)) *Frames {
	return &Frames{from: r, search: s, head: head}
}

// Read implements [io.Reader].
func (f *Frames) Read(p []byte) (int, error) {
	if f.buf == nil {
		f.buf = make([]byte, max(8<<10, 4*f.search.Patterns.longest))
	}
	for f.done == 0 {
		if f.err != nil {
			return 0, f.err
		}
		n, err := f.from.Read(f.buf[f.filled:])
		f.filled += n
		f.err = err
		if err := f.scan(err == io.EOF); err != nil {
			f.err, f.done = err, 0
		}
	}
	n := copy(p, f.buf[:f.done])
	copy(f.buf, f.buf[n:f.filled])
	f.done, f.filled = f.done-n, f.filled-n
	return n, nil
}

// scan searches what has come and has not been searched. At the end of the
// stream all of it passes; what is held back when it fails does not.
func (f *Frames) scan(last bool) error {
	for f.done < f.filled {
		if f.current.length == 0 {
			n, next, err := f.head(f.buf[f.done:f.filled])
			if err != nil {
				return err
			}
			if n == 0 { // incomplete
				break
			}
			if next.mask == [4]byte{} { // an invalid frame may have the secret in its head
				next.length += int64(n)
			} else {
				f.done += n
			}
			f.current = next
			continue
		}
		n, err := f.payload(f.buf[f.done:f.filled], last)
		f.done += n
		if err != nil {
			return err
		}
		if f.current.length > 0 {
			break
		}
	}
	if last {
		f.done = f.filled
	}
	return nil
}

// payload searches what has come of a payload and returns how much of it may pass.
func (f *Frames) payload(b []byte, last bool) (int, error) {
	b = b[:min(int64(len(b)), f.current.length)]
	f.current.unmask(b)
	err := f.search.searchPart(b)
	keep := 0
	if int64(len(b)) < f.current.length && !last {
		keep = min(len(b), f.search.Patterns.longest-1)
	} else if err == nil {
		err = f.search.searchEnd(b)
	}
	f.current.unmask(b)
	n := len(b) - keep
	f.current.length -= int64(n)
	f.current.advanceMask(n)
	return n, err
}

// unmask combines a payload with the mask, which is its own reverse.
func (f *frame) unmask(b []byte) {
	if f.mask == [4]byte{} {
		return
	}
	for i := range b {
		b[i] ^= f.mask[i&3]
	}
}

// advanceMask moves the mask on by n bytes.
func (f *frame) advanceMask(n int) {
	m := f.mask
	for i := range f.mask {
		f.mask[i] = m[(i+n)&3]
	}
}

// NewWebSocket searches one direction of a WebSocket without extensions
// (RFC 6455, section 5.2). The error of a stream that is not one is [ErrFrame].
func NewWebSocket(r io.Reader, s Search) *Frames {
	return newFrames(r, s, func(b []byte) (int, frame, error) {
		const reserved, masked, two, eight = 0x70, 0x80, 126, 127
		if b[0]&reserved != 0 {
			return 0, frame{}, fmt.Errorf("read WebSocket: %w: it uses an extension that was not negotiated", ErrFrame)
		}
		if len(b) < 2 {
			return 0, frame{}, nil
		}
		size, length := 2, uint64(b[1]&^masked)
		switch length {
		case two:
			if size = 4; len(b) >= size {
				length = uint64(binary.BigEndian.Uint16(b[2:]))
			}
		case eight:
			if size = 10; len(b) >= size {
				length = binary.BigEndian.Uint64(b[2:])
			}
		}
		f := frame{length: int64(length)} // its sign is looked at
		if b[1]&masked != 0 {
			if size += 4; len(b) >= size {
				copy(f.mask[:], b[size-4:])
			}
		}
		if len(b) < size {
			return 0, frame{}, nil
		}
		if f.length < 0 || f.length > maxFrame {
			return 0, frame{}, fmt.Errorf("read WebSocket: %w: its length is invalid", ErrFrame)
		}
		return size, f, nil
	})
}

// gRPC's messages begin with a byte of flags and four of length
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
const (
	grpcHead       = 5
	grpcCompressed = 1
	grpcTrailer    = 0x80 // of gRPC-Web
)

// grpcFlags refuses a stream that is declared as gRPC and is not: it could have the
// secret outside of messages.
func grpcFlags(flags byte) error {
	if flags&^(grpcCompressed|grpcTrailer) != 0 {
		return fmt.Errorf("read gRPC message: %w: its flags are invalid", ErrFrame)
	}
	return nil
}

// MaxMessage is how long a compressed gRPC message may be, before and after, in
// bytes: as long as gRPC's libraries take by themselves.
const MaxMessage = 4 << 20

// NewGRPC searches the messages of gRPC or gRPC-Web. encoding is that of
// compressed ones, as grpc-encoding states it; they are passed on decompressed
// where the search blanks out, see [NewGRPCGuard]. The error is [ErrCoding] for
// an encoding that is not known; reading yields [ErrFrame] and [ErrBomb].
func NewGRPC(r io.Reader, s Search, encoding string) (io.Reader, error) {
	return newGRPC(r, s, encoding, true)
}

// NewGRPCGuard is [NewGRPC] for a search that ends the stream: compressed
// messages are searched and passed on as they are.
func NewGRPCGuard(r io.Reader, s Search, encoding string) (io.Reader, error) {
	return newGRPC(r, s, encoding, false)
}

func newGRPC(r io.Reader, s Search, encoding string, rewrite bool) (io.Reader, error) {
	if Encoded(encoding) {
		if _, err := Decode(encoding, strings.NewReader("")); err != nil {
			return nil, err
		}
	}
	return newFrames(&messages{from: bufio.NewReader(r), search: s, encoding: encoding, rewrite: rewrite}, s,
		func(b []byte) (int, frame, error) {
			if err := grpcFlags(b[0]); err != nil || len(b) < grpcHead {
				return 0, frame{}, err
			}
			return grpcHead, frame{length: int64(binary.BigEndian.Uint32(b[1:]))}, nil
		}), nil
}

// messages takes compressed messages apart and passes all else on.
type messages struct {
	from     *bufio.Reader
	search   Search
	encoding string
	rewrite  bool

	ready io.Reader // of the message under way
	taken int64     // of the room, for it
	err   error
}

func (m *messages) Read(p []byte) (int, error) {
	for m.err == nil {
		if m.ready == nil {
			if m.ready, m.err = m.next(); m.err != nil {
				break
			}
		}
		n, err := m.ready.Read(p)
		if err != nil {
			_ = m.hold(0) // giving back cannot fail
			m.ready, err = nil, ignoreEOF(err)
		}
		if n > 0 || err != nil {
			m.err = err
			return n, err
		}
	}
	return 0, m.err
}

// hold takes what the message under way takes, in place of what it took so far.
func (m *messages) hold(bytes int64) error {
	if bytes > m.taken {
		if err := m.search.take(bytes - m.taken); err != nil {
			return err
		}
	} else {
		m.search.give(m.taken - bytes)
	}
	m.taken = bytes
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// next returns the next message, or io.EOF.
func (m *messages) next() (io.Reader, error) {
	head, err := m.from.Peek(grpcHead)
	if len(head) > 0 {
		if bad := grpcFlags(head[0]); bad != nil {
			return nil, bad
		}
	}
	if err != nil {
		if len(head) > 0 { // an incomplete message is forwarded unchanged
			return m.from, nil
		}
		return nil, err
	}
	length := int64(binary.BigEndian.Uint32(head[1:]))
	if head[0]&grpcCompressed == 0 {
		return io.LimitReader(m.from, grpcHead+length), nil
	}
	if !Encoded(m.encoding) || length > MaxMessage {
		return nil, fmt.Errorf("read gRPC message: %w: it is compressed, and too long or in no encoding", ErrFrame)
	}
	// Growing buffers take about twice as much as is in them.
	if err := m.hold(2*length + 2*min(maxRatio*length, MaxMessage) + DecoderSize(m.encoding)); err != nil {
		return nil, err
	}
	whole, err := readAll(m.from, grpcHead+length)
	if err != nil {
		return nil, fmt.Errorf("read gRPC message: %w", err)
	}
	plain, err := m.decode(whole[grpcHead:])
	if err != nil {
		return nil, fmt.Errorf("read gRPC message: %w", err)
	}
	_ = m.hold(min(m.taken, int64(2*max(cap(whole), cap(plain))))) // it takes no more
	if !m.rewrite {
		if err := m.search.searchPart(plain); err != nil {
			return nil, err
		}
		return bytes.NewReader(whole), nil
	}
	rewritten := binary.BigEndian.AppendUint32([]byte{whole[0] &^ grpcCompressed}, uint32(len(plain))) // at most MaxMessage
	return bytes.NewReader(append(rewritten, plain...)), nil
}

// readAll reads size bytes. Memory grows as they arrive: a sender may announce more than it
// sends.
func readAll(r io.Reader, size int64) ([]byte, error) {
	var b bytes.Buffer
	_, err := io.CopyN(&b, r, size)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b.Bytes(), err
}

func (m *messages) decode(b []byte) ([]byte, error) {
	from, err := Decode(m.encoding, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(from, MaxMessage+1))
	if err == nil && len(plain) > MaxMessage {
		err = ErrBomb
	}
	return plain, err
}

package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Messages of the frontend (PostgreSQL 18, protocol-message-formats).
const (
	msgBind         = 'B'
	msgClose        = 'C'
	msgCopyData     = 'd'
	msgCopyDone     = 'c'
	msgCopyFail     = 'f'
	msgDescribe     = 'D'
	msgExecute      = 'E'
	msgFlush        = 'H'
	msgFunctionCall = 'F'
	msgParse        = 'P'
	msgQuery        = 'Q'
	msgSync         = 'S'
	msgTerminate    = 'X'
)

// Messages of the backend.
const (
	msgBindComplete         = '2'
	msgCloseComplete        = '3'
	msgCommandComplete      = 'C'
	msgCopyInResponse       = 'G'
	msgCopyOutResponse      = 'H'
	msgDataRow              = 'D'
	msgEmptyQuery           = 'I'
	msgErrorResponse        = 'E'
	msgFunctionCallResponse = 'V'
	msgNoData               = 'n'
	msgNotice               = 'N'
	msgNotification         = 'A'
	msgParameterDescription = 't'
	msgParameterStatus      = 'S'
	msgParseComplete        = '1'
	msgPortalSuspended      = 's'
	msgReadyForQuery        = 'Z'
	msgRowDescription       = 'T'
)

const (
	// headerSize is the size of a frame's type and length.
	headerSize = 5
	// maxFrame is the size of a frame at most, as PostgreSQL limits it
	// (PQ_LARGE_MESSAGE_LIMIT is MaxAllocSize - 1).
	maxFrame = 1 << 30
	// smallBuffer is held by a direction on which little moves, largeBuffer is lent while
	// much does.
	smallBuffer = 2 << 10
	largeBuffer = 32 << 10
)

// errFrame is for a frame whose length cannot be.
var errFrame = errors.New("the length of a message is out of range")

// endOfFrame is where the frame ends that has the byte before b[n], beyond b if that is not
// there. b begins with a frame.
func endOfFrame(b []byte, n int) (at int) {
	for at < n {
		if len(b) < at+headerSize {
			return len(b) + 1
		}
		_, total, err := header(b[at:])
		if err != nil {
			return len(b) + 1
		}
		at += total
	}
	return at
}

// header reads a frame's type and its size with the header.
func header(b []byte) (kind byte, total int, err error) {
	length := binary.BigEndian.Uint32(b[1:headerSize])
	if length < headerSize-1 || length >= maxFrame {
		return 0, 0, fmt.Errorf("%w: %d bytes", errFrame, length)
	}
	return b[0], int(length) + 1, nil
}

// inspector looks at the frames of one direction.
type inspector interface {
	// need returns how many bytes of a frame inspect is given, at most total; 0 for a
	// frame that passes unseen.
	need(kind byte, total int) (int, error)
	// inspect looks at the beginning of a frame, and returns what is sent in its place:
	// nil for the frame itself, and an empty slice for nothing. The slice is used before
	// the next call. An error ends the direction after what was passed before.
	inspect(frame []byte, total int) (instead []byte, err error)
}

// buffers lends buffers of largeBuffer bytes.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[]byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, largeBuffer)
	return &buf
}

// pump relays the frames of one direction. Frames that pass are written as they were
// read, many at a time, and each write ends with a whole one; a frame that is larger than the
// buffer is passed in parts.
type pump struct {
	src  io.Reader
	dst  sink
	lend *buffers
	room memory

	written func() // called when all that was passed is written, before a read that may wait; nil for none

	small []byte
	large *[]byte // lent, nil without
	buf   []byte
	// buf[start:pos] is passed, and written before the next read; buf[pos:end] was not
	// looked at.
	start, pos, end int
	grown           int  // bytes taken by grow
	full            bool // the last read filled the buffer
}

// sink takes relayed bytes. whole is set if they end with a whole frame.
type sink func(b []byte, whole bool) error

// memory is what a connection may hold beside its small buffers.
type memory interface {
	take(n int64) error
	give(n int64)
}

func newPump(src io.Reader, dst sink, lend *buffers, room memory) *pump {
	small := make([]byte, smallBuffer)
	return &pump{src: src, dst: dst, lend: lend, room: room, small: small, buf: small}
}

// run relays until the source ends, which is nil between two frames, or a direction
// breaks.
func (p *pump) run(i inspector) error {
	defer p.release()
	for {
		if err := p.want(headerSize); err != nil {
			if errors.Is(err, io.EOF) && p.pos == p.end {
				return nil
			}
			return unexpected(err)
		}
		if err := p.relay(i); err != nil {
			return errors.Join(err, p.flush(true))
		}
	}
}

// relay relays the frame whose header has been read.
func (p *pump) relay(i inspector) error {
	kind, total, err := header(p.buf[p.pos:p.end])
	if err != nil {
		return err
	}
	need, err := i.need(kind, total)
	if err != nil {
		return err
	}
	if need > 0 {
		if err := p.want(need); err != nil {
			return unexpected(err)
		}
		instead, err := i.inspect(p.buf[p.pos:p.pos+need], total)
		if err != nil {
			return err
		}
		if instead != nil {
			return p.replace(instead, total)
		}
	}
	return p.pass(total)
}

// unexpected returns the error of a source that ended within a frame.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// pass passes the frame at pos: whole, if there is room for it.
func (p *pump) pass(total int) error {
	for p.end-p.pos < total && total <= largeBuffer && p.hasRoom() {
		if err := p.fill(); err != nil {
			return unexpected(err)
		}
	}
	for {
		n := min(total, p.end-p.pos)
		p.pos += n
		if total -= n; total == 0 {
			return nil
		}
		if err := p.flush(false); err != nil {
			return err
		}
		if err := p.fill(); err != nil {
			return unexpected(err)
		}
	}
}

// hasRoom makes room for more of the frame at pos, without which the buffer is full.
func (p *pump) hasRoom() bool {
	return p.end-p.pos < len(p.buf) || p.large == nil && p.grown == 0 && p.borrow()
}

// replace sends other bytes in place of the frame at pos.
func (p *pump) replace(instead []byte, total int) error {
	if err := p.flush(true); err != nil {
		return err
	}
	if len(instead) > 0 {
		if err := p.dst(instead, true); err != nil {
			return err
		}
	}
	for {
		n := min(total, p.end-p.pos)
		p.pos += n
		p.start = p.pos
		if total -= n; total == 0 {
			return nil
		}
		if err := p.fill(); err != nil {
			return unexpected(err)
		}
	}
}

// flush writes what was passed, of which the last is a whole frame or is not.
func (p *pump) flush(whole bool) error {
	if p.start == p.pos {
		return nil
	}
	err := p.dst(p.buf[p.start:p.pos], whole)
	p.start = p.pos
	return err
}

// want returns once n bytes of the next frame have been read.
func (p *pump) want(n int) error {
	for p.end-p.pos < n {
		if p.end-p.pos == len(p.buf) { // as it begins at 0, everything before is written
			if err := p.enlarge(n); err != nil {
				return err
			}
		}
		if err := p.fill(); err != nil {
			return err
		}
	}
	return nil
}

// fill writes what was passed, and reads.
func (p *pump) fill() error {
	if err := p.flush(true); err != nil {
		return err
	}
	if p.written != nil {
		p.written()
	}
	p.resize()
	if p.pos > 0 {
		p.end = copy(p.buf, p.buf[p.pos:p.end])
		p.start, p.pos = 0, 0
	}
	n, err := p.src.Read(p.buf[p.end:])
	p.end += n
	p.full = p.end == len(p.buf)
	if n > 0 {
		return nil // an error comes again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// resize takes a small buffer while little moves, and a large one while much does.
func (p *pump) resize() {
	empty := p.pos == p.end
	switch {
	case empty && p.grown > 0:
		p.room.give(int64(p.grown))
		p.grown = 0
		if p.use(p.small); p.large != nil {
			p.use(*p.large)
		}
	case empty && p.large != nil && !p.full:
		p.use(p.small)
		p.giveBack()
	case p.full && p.large == nil && p.grown == 0:
		p.borrow()
	}
}

// borrow continues with a large buffer, if there is memory for one.
func (p *pump) borrow() bool {
	if p.room.take(largeBuffer) != nil {
		return false
	}
	p.large = p.lend.get()
	p.use(*p.large)
	return true
}

// giveBack returns the large buffer, which is no longer used.
func (p *pump) giveBack() {
	if p.large != nil {
		p.lend.pool.Put(p.large)
		p.large = nil
		p.room.give(largeBuffer)
	}
}

// use continues with another buffer, which is not smaller than what is in this one.
func (p *pump) use(buf []byte) {
	n := copy(buf, p.buf[p.pos:p.end])
	p.buf, p.start, p.pos, p.end = buf, 0, 0, n
}

// enlarge makes room for a message of n bytes that is held whole. The room grows with
// what has come, so that a length alone takes no memory.
func (p *pump) enlarge(n int) error {
	if p.large == nil && p.grown == 0 && n <= largeBuffer && p.borrow() {
		return nil
	}
	size := min(n, 2*max(len(p.buf), largeBuffer))
	if err := p.room.take(int64(size - p.grown)); err != nil {
		return err
	}
	p.grown = size
	p.use(make([]byte, size))
	return nil
}

// release gives back what is lent.
func (p *pump) release() {
	p.room.give(int64(p.grown))
	p.grown, p.buf = 0, nil
	p.giveBack()
}

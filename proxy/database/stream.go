package database

import (
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// fromPlugin is what the plugin sends. One goroutine reads it.
type fromPlugin struct {
	pace   session.RateLimiter
	search placeholder.Stream
	bytes  atomic.Int64 // sent to the server
}

// maxRecord is the size of a write within TLS at most: what one record carries (RFC 8446,
// section 5.1), so that a write that is interrupted ends with the record that it has begun.
const maxRecord = 16 << 10

// toPlugin is what the plugin receives.
type toPlugin struct {
	pacing sync.Mutex // held while a write waits for its turn; never taken under writing
	pace   session.RateLimiter
	most   int // size of a write

	cut     atomic.Bool // no message is begun but the last
	writing sync.Mutex  // held during a write
	partial bool        // the last write did not end with a whole message
	last    atomic.Bool // the last message was sent: nothing follows; set while writing is held
	unsent  unsent
	bytes   atomic.Int64
}

// Read reads what the plugin sends, within its limits on bytes.
func (s *Session) Read(b []byte) (int, error) {
	n, err := s.plugin.Read(b[:s.up.pace.Chunk(len(b))])
	if n == 0 {
		return n, err
	}
	s.touch()
	if _, ended := s.up.pace.Wait(n); ended != nil {
		return 0, ended
	}
	return n, err
}

// Forward sends bytes of the plugin to the server. If a placeholder of a credential is in
// them, or in them together with those before, the session is cut, and the rest of it does
// not pass: nothing but the login is the credential's slot.
func (s *Session) Forward(server io.Writer, b []byte) (int, error) {
	if cache := s.front.cfg.Placeholders; cache != nil {
		if e := s.up.search.Find(cache.Matcher(), b, "the statements"); e != nil {
			s.entry.Cut(e)
			return 0, e
		}
	}
	n, err := server.Write(b)
	s.up.bytes.Add(int64(n))
	return n, err
}

// Write sends one message to the plugin, or several that belong together, within its limits on
// bytes.
func (s *Session) Write(b []byte) (int, error) {
	return s.WritePart(b, true, func(b []byte, _ int) int { return len(b) })
}

// WritePart is Write for any messages, of which the last does not end with b if whole is not
// set. endOf returns where the message ends that was begun when n bytes of b were sent: n between
// two messages, and more than the length of b if the end is not there. It is called when the
// session is cut during the write, unless b begins within a message. The rest of the message
// is then sent, or left to [Session.End], and the last message follows; otherwise none can.
func (s *Session) WritePart(b []byte, whole bool, endOf func(b []byte, n int) int) (sent int, err error) {
	s.down.pacing.Lock()
	defer s.down.pacing.Unlock()
	s.down.writing.Lock()
	within := s.down.partial
	s.down.writing.Unlock()
	for err == nil && sent < len(b) {
		part := b[sent:]
		part = part[:s.down.pace.Chunk(min(len(part), s.down.most))]
		if _, err = s.down.pace.Wait(len(part)); err != nil {
			break
		}
		var n int
		n, err = s.write(part, whole && sent+len(part) == len(b))
		sent += n
	}
	if err != nil && sent > 0 && !within && s.down.cut.Load() {
		s.complete(b, sent, endOf)
	}
	return sent, err
}

func (s *Session) write(b []byte, whole bool) (int, error) {
	s.down.writing.Lock()
	defer s.down.writing.Unlock()
	if s.down.cut.Load() || s.down.last.Load() {
		return 0, net.ErrClosed
	}
	before := s.down.partial
	s.down.partial = true // until all of it is there
	n, err := s.plugin.Conn.Write(b)
	s.touch()
	s.down.bytes.Add(int64(n))
	s.down.partial = err != nil && (n > 0 || before) || err == nil && !whole
	return n, err
}

// complete sends the rest of a message of which n bytes of b have a part, without waiting.
func (s *Session) complete(b []byte, n int, endOf func(b []byte, n int) int) {
	s.down.writing.Lock()
	defer s.down.writing.Unlock()
	end := endOf(b, n)
	if s.down.last.Load() || end > len(b) {
		return
	}
	_ = s.hurry()
	s.down.partial = s.sendNow(b[n:end]) != nil
	s.down.bytes.Add(int64(end - n))
}

// Last sends the last message to the plugin as far as the kernel takes it, and reports whether
// that was all; the rest is left to [Session.End]. It does not wait: not for a plugin that does
// not read, and not for another writer, behind which End sends it, if the session is cut. It is
// for abort of [Session.Serve].
func (s *Session) Last(b []byte) bool {
	s.mu.Lock()
	late := s.cut.late != nil
	s.mu.Unlock()
	if late {
		return false
	}
	if s.lockWriting() {
		defer s.down.writing.Unlock()
		if s.down.last.Load() {
			return false
		}
		if !s.down.partial && s.hurry() {
			s.down.partial = true // nothing follows
			s.down.last.Store(s.sendNow(b) == nil)
			unsent := s.down.last.Load() && len(s.down.unsent.rest()) > 0
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cut.unsent = s.cut.unsent || unsent
			return s.down.last.Load() && !unsent
		}
	}
	if s.down.cut.Load() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cut.late = b
	}
	return false
}

// lockWriting takes the lock of writing, and reports whether it could. The plugin may have read,
// and answered, what another goroutine is just returning from writing.
func (s *Session) lockWriting() bool {
	const tries = 32
	for range tries {
		if s.down.writing.TryLock() {
			return true
		}
	}
	return false
}

// Copy copies n bytes of one message from the plugin to the server, with a buffer that the
// caller lends. from is a reader on top of [Session.Read].
func (s *Session) Copy(server io.Writer, from io.Reader, n int64, buf []byte) error {
	for n > 0 {
		got, err := io.ReadAtLeast(from, buf[:min(n, int64(len(buf)))], 1)
		if got > 0 {
			if _, failed := s.Forward(server, buf[:got]); failed != nil {
				return failed
			}
			n -= int64(got)
		}
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

package database

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// fromPlugin is what the plugin sends. One goroutine reads it.
type fromPlugin struct {
	pace   session.RateLimiter
	search placeholder.Stream
	bytes  atomic.Int64 // sent to the server
}

// toPlugin is what the plugin receives.
type toPlugin struct {
	pacing sync.Mutex // held while a write waits for its turn; never taken under writing
	pace   session.RateLimiter

	cut     atomic.Bool // only the last message follows
	writing sync.Mutex  // held during a write
	partial bool        // the last write did not end with a whole message
	last    bool        // the last message was sent: nothing follows
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

// Write sends whole messages to the plugin, within its limits on bytes.
func (s *Session) Write(b []byte) (int, error) { return s.WritePart(b, true) }

// WritePart is Write for bytes of which the last end a message, or do not if whole is not
// set: then no last message can follow them.
func (s *Session) WritePart(b []byte, whole bool) (sent int, err error) {
	s.down.pacing.Lock()
	defer s.down.pacing.Unlock()
	for err == nil && sent < len(b) {
		part := b[sent:]
		part = part[:s.down.pace.Chunk(len(part))]
		if _, err = s.down.pace.Wait(len(part)); err != nil {
			return sent, err
		}
		var n int
		n, err = s.write(part, whole && sent+len(part) == len(b))
		sent += n
	}
	return sent, err
}

func (s *Session) write(b []byte, whole bool) (int, error) {
	s.down.writing.Lock()
	defer s.down.writing.Unlock()
	if s.down.cut.Load() || s.down.last {
		return 0, net.ErrClosed
	}
	s.down.partial = true // until all of it is there
	n, err := s.plugin.Conn.Write(b)
	s.touch()
	s.down.bytes.Add(int64(n))
	s.down.partial = err != nil || !whole
	return n, err
}

// Last attempts to send the last message to the plugin, and reports whether it was sent.
// It does not wait: not for another writer, and not for a plugin that does not read. It is
// for abort of [Session.Serve].
func (s *Session) Last(b []byte) bool {
	if !s.lockWriting() {
		return false
	}
	defer s.down.writing.Unlock()
	if s.down.partial {
		return false
	}
	s.down.partial = true // nothing follows
	s.down.last = sendLast(s.plugin, b)
	return s.down.last
}

const (
	// lastPatience is how long the last message may wait for a writer, unless the caller has
	// other sessions to cut after this one.
	lastPatience = 5 * time.Millisecond
	// lastTries is how often a writer that is just leaving is looked at otherwise.
	lastTries = 32
)

// lockWriting takes the lock of writing for the last message, and reports whether it could.
// The plugin may have read, and answered, what another goroutine is about to return from
// writing.
func (s *Session) lockWriting() bool {
	for range lastTries {
		if s.down.writing.TryLock() {
			return true
		}
	}
	s.mu.Lock()
	cause := s.cut.cause
	s.mu.Unlock()
	alone := !errors.Is(cause, session.ErrRevoked) && !errors.Is(cause, session.ErrStopping)
	for late := time.Now().Add(lastPatience); alone && time.Now().Before(late); time.Sleep(lastPatience / 50) {
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

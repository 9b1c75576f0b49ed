package session

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// chunkSize is how many bytes pass at a time where they are slowed down: so
// many that each access has its turn ten to forty times a second, and a slow
// rate still flows. All accesses under the same limits have one size, and the
// turns go round, so that they share the rate evenly.
type chunkSize struct {
	bytes atomic.Int64

	mu   sync.Mutex
	next time.Time // when a change has shown what it does
}

const (
	minChunk   = 1 << 10
	firstChunk = 4 << 10
	maxChunk   = BufferSize
	longWait   = 100 * time.Millisecond
	shortWait  = 25 * time.Millisecond
)

// adapt takes in how long a piece has to wait for its turn.
func (s *chunkSize) adapt(wait time.Duration) {
	now, size := time.Now(), s.bytes.Load()
	switch {
	case wait > longWait && size > minChunk: // as much as half a long turn allows
		size = max(size*int64(longWait/2)/int64(wait), minChunk)
	case wait < shortWait && size < maxChunk:
		size = min(size*2, maxChunk)
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !now.Before(s.next) {
		s.next = now.Add(wait)
		s.bytes.Store(size)
	}
}

// errEndedWhileThrottled is a wait for a turn that the end of the access has cut short.
var errEndedWhileThrottled = errors.New("the access ended before its turn")

// RateLimiter slows one direction of one access down to the plugin's limits on bytes.
// Without a limit in force it has no effect. Only one
// goroutine uses it at a time.
//
// While it waits it does not read or write: to the plugin and to the upstream it
// looks like a slow network, through TCP or HTTP/2's windows.
type RateLimiter struct {
	rates *RateLimits
	kind  authz.LimitKind
	size  *chunkSize
	ended <-chan struct{} // closed when the access ends, however that comes

	timer    *time.Timer
	buffered []byte
	full     bool // the last piece was a whole one
}

// RateLimits are a plugin's limits on bytes as the accesses share them.
type RateLimits struct {
	plugin   authz.Principal
	gate     *authz.Gate
	engine   *authz.Engine
	buffers  *BufferPool
	up, down chunkSize // of what the plugin sends, and of what it receives
}

// NewRateLimits returns the limits of a plugin. Buffers for copying come from buffers.
func NewRateLimits(plugin authz.Principal, gate *authz.Gate, engine *authz.Engine, buffers *BufferPool) *RateLimits {
	r := &RateLimits{plugin: plugin, gate: gate, engine: engine, buffers: buffers}
	r.up.bytes.Store(firstChunk)
	r.down.bytes.Store(firstChunk)
	return r
}

// Limiter returns what slows one direction of an access down until it has ended.
func (r *RateLimits) Limiter(kind authz.LimitKind, ended <-chan struct{}) RateLimiter {
	size := &r.up
	if kind == authz.LimitReceivedBytes {
		size = &r.down
	}
	return RateLimiter{rates: r, kind: kind, size: size, ended: ended}
}

// Limited reports whether a limit on these bytes is in force.
func (p *RateLimiter) Limited() bool {
	return p.rates.engine.Current().HasLimit(p.rates.plugin, p.kind)
}

func (p *RateLimiter) chunk() int { return int(p.size.bytes.Load()) }

// Chunk returns how much of n bytes may be moved at a time.
func (p *RateLimiter) Chunk(n int) int {
	if size := p.chunk(); n > size && p.Limited() {
		return size
	}
	return n
}

// buffer returns a buffer for a piece. Its size follows the chunk.
func (p *RateLimiter) buffer() []byte {
	size := p.chunk()
	if len(p.buffered) < size {
		p.buffered = make([]byte, size)
	}
	return p.buffered[:size]
}

// Wait returns when n bytes may pass, and whether they had to wait.
func (p *RateLimiter) Wait(n int) (waited bool, err error) {
	if n == 0 || !p.Limited() {
		return false, nil
	}
	policy := p.rates.engine.Current()
	wait := p.rates.gate.ThrottleBytes(p.rates.plugin, p.kind, n)
	if p.size.adapt(wait); wait <= 0 {
		return false, nil
	}
	return true, p.waitUntil(n, time.Now().Add(wait), policy)
}

// waitUntil waits until a moment that n bytes were given. When the policy changes
// they are given another, if that is earlier.
func (p *RateLimiter) waitUntil(n int, until time.Time, policy *authz.Snapshot) error {
	for {
		if p.timer == nil {
			p.timer = time.NewTimer(time.Until(until))
		} else {
			p.timer.Reset(time.Until(until))
		}
		select {
		case <-p.timer.C:
			return nil
		case <-p.ended:
			p.timer.Stop()
			return errEndedWhileThrottled
		case <-policy.Changed():
			policy = p.rates.engine.Current()
			replenished := time.Now().Add(p.rates.gate.ThrottleBytes(p.rates.plugin, p.kind, n))
			if replenished.Before(until) {
				until = replenished
			}
		}
	}
}

// move moves what one Read gives, a piece at most. Its error is io.EOF at the end.
func (p *RateLimiter) move(to io.Writer, from io.Reader, buf []byte) (int64, error) {
	n, err := from.Read(buf[:p.Chunk(len(buf))])
	if n == 0 {
		return 0, err
	}
	if _, cut := p.Wait(n); cut != nil {
		return 0, cut
	}
	written, broken := to.Write(buf[:n])
	if broken != nil {
		err = broken
	}
	return int64(written), err
}

// stream is move with a buffer that is large while there is much to move, and
// small while nothing comes: many connections are idle.
func (p *RateLimiter) stream(to io.Writer, from io.Reader) (int64, error) {
	buf := p.buffer()
	if p.full && !p.Limited() {
		lent := p.rates.buffers.Get()
		defer p.rates.buffers.Put(lent)
		buf = *lent
	}
	n, err := p.move(to, from, buf)
	p.full = n >= int64(p.chunk())
	return n, err
}

// Copy moves everything and returns how much that was.
func (p *RateLimiter) Copy(to io.Writer, from io.Reader, buf []byte) (moved int64, err error) {
	for {
		n, err := p.move(to, from, buf)
		moved += n
		if errors.Is(err, io.EOF) {
			return moved, nil
		}
		if err != nil {
			return moved, err
		}
	}
}

// HeadSize is about what a head takes on the wire, 0 where nobody counts it.
func (p *RateLimiter) HeadSize(target string, h http.Header) int {
	if !p.Limited() {
		return 0
	}
	const line, separators = 64, 4 // ": " and the end of the line
	n := line + len(target)
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + separators
		}
	}
	return n
}

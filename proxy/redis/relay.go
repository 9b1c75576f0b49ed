package redis

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const (
	// smallBuffer is the size of a direction's buffer while little moves, and largeBuffer
	// while much does.
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
	// maxHeld is how long a request is at most that must be held whole, in bytes.
	maxHeld = 8 << 20
)

// relay carries one session. Requests are read by one goroutine, answers by another.
type relay struct {
	s      *database.Session
	plugin *session.Conn
	server net.Conn

	requests requests
	answers  answers
	markers  markers
	running  running

	sent     atomic.Uint64 // commands to the server, whose answers are counted
	answered atomic.Uint64
	open     atomic.Bool // a transaction or a subscription
}

// running are the commands whose answer may take long, which the session decides again
// when the policy changes, in their order.
type running struct {
	mu         sync.Mutex
	list       []ending
	subscribed bool // answers no longer count: what runs ends with the session
	some       atomic.Bool
	blocked    atomic.Bool // one of the list blocks the connection: what comes behind it runs as long
}

// ending is a command that ends with an answer, by its number.
type ending struct {
	answer     uint64
	statements []*database.Statement
}

func newRelay(s *database.Session, plugin *session.Conn, server net.Conn, number int) *relay {
	r := &relay{s: s, plugin: plugin, server: server}
	r.requests.in = make([]byte, smallBuffer)
	r.requests.opened = number
	r.answers.in = make([]byte, smallBuffer)
	r.answers.write, r.answers.done = s.WritePart, make(chan struct{})
	r.markers.secret = newSecret()
	return r
}

// run relays until either side ends.
func (r *relay) run() {
	r.s.Serve(r.lastMessage, r.idle)
	go func() {
		defer close(r.answers.done)
		r.readAnswers()
		_ = r.plugin.SetReadDeadline(time.Unix(1, 0)) // the other direction ends
	}()
	if err := r.readRequests(); err == nil || errors.Is(err, errEnding) {
		_ = r.server.SetReadDeadline(time.Now().Add(drainTimeout))
		if err == nil {
			_ = session.CloseWriteOf(r.server)
		}
	} else {
		_ = r.server.SetReadDeadline(time.Unix(1, 0))
	}
	<-r.answers.done
	_ = r.server.Close()
	if r.answers.last {
		drain(r.plugin)
	}
}

// lastMessage attempts to send the error of a session that was cut.
func (r *relay) lastMessage(error) {
	if refusal := r.s.Cause(); refusal != nil {
		r.s.Last(errorOf(refusal))
	}
}

// idle reports whether every command has its answer, outside a transaction and without a
// subscription.
func (r *relay) idle() bool {
	return !r.open.Load() && r.answered.Load() >= r.sent.Load()
}

// run adds statements that run until the answer of the command that was sent last.
func (l *running) run(answer uint64, statements []*database.Statement, blocks bool) {
	l.mu.Lock()
	l.list = append(l.list, ending{answer, statements})
	l.some.Store(true)
	if blocks {
		l.blocked.Store(true)
	}
	l.mu.Unlock()
}

// end ends what has its answer.
func (l *running) end(answered uint64) {
	if !l.some.Load() {
		return
	}
	l.mu.Lock()
	for !l.subscribed && len(l.list) > 0 && l.list[0].answer <= answered {
		for _, st := range l.list[0].statements {
			st.End(authz.Outcome{})
		}
		l.list = l.list[1:]
	}
	if len(l.list) == 0 {
		l.some.Store(false)
		l.blocked.Store(false)
	}
	l.mu.Unlock()
}

func (l *running) subscribe() {
	l.mu.Lock()
	l.subscribed = true
	l.mu.Unlock()
}

func (l *running) isSubscribed() bool {
	l.mu.Lock()
	is := l.subscribed
	l.mu.Unlock()
	return is
}

func (l *running) len() int {
	l.mu.Lock()
	n := len(l.list)
	l.mu.Unlock()
	return n
}

// answers is the state of the goroutine that reads the server.
type answers struct {
	in      []byte
	out     []byte
	write   func(b []byte, whole bool, endOf func(b []byte, n int) int) (int, error) // to the plugin
	replies resp.Replies
	done    chan struct{} // closed when the goroutine has ended
	last    bool          // the plugin has its last message
	seen    int           // bytes of the buffer that replies has read, of an answer that is not whole
	begun   bool          // the buffer begins within an answer of which the plugin has a part
}

// readAnswers forwards the server's answers until an end or an error.
func (r *relay) readAnswers() {
	a := &r.answers
	held := 0
	for !a.last {
		n, err := r.server.Read(a.in[held:])
		if n > 0 {
			rest, failed := r.forwardAnswers(a.in[:held+n])
			if failed != nil {
				return
			}
			full := held+n == len(a.in)
			held = a.keep(rest, full)
		}
		if err != nil {
			return
		}
	}
}

// keep moves the bytes that are read again to the start of the buffer, and adapts its size.
func (a *answers) keep(rest []byte, full bool) int {
	switch {
	case full && len(a.in) < largeBuffer:
		grown := make([]byte, largeBuffer)
		copy(grown, rest)
		a.in = grown
	case !full && len(a.in) > smallBuffer && a.replies.Top():
		small := make([]byte, smallBuffer)
		copy(small, rest)
		a.in = small
	case len(rest) > 0 && &rest[0] == &a.in[0]: // it is there
	default:
		copy(a.in, rest)
	}
	return len(rest)
}

// forwardAnswers writes b to the plugin, with other errors where markers stand for them, and
// returns the bytes at its end that come again, with more. These are an answer that is not
// whole, unless it is larger than the buffer or has had another error put in it.
func (r *relay) forwardAnswers(b []byte) (rest []byte, err error) {
	a := &r.answers
	out, from, at, whole := a.out[:0], 0, a.seen, 0 // whole is where the last answer ends
	if a.begun {
		whole = -1
	}
	for !a.last {
		n, failure, err := a.replies.Scan(b[at:])
		if at += n; err != nil {
			r.s.Cut(authz.UpstreamUnreachable, "the server does not answer as Redis does")
			return nil, err
		}
		if n+failure == 0 {
			break
		}
		if failure > 0 {
			kind, ok := a.replies.Last()
			a.replies.Skip()
			if text, replaced := r.replaceError(b[at:at+failure], kind, ok); replaced {
				out = append(append(out, b[from:at]...), text...)
				from = at + failure
			}
			at += failure
		}
		if a.replies.Top() {
			whole = at
		}
	}
	end := at
	if whole >= from && (whole > 0 || len(b) < largeBuffer) {
		end = whole
	}
	if from > 0 {
		out = append(out, b[from:end]...)
		a.out = out[:0]
		if cap(out) > largeBuffer {
			a.out = nil
		}
	} else {
		out = b[:end]
	}
	a.seen, a.begun = at-end, end != whole
	if len(out) > 0 {
		_, err = a.write(out, !a.begun, endOfAnswer)
	}
	r.answered.Store(a.replies.Answered)
	r.running.end(a.replies.Answered)
	return b[end:], err
}

// endOfAnswer is where the answer ends that has the byte before b[n], beyond b if that is not
// there. b begins with an answer.
func endOfAnswer(b []byte, n int) (at int) {
	for s := (resp.Replies{}); at < n || !s.Top(); {
		k, failure, _ := s.Scan(b[at:])
		if k+failure == 0 {
			return len(b) + 1
		}
		if failure > 0 {
			s.Skip()
		}
		at += k + failure
	}
	return at
}

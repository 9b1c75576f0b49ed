package postgres

import (
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// statement is an admitted statement, which ends once; [database.Statement] is.
type statement interface {
	End(authz.Outcome)
	Keep() bool
}

// pipeline pairs what the plugin sends with what the server answers, by the rules of the
// protocol (PostgreSQL 18, protocol-flow): a batch of messages ends with a Sync, a Query or
// a FunctionCall, and is answered by one ReadyForQuery. The pairing ends the records of
// statements, and finds out which prepared statements exist. Decisions rest on it: a pairing
// that is ahead of the server, or behind it, would take the error of one batch for that of
// another, and a name for a statement that the server never gave it.
//
// Two rules of the server make a batch longer than its first Sync or Query:
//   - After an error in an extended query it skips everything up to the next Sync, a Query too.
//   - While it reads COPY data it ignores a Sync, and clients send one with the COPY. Only
//     the server knows when it reads: so a Sync that follows a COPY waits until that is
//     known, and is sent only where the server answers it (see copyDoubt).
//
// A pipeline is safe for concurrent use by the two directions of one connection.
type pipeline struct {
	mu    sync.Mutex
	head  *batch // the server's
	open  *batch // the plugin's: the last one
	spare *batch // for the next
	seen  int    // answers to the extended messages of head

	copy     copyState
	skipping bool // the server skips up to the next Sync of the open batch

	begun   time.Time     // the last statement
	waiting int           // statements that have not ended
	room    chan struct{} // closed when fewer wait; nil while nobody waits for that

	failed   [maxFailed]span
	nextFail int
	unsure   uint64 // batches up to this one are not known to have succeeded
	idle     bool   // the server was outside a transaction after the last batch
	idleAt   uint64 // the last batch after which it was
	received int64  // bytes of the server that belong to ended statements
	refused  map[string]authz.Refusal
}

// span is a range of batches, both ends included.
type span struct{ from, to uint64 }

const (
	// maxFailed is how many failed batches are remembered.
	maxFailed = 32
	// maxWaiting is how many statements may be sent that the server has not answered.
	maxWaiting = 512
	// maxOpen is how many batches may be sent that the server has not answered, and how many
	// messages that execute nothing in one batch.
	maxOpen = 4096
	// maxRefusals is how many refusals are kept until the server answers, the first of a
	// batch: after its error the server skips the rest.
	maxRefusals = 256
)

// batch is a run of messages that one ReadyForQuery answers.
type batch struct {
	next     *batch
	from, to uint64 // its number, which grows by one; a range where batches became one
	closed   byte   // the message that ended it, 0 while it is open
	extended int    // messages that are answered one by one
	lastCopy uint64 // the number of the last COPY FROM STDIN in it, 0 without one
	failed   bool
	running  []running
	done     int // of running
	refused  []string
}

// running is a statement that the server executes.
type running struct {
	statement statement // nil for one that was not admitted by itself, or has ended
	kind      byte      // msgQuery, msgExecute, or msgParse for one that is not executed yet
	copy      uint64    // the number of a COPY FROM STDIN, 0 for another statement
	outcome   authz.Outcome
}

func newPipeline() *pipeline {
	first := &batch{from: 1, to: 1}
	return &pipeline{head: first, open: first, idle: true, refused: map[string]authz.Refusal{}}
}

// extend counts a message that is answered by one message, and returns the number of its
// batch.
func (t *pipeline) extend() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open.extended++
	return t.open.to
}

// number returns the number of the open batch.
func (t *pipeline) number() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open.to
}

// begin adds a statement of so many bytes to the open batch. copyIn is set if it reads COPY
// data.
func (t *pipeline) begin(s statement, kind byte, size int, c *content, copyIn bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := running{statement: s, kind: kind}
	r.outcome.SentBytes, r.outcome.Statement = int64(size), c.masked
	if copyIn {
		r.copy = t.copy.begin(kind, t.skipping)
		t.open.lastCopy = r.copy
	}
	t.tidy()
	t.open.running = append(t.open.running, r)
	t.begun = time.Now()
	if s != nil {
		t.waiting++
	}
}

// take makes the statement that a Parse of the open batch began that of an Execute, and
// reports whether none had taken it before.
func (t *pipeline) take(s statement) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.open.running {
		if r := &t.open.running[i]; r.kind == msgParse && r.statement == s {
			r.statement = nil
			t.waiting--
			return true // and its entry stays, for what ends after it
		}
	}
	return false
}

// youngStatement is how long a server may take until a statement runs that it was sent.
const youngStatement = 100 * time.Millisecond

// isYoung reports whether a cancel may come before the statement runs, and have no effect.
func (t *pipeline) isYoung() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.begun) < youngStatement
}

// tidy forgets what has ended in the open batch, if that is much: a batch may go on for as
// long as its session does. The caller holds mu.
func (t *pipeline) tidy() {
	b := t.open
	if len(b.running) < maxOpen {
		return
	}
	kept, done := b.running[:0], 0
	for i, r := range b.running {
		if r.statement == nil && (i < b.done || r.kind == msgParse) {
			continue
		}
		if i < b.done {
			done++
		}
		kept = append(kept, r)
	}
	clear(b.running[len(kept):])
	b.running, b.done = kept, done
}

// isFull reports whether the server has much to answer. The caller holds mu.
func (t *pipeline) isFull() bool {
	if t.waiting >= maxWaiting || t.open.to-t.head.to >= maxOpen {
		return true
	}
	if len(t.open.running)-t.open.done >= maxOpen {
		t.tidy()
	}
	return len(t.open.running)-t.open.done >= maxOpen
}

// wake ends a wait for room, if there is some. The caller holds mu.
func (t *pipeline) wake() {
	if t.room != nil && t.waiting < maxWaiting/2 && !t.isFull() {
		close(t.room)
		t.room = nil
	}
}

// full returns nil if a further statement may be sent, otherwise what is closed once one
// may.
func (t *pipeline) full() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isFull() {
		return nil
	}
	if t.room == nil {
		t.room = make(chan struct{})
	}
	return t.room
}

// refuse keeps the refusal of a statement of the open batch until the server answers.
func (t *pipeline) refuse(r authz.Refusal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.refused) < maxRefusals && len(t.open.refused) == 0 {
		t.refused[r.Decision] = r
		t.open.refused = append(t.open.refused, r.Decision)
	}
}

// refusal returns the refusal of a decision, once.
func (t *pipeline) refusal(decision string) (r authz.Refusal, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok = t.refused[decision]
	delete(t.refused, decision)
	return r, ok
}

// end ends the open batch by a Sync, Query or FunctionCall.
func (t *pipeline) end(kind byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if kind != msgSync && t.skipping {
		return // the server ignores it
	}
	t.skipping = false
	t.open.closed = kind
	t.openNext()
}

// openNext opens a batch after the last one. The caller holds mu.
func (t *pipeline) openNext() {
	b := t.spare
	if t.spare = nil; b == nil {
		b = &batch{}
	}
	number := t.open.to + 1
	*b = batch{from: number, to: number, running: b.running[:0], refused: b.refused[:0]}
	t.open.next, t.open = b, b
}

// join makes the batch after the head a part of it. The caller holds mu.
func (t *pipeline) join() {
	h, n := t.head, t.head.next
	h.next, h.to, h.closed = n.next, n.to, n.closed
	h.extended += n.extended
	h.lastCopy = max(h.lastCopy, n.lastCopy)
	h.running = append(h.running, n.running...)
	h.refused = append(h.refused, n.refused...)
	if t.open == n {
		t.open = h
	}
	t.keep(n)
}

// keep keeps a batch for the next one.
func (t *pipeline) keep(b *batch) {
	clear(b.running)
	if cap(b.running) > maxWaiting/8 {
		b.running = nil
	}
	t.spare = b
}

// current returns the statement that the server executes, nil for none.
func (b *batch) current() *running {
	for ; b.done < len(b.running); b.done++ {
		if r := &b.running[b.done]; r.kind != msgParse {
			return r
		}
	}
	return nil
}

// answered counts an answer to a message of the extended protocol.
func (t *pipeline) answered() { t.seen++ }

// completed is called for the end of an Execute, or for that of one statement of a Query.
// It returns what has ended.
func (t *pipeline) completed(rows, received int64) (ended running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen++
	r := t.head.current()
	if r == nil {
		return running{}
	}
	r.outcome.Rows += rows
	if r.kind == msgQuery {
		return running{}
	}
	t.head.done++
	t.copy.endOf(r.copy)
	out := t.finish(r, received)
	t.wake()
	return out
}

// finish takes a statement out that has ended. The caller holds mu.
func (t *pipeline) finish(r *running, received int64) running {
	out := *r
	r.statement = nil
	if out.statement == nil {
		return running{}
	}
	out.outcome.Bytes = received - t.received
	t.received = received
	t.waiting--
	t.wake()
	return out
}

// error is called for an error of the server, with its SQLSTATE.
func (t *pipeline) error(state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.head
	h.failed = true
	if h.done < len(h.running) {
		h.running[h.done].outcome.Detail = state
	}
	if h.closed == 0 {
		t.skipping = h.extended > 0
	} else if t.seen < h.extended { // not the error of the Query itself
		for h.closed == msgQuery || h.closed == msgFunctionCall {
			t.join()
		}
		t.skipping = h.closed == 0
	}
	t.copy.endOf(h.lastCopy)
}

// ready is called when a batch has been answered. It appends what has ended to ended.
func (t *pipeline) ready(status byte, received int64, ended []running) []running {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.head
	if h == t.open {
		t.openNext() // the server has ended a batch that the pipeline took for open
		h.failed = true
		t.skipping = false
	}
	for i := range h.running {
		if r := t.finish(&h.running[i], received); r.statement != nil {
			ended = append(ended, r)
		}
	}
	t.received = received
	for _, decision := range h.refused {
		delete(t.refused, decision)
	}
	t.copy.endOf(h.lastCopy)
	if h.failed {
		t.unsure = max(t.unsure, t.failed[t.nextFail].to)
		t.failed[t.nextFail] = span{h.from, h.to}
		t.nextFail = (t.nextFail + 1) % maxFailed
	}
	if t.idle = status == 'I'; t.idle {
		t.idleAt = h.to
	}
	t.head, t.seen = h.next, 0
	t.keep(h)
	t.wake()
	return ended
}

// succeeded reports whether a batch was answered without an error.
func (t *pipeline) succeeded(number uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number >= t.head.from || number <= t.unsure {
		return false
	}
	for _, f := range t.failed {
		if f.from <= number && number <= f.to {
			return false
		}
	}
	return true
}

// lastIdle returns the last batch after which the server was outside a transaction.
func (t *pipeline) lastIdle() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idleAt
}

// isIdle reports whether the server has answered everything and is outside a transaction.
func (t *pipeline) isIdle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idle && t.head == t.open && t.open.extended == 0 && len(t.open.running) == 0
}

// owes reports whether the server has an answer to give to a statement or a batch.
func (t *pipeline) owes() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head != t.open || !t.skipping && t.head.current() != nil
}

// endAll returns every statement that has not ended.
func (t *pipeline) endAll(received int64) (ended []running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for b := t.head; b != nil; b = b.next {
		for i := range b.running {
			if r := t.finish(&b.running[i], received); r.statement != nil {
				ended = append(ended, r)
			}
		}
	}
	return ended
}

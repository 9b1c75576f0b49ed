package audit

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Group commit: records of concurrent callers are chained one behind the other and
// written with one system call and one new head. A caller that finds no other writing
// leads: it writes its entry at once, so that a lone record waits for nothing. Entries
// that arrive in the meantime it writes together, as long as they come and for leadFor;
// then the first of their callers leads. Each of the others returns when its own entry is
// written, or with the error that its group shares.

const (
	// maxGroup is how many bytes are written with one system call, unless one
	// caller has more.
	maxGroup = 64 << 10
	// cacheLine is how long a line of a CPU's cache is at most on amd64 and arm64 servers,
	// in bytes. Other lengths cost time only.
	cacheLine = 64
	// keptBuffer is how large a buffer may have grown and is used again, in bytes.
	keptBuffer = 256 << 10
)

// groupCommit writes the records of concurrent callers together.
type groupCommit struct {
	pool  sync.Pool // of *entry
	_     [cacheLine]byte
	queue queue // of entries for the caller that leads next
	_     [cacheLine]byte
	group group // that is written, under the log's lock
}

// entry has the records of one caller, and what became of them.
type entry struct {
	masks   *masker
	now     time.Time
	refused bool    // they are refusals
	lines   []*line // in use; more are kept behind them
	size    int64   // of the lines at most, in bytes
	err     error   // errUnwritten until it is written

	// next is the entry that was queued before this one; once both are taken, the one
	// that was queued behind it.
	next  *entry
	state atomic.Uint32
	wake  chan struct{} // has room for one
}

// The states of an entry that is queued. Its caller waits in the first two.
const (
	queued  = iota
	parked  // its caller is to be woken
	leads   // its caller writes what is queued
	settled // it is written, or has failed
)

// errUnwritten is the error of an entry before it is written.
var errUnwritten = errors.New("the record was not written")

// encode makes the lines of records.
func (e *entry) encode(records []*authz.Record, refused, full bool) {
	e.now, e.refused, e.size, e.err = records[0].Time, refused, 0, errUnwritten
	e.lines = e.lines[:min(len(records), cap(e.lines))]
	for len(e.lines) < len(records) {
		e.lines = append(e.lines, nil)
	}
	for i, r := range records {
		if e.lines[i] == nil {
			e.lines[i] = newLine(e.masks)
		}
		e.lines[i].encode(r, full)
		e.size += int64(e.lines[i].size())
	}
}

const (
	// spins is how many times a caller looks whether its entry is written before it
	// yields its CPU between two looks, and maxLooks is after how many it parks: some 20
	// microseconds. To park and to be woken costs more than the write of a small group.
	spins, maxLooks = 10, 200
	// leadFor is how long a caller leads on after its own entry is written. The chain and
	// the file are warm in the cache of its CPU, and cold in that of the next one.
	leadFor = 100 * time.Microsecond
)

// queue has the entries that no caller writes yet. It takes no lock, since its callers
// come from several CPUs at once.
type queue struct {
	last  atomic.Pointer[entry] // that was queued; nil while no caller leads
	empty entry                 // is last while a caller leads and no other waits
	looks int                   // that a caller takes at its entry before it parks
}

// join adds an entry, and reports whether its caller leads: whether it writes what is
// queued. Otherwise the caller waits.
func (q *queue) join(e *entry) (leads bool) {
	e.state.Store(queued)
	for {
		e.next = q.last.Load()
		if e.next == nil && q.last.CompareAndSwap(nil, &q.empty) {
			return true
		}
		if e.next != nil && q.last.CompareAndSwap(e.next, e) {
			return false
		}
	}
}

// waiting reports whether entries are queued. Its caller leads, as that of take and pass.
func (q *queue) waiting() bool { return q.last.Load() != &q.empty }

// take empties the queue and returns the entries that were queued, the oldest first.
func (q *queue) take() (first *entry) {
	for e := q.last.Swap(&q.empty); e != &q.empty; {
		before := e.next
		e.next, first, e = first, e, before
	}
	return first
}

// pass makes the caller of the oldest entry that is queued lead, if there is one.
func (q *queue) pass() {
	if !q.last.CompareAndSwap(&q.empty, nil) {
		q.take().settle(leads)
	}
}

// wait waits until the entry is settled, and reports whether its caller leads instead.
func (e *entry) wait(looks int) (lead bool) {
	for i := range looks {
		if i >= spins {
			runtime.Gosched()
		}
		if state := e.state.Load(); state >= leads {
			return state == leads
		}
	}
	if e.state.CompareAndSwap(queued, parked) {
		<-e.wake
	}
	return e.state.Load() == leads
}

// settle sets the entry's state and wakes its caller, who owns the entry from then on.
func (e *entry) settle(state uint32) {
	if e.state.Swap(state) == parked {
		e.wake <- struct{}{}
	}
}

// append puts an entry at the end of the chain.
func (l *Log) append(e *entry) error {
	if l.queue.join(e) || e.wait(l.queue.looks) {
		l.lead(e)
	}
	return e.err
}

// lead writes an entry and what is queued. It goes on while entries come in, for a
// bounded time, and then makes the first caller that waits the next leader.
func (l *Log) lead(own *entry) {
	defer l.queue.pass()
	l.writeGroup(own, own)
	if !l.queue.waiting() {
		return
	}
	for until := time.Now().Add(leadFor); l.queue.waiting() && time.Now().Before(until); {
		l.writeGroup(l.queue.take(), nil)
	}
}

// writeGroup writes an entry, those behind it and what is queued, and settles all but
// own. If an entry cannot be written, the others that are written with it are refused too.
func (l *Log) writeGroup(first, own *entry) {
	defer settleAll(first, own)
	l.mu.Lock()
	defer l.mu.Unlock()
	for left := l.gather(first); len(left) > 0; {
		n := l.together(left)
		err := l.put(left[:n]...)
		for _, e := range left[:n] {
			e.err = err
		}
		left = left[n:]
	}
}

// gather returns an entry, those behind it and what is queued, and links them. The
// caller holds mu.
func (l *Log) gather(first *entry) []*entry {
	entries := l.group.entries[:0]
	for e := first; e != nil; e = e.next {
		entries = append(entries, e)
	}
	entries[len(entries)-1].next = l.queue.take()
	for e := entries[len(entries)-1].next; e != nil; e = e.next {
		entries = append(entries, e)
	}
	l.group.entries = entries
	return entries
}

// settleAll settles the entries from first but own.
func settleAll(first, own *entry) {
	for e := first; e != nil; {
		next := e.next
		if e != own {
			e.settle(settled)
		}
		e = next
	}
}

// together returns how many of the entries are written with one system call. Refusals
// have a share of the file, and a file ends before an entry that it has no room for,
// so neither is written with others.
func (l *Log) together(entries []*entry) int {
	size := int64(0)
	for i, e := range entries {
		size += e.size
		if e.refused || size > maxGroup || l.size-l.refused+size > l.rotateAt {
			return max(i, 1)
		}
	}
	return len(entries)
}

// group has the lines that are written together. Its slices are used again.
type group struct {
	entries []*entry
	lines   []*line
	data    []byte
}

// join returns finished lines with their newlines, to be written at once.
func (g *group) join(lines []*line) []byte {
	if first := lines[0]; len(lines) == 1 {
		first.end = len(first.buf) - first.start
		return first.buf[first.start:]
	}
	if cap(g.data) > keptBuffer {
		g.data = nil
	}
	g.data = g.data[:0]
	for _, e := range lines {
		g.data = append(g.data, e.buf[e.start:]...)
		e.end = len(g.data)
	}
	return g.data
}

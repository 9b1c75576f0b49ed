package audit

import (
	"errors"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Group commit: records of concurrent callers are chained one behind the other and
// written with one system call and one new head. A caller that finds no other writing
// leads: it writes its entry at once, so that a lone record waits for nothing. Entries
// that arrive in the meantime are written together by the first of their callers. Each
// caller returns when its own entry is written, or with the error that its group shares.

const (
	// maxGroup is how many bytes are written with one system call, unless one
	// caller has more.
	maxGroup = 64 << 10
	// keptBuffer is how large a buffer may have grown and is used again, in bytes.
	keptBuffer = 256 << 10
)

// groupCommit writes the records of concurrent callers together.
type groupCommit struct {
	pool  sync.Pool // of *entry
	queue queue     // of entries for the caller that leads next
	group group     // that is written, under the log's lock
}

// entry has the records of one caller, and what became of them.
type entry struct {
	masks   *masker
	now     time.Time
	refused bool    // they are refusals
	lines   []*line // in use; more are kept behind them
	size    int64   // of the lines at most, in bytes

	wake    chan struct{} // has room for one
	written bool          // or failed; set before the caller is woken
	err     error         // errUnwritten until then
}

// errUnwritten is the error of an entry before it is written.
var errUnwritten = errors.New("the record was not written")

// encode makes the lines of records.
func (e *entry) encode(records []*authz.Record, refused, full bool) {
	e.now, e.refused, e.size, e.written, e.err = records[0].Time, refused, 0, false, errUnwritten
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

// queue has the entries that no caller writes yet.
type queue struct {
	mu      sync.Mutex
	led     bool     // a caller writes, or was woken to
	waiting []*entry // for it
	taken   []*entry // the slice that was taken last, for the next ones
}

// join adds an entry, and reports whether its caller leads: whether it writes what is
// queued. Otherwise the caller is woken.
func (q *queue) join(e *entry) (leads bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, e)
	leads = !q.led
	q.led = true
	return leads
}

// take returns the entries in the order in which they were added. They are valid
// until the next call.
func (q *queue) take() []*entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting, q.taken = q.taken[:0], q.waiting
	return q.taken
}

// pass makes the caller of the first entry lead, if there is one.
func (q *queue) pass() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.led = len(q.waiting) > 0; q.led {
		q.waiting[0].wake <- struct{}{}
	}
}

// append puts an entry at the end of the chain, or of the second log's.
func (l *Log) append(e *entry) error {
	if !l.queue.join(e) {
		<-e.wake
	}
	if !e.written {
		l.lead(e)
	}
	return e.err
}

// lead writes what is queued, wakes the callers, and makes the first that came in
// between the next leader. If an entry cannot be written, the others of its group are
// refused with it.
func (l *Log) lead(own *entry) {
	defer l.queue.pass()
	l.mu.Lock()
	entries := l.queue.take()
	defer wake(entries, own)
	defer l.mu.Unlock()
	for left := entries; len(left) > 0; {
		n := l.together(left)
		err := l.put(left[:n]...)
		for _, e := range left[:n] {
			e.err = err
		}
		left = left[n:]
	}
}

// wake wakes the callers of entries but its own.
func wake(entries []*entry, own *entry) {
	for _, e := range entries {
		if e != own {
			e.written = true
			e.wake <- struct{}{}
		}
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
	lines []*line
	data  []byte
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

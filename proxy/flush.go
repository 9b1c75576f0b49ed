package proxy

import (
	"net/http"
	"sync"
	"time"
)

// flushPatience is how long a part of an answer may wait so that it shares a packet with
// the next. It is short compared with the delay of a network, and long compared with the
// time between two reads of data that has already arrived.
const flushPatience = 5 * time.Millisecond

// answerWriter writes the body of an answer. A part that is directly followed by another
// shares its packet. Any other part is flushed, as is a head whose body does not come, so
// that the plugin receives an answer when the upstream sends it and its read timer does
// not expire.
type answerWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController

	mu      sync.Mutex // of w too, which the timer flushes
	timer   *time.Timer
	waiting bool // something is written and not flushed
	closed  bool
}

// newAnswerWriter returns a writer for an answer whose head is written.
func newAnswerWriter(w http.ResponseWriter, control *http.ResponseController) *answerWriter {
	a := &answerWriter{w: w, control: control, waiting: true}
	a.mu.Lock() // otherwise the timer could fire before a.timer is set
	defer a.mu.Unlock()
	a.timer = time.AfterFunc(flushPatience, a.flushLate)
	return a
}

func (a *answerWriter) flushLate() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting && !a.closed {
		a.waiting = false
		_ = a.control.Flush() // the next Write reports why it failed
	}
}

// write writes a part of the body, and flushes it at once if flush is set.
func (a *answerWriter) write(b []byte, flush bool) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, err := a.w.Write(b)
	switch {
	case err != nil:
	case flush:
		a.waiting = false
		err = a.control.Flush()
	case !a.waiting:
		a.waiting = true
		a.timer.Reset(flushPatience)
	}
	return n, err
}

// close stops the timer, and prevents later flushes.
func (a *answerWriter) close() {
	a.timer.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
}

package authz

import (
	"sync"
	"time"
)

// Term is the life of one value of a credential, for accesses that last: a
// database session logs in once and then holds its value until the value ends.
// The source of the credential alone changes a Term, by its [TermControl], so that
// a session cannot lengthen the life of what it holds.
//
// A value has two ends. While the source renews it, it has neither in sight, and
// NotAfter moves. Once another value has taken its place it is retired: new
// sessions carry the new value, sessions that are idle end from Retire on, and
// those that are busy at NotAfter. A value that is revoked or lost ends at once.
//
// A session needs no goroutine for it. It waits for Ended and for Retiring beside
// its other channels. NotAfter may move while it waits, and Ended is closed when it
// has passed, so that a session needs no timer for it either.
//
// A Term is safe for concurrent use. A nil Term never ends.
type Term struct {
	ended    chan struct{} // closed by End
	retiring chan struct{} // closed by Retire

	mu       sync.Mutex
	notAfter time.Time
	retire   time.Time // zero until the value is retired
	why      string    // the value ended; "" while it has not
}

// TermControl changes a Term. The source of a credential keeps it to itself.
// Its methods are safe for concurrent use, and those of a nil TermControl do nothing.
type TermControl struct{ term Term }

// NewTerm returns the control of a new term, of a value that ends at notAfter, zero
// for one that has no end.
func NewTerm(notAfter time.Time) *TermControl {
	return &TermControl{term: Term{ended: make(chan struct{}), retiring: make(chan struct{}), notAfter: notAfter}}
}

// Term returns the term that c changes; nil for a nil c.
func (c *TermControl) Term() *Term {
	if c == nil {
		return nil
	}
	return &c.term
}

// Extend moves the end of the value, to a later or an earlier time; zero for none. It
// has no effect once the value has ended.
func (c *TermControl) Extend(notAfter time.Time) {
	if c == nil {
		return
	}
	c.term.mu.Lock()
	defer c.term.mu.Unlock()
	if c.term.why == "" {
		c.term.notAfter = notAfter
	}
}

// Retire ends idle sessions from a time on, since another value has replaced this
// one. Only the first call has an effect: a replaced value stays so.
func (c *TermControl) Retire(from time.Time) {
	if c == nil {
		return
	}
	c.term.mu.Lock()
	defer c.term.mu.Unlock()
	if c.term.retire.IsZero() {
		c.term.retire = from
		close(c.term.retiring)
	}
}

// End ends the value at once: no access may carry it any more. why completes "the
// lease of the credential ..." for the plugin, and holds no secret. Only the first
// call has an effect.
func (c *TermControl) End(why string) {
	if c == nil {
		return
	}
	if why == "" {
		why = "ended"
	}
	c.term.mu.Lock()
	defer c.term.mu.Unlock()
	if c.term.why == "" {
		c.term.why = why
		close(c.term.ended)
	}
}

// Ended returns a channel that is closed when the value must not be used any more: it
// was revoked or lost, or is past NotAfter. Every access that carries it is then cut.
func (t *Term) Ended() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.ended
}

// Why returns why the value ended, as in "was revoked"; "" while it has not.
func (t *Term) Why() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.why
}

// NotAfter returns when the value ends if it is not renewed before; zero if it does
// not end.
func (t *Term) NotAfter() time.Time {
	if t == nil {
		return time.Time{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.notAfter
}

// String implements [fmt.Stringer], so that printing a credential takes the lock: the
// source may extend the term at the same time.
func (t *Term) String() string {
	if end := t.NotAfter(); !end.IsZero() {
		return "until " + end.UTC().Format(time.RFC3339)
	}
	return "without end"
}

// Retiring returns a channel that is closed when the value is retired, so that Retire
// is set from then on.
func (t *Term) Retiring() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.retiring
}

// Retire returns from when sessions that are idle end; zero while the value is not
// retired. It is after 80 % of the value's life, and never before there is another value
// for the next session. Many sessions share a term: their ends should be spread over
// the time from Retire to NotAfter.
func (t *Term) Retire() time.Time {
	if t == nil {
		return time.Time{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.retire
}

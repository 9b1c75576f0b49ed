package authz

import (
	"sync"
	"testing"
	"time"
)

// closed reports whether a channel is closed, without waiting.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestTerm: a term is extended while the value is renewed, retired once and ended once.
func TestTerm(t *testing.T) {
	c := NewTerm(noon)
	term := c.Term()
	if closed(term.Ended()) || closed(term.Retiring()) || !term.NotAfter().Equal(noon) || !term.Retire().IsZero() || term.Why() != "" {
		t.Errorf("a new term: ended %v, retiring %v, %s, %s", closed(term.Ended()), closed(term.Retiring()), term.NotAfter(), term.Retire())
	}
	c.Extend(noon.Add(time.Hour))
	c.Retire(noon.Add(time.Minute))
	c.Retire(noon.Add(2 * time.Minute))
	if !closed(term.Retiring()) || closed(term.Ended()) || !term.Retire().Equal(noon.Add(time.Minute)) || !term.NotAfter().Equal(noon.Add(time.Hour)) {
		t.Errorf("a retired term: %s, %s", term.Retire(), term.NotAfter())
	}
	c.End("was revoked")
	c.End("reached its end")
	c.Extend(noon.Add(2 * time.Hour))
	if !closed(term.Ended()) || term.Why() != "was revoked" || !term.NotAfter().Equal(noon.Add(time.Hour)) {
		t.Errorf("an ended term: %q, %s", term.Why(), term.NotAfter())
	}
	unnamed := NewTerm(time.Time{})
	unnamed.End("")
	if unnamed.Term().Why() == "" || !closed(unnamed.Term().Ended()) {
		t.Error("a term that ended without a reason has not ended")
	}
}

// TestNoTerm: an access without a credential, or of a source without terms, never ends for it.
func TestNoTerm(t *testing.T) {
	var c *TermControl
	c.Extend(noon)
	c.Retire(noon)
	c.End("was revoked")
	term := c.Term()
	if term != nil || term.Ended() != nil || term.Retiring() != nil || !term.NotAfter().IsZero() || !term.Retire().IsZero() || term.Why() != "" {
		t.Error("a nil term ends")
	}
}

// TestTermIsConcurrent is for the race detector: sessions wait while the source changes the term.
func TestTermIsConcurrent(t *testing.T) {
	c := NewTerm(noon)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			<-c.Term().Retiring()
			_ = c.Term().Retire()
			_ = c.Term().NotAfter()
			<-c.Term().Ended()
			_ = c.Term().Why()
		})
		all.Go(func() {
			c.Extend(noon.Add(time.Duration(i)))
			c.Retire(noon)
			c.End("was revoked")
		})
	}
	all.Wait()
}

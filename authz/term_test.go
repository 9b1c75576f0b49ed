package authz

import (
	"context"
	"errors"
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
	w := newWorld(t, input(withKey(forecast())))
	if a := w.admit(t, get(t, forecastURL)); a.Term() != nil {
		t.Error("an access has a term that its source did not make")
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

// renewing is a source that has a newer value.
type renewing struct {
	source
	newer    Credential
	newerErr error
	asked    uint64
}

func (r *renewing) Newer(_ context.Context, _ CredentialRef, generation uint64) (Credential, error) {
	r.asked = generation
	return r.newer, r.newerErr
}

// TestRenewsTheCredential: after an upstream refused the value the access carries the
// newer one, and what it carried is no longer in use.
func TestRenewsTheCredential(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	old, newer := apiKey("old"), apiKey("new")
	old.Uses, old.Term = new(Uses), NewTerm(noon.Add(time.Hour)).Term()
	newer.Uses, newer.Term, newer.Generation, newer.Lease = new(Uses), NewTerm(noon.Add(2*time.Hour)).Term(), 2, "lease-2"
	s := &renewing{source: source{credential: old}, newer: newer}
	w.gate.cfg.Credentials = s
	a := w.admit(t, get(t, forecastURL))
	if a.Term() != old.Term || !old.Uses.Open() {
		t.Fatal("the access does not carry its credential's term and use")
	}
	s.newerErr = errors.New("Vault has the same value")
	if err := a.Renew(t.Context()); !errors.Is(err, s.newerErr) || a.Term() != old.Term || !old.Uses.Open() {
		t.Fatalf("after a failed renewal: %v", err)
	}
	s.newerErr = nil
	if err := a.Renew(t.Context()); err != nil || s.asked != 1 {
		t.Fatalf("Renew() = %v, newer than %d", err, s.asked)
	}
	if a.Term() != newer.Term || old.Uses.Open() || !newer.Uses.Open() || a.Injection.Value.Reveal() != "Bearer new" {
		t.Error("the access does not carry the newer value alone")
	}
	if err := a.End(Outcome{}); err != nil || newer.Uses.Open() {
		t.Errorf("End() = %v", err)
	}
	records := w.recorder.all()
	if end := records[len(records)-1]; end.Kind != KindEnd || end.Lease != "lease-2" {
		t.Errorf("end record %+v", end)
	}
	if a.Renew(t.Context()) == nil || newer.Uses.Open() {
		t.Error("an access that has ended carries a credential again")
	}
}

// TestRenewsOnlyWhatIsStillGranted: an access whose rule was revoked while Vault was asked
// gets no newer value, and a source without newer values gives none.
func TestRenewsOnlyWhatIsStillGranted(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	a := w.admit(t, get(t, forecastURL))
	if a.Renew(t.Context()) == nil {
		t.Error("a source without newer values gave one")
	}
	newer := apiKey("new")
	newer.Uses = new(Uses)
	w.gate.cfg.Credentials = &renewing{newer: newer}
	w.engine.Install(compile(t, input()))
	if a.Renew(t.Context()) == nil || a.Injection.Value.Reveal() != "Bearer hunter2" || newer.Uses.Open() {
		t.Error("an access that is no longer granted got a newer value")
	}
	w = newWorld(t, input(forecast()))
	if a := w.admit(t, get(t, forecastURL)); a.Renew(t.Context()) == nil {
		t.Error("an access without a credential got one")
	}
}

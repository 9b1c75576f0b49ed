package database

import (
	"math/rand/v2"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// termWatch ends the sessions that carry one value of a credential. One goroutine serves
// all of them: a thousand sessions may carry one value.
type termWatch struct {
	term     *authz.Term
	sessions map[*Session]struct{} // the front's mu guards it
	stop     chan struct{}         // closed when the last session is gone
}

// watch has a session end with the term of its credential.
func (f *Front) watch(s *Session, term *authz.Term) {
	if term == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.terms[term]
	if w == nil {
		w = &termWatch{term: term, sessions: make(map[*Session]struct{}), stop: make(chan struct{})}
		f.terms[term] = w
		go f.follow(w)
	}
	w.sessions[s] = struct{}{}
	select {
	case <-term.Ended(): // the goroutine may have listed its sessions before
		f.cutLater(s)
	default:
	}
}

// cutLater cuts a session whose credential has ended, on a goroutine of its own: one that
// waits for a plugin keeps no other.
func (f *Front) cutLater(s *Session) {
	f.cfg.Work.Enter()
	go func() {
		defer f.cfg.Work.Leave()
		s.entry.Cut(session.ErrLeaseEnded)
	}()
}

// unwatch is called when a session ends or carries another value.
func (f *Front) unwatch(s *Session, term *authz.Term) {
	if term == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.terms[term]
	if w == nil {
		return
	}
	delete(w.sessions, s)
	if len(w.sessions) == 0 {
		close(w.stop)
		delete(f.terms, term)
	}
}

func (f *Front) sessionsOf(w *termWatch) []*Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*Session, 0, len(w.sessions))
	for s := range w.sessions {
		out = append(out, s)
	}
	return out
}

// follow ends the sessions of a term as it retires and ends.
func (f *Front) follow(w *termWatch) {
	retiring := w.term.Retiring()
	var look <-chan time.Time
	for {
		select {
		case <-w.stop:
			return
		case <-w.term.Ended():
			for _, s := range f.sessionsOf(w) {
				f.cutLater(s)
			}
			<-w.stop
			return
		case <-retiring:
			retiring = nil
		case <-look:
		}
		if retiring == nil {
			r := retirementOf(w.term)
			f.retire(w, r)
			look = time.After(r.interval())
		}
	}
}

// retire ends those sessions of a replaced value that are idle.
func (f *Front) retire(w *termWatch, r retirement) {
	now := f.cfg.Now()
	if now.Before(r.from) {
		return
	}
	for _, s := range f.sessionsOf(w) {
		if needed, due := r.idleNeeded(now, s.share); due && s.idleFor(now) >= needed && s.isIdle() {
			s.entry.Cut(session.ErrRetired)
		}
	}
}

const (
	// longestIdle and shortestIdle are how long a session must have been idle to end early.
	// Pools test a connection that was idle for a while before they use it again (pgxpool
	// after 1 s, HikariCP after 500 ms): a session that was idle for longer is tested
	// first, and its end fails no statement. Towards the end of the value, a gap of the
	// length of a test and its statement has to do.
	longestIdle  = 2 * time.Second
	shortestIdle = 50 * time.Millisecond
	// endlessWindow is the time for idle sessions to end if the value does not.
	endlessWindow = time.Minute
	// shareOfWindow is the part of the time from Retire to NotAfter in which each session
	// becomes due, at a moment of its own, so that sessions do not all connect again at once.
	shareOfWindow = 0.6
)

// retirement is the time in which the idle sessions of a replaced value end.
type retirement struct{ from, to time.Time }

func retirementOf(term *authz.Term) retirement {
	r := retirement{term.Retire(), term.NotAfter()}
	if !r.to.After(r.from) {
		r.to = r.from.Add(endlessWindow)
	}
	return r
}

func (r retirement) window() time.Duration { return r.to.Sub(r.from) }

// interval returns how often idle sessions are looked for.
func (r retirement) interval() time.Duration {
	return min(max(r.window()/64, shortestIdle/2), longestIdle/4)
}

// idleNeeded returns how long a session must have been idle to end now, and whether it is
// due at all. share is its moment, from 0 to 1.
func (r retirement) idleNeeded(now time.Time, share float64) (needed time.Duration, due bool) {
	begins := r.from.Add(time.Duration(share * shareOfWindow * float64(r.window())))
	if now.Before(begins) {
		return 0, false
	}
	longest := min(longestIdle, max(r.window()/4, shortestIdle))
	left := max(0, r.to.Sub(now))
	return max(shortestIdle, min(longest, left/4)), true
}

// randomShare returns the moment of a session, see [retirement.idleNeeded].
func randomShare() float64 { return rand.Float64() } //nolint:gosec // no secret

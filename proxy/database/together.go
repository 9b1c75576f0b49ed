package database

import (
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// Grants reports whether a connection with the given facts would be admitted now. It
// records nothing and allows nothing: a protocol asks it which database a plugin could
// mean that has not named one.
func (f *Front) Grants(to authz.Destination, connect authz.Facts) bool {
	d := f.cfg.Engine.Current().Decide(authz.Request{Principal: f.cfg.Plugin, Destination: to, Facts: connect}, authz.Usage{}, f.cfg.Now())
	return d.Allowed()
}

// AdmitTogether admits n statements of which shared and names are all facts, if one rule
// grants all of them: it is the rule that would grant each of them. They are recorded in one record
// and take no time of their own: nothing ends them. It reports false, without a record, for
// statements that must be admitted one by one.
func (s *Session) AdmitTogether(shared authz.Facts, names []authz.Fact, n int) bool {
	s.mu.Lock()
	over := s.ended || s.cut.cause != nil
	s.mu.Unlock()
	if over {
		return false
	}
	a, err := s.front.cfg.Gate.AdmitTogether(s.admission, shared, names, n)
	if err != nil {
		s.front.cfg.Log.Warn("statement admission failed", zap.Error(err))
	}
	if a == nil {
		return false
	}
	s.front.countAll(s.protocol, s.front.verbs.of(shared), a.Decision.Reason, n)
	s.plugin.Attribution.Change(a.Decision.Grant, a.Decision.Rule)
	return true
}

// Generation returns the generation of the policy in force. A statement that was admitted in
// an earlier one, and takes effect later, may no longer be allowed.
func (s *Session) Generation() uint64 { return s.front.cfg.Engine.Current().Generation() }

// MayWait reports whether Admit may wait for a limit.
func (s *Session) MayWait() bool { return s.front.cfg.Engine.Current().Delays(s.front.cfg.Plugin) }

// Hold takes n bytes of the plugin's memory for a statement that is held whole, beyond
// SessionCost. The end of the session releases what is left.
func (s *Session) Hold(n int64) error { return s.held.Take(budget.Request, n) }

// Release gives back what Hold has taken.
func (s *Session) Release(n int64) { s.held.Give(budget.Request, n) }

package proxy

import (
	"maps"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// CloseAll is Reconsider for a plugin from which everything was taken: it also
// resets every connection of the plugin, idle ones too. The kernel's door is
// shut then, nothing that the plugin's side acknowledges arrives, and a
// connection that is closed in the ordinary way would wait for that for ever.
// New connections are accepted, and refused by decision.
func (p *Proxy) CloseAll() (cut int) {
	p.mu.Lock()
	open := maps.Clone(p.conns) // before: what is cut queues for this lock
	p.mu.Unlock()
	cut = p.sessions.Revalidate()
	session.InParallel(slices.Collect(maps.Keys(open)), func(s *session.Socket) bool { s.Abort(); return true })
	return cut
}

// abandonedSince reports, when it is asked, whether everything was taken from
// the plugin after generation.
func (p *Proxy) abandonedSince(generation uint64) func() bool {
	return func() bool {
		s := p.cfg.Engine.Current()
		return s.Generation() != generation && p.abandoned(s)
	}
}

// abandoned reports whether everything is taken from the plugin.
func (p *Proxy) abandoned(s *authz.Snapshot) bool {
	level := s.RevokedLevel(p.cfg.Plugin, p.cfg.Now())
	return level == authz.LevelQuarantine || level == authz.LevelHalt
}

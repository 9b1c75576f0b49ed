package proxy

import (
	"maps"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// CloseAll is Revalidate for a plugin whose access is revoked entirely: it also resets
// every connection of the plugin, idle ones too. The kernel then blocks the plugin's
// traffic, so no acknowledgement arrives, and an orderly close would wait for one
// forever. New connections are accepted, and refused by decision.
func (p *Proxy) CloseAll() (cut int) {
	p.mu.Lock()
	open := maps.Clone(p.conns) // before Revalidate: sessions that end wait for this lock
	p.mu.Unlock()
	cut = p.sessions.Revalidate()
	idle := slices.DeleteFunc(slices.Collect(maps.Keys(open)), (*session.Socket).Ends)
	session.InParallel(idle, func(s *session.Socket) bool { s.Abort(); return true })
	return cut
}

// abandonedSince returns a function that reports whether all access of the plugin was
// revoked after generation.
func (p *Proxy) abandonedSince(generation uint64) func() bool {
	return func() bool {
		s := p.cfg.Engine.Current()
		return s.Generation() != generation && p.abandoned(s)
	}
}

// abandoned reports whether all access of the plugin is revoked.
func (p *Proxy) abandoned(s *authz.Snapshot) bool {
	level := s.RevokedLevel(p.cfg.Plugin, p.cfg.Now())
	return level == authz.LevelQuarantine || level == authz.LevelHalt
}

package authz

import (
	"net"
	"net/netip"
)

// Forbids reports whether the sidecar may not go to a host, or to an address
// that a host was resolved to, on a plugin's behalf, as to a token endpoint that
// a grant names: a never-list holds it, or it names no server that could be meant
// (link-local, multicast and unspecified addresses, also behind a translation).
// host is "" and addr is not valid where they are not known.
func (s *Snapshot) Forbids(p Principal, host string, addr netip.Addr) bool {
	pol := s.pluginPolicy(p)
	if pol == nil {
		return true
	}
	if host != "" {
		d, err := NewDestination(SchemeHTTPS, net.JoinHostPort(host, "443"), "")
		if err != nil || pol.refuses(&d) != nil || isNonRoutable(d.addr) {
			return true
		}
	}
	return addr.IsValid() && (pol.refusesAddress(addr) != nil || isNonRoutable(addr))
}

// isNonRoutable reports whether addr, or an IPv4 address that it reaches, is
// unusable or link-local, where no token endpoint is.
func isNonRoutable(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	for _, at := range Reaches(addr) {
		if unusable(at) || at.IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

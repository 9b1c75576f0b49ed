package authz

import (
	"net"
	"net/netip"
)

// Forbids reports whether the sidecar must not connect on a plugin's behalf to a
// host, or to an address that a host resolved to, as for a token endpoint that a
// grant names: if a never-list holds it, or if it is link-local, multicast,
// unspecified or broadcast, also behind an IPv4 translation. host is "" and addr
// is not valid if they are not known.
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
// unusable or link-local: no token endpoint has such an address.
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

package authz

import (
	"net"
	"net/netip"
)

// Forbids reports whether the sidecar may not go to a host, or to an address
// that a host was resolved to, on a plugin's behalf, as to a token endpoint that
// a grant names: a never-list holds it, or nobody can mean it (link-local,
// multicast and unspecified addresses, also behind a translation). host is ""
// and addr is not valid where they are not known.
func (s *Snapshot) Forbids(p Principal, host string, addr netip.Addr) bool {
	sub := s.subject(p)
	if sub == nil {
		return true
	}
	if host != "" {
		d, err := NewDestination(SchemeHTTPS, net.JoinHostPort(host, "443"), "")
		if err != nil || sub.refuses(&d) != nil || nobodys(d.addr) {
			return true
		}
	}
	return addr.IsValid() && (sub.refusesAddress(addr) != nil || nobodys(addr))
}

// nobodys reports whether an address names no server that can be meant.
func nobodys(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	addr = addr.Unmap().WithZone("")
	if inner, ok := embeddedIPv4(addr); ok && !addr.IsLoopback() && !addr.IsUnspecified() {
		addr = inner
	}
	return addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast()
}

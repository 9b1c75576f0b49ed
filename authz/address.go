package authz

import (
	"net/netip"
	"slices"
)

// CheckAddress returns Granted if the access may be made to addr, to which the
// destination's name resolved, and otherwise the reason for refusing it.
//
// An address is judged by all the addresses that a connection to it reaches, see
// [Reaches]. A never-list comes first. An unspecified, multicast or broadcast
// address is then refused even if it is granted. A host that is an IP literal is
// granted by its rule. Any other address must be among the rule's addresses or, if
// the rule states no addresses, public. A rule's prefix that is wider than a range for link-local
// addresses, or for IPv6 addresses that embed an IPv4 address, does not include that
// range; and an IPv4 address embedded in an IPv6 address must be public or among the
// rule's addresses too. At last, a rule with regions allows only what one of them contains.
func (d Decision) CheckAddress(addr netip.Addr) Reason {
	if !d.Allowed() || d.plugin == nil {
		return NotReady
	}
	addr = addr.Unmap()
	if d.plugin.refusesAddress(addr) != nil {
		return GuardrailDenied
	}
	if unusable(addr) || !d.grantsAddress(addr) || !d.rule.inRegion(d.host, addr) {
		return AddressNotAllowed
	}
	return Granted
}

// grantsAddress reports whether the rule allows addr, which is not on a
// never-list.
func (d *Decision) grantsAddress(addr netip.Addr) bool {
	switch {
	case d.literal.IsValid():
		return addr == d.literal.Unmap()
	case d.rule == nil || len(d.rule.addresses) == 0:
		return PublicUnicast(addr)
	case !includes(d.rule.addresses, addr):
		return false
	}
	for _, inner := range embeddedIPv4(addr) {
		if unusable(inner) || !PublicUnicast(inner) && !includes(d.rule.addresses, inner) {
			return false
		}
	}
	return true
}

// Reaches returns the addresses that a connection to addr may reach: addr itself,
// without a zone and as IPv4 if it maps IPv4 (RFC 4291, section 2.5.5.2), and
// the IPv4 addresses that it is translated or tunnelled to. The unspecified
// addresses also reach the loopback addresses: Linux connects there (ip(7), and
// ip6_datagram_connect and tcp_v6_connect for IPv6). The result is empty for an
// invalid address.
func Reaches(addr netip.Addr) []netip.Addr {
	if !addr.IsValid() {
		return nil
	}
	addr = addr.Unmap().WithZone("")
	if addr.IsUnspecified() {
		return []netip.Addr{addr, netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	out := []netip.Addr{addr}
	for _, inner := range embeddedIPv4(addr) {
		if out = append(out, inner); inner.IsUnspecified() {
			out = append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
	}
	return out
}

// unusable reports whether addr is invalid, unspecified, multicast or broadcast,
// and so not the address of a server.
func unusable(addr netip.Addr) bool {
	return !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// transition is a mechanism by which an IPv6 address embeds an IPv4 address that a
// connection reaches.
type transition uint8

const (
	noTransition transition = iota
	nat64                   // 64:ff9b::/96, RFC 6052
	nat64Local              // 64:ff9b:1::/48, local use, RFC 8215
	siit                    // ::ffff:0:0:0/96, IPv4-translated, RFC 2765
	compatible              // ::/96, IPv4-compatible, RFC 4291, section 2.5.5.1
	sixToFour               // 2002::/16, RFC 3056
	teredo                  // 2001::/32, RFC 4380
	isatap                  // any prefix, and an interface identifier of RFC 5214, section 6.1
)

func transitionOf(addr netip.Addr) transition {
	if !addr.Is6() || addr.IsLoopback() || addr.IsUnspecified() {
		return noTransition
	}
	a := addr.As16()
	switch {
	case string(a[:12]) == "\x00\x64\xff\x9b\x00\x00\x00\x00\x00\x00\x00\x00":
		return nat64
	case string(a[:6]) == "\x00\x64\xff\x9b\x00\x01":
		return nat64Local
	case string(a[:12]) == "\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00":
		return siit
	case string(a[:12]) == "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00":
		return compatible
	case string(a[:2]) == "\x20\x02":
		return sixToFour
	case string(a[:4]) == "\x20\x01\x00\x00":
		return teredo
	case string(a[8:12]) == "\x00\x00\x5e\xfe", string(a[8:12]) == "\x02\x00\x5e\xfe":
		return isatap
	}
	return noTransition
}

// embeddedIPv4 returns the IPv4 addresses that an IPv6 address is translated or
// tunnelled to.
func embeddedIPv4(addr netip.Addr) []netip.Addr {
	kind := transitionOf(addr)
	if kind == noTransition {
		return nil
	}
	a := addr.As16()
	last := netip.AddrFrom4([4]byte(a[12:]))
	switch kind {
	case nat64Local:
		return nat64LocalIPv4(a)
	case sixToFour:
		return []netip.Addr{netip.AddrFrom4([4]byte(a[2:6]))}
	case teredo: // the server's address, and the client's, which is stored inverted
		return []netip.Addr{netip.AddrFrom4([4]byte(a[4:8])), netip.AddrFrom4([4]byte{^a[12], ^a[13], ^a[14], ^a[15]})}
	case noTransition, nat64, siit, compatible, isatap:
	}
	return []netip.Addr{last}
}

// includes reports whether one of a rule's prefixes includes addr on purpose.
func includes(prefixes []netip.Prefix, addr netip.Addr) bool {
	least := minPrefixBits(addr)
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Bits() >= least && p.Contains(addr) })
}

// minPrefixBits returns the shortest prefix that includes addr on purpose: the
// length of the special-purpose range that contains addr.
func minPrefixBits(addr netip.Addr) int {
	switch transitionOf(addr) {
	case nat64, siit, compatible:
		return 96
	case nat64Local:
		return 48
	case teredo:
		return 32
	case sixToFour:
		return 16
	case noTransition, isatap:
	}
	switch {
	case !addr.IsLinkLocalUnicast():
		return 0
	case addr.Is4():
		return 16 // 169.254.0.0/16, RFC 3927
	}
	return 10 // fe80::/10, RFC 4291, section 2.5.6
}

// nat64LocalIPv4 returns the IPv4 addresses that an address of a local NAT64
// prefix may be translated to. The site chooses the prefix's length, and the
// translator ignores the bytes after the IPv4 address (RFC 6052, section 2.2), so
// every possible position counts. Addresses of 0.0.0.0/8 are left out: they are
// the zeros around the address.
func nat64LocalIPv4(a [16]byte) []netip.Addr {
	var out []netip.Addr
	for _, place := range [...][4]byte{{a[6], a[7], a[9], a[10]}, {a[7], a[9], a[10], a[11]}, {a[9], a[10], a[11], a[12]}, [4]byte(a[12:])} {
		if place[0] != 0 {
			out = append(out, netip.AddrFrom4(place))
		}
	}
	return out
}

// PublicUnicast reports whether addr is an ordinary address of the public
// internet: not private, loopback, link-local, multicast or reserved for another
// use (IANA special-purpose address registries, RFC 6890), and without an
// embedded IPv4 address.
func PublicUnicast(addr netip.Addr) bool {
	if !addr.IsValid() || addr.Zone() != "" || !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	if addr.Is4() {
		return !specialIPv4(addr.As4())
	}
	return !specialIPv6(addr.As16()) && len(embeddedIPv4(addr)) == 0
}

func specialIPv4(a [4]byte) bool {
	switch {
	case a[0] == 0, a[0] >= 224, // this network; multicast and reserved
		a[0] == 100 && a[1]&0xc0 == 64,                       // 100.64.0.0/10, shared
		a[0] == 192 && a[1] == 0 && (a[2] == 0 || a[2] == 2), // protocol assignments, TEST-NET-1
		a[0] == 192 && a[1] == 88 && a[2] == 99,              // 6to4 relay anycast
		a[0] == 198 && a[1]&0xfe == 18,                       // benchmarking
		a[0] == 198 && a[1] == 51 && a[2] == 100,             // TEST-NET-2
		a[0] == 203 && a[1] == 0 && a[2] == 113:              // TEST-NET-3
		return true
	}
	return false
}

func specialIPv6(a [16]byte) bool {
	word := uint16(a[0])<<8 | uint16(a[1])
	next := uint16(a[2])<<8 | uint16(a[3])
	switch {
	case word&0xe000 != 0x2000, // outside 2000::/3, the only global unicast space, and so NAT64 64:ff9b::/96
		word == 0x2001 && next < 0x0200,  // 2001::/23: Teredo, ORCHID, benchmarking
		word == 0x2001 && next == 0x0db8, // documentation
		word == 0x2002,                   // 6to4
		word == 0x3fff && next < 0x1000:  // documentation
		return true
	}
	return false
}

func containsAddr(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

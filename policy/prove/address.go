package prove

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// specialRanges are ranges that are judged by rules of their own: the IANA
// special-purpose address registries (RFC 6890), and the prefixes of IPv6 addresses that
// embed an IPv4 address. Only their ends matter here: they separate addresses that can be
// judged differently.
func specialRanges() []netip.Prefix {
	texts := []string{
		"0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
		"224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
		"::/96", "::/128", "::1/128", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2000::/3", "2001::/23", "2001::/32",
		"2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "ff00::/8",
	}
	out := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// nat64Local is the prefix in which a site chooses the place of the embedded address
// (RFC 8215). The places overlap, so that not every combination is compared.
const nat64Local = "64:ff9b:1::/48"

// addressPair identifies what the decisions on two rules' addresses depend on, besides
// the never-lists and the regions of both policies.
type addressPair struct {
	before, after ruleName
	host          string // if a region has it, otherwise ""
}

// addressSet chooses the addresses to compare.
type addressSet struct {
	never   []netip.Prefix  // of both policies
	regions []netip.Prefix  // of both policies
	hosts   map[string]bool // of the regions of both policies
	same    bool            // never-lists and regions of both are the same
	inexact bool
	coarse  bool // the regions are too large to compare every address that embeds another
}

// maxEmbedded bounds the prefixes of regions whose combinations are compared, as parts of
// addresses that embed others.
const maxEmbedded = 64

func newAddressSet(before, after *side) addressSet {
	set := addressSet{hosts: map[string]bool{}}
	set.same = slices.EqualFunc(before.guardrails, after.guardrails, func(a, b *authz.Guardrail) bool {
		return reflect.DeepEqual(a.Never, b.Never) && reflect.DeepEqual(a.Regions, b.Regions)
	})
	for _, s := range []*side{before, after} {
		set.never = append(set.never, s.neverAddresses()...)
		for _, g := range s.guardrails {
			set.addRegions(g)
		}
	}
	return set
}

// addRegions adds what the regions of a guardrail hold.
func (s *addressSet) addRegions(g *authz.Guardrail) {
	for _, region := range slices.Sorted(maps.Keys(g.Regions)) { // in one order, so that a result is the same each time
		for _, place := range g.Regions[region] {
			if prefix, err := netip.ParsePrefix(string(place)); err == nil {
				s.regions = append(s.regions, prefix)
			} else if addr, err := netip.ParseAddr(string(place)); err == nil {
				s.regions = append(s.regions, netip.PrefixFrom(addr, addr.BitLen()))
			} else {
				s.hosts[string(place)] = true
			}
		}
	}
}

// pair identifies a comparison of addresses of a host.
func (s *addressSet) pair(was, now authz.Decision, to authz.Destination) addressPair {
	out := addressPair{before: ruleName{was.Grant, was.Rule}, after: ruleName{now.Grant, now.Rule}}
	if s.hosts[to.Host()] {
		out.host = to.Host()
	}
	return out
}

// neverAddresses returns the addresses of the never-lists, also those that are
// listed as hosts.
func (s *side) neverAddresses() (out []netip.Prefix) {
	for _, g := range s.guardrails {
		for _, n := range g.Never {
			out = append(out, n.Addresses...)
			for _, h := range n.Hosts {
				if addr, err := netip.ParseAddr(h); err == nil {
					out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
				}
			}
		}
	}
	return out
}

// addressesOf returns the addresses that the rule of a decision states.
func (s *side) addressesOf(name ruleName) []netip.Prefix {
	if r := s.byName[name]; r != nil {
		return r.rule.To.Addresses
	}
	return nil
}

// regionsOf returns the regions that the rule of a decision states.
func (s *side) regionsOf(name ruleName) []string {
	if r := s.byName[name]; r != nil {
		return r.rule.Data.Regions
	}
	return nil
}

// newAddress returns an address to which the request may connect by the decision
// of the new policy and not by that of the old one; otherwise an invalid address.
func (c *comparison) newAddress(was, now authz.Decision, to authz.Destination) netip.Addr {
	if to.Address().IsValid() {
		return firstNew(was, now, []netip.Addr{to.Address()})
	}
	pair := c.addresses.pair(was, now, to)
	witness, known := c.judged[pair]
	if known {
		return witness
	}
	earlier, later := c.before.addressesOf(pair.before), c.after.addressesOf(pair.after)
	if !c.addresses.same || !slices.Equal(earlier, later) || !slices.Equal(c.before.regionsOf(pair.before), c.after.regionsOf(pair.after)) {
		witness = firstNew(was, now, c.addresses.candidates(earlier, later))
	}
	c.judged[pair] = witness
	return witness
}

func firstNew(was, now authz.Decision, candidates []netip.Addr) netip.Addr {
	for _, addr := range candidates {
		if now.CheckAddress(addr) == authz.Granted && was.CheckAddress(addr) != authz.Granted {
			return addr
		}
	}
	return netip.Addr{}
}

// judgedApart returns an address of every class that matters where no rule wins: regions
// are those of rules.
func (s *addressSet) judgedApart() []netip.Addr {
	v4, v6 := edgesOf(slices.Concat(s.never, specialRanges()))
	return append(v4, v6...)
}

// candidates returns an address of every class that the ranges of two rules, the
// never-lists and the special ranges distinguish.
func (s *addressSet) candidates(before, after []netip.Prefix) []netip.Addr {
	ranges := slices.Concat(before, after, s.never, s.regions, specialRanges())
	v4, v6 := edgesOf(ranges)
	out := append(slices.Clone(v4), v6...)
	// Without an IPv6 prefix in the new rule no address that embeds another is granted.
	if slices.ContainsFunc(after, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		if len(s.regions) > maxEmbedded {
			s.coarse = true
			v4, v6 = edgesOf(slices.Concat(before, after, s.never, specialRanges()))
		}
		out = append(out, embedded(v4, v6)...)
	}
	local := netip.MustParsePrefix(nat64Local)
	// A wider prefix does not include these addresses. The two sides are not the same here.
	if slices.ContainsFunc(after, func(p netip.Prefix) bool { return p.Bits() >= local.Bits() && local.Overlaps(p) }) {
		s.inexact = true
	}
	return out
}

// edgesOf returns the edges of the ranges of each family.
func edgesOf(ranges []netip.Prefix) (v4, v6 []netip.Addr) {
	for _, p := range ranges {
		if p.Addr().Is4() {
			v4 = append(v4, edges(p)...)
		} else {
			v6 = append(v6, edges(p)...)
		}
	}
	return v4, v6
}

// edges returns the first and the last address of a range, and their neighbours.
func edges(p netip.Prefix) (out []netip.Addr) {
	first, last := p.Masked().Addr(), lastOf(p)
	for _, addr := range []netip.Addr{first.Prev(), first, last, last.Next()} {
		if addr.IsValid() {
			out = append(out, addr)
		}
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// embedded returns IPv6 addresses that embed IPv4 addresses of every class, in the
// places of [authz.Reaches].
func embedded(v4, v6 []netip.Addr) (out []netip.Addr) {
	uppers, lowers := map[[16]byte]bool{}, map[[4]byte]bool{}
	for _, a := range v6 {
		b := a.As16()
		lowers[[4]byte(b[12:])] = true
		clear(b[12:])
		uppers[b] = true
		clear(b[8:])
		for _, interfaceID := range [...]uint32{0x00005efe, 0x02005efe} { // ISATAP, RFC 5214, section 6.1
			copy(b[8:12], []byte{byte(interfaceID >> 24), byte(interfaceID >> 16), byte(interfaceID >> 8), byte(interfaceID)})
			uppers[b] = true
		}
	}
	for _, a := range v4 {
		b := a.As4()
		lowers[b], lowers[[4]byte{^b[0], ^b[1], ^b[2], ^b[3]}] = true, true // Teredo inverts the client's address
		uppers[[16]byte{0x20, 0x02, b[0], b[1], b[2], b[3]}] = true
		uppers[[16]byte{0x20, 0x01, 0, 0, b[0], b[1], b[2], b[3]}] = true
	}
	for upper := range uppers {
		for lower := range lowers {
			copy(upper[12:], lower[:])
			out = append(out, netip.AddrFrom16(upper))
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

package authz

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// region is a region as the guardrails of one plugin define it.
type region struct {
	name string
	// parts has what each guardrail that defines the region includes. A destination is in
	// the region if it is in all of them, so that a further guardrail never widens it.
	parts []places
}

// places are the destinations that one guardrail includes in a region. Prefixes are
// indexed: cloud providers publish thousands for a region.
type places struct {
	hosts    map[string]bool
	prefixes map[netip.Prefix]bool
	bits     []int // the lengths of prefixes, each once
}

// parsePlace reads a destination of a region. It is canonical, so that reviewers see
// the text that is matched, and either host or prefix is set.
func parsePlace(text Place) (host string, prefix netip.Prefix, err error) {
	s := string(text)
	if strings.Contains(s, "/") {
		prefix, err = netip.ParsePrefix(s)
		if err != nil {
			return "", prefix, fmt.Errorf("%q is not a range of addresses; write an address and a length, as in 203.0.113.0/24", clip(s))
		}
		return "", prefix, checkPrefix(prefix)
	}
	pattern, err := parseHostPattern(s)
	switch {
	case err != nil:
		return "", prefix, err
	case pattern.kind != hostExact:
		return "", prefix, fmt.Errorf("%q is a wildcard, and its hosts may be anywhere; write exact hosts, or the addresses of the region", clip(s))
	case pattern.addr.IsValid():
		return "", netip.PrefixFrom(pattern.addr, pattern.addr.BitLen()), nil
	}
	return pattern.name, prefix, nil
}

// checkRegions checks the regions that a guardrail defines.
func checkRegions(regions map[string][]Place, report func(path, format string, args ...any)) {
	for _, name := range slices.Sorted(maps.Keys(regions)) {
		path := "spec.regions." + name
		if !IsName(name) {
			report(path, notName, clip(name))
		}
		if len(regions[name]) == 0 {
			report(path, "is empty; write the addresses and the exact hosts of the region")
		}
		for i, place := range regions[name] {
			if _, _, err := parsePlace(place); err != nil {
				report(fmt.Sprintf("%s[%d]", path, i), "%v", err)
			}
		}
	}
}

// addRegions adds the regions that a guardrail defines to those of the plugin.
func (s *pluginPolicy) addRegions(g *Guardrail) {
	for name, list := range g.Regions {
		p := places{hosts: map[string]bool{}, prefixes: map[netip.Prefix]bool{}}
		for _, place := range list {
			host, prefix, err := parsePlace(place)
			switch {
			case err != nil: // the check has reported it, and nothing is compiled
			case host != "":
				p.hosts[host] = true
			default:
				p.prefixes[prefix] = true
				if !slices.Contains(p.bits, prefix.Bits()) {
					p.bits = append(p.bits, prefix.Bits())
				}
			}
		}
		i, found := slices.BinarySearchFunc(s.regions, name, func(r *region, name string) int { return strings.Compare(r.name, name) })
		if !found {
			s.regions = slices.Insert(s.regions, i, &region{name: name})
		}
		s.regions[i].parts = append(s.regions[i].parts, p)
	}
}

// regionNamed returns a region of the plugin, nil if no guardrail that applies defines it.
func (s *pluginPolicy) regionNamed(name string) *region {
	i := slices.IndexFunc(s.regions, func(r *region) bool { return r.name == name })
	if i < 0 {
		return nil
	}
	return s.regions[i]
}

// data checks what a rule states of its data, and finds its regions.
func (k grantCheck) data(at func(string) string, spec *Rule, out *rule, s *pluginPolicy) {
	for i, class := range spec.Data.Classes {
		path := fmt.Sprintf("%s[%d]", at("data.classes"), i)
		switch class {
		case DataPublic, DataInternal, DataConfidential, DataRestricted:
			if slices.Contains(spec.Data.Classes[:i], class) {
				k.report(path, "%q is given twice", class)
			}
		default:
			k.report(path, "%q is not a class of data; use public, internal, confidential or restricted", clip(string(class)))
		}
	}
	if spec.Data.Regions != nil && len(spec.Data.Regions) == 0 {
		k.report(at("data.regions"), "is empty; name regions, or leave it out to allow every region")
	}
	for i, name := range spec.Data.Regions {
		path := fmt.Sprintf("%s[%d]", at("data.regions"), i)
		switch r := s.regionNamed(name); {
		case slices.Contains(spec.Data.Regions[:i], name):
			k.report(path, "%q is given twice", clip(name))
		case r == nil:
			k.report(path, "%q is not a region that a guardrail for plugin %s defines; %s", clip(name), k.g.Plugin, s.knownRegions())
		default:
			out.regions = append(out.regions, r)
		}
	}
}

// knownRegions is the fix for a region that is not known.
func (s *pluginPolicy) knownRegions() string {
	if len(s.regions) == 0 {
		return "define it under spec.regions of a guardrail"
	}
	names := make([]string, len(s.regions))
	for i, r := range s.regions {
		names[i] = r.name
	}
	return "use " + strings.Join(names, ", ") + ", or define it under spec.regions of a guardrail"
}

// contains reports whether a connection to a host at addr stays in the region: the host is
// among its hosts, or every address that the connection reaches is among its addresses. An
// invalid address is in no region.
func (r *region) contains(host string, addr netip.Addr) bool {
	return !slices.ContainsFunc(r.parts, func(p places) bool { return !p.contain(host, addr) })
}

func (p *places) contain(host string, addr netip.Addr) bool {
	if p.hosts[host] {
		return true
	}
	if addr.Is4() && !addr.IsUnspecified() { // the common case, without allocating
		return p.containAddr(addr)
	}
	reached := Reaches(addr)
	return len(reached) > 0 && !slices.ContainsFunc(reached, func(at netip.Addr) bool { return !p.containAddr(at) })
}

// containAddr reports whether a prefix includes addr on purpose; see [includes].
func (p *places) containAddr(addr netip.Addr) bool {
	least := minPrefixBits(addr)
	for _, bits := range p.bits {
		if bits < least || bits > addr.BitLen() {
			continue
		}
		if prefix, err := addr.Prefix(bits); err == nil && p.prefixes[prefix] {
			return true
		}
	}
	return false
}

// inRegion reports whether the rule allows a connection to host at addr by its regions.
func (r *rule) inRegion(host string, addr netip.Addr) bool {
	if r == nil || len(r.regions) == 0 {
		return true
	}
	return slices.ContainsFunc(r.regions, func(one *region) bool { return one.contains(host, addr) })
}

// regionByHost reports whether the host alone shows that it is in one of the rule's regions.
func (r *rule) regionByHost(host string) bool { return r.inRegion(host, netip.Addr{}) }

// Region returns the region of the destination of an access that was decided, at the address
// of its connection, or by its host alone if addr is invalid: the first of the rule's
// regions that contains it, otherwise the first that a guardrail defines, by name. It is ""
// if no region contains it.
func (d Decision) Region(addr netip.Addr) string {
	if d.plugin == nil {
		return ""
	}
	addr = addr.Unmap()
	if d.rule != nil {
		for _, r := range d.rule.regions {
			if r.contains(d.host, addr) {
				return r.name
			}
		}
	}
	for _, r := range d.plugin.regions {
		if r.contains(d.host, addr) {
			return r.name
		}
	}
	return ""
}

// onlyRegion returns the rule's region if it has one alone: no connection of a granted access
// leaves it. Otherwise it returns "".
func (d *Decision) onlyRegion() string {
	if d.Reason != Granted || d.rule == nil || len(d.rule.regions) != 1 {
		return ""
	}
	return d.rule.regions[0].name
}

// OutsideRegions describes where an allowed access that may not connect to addr would leave
// the rule's regions, as in "in region us, outside region eu of rule read of grant crm"; ""
// if that is not why.
func (d Decision) OutsideRegions(addr netip.Addr) string {
	if d.Reason = d.CheckAddress(addr); d.Reason != AddressNotAllowed {
		return ""
	}
	if d.address = addr; !d.outsideRegions() {
		return ""
	}
	return d.regionDetail()
}

// regionDetail describes an address that is outside the rule's regions.
func (d *Decision) regionDetail() string {
	what := "outside the regions of " + d.rule.name()
	if len(d.rule.regions) == 1 {
		what = "outside region " + d.rule.regions[0].name + " of " + d.rule.name()
	} else {
		what += " (" + strings.Join(d.rule.spec.Data.Regions, ", ") + ")"
	}
	if is := d.Region(d.address); is != "" {
		what = "in region " + is + ", " + what
	}
	return what
}

// outsideRegions reports whether the address was refused for its region alone.
func (d *Decision) outsideRegions() bool {
	return d.Reason == AddressNotAllowed && d.rule != nil && d.address.IsValid() && !unusable(d.address.Unmap()) &&
		d.grantsAddress(d.address.Unmap()) && !d.rule.inRegion(d.host, d.address.Unmap())
}

// coversRegions reports whether the rule allows every region that an earlier one allowed.
// The address of each connection is judged besides, since a guardrail may have changed.
func (r *rule) coversRegions(earlier *rule) bool {
	return len(r.regions) == 0 || len(earlier.regions) > 0 && containsAll(r.spec.Data.Regions, earlier.spec.Data.Regions)
}

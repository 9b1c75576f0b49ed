package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

type hostKind uint8

const (
	hostExact  hostKind = iota
	hostSingle          // *.NAME: one label and NAME
	hostDeep            // **.NAME: one or more labels and NAME
)

type hostPattern struct {
	kind hostKind
	name string     // canonical, without the wildcard
	addr netip.Addr // when it is an IP literal
}

// parseHostPattern reads a host of a rule or a never-list. Patterns must be
// written in canonical form, so that reviewers see the text that is matched.
func parseHostPattern(s string) (hostPattern, error) {
	if err := hostAdvice(s); err != nil {
		return hostPattern{}, err
	}
	p := hostPattern{}
	name := s
	if rest, ok := strings.CutPrefix(s, "**."); ok {
		p.kind, name = hostDeep, rest
	} else if rest, ok := strings.CutPrefix(s, "*."); ok {
		p.kind, name = hostSingle, rest
	}
	if strings.Contains(name, "*") {
		return hostPattern{}, fmt.Errorf("%q is not a host; a wildcard is *. (one label) or **. (one or more) before a name", clip(s))
	}
	literal := name
	if addr, err := netip.ParseAddr(name); err == nil && addr.Is6() {
		literal = "[" + name + "]"
	}
	host, addr, err := canonicalHost(literal)
	if err != nil {
		return hostPattern{}, err
	}
	if p.kind != hostExact && addr.IsValid() {
		return hostPattern{}, fmt.Errorf("%q is a wildcard over an address", clip(s))
	}
	if host != name {
		return hostPattern{}, fmt.Errorf("%q is not canonical; write %q", clip(s), strings.TrimSuffix(s, name)+host)
	}
	p.name, p.addr = host, addr
	return p, nil
}

// matches reports whether the pattern matches a canonical host.
func (p hostPattern) matches(host string) bool {
	if p.kind == hostExact {
		return host == p.name
	}
	label, ok := strings.CutSuffix(host, p.name)
	label, dot := strings.CutSuffix(label, ".")
	if !ok || !dot || label == "" {
		return false
	}
	return p.kind == hostDeep || !strings.Contains(label, ".")
}

// pathPattern is a compiled path of a rule.
type pathPattern struct {
	text    string
	prefix  int  // bytes before the first wildcard
	literal int  // bytes that are neither a wildcard nor a slash, for precedence
	rest    bool // ends in **
}

// parsePathPattern reads a path of a rule. Its literal parts must be canonical:
// otherwise they could never match.
func parsePathPattern(s string, encodedSlash bool) (pathPattern, error) {
	if err := pathAdvice(s); err != nil {
		return pathPattern{}, err
	}
	p := pathPattern{text: s, prefix: len(s)}
	if i := strings.IndexByte(s, '*'); i >= 0 {
		p.prefix = i
	}
	segments := strings.Split(s[1:], "/")
	for i, segment := range segments {
		switch {
		case segment == "*":
		case segment == "**" && i == len(segments)-1:
			p.rest = true
		case strings.Contains(segment, "*"):
			return pathPattern{}, fmt.Errorf("%q has a wildcard in a segment; * is a whole segment, and ** stands last", clip(s))
		default:
			p.literal += len(segment)
		}
	}
	canonical, slash, err := canonicalPath(s) // keeps * unchanged
	switch {
	case err != nil:
		return pathPattern{}, err
	case canonical != s:
		return pathPattern{}, fmt.Errorf("%q is not canonical; write %q", clip(s), canonical)
	case slash && !encodedSlash:
		return pathPattern{}, errors.New("an encoded slash needs encodedSlash: allow on the rule")
	}
	return p, nil
}

// masked returns the pattern with each literal segment masked, and its length for
// precedence unchanged.
func (p pathPattern) masked(mask func(segment string) string) pathPattern {
	segments := strings.Split(p.text, "/")
	for i, segment := range segments {
		if segment != "" && segment != "*" && segment != "**" {
			segments[i] = mask(segment)
		}
	}
	p.text = strings.Join(segments, "/")
	if p.prefix = strings.IndexByte(p.text, '*'); p.prefix < 0 {
		p.prefix = len(p.text)
	}
	return p
}

// length returns the length of the pattern's literal parts, 0 for a tunnel.
func (p *pathPattern) length() int {
	if p == nil {
		return 0
	}
	return p.literal
}

// matches reports whether the pattern matches a canonical path. It does not
// allocate.
func (p *pathPattern) matches(path string) bool {
	// Prefixes of one length often differ in front of their last slash.
	n := p.prefix
	if len(path) < n || n > 1 && path[n-2] != p.text[n-2] || path[:n] != p.text[:n] {
		return false
	}
	path, pattern := path[n:], p.text[n:]
	if p.rest {
		pattern = pattern[:len(pattern)-len("**")]
	}
	at := 0
	for i := range len(pattern) {
		if pattern[i] != '*' {
			if at == len(path) || path[at] != pattern[i] {
				return false
			}
			at++
			continue
		}
		start := at
		for at < len(path) && path[at] != '/' {
			at++
		}
		if at == start {
			return false // * matches no empty segment
		}
	}
	return p.rest || at == len(path)
}

// checkPluginPattern checks one entry of a guardrail's plugins. A pattern that
// matches no plugin's name would leave plugins without their guardrail.
func checkPluginPattern(s string) error {
	if s != "*" && s != "**" && !IsName(s) {
		return fmt.Errorf("%q is not a plugin's name, * or **", clip(s))
	}
	return nil
}

// matchesPlugin reports whether any pattern matches the plugin's name. A name
// is one segment, so * and ** both match every one.
func matchesPlugin(patterns []string, plugin string) bool {
	return slices.ContainsFunc(patterns, func(s string) bool { return s == plugin || s == "*" || s == "**" })
}

// canonicalPrefix returns the canonical form of a prefix: without host bits, and
// as IPv4 if it maps IPv4, because addresses are then compared as IPv4. It
// reports false for an invalid prefix.
func canonicalPrefix(p netip.Prefix) (netip.Prefix, bool) {
	if !p.IsValid() {
		return p, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// checkPrefix returns an error for an invalid or non-canonical prefix in a document.
func checkPrefix(p netip.Prefix) error {
	canonical, ok := canonicalPrefix(p)
	switch {
	case !ok:
		return errors.New("is not an address and a length, as in 203.0.113.0/24")
	case canonical != p:
		return fmt.Errorf("%s is not canonical; write %s", p, canonical)
	}
	return nil
}

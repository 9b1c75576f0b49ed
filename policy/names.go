package policy

import (
	"slices"
	"strings"
	"unicode"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// Names decide which patterns of a policy match the masked names of keys and channels that
// a log holds.
type Names struct {
	patterns []authz.Fact
	fresh    string // a letter that no pattern holds
}

// NewNames returns the names of a policy's input.
func NewNames(in authz.Input) *Names {
	n := &Names{}
	used := map[rune]bool{}
	for i := range in.Grants {
		for j := range in.Grants[i].Rules {
			m := in.Grants[i].Rules[j].Matcher
			if m == nil {
				continue
			}
			for _, p := range m.Facts {
				n.patterns = append(n.patterns, p)
				for _, c := range p.Name {
					used[c] = true
				}
			}
		}
	}
	c := 'a'
	for used[c] || !unicode.IsLetter(c) {
		c++
	}
	n.fresh = string(c)
	return n
}

// Resolve returns sets of facts that the policy decides as it decides those whose masked names
// are given: in the place of a masked name stands one that the same patterns match. They are
// several if the facts are more than one request can have; each has all that are no names of
// keys and channels. It reports false if the masks do not show which patterns match. key may
// be nil.
func (n *Names) Resolve(protocol authz.Protocol, facts []authz.Fact, key *audit.MaskKey) (out []authz.Facts, ok bool) {
	var shared, names []authz.Fact
	for _, f := range facts {
		if f, ok = n.Fact(f, key); !ok {
			return nil, false
		}
		if f.Kind == authz.FactKey || f.Kind == authz.FactChannel {
			names = append(names, f)
		} else {
			shared = append(shared, f)
		}
	}
	room := authz.MaxFacts - len(shared)
	if len(names) == 0 || room <= 0 {
		names, room = append(names, shared...), authz.MaxFacts
		shared = nil
	}
	for chunk := range slices.Chunk(names, room) {
		whole, err := authz.NewFacts(protocol, slices.Concat(shared, chunk)...)
		if err != nil {
			return nil, false
		}
		out = append(out, whole)
	}
	return out, len(out) > 0
}

// Fact returns a fact that the policy decides as one whose name is masked; see [Names.Resolve].
func (n *Names) Fact(f authz.Fact, key *audit.MaskKey) (authz.Fact, bool) {
	if _, mask, _ := audit.CutMask(f.Name); mask == "" {
		return f, true
	}
	name, ok := n.instead(f, key)
	return authz.Fact{Kind: f.Kind, Name: name}, ok
}

// instead returns a name that the same patterns match as the masked one.
func (n *Names) instead(f authz.Fact, key *audit.MaskKey) (string, bool) {
	name := n.fresh
	for _, p := range n.patterns {
		if p.Kind != f.Kind {
			continue
		}
		prefix, wild := strings.CutSuffix(p.Name, "*")
		switch matches(prefix, wild, f.Name, key) {
		case unknown:
			return "", false
		case no:
		case yes:
			if !wild {
				return p.Name, true
			}
			// Of prefixes that match one name, each longer one begins with the shorter ones.
			if longer := prefix + n.fresh; len(longer) > len(name) {
				name = longer
			}
		}
	}
	return name, len(name) <= authz.MaxFactName
}

// match is whether a pattern matches a name.
type match uint8

const (
	no match = iota
	yes
	unknown // the masks do not show it
)

// matches reports whether a pattern, which is a prefix or a whole name, matches a masked name.
func matches(pattern string, wild bool, name string, key *audit.MaskKey) match {
	for {
		readable, mask, after := audit.CutMask(name)
		switch {
		case wild && len(pattern) <= len(readable):
			return answer(strings.HasPrefix(readable, pattern))
		case mask == "":
			return answer(!wild && pattern == readable)
		case !strings.HasPrefix(pattern, readable):
			return no
		}
		pattern = pattern[len(readable):]
		piece, rest := audit.CutName(pattern)
		switch {
		case piece == "":
			return no // a mask stands for at least one letter
		case key == nil:
			return unknown
		case key.MaskName(piece) == mask:
			pattern, name = rest, after
		case wild && rest == "":
			return unknown // the piece may begin like the pattern
		default:
			return no
		}
	}
}

func answer(ok bool) match {
	if ok {
		return yes
	}
	return no
}

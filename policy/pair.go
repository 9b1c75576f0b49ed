package policy

import (
	"fmt"
	"slices"
	"time"
)

// Pair is the policy of one plugin before and after a change.
type Pair struct {
	Plugin string
	// Name is the metadata.name of the Sidecar, "" for grants by themselves.
	Name          string
	Before, After Subject
	// Added and Removed report whether only one side has the plugin. The other is then
	// granted nothing.
	Added, Removed bool
}

// Pairs returns the policies of two configurations plugin by plugin, in the order of
// [Load]. If a plugin has one policy on both sides, their Sidecars may have different
// names. It returns an error if one configuration has two policies of one plugin and name.
func Pairs(before, after []Subject, now time.Time) ([]Pair, error) {
	var out []Pair
	for _, s := range before {
		out = append(out, Pair{Plugin: s.Plugin, Name: s.Name, Before: s, After: Empty(s.Plugin, now), Removed: true})
	}
	for _, s := range after {
		same := func(p Pair) bool {
			return p.Plugin == s.Plugin && (p.Name == s.Name || count(before, s.Plugin) == 1 && count(after, s.Plugin) == 1)
		}
		i := slices.IndexFunc(out, same)
		switch {
		case i < 0:
			out = append(out, Pair{Plugin: s.Plugin, Name: s.Name, Before: Empty(s.Plugin, now), After: s, Added: true})
		case !out[i].Removed:
			return nil, ambiguous(s)
		default:
			out[i].After, out[i].Name, out[i].Removed = s, s.Name, false
		}
	}
	for i, s := range before {
		if slices.ContainsFunc(before[:i], func(o Subject) bool { return o.Plugin == s.Plugin && o.Name == s.Name }) {
			return nil, ambiguous(s)
		}
	}
	slices.SortStableFunc(out, func(a, b Pair) int { return compareNames(a.Plugin, a.Name, b.Plugin, b.Name) })
	return out, nil
}

func count(subjects []Subject, plugin string) (n int) {
	for _, s := range subjects {
		if s.Plugin == plugin {
			n++
		}
	}
	return n
}

func ambiguous(s Subject) error {
	return fmt.Errorf("%s: two Sidecars serve plugin %s under the name %q; name one Sidecar's file", s.Path, s.Plugin, s.Name)
}

package sortlarge

import (
	"cmp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

type large struct {
	key, place int
	rest       [20]int
}

// TestBy compares random orders with those of package slices.
func TestBy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var got []large
		for place, key := range rapid.SliceOf(rapid.IntRange(0, 9)).Draw(t, "keys") {
			got = append(got, large{key: key, place: place, rest: [20]int{19: place}})
		}
		want := slices.Clone(got)
		slices.SortStableFunc(want, func(a, b large) int { return cmp.Compare(a.key, b.key) })
		By(got, func(a, b *large) int { return cmp.Compare(a.key, b.key) })
		if !slices.Equal(got, want) {
			t.Errorf("sorted %v, want %v", got, want)
		}
	})
}

// Package sortlarge sorts slices of large values, where that need not be fast.
package sortlarge

import "slices"

// By sorts s as [slices.SortStableFunc] does, and moves each value once. It sorts pointers to
// the values: their code is that of all types, where each type that package slices sorts adds
// some 15 kB to a program.
func By[T any](s []T, compare func(a, b *T) int) {
	values := slices.Clone(s)
	sorted := make([]*T, len(s))
	for i := range values {
		sorted[i] = &values[i]
	}
	slices.SortStableFunc(sorted, compare)
	for i, value := range sorted {
		s[i] = *value
	}
}

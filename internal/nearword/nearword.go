// Package nearword finds the word that a typist may have meant.
package nearword

import "strings"

// longest is the length, in bytes, beyond which a word is not a typing slip.
const longest = 64

// Suggest returns the known word nearest to word, compared without case, or ""
// when none is within two edits. A known word of which every letter would have
// to change is not near.
func Suggest(word string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if n := Distance(strings.ToLower(word), strings.ToLower(k)); n < distance && n < len(k) {
			best, distance = k, n
		}
	}
	return best
}

// Distance returns the Levenshtein distance of two words in bytes, and 100 when
// one of them is too long to be a typing slip.
func Distance(a, b string) int {
	if len(a) > longest || len(b) > longest {
		return 100
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

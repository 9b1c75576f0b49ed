package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one thing that is wrong in a file.
type Error struct {
	File    string `json:"file,omitempty"`   // as it was named
	Line    int    `json:"line,omitempty"`   // 1-based; 0 when the problem has no place in the file
	Column  int    `json:"column,omitempty"` // 1-based, in characters
	Field   string `json:"field,omitempty"`  // as in spec.rules[0].to.hosts[1]; "" for the file as a whole
	Message string `json:"message"`          // the fault and the fix
}

// Error returns path:line:column: field: message, without the parts that are
// not known.
func (e Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
		}
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

// Errors is everything that is wrong, by file in the order of reading, then by
// line and column.
type Errors []Error

// maxPrinted bounds what Error prints; a file that is wrong in more places
// than that is not repaired from a list.
const maxPrinted = 200

// Error returns one problem per line.
func (e Errors) Error() string {
	lines := make([]string, 0, min(len(e), maxPrinted)+1)
	for _, one := range e[:min(len(e), maxPrinted)] {
		lines = append(lines, one.Error())
	}
	if more := len(e) - maxPrinted; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// sorted returns e in its final order, without repetitions: by file in the
// order of files, then by place.
func (e Errors) sorted(files []string) Errors {
	order := make(map[string]int)
	for i, file := range files {
		order[file] = i - len(files) // before those that could not be read
	}
	sorted := slices.Clone(e)
	slices.SortStableFunc(sorted, func(a, b Error) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	seen := make(map[Error]bool, len(sorted))
	return slices.DeleteFunc(sorted, func(one Error) bool {
		again := seen[one]
		seen[one] = true
		return again
	})
}

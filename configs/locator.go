package configs

import (
	"path/filepath"
	"slices"
)

// Locator finds where the fields of a document are written.
type Locator struct {
	file string
	root *node
}

// NewLocator returns the locator of the one document that data holds, as [ParseObject]
// reads it. For data that it cannot read, every place is the first of the file.
func NewLocator(name string, data []byte) *Locator {
	parse := parseJSON
	if slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(name)) {
		parse = parseYAML
	}
	roots, errs := parse(name, data)
	if len(errs) > 0 || len(roots) != 1 {
		return &Locator{file: name}
	}
	return &Locator{name, roots[0]}
}

// Position returns the place of a field, as in spec.permissions[0].to.hosts, or of the
// nearest field around it that is stated.
func (l *Locator) Position(field string) Position {
	if l.root == nil {
		return Position{l.file, 1, 1}
	}
	n := l.root.find(field)
	return Position{l.file, n.line, n.column}
}

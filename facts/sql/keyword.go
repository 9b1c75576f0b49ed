package sql

import "slices"

//go:generate go test -run ^TestTables$ -update .

// keyword is a keyword of any version, noKeyword for every other word.
type keyword uint16

// keywordClass is what a keyword can be besides a keyword. It is as narrow as the
// narrowest of the versions.
type keywordClass uint8

const (
	keywordName     keywordClass = iota // can be the name of a function in some version, as can every other word
	keywordFunction                     // can be the name of a function, never of a table or column
	keywordColumn                       // can be the name of a table or column, never of a function without a schema
	keywordReserved                     // is no name without quotes, except behind a dot or AS
)

func (k keyword) reserved() bool { return keywordClasses[k] == keywordReserved }

// callable reports whether the word before a parenthesis can be the name of a function.
func (k keyword) callable() bool {
	return keywordClasses[k] == keywordName || keywordClasses[k] == keywordFunction
}

// relation reports whether the word can be the name of a relation.
func (k keyword) relation() bool {
	return keywordClasses[k] == keywordName || keywordClasses[k] == keywordColumn
}

// in reports whether the keyword is one of words.
func (k keyword) in(words ...keyword) bool { return slices.Contains(words, k) }

func contains(sorted []string, name string) bool {
	_, ok := slices.BinarySearch(sorted, name)
	return ok
}

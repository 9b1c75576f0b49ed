// Package structure holds the tests of this repository's shape: the length of
// functions, the width of structs, documented exported names, names that were
// replaced, the packages that cmd/chaperone links, and the places that
// docs/architecture.md names. It has no code of its own.
//
// Print the figures of every package, or those of another checkout:
//
//	go test ./internal/structure -run TestFigures -v
//	go test ./internal/structure -run TestFigures -v -root /path/to/checkout
package structure

// Package e2e holds the tests that run real programs as plugins: the runtimes
// and tools that plugins are written with, each in the confinement of
// `chaperone run` with the kernel required. The package has no code of its own.
//
// A runtime's program does many things and prints a line for each, so that one
// start shows them all; see testdata. It runs outside too, and what needs no
// granted access must come out the same.
package e2e

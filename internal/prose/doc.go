// Package prose holds the tests of this repository's language: comments, log
// messages, errors, help texts and documentation. It has no code of its own.
//
// The rules are in CONTRIBUTING.md (Language). The banned phrases are in
// testdata/banned.txt.
//
// Print the counts of every package, or those of another checkout:
//
//	go test ./internal/prose -run TestLanguage -v
//	go test ./internal/prose -run TestLanguage -v -root /path/to/checkout
//
// Print every fault in one folder, finished or not:
//
//	go test ./internal/prose -run TestLanguage -folder proxy/scrub
//
// The files do:
//
//   - texts_test.go collects sentences from Go, C, Markdown, YAML and shell files
//   - rules_test.go holds the rules, and tests them
//   - language_test.go applies the rules to the repository
//   - links_test.go follows links between pages, and to pages from other files
package prose

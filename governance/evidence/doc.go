// Package evidence reads the reports of scanners and test runners, and turns them into
// signed statements about a plugin's artifact.
//
// [Normalise] reads SARIF 2.1.0, CycloneDX 1.4 to 1.7, SPDX 2.2 and 2.3, OpenVEX, JUnit,
// the events of go test -json, and in-toto statements (test-result v0.1, vulns v0.2, SLSA
// provenance v1). It returns predicates of this project: the same input gives the same
// bytes. A predicate keeps the digest of its source, the tool, and the time that the source
// states, so that a report cannot become younger by being signed again.
//
// [New] makes the in-toto Statement v1 to sign, and [Read] verifies one. [Item.Check]
// compares it with a requirement of the guardrail: artifact, role, age. [Findings] collects
// the findings of all items, and [Blocking] returns those that block a grant, each with
// what would unblock it.
//
// A report is hostile input: it is written by a tool that has read a plugin's code. Sizes,
// depth and counts are bounded, a key given twice is refused, XML has no DTD and no
// entities, and text is escaped by internal/printable. A report that could be read as
// having fewer findings than it has is refused: a scan that did not run, results in another
// file, counts that are higher than the entries.
//
// The package reads no clock, no file and no network.
package evidence

// Package risk computes the risk of a plugin as a whole number from 0 to 100, by the points
// of a RiskRubric.
//
// [Score] adds five parts, each up to its cap: exposure (what the manifest asks for),
// vulnerabilities (findings, by severity and VEX), provenance (how the artifact was made),
// behaviour (what a pilot measured) and compliance (controls and exemptions). A [Result]
// lists every addend with the digest of the evidence that it is from. A hard stop makes the
// score 100. Evidence that is missing counts like bad evidence: a plugin without a scan is
// not one without vulnerabilities.
//
// All arithmetic is on integers and all lists are sorted, so that the order of evidence and
// the machine change nothing: [Verify] compares a stored result byte for byte. The package
// reads no clock and no file.
package risk

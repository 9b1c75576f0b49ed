// Package pilot turns what a sidecar recorded of a plugin in a pilot into two statements:
// measured-performance, and runtime-trace, the observed beside the declared access. The
// functions are pure: samples, records and predicates go in, and predicates and verdicts
// come out. The command `plugin pilot` starts the plugin and takes the samples.
//
// All figures are integers, in the unit that their names end in: a statement has the same
// bytes wherever it is made, and a score that is computed from it has too.
//
// Times until an answer are measured from when a request was due, not from when it was
// sent: a plugin that stalls delays the requests behind it, and their wait counts (G. Tene,
// How NOT to Measure Latency, 2013, calls the other way coordinated omission).
package pilot

// The predicate types of the statements (in-toto Statement v1).
const (
	PerformanceType = "https://chaperone.dev/attestation/measured-performance/v1"
	TraceType       = "https://chaperone.dev/attestation/runtime-trace/v1"
)

// Package manifest judges what the author of a plugin asks for: a PluginManifest.
//
// [Check] composes the grant that the manifest would become, by [Grant], and asks the
// sidecar's own compiler and decision about it, under guardrails and exemptions. There is no second reading of
// ceilings and never-lists. The conditions of guardrails are evaluated in CEL ([CompileRules]), with
// a bound on their cost; an error counts as a condition that does not hold. [Diff] proves what
// a version asks for that the one before did not, and which step of the version that demands.
// [Import] and [FromRecording] make drafts from other formats and from audit logs. A draft
// asks for nothing that its source does not state; everything else is a [Todo].
//
// The package reads no clock and no network: times and files are arguments. It is the only
// one that links CEL, and commands other than chaperonectl do not import it.
package manifest

// Package governance turns what an author asks for, what tools and pilots found and what
// people signed into a grant that a sidecar with spec.trust loads.
//
// The store is a folder of files, usually a Git repository:
//
//	trust.yaml                  whose key signs what; trust.N.dsse.json are its rotations
//	guardrails/*.dsse.json      ceilings, conditions, and who approves
//	exemptions/*.dsse.json      deviations from one of them, each with an end
//	rubric.dsse.json            how risk is scored
//	plugins/NAME/VERSION/       a [Request]: manifest, submission, evidence, approvals
//	grants/NAME.dsse.json       the grant, as issued
//
// [Open] reads and verifies it. [Repository.Evaluate] computes the stages of a request, and
// what is missing, from the files and the signatures alone: a state is stored nowhere, so
// that nobody can set one. [Repository.Compose] makes the exact payload that approvers sign,
// and [Repository.Issue] makes it once more and refuses if an input has moved.
//
// The functions read no clock, no network and no file except through the [fs.FS] that is
// passed to [Open]: times are arguments, and the caller writes what they return.
package governance

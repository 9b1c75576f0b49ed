// Package compliance proves the items of a checklist by queries over a plugin's declared
// access and over the log of its pilot, and draws where its data go.
//
// An item of proof auto is proved or has failed: [Check] names the rules and the decisions
// that show it. Regions and TLS are proved by the rule, since a destination outside of its
// regions is refused at the dial, and so is a connection below its TLS version, and by what
// the log records of each access. An item of proof attested rests on a document and on the
// person who signs. Statements of several people are joined by [Merge].
//
// [Flows] compares the declared with the observed flows of data, and [Mermaid] draws them.
// Text of a log reaches a diagram escaped.
package compliance

// Type is the predicate type of the statements (in-toto Statement v1).
const Type = "https://chaperone.dev/attestation/compliance-checklist/v1"

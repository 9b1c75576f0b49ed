// Package grantcheck verifies issued grants: the signature of the grant, the approvals
// that its risk band needs, the exemptions that it uses, and their times.
//
// A [Bundle] is the file of a signed grant, grants/NAME.dsse.json: the envelope of the
// grant with the envelopes that it rests on. [Check] is the only answer to "may this
// grant be loaded": the command that issues grants, the one that shows the state of a
// request and every sidecar call it. [Tally] is the part of it that counts approvals,
// and [Exemption.State] the only evaluator of an exemption's end and uses.
//
// The package reads no clock, no file and no network. It links no CEL and no scanner
// formats, because every sidecar links it.
package grantcheck

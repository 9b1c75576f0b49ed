// Package policy loads the policies that commands predict with: what files grant a
// plugin, without a sidecar, a network or a running plugin. Its sub-packages compare,
// test and replay policies. All of them ask [authz.Snapshot.Decide], so that a prediction
// is the decision that a sidecar makes.
//
// A configuration is named by the file of a Sidecar, by files of grants and guardrails, or
// by a folder of either. Every plugin in it is one [Subject].
package policy

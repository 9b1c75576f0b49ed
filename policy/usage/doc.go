// Package usage compares what rules grant with what audit logs record of their use.
//
// The use of a rule is what [authz.Snapshot.Decide] answers for the recorded accesses: the
// rule that wins one today has used it. An access whose path is masked counts for the rule
// that is recorded with it. Decide also answers which host and which path of a rule
// matched, by a policy that holds each of them as a rule of its own.
//
// A rule is proved unused only if nothing was lost that could show otherwise: the log was
// verified with its key, holds a whole period with a record in each week, records no loss in
// it, and shows that the
// file of the rule was in force all the time as it is now. Anything else is reported as not
// proved, with the reason.
//
// # Over-privilege
//
// The over-privilege ratio of a plugin is 1 - used / granted, both in atoms. An atom is one
// value that a field of a rule names; a wildcard counts as [WildcardAtoms], of which as many
// are used as different values were seen. The atoms of a field are weighted by how much it
// opens: hosts and credentials 4, methods and paths 2, ports and upgrades 1.
package usage

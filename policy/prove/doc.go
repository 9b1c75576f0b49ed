// Package prove decides whether one policy allows nothing that another does not: for
// every request that a plugin can make, at every time from a given instant, at every
// door and for every address that a name can resolve to. If not, it returns requests
// that show the difference.
//
// The comparison is exact and complete except where [Result] states otherwise, and it
// has no semantics of its own: both policies answer through [authz.Snapshot.Decide] and
// [authz.Decision.CheckAddress]. The package only chooses the requests that it asks.
//
// # Why a finite number of requests suffices
//
// A policy tests a request by comparing it with texts that the policy holds. Requests
// that compare equally with every text of both policies are decided equally, so one
// request of each such class is enough. The classes are a product of the following parts.
//
//   - Hosts: each host that is named, and below the name of each wildcard one and two
//     labels that no policy holds. A wildcard's name stands for *.NAME and **.NAME alike.
//   - Paths: a pattern is a sequence of segments: literals, *, and ** at the end. Its
//     generic instance puts segments that no policy holds in place of the wildcards. Every
//     pattern that matches a generic instance also matches each request that the instance
//     stands for. Let a rule r of the new policy win a request by pattern p, and let rule s
//     of the old policy win it by pattern q. The generic instance of the intersection of p
//     and q, with the request's number of segments, is matched by p and q, and by no pattern
//     that does not match the request. r and s therefore win it too. So it suffices to ask
//     the generic instances of each p and of each intersection of p and q, at every length
//     up to two segments over the longest pattern, with and without a slash at the end, and
//     with and without an encoded slash.
//   - Ports, methods and upgrades: those that rules for the host name, and one that none names.
//   - Times: the first instant, and each instant at which a rule, a grant, observing or
//     a revocation ends.
//   - Doors: the sets of conditions that a door cannot enforce.
//   - Addresses: one of each interval between the ends of all ranges that either policy or
//     the special-purpose registries name.
//
// # Limits
//
// Limits are compared conservatively: a limit of the old policy counts as kept only if,
// for everything that it bounds, one limit of the new policy applies and is not higher.
package prove

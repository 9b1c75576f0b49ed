// Package tighten makes grants smaller: it proposes the smallest edit of their files that
// removes what is proved unused.
//
// A value of a list of a used rule (a host, method, path, port or upgrade) is removed if it
// is proved unused. A rule that is proved unused is not removed at once: it gets a notAfter
// some days ahead. Until then it grants what it did, and check, doctor and the metrics warn
// of its end; a use in between shows in the log, and the rule is not proved unused any more.
// Once it has ended and
// has no use in the log, the next run removes its text.
//
// Files are edited by byte ranges at the positions that the loader reports, so that comments,
// order and every other byte stay. The edited files are then loaded, and an edit counts only
// if the policy is exactly the intended one, if prove finds no request that it allows and
// the old one did not, and if a replay of the log has no access that would be refused. An edit
// that fails is left out and reported.
package tighten

// Package learn proposes the smallest grant for the accesses that an audit log records.
//
// [Learner.Add] takes one access at a time, in bounded memory, and [Learner.Propose]
// returns the grant. Accesses are grouped by scheme, host, port, method, upgrade and
// whether the path holds an encoded slash, and each group has a tree of the segments of
// its paths.
//
// # Templates
//
// A rule grants a path literally, with one exception: a position of which the values are
// ids becomes *. Ids are integers, dates, UUIDs, ULIDs, hexadecimal of 16 or more digits
// and base64url of 20 or more characters. An integer or a date needs a second value, and
// beside words a position needs [manyValues] different ids. The first segment never
// becomes *, and no template is taken from another host.
//
// A template for which only observation speaks is a suggestion: the proposal contains it
// as a comment, and a person decides. These are * for [manyValues] different words, ** for
// subtrees of varying depth, and *.NAME for [manyValues] hosts below a public suffix. A
// plugin that makes up paths can therefore cause comments, and not permissions.
//
// # Estimate
//
// The share of accesses that were not seen yet is estimated by Good and Turing: the number
// of patterns that were used once, divided by the number of accesses (I. J. Good, The
// population frequencies of species and the estimation of population parameters, Biometrika
// 40, 1953). Its 95 % interval is that of W. W. Esty, A normal limit law for a nonparametric
// estimator of the coverage of a random sample, Annals of Statistics 11, 1983. Its upper end
// is at least 3/N, because N accesses do not exclude a share of 3/N at this confidence
// (J. A. Hanley and A. Lippman-Hand, If nothing goes wrong, is everything all right?, JAMA
// 249, 1983). Both assume that later accesses are like the recorded ones, and say nothing of a
// plugin that behaves well while it is observed.
package learn

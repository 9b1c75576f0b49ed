// Package resp reads what a Redis command does: the command, its keys, its channels
// and its databases, as facts for a decision. It reads requests and answers of RESP2
// and RESP3 (https://redis.io/docs/latest/develop/reference/protocol-spec/) from
// bytes, without any input or output of its own.
//
// [Read] finds keys with the key specifications that a Redis server states of its own
// commands (COMMAND). They are generated into table.go; a test compares them with a
// running server, and the keys with its COMMAND GETKEYS. Where a specification is
// incomplete, as for SORT, the package has its own reading (own.go). A command that is
// not in the table is refused: its keys are unknown.
//
// Facts name at least what is touched. A pattern, as in SCAN MATCH, and a key that is
// not text or too long are a fact that ends in *, which only a granted prefix covers.
// A command that runs a script has a fact of kind opaque, because the keys that the
// script touches cannot be read. The access control list of the leased user at the server
// limits what a script may do.
package resp

//go:generate go test -run ^TestTable$ -update .

// Package postgres speaks the frontend/backend protocol of PostgreSQL, 3.0 and 3.2
// (PostgreSQL 18, chapter 54), between a plugin and a granted database.
//
// The sidecar is the server of the plugin and a client of the database: each side has a
// startup, a TLS and a cancel key of its own, and the plugin never has a password. Between
// them frames are relayed by their header of 5 bytes, and are not decoded but for those
// that have the text of a statement, or name one.
//
// A refused statement is not answered by the sidecar. Its text is replaced by one that the
// server cannot parse and that has the decision in it, and the server's syntax error is
// replaced by the refusal. So the sequence of messages is the server's own: where a
// pipeline is skipped, a transaction is aborted, and when the server is ready again. An
// answer of the sidecar's own would have to be inserted between those of the server, at a
// place that only the server knows.
//
//	negotiate   startup.go, serve.go   the plugin's TLS and startup
//	log in      login.go               at the database, by pgconn
//	relay       frame.go               both directions
//	decide      toserver.go            Query, Parse, Bind, Execute, Close
//	rewrite     toplugin.go            ErrorResponse; ends of statements
//	pair        pipeline.go, copy.go   what the server has done
//	name        prepared.go            which prepared statements and portals it has
//	cancel      cancel.go
package postgres

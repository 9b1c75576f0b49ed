// Package differential holds the test that runs each of many pairs of a real
// client and a real server directly and through the sidecar: by the proxy
// variables, transparently, and both ways behind an Envoy that the
// sidecar configures. The results must be the same each time: status,
// headers, body, trailers, the server's timing, and the kind of error. An
// unavoidable difference is in a table, with the reason; a difference
// that is not there fails, and so does an entry that no longer occurs.
//
// The package has no code of its own.
package differential

// Package differential holds the test that runs each of many pairs of a real
// client and a real server directly and through the sidecar: by the proxy that
// the environment names, transparently, and both ways behind an Envoy that the
// sidecar configures. What a client sees must be the same each time: status,
// headers, body, trailers, the time that the server imposes, and the kind of
// error. What differs and has to is in a table, with the reason; a difference
// that is not there fails, and so does an entry that no longer occurs.
//
// The package has no code of its own.
package differential

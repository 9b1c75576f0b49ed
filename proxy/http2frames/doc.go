// Package http2frames stands between the HTTP/2 frames of a connection and net/http,
// which resets a stream with a malformed head before any handler is called. It makes a
// request of each such head, so that it can be refused and recorded.
package http2frames

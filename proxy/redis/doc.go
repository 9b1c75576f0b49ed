// Package redis speaks Redis with a plugin and its server: RESP2 and RESP3
// (https://redis.io/docs/latest/develop/reference/protocol-spec/).
//
// The sidecar logs in upstream with the leased credential, over TLS that it verifies,
// before the plugin's first command. AUTH, and AUTH within HELLO, are answered here: the
// kernel has proved which plugin it is.
//
// # Requests
//
// Requests are arrays of bulk strings. Each is read into facts by package facts/resp, and
// decided and recorded before it is forwarded. The commands of one read are decided
// together where one rule grants all of them, as in a pipeline. Bytes are forwarded as
// they came. An argument that is not needed for the facts, as the value of SET, is not
// held but streamed.
//
// # Refusals
//
// A refused command is replaced by one that no server has, whose name is a random marker,
// and the text of the server's error is replaced in the answers. So the order of answers
// in a pipeline, EXECABORT of a transaction and the state of subscriptions are the
// server's own, and no answer is attributed by counting. The same markers answer AUTH, end
// a malformed connection behind the answers before, and find the answer of SELECT.
//
// # Answers
//
// Answers are followed by their lengths, and only errors are looked at. A redirection of
// a cluster names an address that the plugin cannot reach: it becomes an error.
package redis

package differential

// explained is a difference that has to be: of the pairs, the ways and the fields
// that the patterns (path.Match, parted by |) are for. A reason that begins with
// "fault:" is one that has not to be, and waits for its correction.
type explained struct{ pair, mode, field, reason string }

const (
	own      = "explicit|transparent"
	byEnvoy  = "envoy*"
	everyWay = "*"
)

var explanations = []explained{
	// Ends of the upstream's connection.
	{"curl: http* reset|curl: http* nothing|curl: http* garbage|curl: reset while sending", everyWay, "answer", "An upstream that ends without an answer is answered 502 upstream_unreachable: the plugin's connection is another one, and the reason is in the answer"},
	{"curl: h2-cancel|curl: h2-internal|curl: h2-calm|curl: h2-one|node http2: reset by CANCEL", everyWay, "answer", "A stream that the upstream resets before its answer is answered 502 upstream_unreachable, since the plugin may speak HTTP/1.1; calls of gRPC get the status instead"},
	{"curl: http*reset-known", everyWay, "error", "An answer that the upstream interrupts by a reset ends with the connection"},
	{"curl: h2-lost", everyWay, "error", "A lost connection to the upstream ends its streams, and not the plugin's connection with its other streams"},
	{"curl: h2-goaway", everyWay, "*", "Requests that the upstream did not process are sent again; curl itself gives up"},

	// Corrections that a recipient must or may make.
	{"curl: h2-204", own, "*", "A 204 with a length is an error of HTTP/2 either way: the head is passed on, and the stream ends with another code"},
	{"curl: h2-204|curl: http*204-body", byEnvoy, "answer", "Envoy refuses a 204 with a Content-Length: 502"},
	{"curl: http*204-body", own, "header content-length", "A 204 has no Content-Length (RFC 9110, 8.6): it is taken off"},
	{"curl: http*same-twice", own, "header content-length", "Two equal lengths are one (RFC 9110, 8.6)"},
	{"curl: http*same-twice", byEnvoy, "answer", "Envoy refuses a repeated Content-Length: 502"},
	{"curl: h2-large", own, "header content-length", "An answer that ends with its head has the length 0, which is sent"},
	{"java HttpClient: Go", own, "body|header content-length", "Content-Length: 0 of a GET is taken off (RFC 9110, 8.6)"},
	{"node http2: Go", everyWay, "body|header content-length", "The port of :authority is taken off where it is the scheme's own (RFC 9110, 4.2.3)"},

	// Requests without a grant.
	{"curl: OPTIONS ?, Go", everyWay, "answer", "OPTIONS * is of a whole server, and rules grant paths: 400"},
	{"go: an upgrade that is not taken, SPDY 3.1", everyWay, "status|body", "A protocol that the rule does not list in upgrades is refused; offers that a request can do without (TLS, h2c) are dropped"},
	{"go: a large head beside other streams", everyWay, "stream 3", "A head above 60 KiB is refused, and the other streams go on"},

	// Envoy's own behaviour.
	{"curl: http*hints", byEnvoy, "interim", "Envoy passes 103 on, and no 102"},
	{"curl: POST chunked h1, Go|curl: expect, Go", byEnvoy, "body|header content-length", "Envoy answers Expect: 100-continue by itself and takes it off"},
	{"go: grpc, h2-calm|go: grpc, h2-cancel|go: grpc, h2-internal|go: grpc, h2-one|go: grpc, h2-cancel-late|go: grpc, h2-lost-late", byEnvoy, "grpc-status|trailer x-chaperone-*", "Envoy answers UNAVAILABLE where a stream is reset before its head, and resets with INTERNAL_ERROR afterwards, whatever the code was"},
	{"go: half-close, tcp|go: a server that greets, tcp|go: an upgrade to tcp*", byEnvoy, "body|first seconds", "Envoy ends both directions of a tunnel when one is done"},
	{"busybox nc: half-close", byEnvoy, "body", "Envoy drops a request whose connection is half-closed behind it"},
	{"*413*|*405*|*early*", byEnvoy, "*", "Envoy closes a connection on which it answered before the body was read, and reads no more of it: a client that first sends all of it may see the reset in place of the answer"},

	// Known faults.
	{"go: h[12], nginx recycles, POST", byEnvoy, "of *", "fault: Envoy does not send again what a recycled connection refused or did not process"},
	{"go: h2-goaway, POST|go: h2-refused, POST", byEnvoy, "answer", "fault: as above"},
	{"go: grpc, h2-goaway|go: grpc, h2-refused", byEnvoy, "*", "fault: as above"},
	{"go: a login of a connection", byEnvoy, "step *", "fault: Envoy pools connections that a login (NTLM, Negotiate) has authenticated: do not grant such an upstream behind Envoy"},
	{"httpx*", "envoy-transparent", "*", "fault: the handshake of httpx is closed by Envoy where it is transparent"},
}

// Package extauthz is Envoy's door. It serves the gRPC service
// envoy.service.auth.v3.Authorization, which Envoy's ext_authz filters (HTTP
// and network), agentgateway and gRPC's own xDS filter (gRFC A92) ask before
// they let a request or connection through, and it asks the same [authz.Gate]
// as every other door.
//
// # What the caller is believed
//
// The caller is the operator's data plane, and it is believed what it says of
// the request: method, scheme, authority, path, server name. It is not
// believed what it merely passes on from the plugin: x-forwarded-host,
// x-envoy-original-path, x-envoy-downstream-service-cluster (which Envoy puts
// into source.service) and their like decide nothing.
//
// Its transport decides whether it may be handed a credential: only a caller
// on the unix socket, or one on TCP that has proved itself with a client
// certificate. Anyone else, perhaps the plugin itself, gets decisions and no
// credentials.
//
// # The scheme
//
// The scheme that counts is the one in the request, which with an explicit
// proxy is the one that the plugin asked for. Whether the connection to the
// upstream is really TLS is up to the route and cluster that Envoy then
// chooses, and this door cannot see it. An access whose rule states
// tls.originate arrives as http and is decided as https; the answer then sets
// :scheme to https and says so in the dynamic metadata, for routes to match
// on, and such a route must lead to a cluster with TLS. A caller that names no
// scheme (gRPC's) is taken to ask for https, the default of rules.
//
// # CONNECT and connections
//
// A classic CONNECT names a host and a port and shows nothing of what will
// pass, so it is decided as a tunnel of scheme tcp: a rule of scheme tls
// promises that the server name in the ClientHello is the granted one, and
// nobody looks at it there. An extended CONNECT (RFC 8441) is a GET that
// upgrades. The network filter's connection is a tls tunnel to its server
// name where it has one, and else a tcp tunnel to the address that the plugin
// dialled.
//
// Where the sidecar's resolver gives out virtual addresses ([Config.Name]), one
// stands for its name: as the host of a request, and as what the plugin dialled,
// which a request and a server name then have to agree with. A connection to a
// name that is granted by tcp is a tcp tunnel to it, whatever it carries, as it
// is through the sidecar's own proxy.
//
// # Bodies
//
// No rule looks at bodies, and neither does this door: a filter need not send
// them (with_request_body), and a body that is cut short
// (x-envoy-auth-partial-body), too, is passed over. A stand-in for a credential
// in a body, or in trailers, is therefore not found here. A check of over 4 MiB is refused as
// malformed_request, body included.
//
// # What is not a check
//
// A request of which only some headers are shown (allowed_headers) is refused:
// nothing could be found or removed in the others. What is no call of gRPC, as of a
// filter that has the socket for its http_service, gets no HTTP status of success,
// which such a filter would take for an allowing answer. Envoy's access log service
// is taken too, from callers that are trusted: what Envoy answers by itself is
// recorded.
//
// # The answer
//
// Headers are set and removed by headers and headers_to_remove, the query by
// :path, which callers take as it is, and not by query_parameters_to_set, which
// each escapes and sorts in a way of its own. Nothing is added to the upstream's answer
// (response_headers_to_add). Every answer has dynamic metadata: decision, plugin,
// reason, grant, rule, generation, and scheme where it was changed. A refusal is
// a denied_response whatever its reason, unless [Config.ErrorResponse] has
// failures of the sidecar's own answered with error_response, and never a gRPC
// error: on those Envoy passes a request where it is configured to fail open.
//
// # What this door cannot do
//
// It sees the request and not the response, so it cannot scrub what the
// upstream answers: Envoy can add and set response headers at an ext_authz
// server's word, but not remove them, and a route that wants x-chaperone-* and
// Alt-Svc gone from answers lists them in response_headers_to_remove. It does
// not see the end of the access either: the end record follows the decision
// at once and carries no bytes. Rules that state addresses, TLS terms or a
// timeout are refused as not_enforceable_here, unless Config.Enforces says
// that the caller is configured to enforce them. Envoy asks once for a stream,
// so a revocation reaches the next stream; bound the length of streams with
// max_stream_duration.
//
// It cannot carry bytes that are not UTF-8 in a header it sets, and refuses the
// access instead. x-forwarded-proto is set to the decided scheme and not
// removed, as the rest of its family is: Envoy finds no route without it once
// its route cache has been cleared. A credential in the query becomes part of
// :path, so it is in Envoy's access log wherever that prints the path.
//
// Envoy's own switches can undo all of it, and nothing here can tell:
// failure_mode_allow; a route on which the filter is disabled; a request that
// matched no route, for which the filter does not run; an original_dst cluster,
// which dials what the plugin dialled instead of what was decided;
// decoder_header_mutation_rules that forbid the answer's changes; an
// internal_redirect_policy, which sends the injected credential on to where the
// upstream points.
package extauthz

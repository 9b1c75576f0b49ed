// Package extauthz answers Envoy's external authorization. It serves the gRPC service
// envoy.service.auth.v3.Authorization, which Envoy's ext_authz filters (HTTP and
// network), agentgateway and gRPC's own xDS filter (gRFC A92) call before they allow a
// request or connection, and it asks the same [authz.Gate] as every other door.
//
// # Trust in the caller
//
// The caller is the operator's data plane. Its own statements about the request are
// trusted: method, scheme, authority, path, server name. Values that it passes on from
// the plugin are ignored: x-forwarded-host, x-envoy-original-path,
// x-envoy-downstream-service-cluster (which Envoy puts into source.service) and others
// like them.
//
// The transport decides whether the caller may receive credentials: it must use the
// Unix socket, or TCP with a verified client certificate. Any other caller, perhaps the
// plugin itself, gets decisions and no credentials.
//
// # The scheme
//
// The decision uses the scheme in the request; with an explicit proxy it is the one
// that the plugin asked for. Whether the connection to the upstream is really TLS
// depends on the route and cluster that Envoy chooses afterwards, which are not
// visible here. An access whose rule states tls.originate arrives as http and is
// decided as https; the answer then sets :scheme to https and states it in the dynamic
// metadata, for routes to match, and such a route must use a cluster with TLS. A
// caller that states no scheme (gRPC) is assumed to ask for https, the default of rules.
//
// # CONNECT and connections
//
// A classic CONNECT names a host and a port and does not show the content, so it is
// decided as a tunnel of scheme tcp. A rule of scheme tls promises that the server name
// in the ClientHello is the granted one, which is not visible here. An extended CONNECT
// (RFC 8441) is a GET that upgrades. A connection of the network filter is a tls tunnel
// to its server name if it has one, and otherwise a tcp tunnel to the address that the
// plugin dialled.
//
// If the sidecar's resolver assigns virtual addresses ([Config.Name]), such an address
// stands for its name: as the host of a request, and as the dialled address, with which
// a request and a server name must agree. A connection to a name that is granted by tcp
// is a tcp tunnel to it, whatever it carries, as in the sidecar's own proxy.
//
// # Bodies
//
// Rules do not depend on bodies, and bodies are ignored here: a filter need not send
// them (with_request_body), and may truncate them (x-envoy-auth-partial-body). A
// credential's placeholder in a body or in trailers is therefore not found. A check over
// 4 MiB, body included, is refused as malformed_request.
//
// # Calls that are not checks
//
// A request of which only some headers are shown (allowed_headers) is refused, since
// nothing could be found or removed in the others. A call that is not gRPC, as from a
// filter that has the socket for its http_service, never gets an HTTP status of
// success, which such a filter would treat as allowed. Envoy's access log service is
// served too, for trusted callers: the answers that Envoy makes by itself are recorded.
//
// # The answer
//
// Headers are set and removed by headers and headers_to_remove. The query is set by
// :path, which callers use unchanged, and not by query_parameters_to_set, which each
// caller escapes and sorts differently. The upstream's answer is not changed
// (response_headers_to_add). Every answer has dynamic metadata: decision, plugin,
// reason, grant, rule, generation, and scheme if it was changed. A refusal is a
// denied_response for every reason, unless [Config.ErrorResponse] selects
// error_response for errors of the sidecar. It is never a gRPC error, on which Envoy
// passes a request if it is configured to fail open.
//
// # Limits
//
// The response is not visible here, so it cannot be scrubbed. An ext_authz server can
// have Envoy add and set response headers, but not remove them; a route that must not
// forward x-chaperone-* and Alt-Svc lists them in response_headers_to_remove. The end
// of the access is not visible either: the end record follows the decision at once and
// has no byte counts. Rules that state addresses, TLS terms or a timeout are refused as
// not_enforceable_here, unless Config.Enforces states that the caller enforces them.
// Envoy asks once per stream, so a revocation applies to the next stream; bound the
// length of streams with max_stream_duration.
//
// An answer cannot set a header with bytes that are not UTF-8; the access is refused
// instead. x-forwarded-proto is set to the decided scheme and not removed like the rest
// of its family: Envoy finds no route without it once its route cache has been cleared.
// A credential in the query becomes part of :path, so it is in Envoy's access log if
// that prints the path.
//
// Envoy's own settings can disable all of this, without a sign of it here:
// failure_mode_allow; a route on which the filter is disabled; a request that matched no
// route, for which the filter does not run; an original_dst cluster, which dials the
// plugin's address instead of the decided one; decoder_header_mutation_rules that forbid
// the answer's changes; an internal_redirect_policy, which sends the injected credential
// to the target of the upstream's redirect.
package extauthz

// Package xds configures the Envoy beside the sidecar, completely and live, from
// what is granted: a gRPC server on a unix socket that speaks Envoy's xDS
// protocol, aggregated (ADS), of changes (delta) or of the state of the world.
//
// # What Envoy is told
//
// Envoy takes the plugin's connections, understands HTTP, asks the sidecar
// about each access (ext_authz) and originates TLS on the rule's terms. It
// resolves no name and dials no address: every cluster is a unix socket of the
// sidecar, its exit to one host and port under one rule. So Envoy has no way out
// that the sidecar does not hold, a revocation ends at the exit whatever Envoy
// does, and a sidecar that is gone leaves nothing open.
//
// Listeners differ in how they learn what a connection is to: plugin by a PROXY
// header of version 2, transparent from the kernel, explicit from the request,
// inside from the CONNECT that the connection came in. Their filter chains are
// the same: any tcp by the address that was dialled; TLS by its server name and
// port, looked into where an https rule is for it and passed on where a tls rule
// is, and else asked about and refused; all the rest is HTTP.
//
// # How a request finds its way
//
// Envoy does not run its filters for a request that no route matches. So every
// request is first on a route that refuses it and leads nowhere. The sidecar's
// answer names the rule in x-chaperone-route, Envoy looks for the route again
// (clear_route_cache), by that rule and by the host, and only then is there one
// that leads on. What the plugin sends under x-chaperone-* and x-envoy-* is
// removed before anything looks at it. The tables are maps of rules and hosts:
// the cost of finding a route does not grow with their number.
//
// A CONNECT to a host and port of an https, http or tls rule is not asked about;
// what is inside is, and cannot open another CONNECT. Any other is asked about, as
// any tcp.
//
// # Generations
//
// Every generation of the policy is one consistent set of resources. What was
// revoked is not in it: clusters go first, then routes and chains, in one go.
// When a set cannot be made, one without any route is served instead. An Envoy
// that refuses a set (NACK) keeps the one before, and is refused by the sidecar
// whatever that lets it ask; [Server.Status] says so.
//
// # What is not routed
//
// A tcp rule over a wildcard has no address by which its connections would be
// known. What only a sidecar that observes lets through has no rule, and so no
// route. A name of more labels than one under **.NAME is let through where the
// plugin sends plain text (tls.originate) or its TLS is passed on; the
// certificate that the plugin would be shown covers one label only. Protocols
// that a request may upgrade to under no rule are refused by Envoy itself.
package xds

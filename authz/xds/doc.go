// Package xds configures the Envoy beside the sidecar, completely and live, from the
// grants: a gRPC server on a Unix socket that serves Envoy's xDS protocol, aggregated
// (ADS), in its delta and state-of-the-world variants.
//
// # The configuration
//
// Envoy accepts the plugin's connections, parses HTTP, asks the sidecar about each
// access (ext_authz) and originates TLS on the rule's terms. It resolves no name and
// dials no address: every cluster is a Unix socket of the sidecar, its egress to one
// host and port under one rule. The sidecar therefore holds Envoy's only way out: a
// revocation ends connections at the egress, regardless of Envoy, and without a sidecar
// nothing stays open.
//
// Listeners differ in how they learn a connection's destination: plugin from a PROXY
// header of version 2, transparent from the kernel, explicit from the request, internal
// from the CONNECT that carried the connection. Their filter chains are the same: tcp
// rules match the dialled address; TLS matches its server name and port, and is
// intercepted for https rules, passed through for tls rules, and otherwise checked and
// refused; everything else is HTTP.
//
// # Routing of a request
//
// Envoy does not run its filters for a request that matches no route. Every request
// therefore starts on a route that refuses it and forwards nothing. The sidecar's answer
// names the rule in x-chaperone-route, Envoy selects the route again
// (clear_route_cache) by that rule and by the host, and only then does a route forward.
// The plugin's own x-chaperone-* and x-envoy-* headers are removed before. Routes are
// maps of rules and hosts: the cost of selecting one does not grow with their number.
//
// A CONNECT to a host and port of an https, http or tls rule is not checked; the
// requests inside it are, and cannot open another CONNECT. Any other CONNECT is checked,
// as a tcp tunnel.
//
// # Generations
//
// Every generation of the policy is one consistent set of resources, without revoked
// rules: clusters are removed first, then routes and chains, in one update. If a set
// cannot be made, a set without routes is served instead. An Envoy that refuses a set
// (NACK) keeps the previous one, and the sidecar refuses the accesses that it no longer
// grants; [Server.Status] reports it.
//
// # Unrouted accesses
//
// A tcp rule for a wildcard has no address that would identify its connections. An
// access that is allowed only because the sidecar observes has no rule, and so no route.
// A name with more than one label under **.NAME is allowed if the plugin sends plain
// text (tls.originate) or if its TLS is passed through; the certificate for interception
// covers one label only. Envoy itself refuses upgrades to protocols that no rule grants.
package xds

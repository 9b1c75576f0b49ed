// Package proxy enforces. It is the plugin's way out: a forward proxy for
// programs that use one, a transparent proxy for what the kernel redirects, and
// the resolver that gives names an address to be redirected by.
//
// Each request becomes an [authz.Request] and passes [authz.Gate.Admit]. An admitted
// one is stripped, gets its credential and is sent to the decided destination over a
// connection whose resolved address was checked; its answer is searched for the
// credential. Every live access is in one registry, and is decided again when the
// policy changes.
//
// A connection takes one of three ways:
//
//	explicit     absolute-form requests and CONNECT, spoken to the proxy
//	tunnel       what a CONNECT carries: TLS that is intercepted or spliced, http, or tcp
//	transparent  what the kernel redirected: the same as a tunnel, whose name is
//	             that of the virtual address the plugin dialled
//
// An Envoy can be in the middle of all three. The proxy then has both ends: the relay
// forwards identified connections to it, and egress sockets, one for each route,
// forward its connections to that rule's upstream. The Envoy's requests are decided
// by ext_authz.
package proxy

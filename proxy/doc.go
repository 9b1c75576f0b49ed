// Package proxy enforces. It is the plugin's way out: a forward proxy for
// programs that use one, a transparent proxy for what the kernel redirects, and
// the resolver that gives names an address to be redirected by.
//
// What arrives becomes an [authz.Request] and passes [authz.Gate.Admit], the one
// door; what is admitted is stripped, given its credential and sent to the
// decided destination over a connection whose resolved address was checked;
// what comes back is searched for the credential. Everything live is in one
// registry, and is decided anew when the policy changes.
//
// A connection takes one of three ways:
//
//	explicit     absolute-form requests and CONNECT, spoken to the proxy
//	tunnel       what a CONNECT carries: TLS that is intercepted or spliced, http, or tcp
//	transparent  what the kernel redirected: the same as a tunnel, whose name is
//	             that of the virtual address the plugin dialled
//
// An Envoy can stand in the middle of all three. The proxy then keeps both ends:
// the relay gives it what arrives and is proved, the exits, a unix socket for each
// route, take what it sends to where that rule leads. What it is asked for in
// between is decided through its own door.
package proxy

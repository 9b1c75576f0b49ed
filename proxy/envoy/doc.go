// Package envoy connects the proxy to an Envoy: the relay forwards the plugin's
// connections to it, and the egress sockets, one for each route, forward its connections
// to upstreams.
package envoy

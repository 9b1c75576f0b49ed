// Package envoy joins an Envoy: the relay hands it the plugin's connections, and the
// egress sockets, one for each route, take its connections to upstreams.
package envoy

// Package dns resolves names for a plugin: it answers granted names with virtual
// addresses, to which connections are redirected to the proxy, and refuses all others.
package dns

// Package inbound admits connections from the host to a plugin that serves: it forwards
// ports of the host's loopback into the plugin's network namespace, and Unix sockets of
// the host into the plugin's view (process.listen in the configuration).
package inbound

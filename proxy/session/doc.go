// Package session holds what is live: the registry of open accesses, which are decided
// again and cut when the policy changes; accepted connections with the identity of
// their peer; rate limits on bytes; the attribution of bytes to rules; and what each
// connection and request takes of the memory budget. Every protocol that the sidecar
// speaks for a plugin stands on it.
package session

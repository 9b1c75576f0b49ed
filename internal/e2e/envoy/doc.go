// Package envoy holds the tests of a sidecar behind a real Envoy that it configures:
// reloads, revocations and restarts of either while streams run. The package has no code
// of its own.
package envoy

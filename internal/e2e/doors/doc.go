// Package doors compares the two ways to one gate: the same request is sent to the
// sidecar's proxy and to an Envoy with the sidecar as its ext_authz, which must decide the
// same and send the upstream the same, but for the differences that
// docs/envoy-differences.md lists. The package has no code of its own.
package doors

// Package xds configures the Envoy beside the sidecar.
package xds

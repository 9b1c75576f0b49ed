// Package diff lists what a change of a configuration makes wider, narrower or
// different, plugin by plugin. The package prove finds the requests by which one
// configuration is wider than the other; diff puts them into the classes by which a change
// is approved, and adds what no request shows: reasons, owners, and the bounds of guardrails
// and Sidecars.
package diff

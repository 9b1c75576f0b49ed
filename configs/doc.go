// Package configs loads files: the Sidecar that an instance runs from, the
// PluginGrants and PluginGuardrails it names, and PluginTests. Files are YAML 1.2 or JSON, in
// the shape of Kubernetes objects.
//
// Reading is strict and complete. All errors of all files are reported at once, each
// with its file, line and column, and then no file is loaded: [Load] returns a whole
// [Config] or [Errors]. No field is accepted and then ignored.
//
// The way through it: tree.go turns bytes into a tree of nodes that know where
// they were written, decode.go fills Go types from the tree, sidecar.go holds
// the Sidecar and what must be true of it, load.go follows references and
// compiles, watch.go reports when to load again. The JSON Schemas under schema/
// are generated from the same Go types by the tests.
package configs

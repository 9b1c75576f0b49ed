package configs

import (
	"regexp"
	"slices"
	"strings"
)

// shellVariable is what a shell would expand in a path.
var shellVariable = regexp.MustCompile(`\$(\{[A-Za-z_][A-Za-z0-9_]*\}|[A-Za-z_][A-Za-z0-9_]*|\([^)]*\))`)

// pathFields are the fields that hold paths, under whatever they stand.
var pathFields = [...]string{ //nolint:gochecknoglobals // an array of constants
	"stateDir", "grants", "guardrails", "dir", "file", "read", "write", "admin", "extAuthz", "caFile", "certFile", "keyFile",
	"clientCAFile", "sidecar", "atMost", "roleIDFile", "secretIDFile", "jwtFile", "tokenFile",
}

// shellPaths reports paths that only a shell would expand: taken as they are
// written, ~/state is a folder of the name "~".
func shellPaths(n *node, path string, d *decoder) {
	for _, f := range n.fields {
		below := f.key
		if path != "" {
			below = path + "." + f.key
		}
		if slices.Contains(pathFields[:], f.key) && strings.HasPrefix(below, "spec.") {
			shellPath(f.value, below, d)
		}
		shellPaths(f.value, below, d)
	}
	for i, item := range n.items {
		shellPaths(item, at(path, i), d)
	}
}

func shellPath(n *node, path string, d *decoder) {
	for i, item := range n.items {
		shellPath(item, at(path, i), d)
	}
	if n.kind != textKind {
		return
	}
	text := strings.TrimPrefix(n.text, "unix:")
	first, _, _ := strings.Cut(text, "/")
	switch {
	case strings.HasPrefix(first, "~"):
		d.report(n.line, n.column, path, "%q starts with %s, which only a shell expands; write the whole path, or one relative to this file", clip(n.text), clip(first))
	case shellVariable.MatchString(text):
		d.report(n.line, n.column, path, "%q holds %s, which only a shell expands; write the whole path, or one relative to this file", clip(n.text), clip(shellVariable.FindString(text)))
	}
}

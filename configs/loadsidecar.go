package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// LoadSidecar reads the Sidecar in the file at path and nothing that it names,
// for commands that must work while a grant is broken or has expired: revoke,
// status, audit, detach. Other errors in the file, and expired grants, do not
// matter to it; it fails only if it does not find the sidecar's state.
func LoadSidecar(path string) (*Sidecar, error) {
	l := newLoader(time.Time{})
	for _, s := range l.named(path) {
		if s.kind != KindSidecar || s.sidecar.Spec.StateDir == "" {
			continue
		}
		dir, err := filepath.Abs(filepath.Dir(path))
		if err != nil {
			return nil, Errors{{File: path, Message: "cannot be made absolute: " + err.Error()}}
		}
		spec := s.sidecar.Spec
		spec.complete(dir)
		return &spec, nil
	}
	if err := l.failure(); err != nil {
		return nil, err
	}
	return nil, Errors{{File: path, Message: "holds no Sidecar with a stateDir"}}
}

// RecoverSidecar finds the plugin, the stateDir and the admin socket in a file that
// cannot be parsed, by their lines, for commands that must revoke access even
// then. Everything else has its default. It fails when one of the first two is
// missing or ambiguous.
func RecoverSidecar(path string) (*Sidecar, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("recover sidecar: %w", err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("recover sidecar: %w", err)
	}
	var documents []string
	for _, d := range regexp.MustCompile(`(?m)^---.*$`).Split(string(text), -1) {
		if valueIn(d, "kind") == string(KindSidecar) {
			documents = append(documents, d)
		}
	}
	if len(documents) != 1 {
		return nil, fmt.Errorf("recover sidecar: %s holds %d distinguishable Sidecars, want 1", path, len(documents))
	}
	spec := &Sidecar{Plugin: valueIn(documents[0], "plugin"), StateDir: valueIn(documents[0], "stateDir")}
	if spec.Plugin == "" || spec.StateDir == "" {
		return nil, fmt.Errorf("recover sidecar: %s does not state one plugin and one stateDir", path)
	}
	if socket, ok := strings.CutPrefix(valueIn(documents[0], "admin"), "unix:"); ok {
		spec.Listen.Admin = Address{"unix", socket}
	}
	spec.complete(dir)
	return spec, nil
}

// valueIn returns the plain value of a key that a text states once, or "".
func valueIn(text, key string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			lines = append(lines, line)
		}
	}
	pattern := regexp.MustCompile(`(?m)(?:^|[\s{,])["']?` + key + `["']?\s*:[ \t]*(?:"([^"\n]*)"|'([^'\n]*)'|([^\s,{}\[\]#"']+))`)
	var values []string
	for _, m := range pattern.FindAllStringSubmatch(strings.Join(lines, ""), -1) {
		values = append(values, m[1]+m[2]+m[3])
	}
	slices.Sort(values)
	if values = slices.Compact(values); len(values) != 1 {
		return ""
	}
	return values[0]
}

// ExactHosts returns the names that grants give by themselves, neither
// wildcards nor addresses.
func ExactHosts(grants []authz.Grant) []string {
	var out []string
	seen := map[string]bool{}
	for _, g := range grants {
		for _, r := range g.Rules {
			for _, host := range r.To.Hosts {
				d, err := authz.NewDestination(authz.SchemeHTTPS, host, "")
				if err == nil && !d.Address().IsValid() && !seen[host] {
					seen[host] = true
					out = append(out, host)
				}
			}
		}
	}
	return out
}

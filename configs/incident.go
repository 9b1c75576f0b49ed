package configs

import (
	"path/filepath"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// LoadSidecar reads the Sidecar in the file at path and nothing that it names,
// for commands that must work while a grant is broken or has expired: revoke,
// status, audit, detach. What is wrong elsewhere in the file, or has become
// wrong with time, does not matter to it; it fails only when it cannot say
// where the sidecar's state is.
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

package main

import (
	"os"
	"path/filepath"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
)

// bounds are what a repository bounds manifests with.
type bounds struct {
	guardrails []manifest.Guardrail
	exemptions []grantcheck.Exemption
}

// bounds reads the signed guardrails and exemptions of the repository that holds a folder; none
// outside of a repository.
func (c *cli) bounds(folder string) (bounds, error) {
	var b bounds
	if _, err := c.findRepo(folder); err != nil && c.repo == "" {
		return b, nil // a manifest can be checked without a repository
	}
	r, err := c.openRepo(folder)
	if err != nil {
		return b, err
	}
	defer r.close()
	for i := range r.Guardrails {
		g := &r.Guardrails[i]
		b.guardrails = append(b.guardrails, manifest.Guardrail{Name: g.Name, Path: filepath.Join(r.dir, filepath.FromSlash(g.File)), Spec: g.GuardrailSpec})
	}
	for i := range r.Exemptions {
		b.exemptions = append(b.exemptions, r.Exemptions[i].Exemption)
	}
	return b, nil
}

// previous returns the manifest of the highest version before that of a folder, nil without one.
func previous(folder, version string) *manifest.File {
	entries, err := os.ReadDir(filepath.Dir(folder))
	if err != nil {
		return nil
	}
	best := ""
	for _, e := range entries {
		if before, err := manifest.CompareVersions(e.Name(), version); !e.IsDir() || err != nil || before >= 0 {
			continue
		}
		if best == "" {
			best = e.Name()
		} else if higher, err := manifest.CompareVersions(e.Name(), best); err == nil && higher > 0 {
			best = e.Name()
		}
	}
	if best == "" {
		return nil
	}
	file, _, err := readManifest(filepath.Join(filepath.Dir(folder), best))
	if err != nil {
		return nil // it is checked by itself
	}
	return file
}

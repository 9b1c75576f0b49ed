package main

import (
	"context"
	"path/filepath"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// labGuardrail is the guardrail of a lab of one person. The author never approves, so that
// nobody could approve anything: grants of low risk need no approval here, they are short,
// and every other band names somebody else.
const labGuardrail = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: lab}
spec:
  plugins: ["**"]
  never:
  - {id: metadata-service, hosts: [metadata.google.internal], addresses: [169.254.0.0/16, "fd00:ec2::254/128"]}
  ceilings:
    grantLifetime: 30d
    wildcardHosts: single
  lifetimes: {low: 30d, moderate: 7d, high: 7d, critical: 1d}
  approvals:
    low: {roles: []}
    moderate: {roles: [{name: security, min: 1}]}
    high: {roles: [{name: security, min: 1}]}
    critical: {roles: [{name: security, min: 1}]}
`

// labRubric counts what a plugin may access and what scanners find. One person has neither a
// scanner nor a pilot that would count, so that what is missing adds nothing.
const labRubric = `apiVersion: chaperone.dev/v1alpha1
kind: RiskRubric
metadata: {name: lab}
spec:
  generation: 1
  vulnerabilities: {staleScan: 0}
  provenance: {none: 0, build1: 0, build2: 0, sbomMissing: 0, newKey: 0}
  behaviour: {mediation: 0}
  compliance: {staleChecklist: 0}
`

// lab signs a first guardrail and a rubric, so that one person has a working repository.
func (c *cli) lab(ctx context.Context, dir string, key dsse.Signer, identity string) error {
	c.repo = dir
	for _, doc := range []struct{ path, text string }{
		{filepath.Join("guardrails", "lab.yaml"), labGuardrail},
		{"rubric.yaml", labRubric},
	} {
		r, err := c.openFolder(dir)
		if err != nil {
			return err
		}
		err = r.create(filepath.ToSlash(doc.path), []byte(doc.text))
		r.close()
		if err != nil {
			return err
		}
		if err := c.sign(ctx, filepath.Join(dir, doc.path), "", key); err != nil {
			return err
		}
	}
	c.warn("%s holds every role: this is a lab. The author never approves, so that only grants of low risk can be issued, "+
		"which guardrails/lab.yaml allows without an approval. For anything else a second person needs a key and a role", identity)
	c.warn("rubric.yaml counts missing scans, provenance and measurements as nothing: use the defaults (spec: {generation: 1}) outside of a lab")
	c.say("next: write plugins/NAME/VERSION/manifest.yaml, then chaperonectl plugin submit plugins/NAME/VERSION --key KEY")
	return nil
}

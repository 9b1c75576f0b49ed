package configs

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Trust makes a sidecar load only what was signed. Its files are relative to the
// Sidecar's file.
type Trust struct {
	// Root is the TrustRoot: whose keys are trusted, and for what. Rotations lie beside it, trust.2.dsse.json after version 1 of trust.yaml, and so on.
	Root string `json:"root"`
	// Exemptions are signed GrantExemptions, files or folders; those in a grant's own file need not be here.
	Exemptions []string `json:"exemptions,omitempty"`
	// Sidecar is this document signed by role policy; required for mode: observe.
	Sidecar string `json:"sidecar,omitempty"`
	// MinGenerations are the lowest generations of grants that are loaded, by name of the grant. A first start, or one with another stateDir, has seen none, and would take an older grant that somebody put back.
	MinGenerations map[string]int64 `json:"minGenerations,omitempty"`
	// Artifact is the image that runs, as the runtime states it, which chaperone serve needs: it cannot read the plugin's program. For chaperone run it is the folder of a grant for a tree; run finds a file by itself.
	Artifact *TrustArtifact `json:"artifact,omitempty"`
	// UnsignedUntil is when grants and guardrails without a signature are no longer loaded; by default none are. Until then they are loaded with a warning, and a signed one replaces the unsigned one of its name.
	UnsignedUntil time.Time `json:"unsignedUntil,omitzero"`
}

// TrustArtifact is the artifact that runs.
type TrustArtifact struct {
	// Kind is image or tree.
	Kind grantcheck.ArtifactKind `json:"kind"`
	// Digest is the digest of the image's manifest, sha256: and 64 hexadecimal digits, as the container runtime states it; for an image.
	Digest string `json:"digest,omitempty"`
	// Path is the folder of the plugin, which holds its program; for a tree.
	Path string `json:"path,omitempty"`
}

// validate reports what is wrong by itself.
func (t *Trust) validate(report reporter) {
	for _, name := range slices.Sorted(maps.Keys(t.MinGenerations)) {
		if n := t.MinGenerations[name]; !authz.IsName(name) || n < 1 {
			report("spec.trust.minGenerations", "%q: %d: write the name of a grant and a generation from 1", clip(name), n)
		}
	}
	if a := t.Artifact; a != nil {
		image := a.Kind == grantcheck.ArtifactImage
		switch {
		case !image && a.Kind != grantcheck.ArtifactTree:
			report("spec.trust.artifact.kind", "%q is not image or tree; chaperone run finds a file by itself", clip(string(a.Kind)))
		case image && !grantcheck.IsDigest(a.Digest):
			report("spec.trust.artifact.digest", "%q is not a digest; write sha256: and 64 hexadecimal digits", clip(a.Digest))
		case image && a.Path != "":
			report("spec.trust.artifact.path", "goes with kind: tree")
		case !image && a.Path == "":
			report("spec.trust.artifact.path", "is missing; write the folder of the plugin")
		case !image && a.Digest != "":
			report("spec.trust.artifact.digest", "goes with kind: image; that of a tree is computed")
		}
	}
}

// LoaderVariable reports whether a variable of the environment has the dynamic loader put
// other code into a program, as LD_PRELOAD does (ld.so(8)).
func LoaderVariable(name string) bool {
	return strings.HasPrefix(name, "LD_") || name == "GLIBC_TUNABLES"
}

// validateLoader refuses variables by which other code than the approved program's runs.
func (p *Process) validateLoader(report reporter) {
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		if LoaderVariable(name) {
			report("spec.process.env."+name, "has the dynamic loader change the approved program; remove it, or spec.trust")
		}
	}
}

// complete makes every path absolute.
func (t *Trust) complete(within func(path *string)) {
	if t == nil {
		return
	}
	within(&t.Root)
	within(&t.Sidecar)
	for i := range t.Exemptions {
		within(&t.Exemptions[i])
	}
	if t.Artifact != nil {
		within(&t.Artifact.Path)
	}
}

// GenerationsFile is the file in the stateDir in which a sidecar keeps its [Generations].
const GenerationsFile = "generations.json"

// Generations are the highest versions that a sidecar had in force. Older ones are not
// loaded again.
type Generations struct {
	// Trust is the version of the trust root, and TrustDigest its [dsse.Root.Digest].
	Trust       int64  `json:"trust"`
	TrustDigest string `json:"trustDigest,omitempty"`
	// Grants are by name of the grant.
	Grants map[string]grantcheck.HighWater `json:"grants,omitempty"`
	// Guardrails are by name of the guardrail, those that state a generation.
	Guardrails map[string]grantcheck.HighWater `json:"guardrails,omitempty"`
	// Contained are digests of grants for whose stale evidence the plugin was revoked.
	Contained []string `json:"contained,omitempty"`
	// Time is the latest time that was seen. A clock that is set back does not revive a
	// grant that has ended.
	Time time.Time `json:"time"`
}

// Trusted is what was verified of a Sidecar with spec.trust.
type Trusted struct {
	// Root, Version and RootDigest are of the trust root in force.
	Root       string
	Version    int64
	RootDigest string
	// Guardrail is the digest of the guardrails of the plugin, as grants are bound to it.
	Guardrail string
	// Generations are to be written to the stateDir before the files are put in force.
	Generations Generations
	// Grants are the signed grants of the plugin.
	Grants []SignedGrant
}

// Latest returns the later of now and the latest time that a sidecar with spec.trust has
// seen, so that what is explained is what that sidecar decides, also while the clock is set
// back.
func (c *Config) Latest(now time.Time) time.Time {
	if c.Trust != nil && c.Trust.Generations.Time.After(now) {
		return c.Trust.Generations.Time
	}
	return now
}

// SignedGrant is a signed grant of the plugin and its dates.
type SignedGrant struct {
	*grantcheck.Verified
	File string
	// RenewBefore is when the sidecar begins to warn that the grant ends.
	RenewBefore time.Time
	// OnStale is the level at which the plugin is revoked at StaleAt, and "" for none.
	OnStale authz.Level
	StaleAt time.Time
}

// exemptions returns the exemptions that the grants use.
func (t *Trusted) exemptions() (out []authz.Exemption) {
	if t == nil {
		return nil
	}
	for _, g := range t.Grants {
		for _, e := range g.Exemptions {
			out = append(out, authz.Exemption{
				Name: e.Name, Grant: g.Name, Rule: e.Permission, Ceiling: e.GuardrailRule, Allow: e.Allow, NotAfter: e.NotAfter, MaxUses: uint64(max(e.MaxUses, 0)),
			})
		}
	}
	return out
}

// documentOf returns the kind of document that a signed file holds; "" for one that is
// not a document of a kind that files have.
func documentOf(payloadType string) Kind {
	for signed, kind := range map[dsse.Kind]Kind{
		dsse.KindGrant: KindGrant, dsse.KindGuardrail: KindGuardrail, dsse.KindExemption: KindExemption, dsse.KindSidecar: KindSidecar, dsse.KindRubric: KindRubric,
	} {
		if payloadType == signed.PayloadType() {
			return kind
		}
	}
	return ""
}

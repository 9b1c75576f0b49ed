package grantcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// ArtifactKind is how the digest of an artifact is made.
type ArtifactKind string

// The kinds of artifacts.
const (
	// ArtifactFile is one executable: the SHA-256 of its content.
	ArtifactFile ArtifactKind = "file"
	// ArtifactTree is a folder: see [TreeDigest].
	ArtifactTree ArtifactKind = "tree"
	// ArtifactImage is a container image: the digest of its manifest, as the runtime states it.
	ArtifactImage ArtifactKind = "image"
)

// Artifact is the program of a plugin.
type Artifact struct {
	// Kind is file, tree or image.
	Kind ArtifactKind `json:"kind"`
	// Digest is sha256: and 64 hexadecimal digits.
	Digest string `json:"digest"`
	// Command is the program and its arguments as chaperone run has to be given them, as in [weather, --serve]; without it any arguments are accepted. The first word is the name of the file, or of a tree its path below the folder; another word that is a path in the tree stands for the absolute path there. For file and tree.
	Command []string `json:"command,omitempty"`
}

// Binding is the part of a signed grant that ties it to what was reviewed: the member
// spec.binding of its PluginGrant. Digests are sha256: and 64 hexadecimal digits, of an
// envelope's payload, or of the file for a manifest.
type Binding struct {
	// Artifact is the program that the grant is for.
	Artifact Artifact `json:"artifact"`
	// Submission is the digest of the author's submission.
	Submission string `json:"submission"`
	// Manifest is the digest of the PluginManifest.
	Manifest string `json:"manifest"`
	// Guardrail is the digest of the guardrails that apply to the plugin: see [GuardrailDigest].
	Guardrail string `json:"guardrail"`
	// Rubric is the digest of the RiskRubric that the score was computed with.
	Rubric string `json:"rubric"`
	// Policy are the guardrails, the rubric and the checklists themselves, by which an older one that is put
	// back, and a checklist that is removed, is noticed.
	Policy []PolicyRef `json:"policy,omitempty"`
	// Previous is the digest of the generation before; none in generation 1.
	Previous string `json:"previous,omitempty"`
	// Generation is 1 in the first grant of this name, and one more in each that follows.
	Generation int64 `json:"generation"`
	// Score is the risk, 0 to 100.
	Score int `json:"score"`
	// Band is the risk band of the score: low, moderate, high or critical.
	Band string `json:"band"`
	// Exemptions are the exemptions that the grant uses.
	Exemptions []Ref `json:"exemptions,omitempty"`
	// Evidence is what was reviewed.
	Evidence []EvidenceRef `json:"evidence,omitempty"`
	// Authorities are the files of authorities (caFile) that the grant names, which the sidecar reads.
	Authorities []Authority `json:"authorities,omitempty"`
	// RenewBefore is when the sidecar begins to warn that the grant ends.
	RenewBefore time.Time `json:"renewBefore,omitzero"`
}

// Ref refers to a signed document.
type Ref struct {
	// Name is the document's metadata.name.
	Name string `json:"name"`
	// Digest is the digest of its payload.
	Digest string `json:"digest"`
}

// PolicyRef refers to a signed guardrail, a checklist or the rubric, and states how new it is.
type PolicyRef struct {
	// Kind is guardrail, checklist or rubric.
	Kind dsse.Kind `json:"kind"`
	// Name is the document's metadata.name.
	Name string `json:"name"`
	// Digest is the digest of its payload.
	Digest string `json:"digest"`
	// Generation is the document's spec.generation; 0 for a guardrail that states none, and for a checklist.
	Generation int64 `json:"generation,omitempty"`
}

// Replaced returns why is, of the same kind and name as p which was in force, must not take its
// place: it is older, or another document of the same generation; "" if it may. Documents that
// state no generation are not ordered.
func (p PolicyRef) Replaced(is PolicyRef) string {
	switch {
	case is.Generation < p.Generation:
		return fmt.Sprintf("%s %s is generation %d, and generation %d was in force; put that one back", p.Kind, p.Name, is.Generation, p.Generation)
	case is.Generation == p.Generation && p.Generation > 0 && is.Digest != p.Digest:
		return fmt.Sprintf("%s %s is %s, and another one of generation %d was in force, %s; put that one back, or sign the change as generation %d",
			p.Kind, p.Name, is.Digest, p.Generation, p.Digest, p.Generation+1)
	}
	return ""
}

// Authority is the content of a caFile: a signature of the grant covers the file's name alone.
type Authority struct {
	// File is its name as in the grant.
	File string `json:"file"`
	// Digest is the digest of its content.
	Digest string `json:"digest"`
}

// CheckAuthorityFile reports what is wrong with the name of a caFile in a manifest or its
// credentials.yaml. The file lies below the manifest's folder, and is copied to the same
// place below the folder of the grant, where it must not become a document that is loaded.
func CheckAuthorityFile(name string) error {
	switch ending := strings.ToLower(path.Ext(name)); {
	case name == ".", strings.Contains(name, `\`), !fs.ValidPath(name):
		return fmt.Errorf("%s is not a path below the folder of the manifest; put the file there and write its path, as in ca.pem", quote(name))
	case slices.Contains([]string{".yaml", ".yml", ".json"}, ending):
		return fmt.Errorf("%s has the ending of a document; name the file as in ca.pem", quote(name))
	}
	return nil
}

// EvidenceRef refers to one piece of evidence.
type EvidenceRef struct {
	// PredicateType is the in-toto predicate type, as in https://chaperone.dev/attestation/sbom/v1.
	PredicateType string `json:"predicateType"`
	// Digest is the digest of its payload.
	Digest string `json:"digest"`
	// IssuedAt is when it was made.
	IssuedAt time.Time `json:"issuedAt"`
	// ExpiresAt is when it ends; none by default.
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
}

// Submission is what an author signs, in kind submission: it starts a request.
type Submission struct {
	Plugin   string    `json:"plugin"`
	Version  string    `json:"version"`
	Manifest string    `json:"manifest"` // digest of manifest.yaml
	Artifact Artifact  `json:"artifact"`
	IssuedAt time.Time `json:"issuedAt"`
}

// The bands of risk, the lowest first.
const (
	BandLow      = "low"
	BandModerate = "moderate"
	BandHigh     = "high"
	BandCritical = "critical"
)

// Bands returns the bands of risk, the lowest first.
func Bands() []string { return []string{BandLow, BandModerate, BandHigh, BandCritical} }

// GuardrailDigest returns what a grant is bound to: the digest of the one guardrail that
// applies to the plugin or, of several, the digest of their sorted digests, one a line.
// So a guardrail that is replaced, added or removed is noticed. It is "" for none.
func GuardrailDigest(digests ...string) string {
	sorted := slices.Sorted(slices.Values(digests))
	switch len(sorted) {
	case 0:
		return ""
	case 1:
		return sorted[0]
	}
	return dsse.Digest([]byte(strings.Join(sorted, "\n") + "\n"))
}

// policy reports what is wrong with Policy: it has to be of the digests that are bound.
func (b *Binding) policy() error {
	if len(b.Policy) == 0 {
		return nil // issued before it was there
	}
	var guardrails []string
	rubric := ""
	for _, p := range b.Policy {
		switch {
		case p.Kind == dsse.KindGuardrail && p.Generation >= 0:
			guardrails = append(guardrails, p.Digest)
		case p.Kind == dsse.KindRubric && p.Generation >= 0 && rubric == "":
			rubric = p.Digest
		case p.Kind == dsse.KindChecklist: // of the review alone
		default:
			return fmt.Errorf("has %s %s of generation %d; guardrails, checklists, one rubric and generations from 0 are required", quote(string(p.Kind)), quote(p.Name), p.Generation)
		}
	}
	if GuardrailDigest(guardrails...) != b.Guardrail || rubric != b.Rubric {
		return fmt.Errorf("is not of the guardrails %s and the rubric %s that are bound; issue the grant again", quote(b.Guardrail), quote(b.Rubric))
	}
	return nil
}

// BindingOf returns the plugin of the payload of a verified grant and what it is bound to.
func BindingOf(payload []byte) (plugin string, b Binding, err error) {
	d, err := readDocument(payload, kindGrant)
	if err == nil {
		err = errors.Join(d.field("plugin", &plugin), d.field("binding", &b))
	}
	return plugin, b, err
}

// EvidenceDigests returns the digests of the evidence, sorted.
func (b *Binding) EvidenceDigests() []string {
	out := make([]string, 0, len(b.Evidence))
	for _, e := range b.Evidence {
		out = append(out, e.Digest)
	}
	slices.Sort(out)
	return out
}

// ExemptionDigests returns the digests of the exemptions, sorted.
func (b *Binding) ExemptionDigests() []string {
	out := make([]string, 0, len(b.Exemptions))
	for _, e := range b.Exemptions {
		out = append(out, e.Digest)
	}
	slices.Sort(out)
	return out
}

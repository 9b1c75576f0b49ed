// Package granttest makes trust roots, signed grants and what they rest on, for tests.
package granttest

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// The identities of a [World], each with one key of the role of the same name. Two has a
// second key of role security, and Both keys of roles security and compliance.
const (
	Root       = "root@corp"
	Author     = "author@corp"
	Policy     = "policy@corp"
	Release    = "release@corp"
	Security   = "security@corp"
	Two        = "security2@corp"
	Compliance = "compliance@corp"
	Both       = "both@corp"
)

// World is a trust root with all private keys.
type World struct {
	Spec dsse.RootSpec
	Now  time.Time

	tb   testing.TB
	keys map[string]dsse.PrivateKey // by identity, or IDENTITY#2 for a second key
}

// New returns a world whose documents are signed at a time.
func New(tb testing.TB, now time.Time) *World {
	tb.Helper()
	w := &World{Now: now.UTC().Truncate(time.Second), tb: tb, keys: map[string]dsse.PrivateKey{}}
	role := func(name string, kinds []dsse.Kind, identities ...string) dsse.RoleSpec {
		out := dsse.RoleSpec{Name: name, Threshold: 1, Kinds: kinds}
		for _, id := range identities {
			identity := id
			if i := slices.Index([]byte(id), '#'); i > 0 {
				identity = id[:i]
			}
			out.Keys = append(out.Keys, dsse.KeySpec{Identity: identity, Ed25519: base64.StdEncoding.EncodeToString(w.Key(id).Public())})
		}
		return out
	}
	w.Spec = dsse.RootSpec{Name: "corp", Version: 1, Roles: []dsse.RoleSpec{
		role("root", []dsse.Kind{dsse.KindTrust}, Root),
		role("author", []dsse.Kind{dsse.KindSubmission}, Author),
		role("policy", []dsse.Kind{dsse.KindGuardrail, dsse.KindExemption, dsse.KindRubric, dsse.KindSidecar}, Policy),
		role("security", []dsse.Kind{dsse.KindApproval}, Security, Security+"#2", Two, Both, Author),
		role("compliance", []dsse.Kind{dsse.KindApproval}, Compliance, Both),
		role("release", []dsse.Kind{dsse.KindGrant}, Release),
	}}
	return w
}

// Key returns the key of an identity.
func (w *World) Key(identity string) dsse.PrivateKey {
	w.tb.Helper()
	if k, ok := w.keys[identity]; ok {
		return k
	}
	k, err := dsse.GenerateKey()
	w.check(err)
	w.keys[identity] = k
	return k
}

// Root returns the trust root.
func (w *World) Root() *dsse.Root {
	w.tb.Helper()
	root, err := dsse.NewRoot(w.Spec)
	w.check(err)
	return root
}

// Sign returns the envelope of a document, which is bytes or encoded as JSON.
func (w *World) Sign(kind dsse.Kind, document any, identities ...string) *dsse.Envelope {
	w.tb.Helper()
	payload, ok := document.([]byte)
	if !ok {
		var err error
		payload, err = json.Marshal(document)
		w.check(err)
	}
	var signers []dsse.Signer
	for _, id := range identities {
		signers = append(signers, w.Key(id))
	}
	e, err := dsse.Sign(w.tb.Context(), kind, payload, signers...)
	w.check(err)
	return e
}

func (w *World) check(err error) {
	if w.tb.Helper(); err != nil {
		w.tb.Fatal(err)
	}
}

// Object is a document or a part of one.
type Object = map[string]any

// Document returns a document of a kind.
func Document(kind, name string, spec any) Object {
	return Object{"apiVersion": "chaperone.dev/v1alpha1", "kind": kind, "metadata": Object{"name": name}, "spec": spec}
}

// Guardrail returns a guardrail that asks for one approval of role security in band
// low and one more of role compliance in band moderate, and none for other bands.
func (w *World) Guardrail() Object {
	return Document("PluginGuardrail", "company", Object{
		"plugins": []string{"**"},
		"approvals": Object{
			"low":      Object{"roles": []Object{{"name": "security", "min": 1}}},
			"moderate": Object{"roles": []Object{{"name": "security", "min": 1}, {"name": "compliance", "min": 1}}},
		},
	})
}

// Draft is a grant before it is signed. Its fields may be changed until [Draft.Bundle].
type Draft struct {
	Name       string
	Spec       Object // without plugin, times and binding, which are set
	Submission grantcheck.Submission
	Binding    grantcheck.Binding
	NotBefore  time.Time
	NotAfter   time.Time
	Exemptions []*dsse.Envelope
	Decisions  []grantcheck.Approval // without digests, which are set where they are ""
	GrantBy    string
	AuthoredBy string

	w *World
}

// Draft returns a grant of band low with one rule and the approval that it needs, bound
// to a guardrail and an artifact.
func (w *World) Draft(guardrail string, artifact grantcheck.Artifact) *Draft {
	d := &Draft{
		Name: "weather", w: w, GrantBy: Release, AuthoredBy: Author,
		Spec: Object{"rules": []Object{{
			"id": "read", "reason": "Shows the forecast.", "to": Object{"hosts": []string{"api.weather.example"}}, "methods": []string{"GET"}, "paths": []string{"/**"},
		}}},
		Submission: grantcheck.Submission{
			Plugin: "weather", Version: "1.0.0", Manifest: dsse.Digest([]byte("manifest")), Artifact: artifact, IssuedAt: w.Now.Add(-3 * time.Hour),
		},
		Binding: grantcheck.Binding{
			Artifact: artifact, Manifest: dsse.Digest([]byte("manifest")), Guardrail: guardrail, Rubric: dsse.Digest([]byte("rubric")),
			Generation: 1, Score: 10, Band: grantcheck.BandLow,
			Evidence: []grantcheck.EvidenceRef{{
				PredicateType: "https://chaperone.dev/attestation/sbom/v1", Digest: dsse.Digest([]byte("sbom")), IssuedAt: w.Now.Add(-2 * time.Hour),
			}},
		},
		NotBefore: w.Now.Add(-time.Minute), NotAfter: w.Now.Add(30 * 24 * time.Hour),
	}
	d.Approve("security", Security)
	return d
}

// Approve adds an approval.
func (d *Draft) Approve(role, identity string) *grantcheck.Approval {
	return d.Decide(grantcheck.DecisionApprove, role, identity, d.w.Now.Add(-time.Hour))
}

// Decide adds a decision.
func (d *Draft) Decide(decision grantcheck.Decision, role, identity string, at time.Time) *grantcheck.Approval {
	d.Decisions = append(d.Decisions, grantcheck.Approval{Role: role, Identity: identity, Decision: decision, IssuedAt: at})
	return &d.Decisions[len(d.Decisions)-1]
}

// Document returns the PluginGrant.
func (d *Draft) Document() Object {
	spec := Object{"plugin": d.Submission.Plugin, "notBefore": d.NotBefore, "notAfter": d.NotAfter, "binding": d.Binding}
	maps.Copy(spec, d.Spec)
	return Document("PluginGrant", d.Name, spec)
}

// Bundle signs the grant and what it rests on.
func (d *Draft) Bundle() *grantcheck.Bundle {
	d.w.tb.Helper()
	submission := d.w.Sign(dsse.KindSubmission, d.Submission, d.AuthoredBy)
	if d.Binding.Submission == "" {
		d.Binding.Submission = submission.Digest()
	}
	b := &grantcheck.Bundle{Grant: d.w.Sign(dsse.KindGrant, d.Document(), d.GrantBy), Submission: submission, Exemptions: d.Exemptions}
	for _, a := range d.Decisions {
		b.Approvals = append(b.Approvals, d.w.Sign(dsse.KindApproval, d.complete(a, b.Grant.Digest()), a.Identity))
	}
	return b
}

// complete fills in the digests of an approval.
func (d *Draft) complete(a grantcheck.Approval, grant string) grantcheck.Approval {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&a.Submission, d.Binding.Submission)
	set(&a.Grant, grant)
	set(&a.Guardrail, d.Binding.Guardrail)
	set(&a.Rubric, d.Binding.Rubric)
	set(&a.Band, d.Binding.Band)
	if a.Score == 0 {
		a.Score = d.Binding.Score
	}
	if a.Evidence == nil {
		a.Evidence = d.Binding.EvidenceDigests()
	}
	if a.Exemptions == nil {
		a.Exemptions = d.Binding.ExemptionDigests()
	}
	return a
}

// TrustRoot returns the document of the trust root.
func (w *World) TrustRoot() Object {
	return Document("TrustRoot", w.Spec.Name, Object{"version": w.Spec.Version, "roles": w.Spec.Roles, "revoked": append([]string{}, w.Spec.Revoked...)})
}

// Write writes a document as JSON, an envelope or a bundle into a file, and makes its
// folder.
func (w *World) Write(path string, document any) {
	w.tb.Helper()
	var data []byte
	var err error
	switch d := document.(type) {
	case *dsse.Envelope:
		data = d.Marshal()
	case *grantcheck.Bundle:
		data, err = d.Marshal()
	default:
		data, err = json.MarshalIndent(d, "", " ")
	}
	w.check(err)
	w.check(os.MkdirAll(filepath.Dir(path), 0o755)) //nolint:gosec // nothing secret
	w.check(os.WriteFile(path, data, 0o644))        //nolint:gosec // nothing secret
}

// Repository writes trust.yaml and guardrails/company.dsse.json into a folder. It returns
// the digest that grants are bound to.
func (w *World) Repository(dir string) (guardrail string) {
	w.tb.Helper()
	w.Write(filepath.Join(dir, "trust.yaml"), w.TrustRoot())
	e := w.Sign(dsse.KindGuardrail, w.Guardrail(), Policy)
	w.Write(filepath.Join(dir, "guardrails", "company.dsse.json"), e)
	return e.Digest()
}

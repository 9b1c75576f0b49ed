package governance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Document is a document that is to be signed.
type Document struct {
	Kind    dsse.Kind
	Payload []byte // canonical JSON
}

// documentKinds are the kinds that have a form in YAML, with their strict readers.
func documentKinds() map[dsse.Kind]func(file string, data []byte) ([]byte, error) {
	return map[dsse.Kind]func(string, []byte) ([]byte, error){
		dsse.KindGuardrail: canonical[configs.GuardrailSpec],
		dsse.KindExemption: canonicalExemption,
		dsse.KindRubric:    canonical[configs.RiskRubric],
		dsse.KindSidecar:   canonical[configs.Sidecar],
		dsse.KindChecklist: canonical[configs.ComplianceChecklist],
	}
}

func canonical[S any](file string, data []byte) ([]byte, error) {
	object, err := configs.ParseObject[S](file, data)
	if err != nil {
		return nil, err
	}
	return configs.RenderObject(object)
}

func canonicalExemption(file string, data []byte) ([]byte, error) {
	payload, err := canonical[configs.GrantExemption](file, data)
	if err != nil {
		return nil, err
	}
	if _, err := grantcheck.ReadExemption(payload); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return payload, nil
}

// kindOfYAML maps the kind of a document to the kind of its signature.
func kindOfYAML(kind configs.Kind) (dsse.Kind, bool) {
	switch kind {
	case configs.KindGuardrail:
		return dsse.KindGuardrail, true
	case configs.KindExemption:
		return dsse.KindExemption, true
	case configs.KindRubric:
		return dsse.KindRubric, true
	case configs.KindSidecar:
		return dsse.KindSidecar, true
	case configs.KindChecklist:
		return dsse.KindChecklist, true
	default:
		return "", false
	}
}

// ParseDocument reads a PluginGuardrail, GrantExemption, RiskRubric, ComplianceChecklist or
// Sidecar strictly, and returns the bytes to sign.
func ParseDocument(file string, data []byte) (Document, error) {
	kind, err := configs.KindOf(file, data)
	if err != nil {
		return Document{}, err
	}
	signed, ok := kindOfYAML(kind)
	if !ok {
		return Document{}, fmt.Errorf("%s: a document of kind %s is not signed by this command; PluginGuardrail, GrantExemption, RiskRubric, ComplianceChecklist or Sidecar is required", file, kind)
	}
	payload, err := documentKinds()[signed](file, data)
	return Document{signed, payload}, err
}

// Describe names a document that is signed, as in PluginGuardrail company generation 3, for the
// person who signs it: a file may hold another document than its name states.
func Describe(e *dsse.Envelope) string {
	var doc struct {
		Kind     configs.Kind     `json:"kind"`
		Metadata configs.Metadata `json:"metadata"`
		Spec     struct {
			Generation int64 `json:"generation"`
		} `json:"spec"`
		Name    string `json:"name"` // of a trust root
		Version int64  `json:"version"`
	}
	switch err := json.Unmarshal(e.Unverified, &doc); {
	case err != nil:
		return "a document that cannot be read"
	case e.PayloadType == dsse.KindTrust.PayloadType():
		return fmt.Sprintf("trust root %s version %d", doc.Name, doc.Version)
	case doc.Spec.Generation > 0:
		return fmt.Sprintf("%s %s generation %d", doc.Kind, doc.Metadata.Name, doc.Spec.Generation)
	}
	return fmt.Sprintf("%s %s", doc.Kind, doc.Metadata.Name)
}

// CheckPayload reads the payload of an envelope as strictly as [ParseDocument], and refuses
// one that is not in canonical form: two people who sign have then read the same.
func CheckPayload(file string, e *dsse.Envelope) error {
	if e.PayloadType == dsse.KindTrust.PayloadType() {
		next, err := dsse.ParseRoot(e.Unverified)
		if err != nil {
			return err
		}
		again, err := json.Marshal(next.Spec())
		if err != nil || dsse.Digest(again) != e.Digest() {
			return fmt.Errorf("%s: the payload is not in canonical form; make it again from its document", file)
		}
		return nil
	}
	for kind, read := range documentKinds() {
		if e.PayloadType != kind.PayloadType() {
			continue
		}
		again, err := read(strings.TrimSuffix(file, ".json")+".payload.json", e.Unverified)
		if err != nil {
			return err
		}
		if dsse.Digest(again) != e.Digest() {
			return fmt.Errorf("%s: the payload is not in canonical form; make it again from its document", file)
		}
		return nil
	}
	return fmt.Errorf("%s: a document of type %q is not signed by several people here", file, e.PayloadType)
}

// Complete verifies that enough people signed a document. A trust root is verified as a
// rotation: by the root in force and by itself.
func Complete(root *dsse.Root, e *dsse.Envelope) error {
	if e.PayloadType == dsse.KindTrust.PayloadType() {
		_, err := root.Rotate(e)
		return err
	}
	for kind := range documentKinds() {
		if e.PayloadType == kind.PayloadType() {
			_, err := root.Verify(e, kind)
			return err
		}
	}
	return fmt.Errorf("a document of type %q is not signed here", e.PayloadType)
}

// Follows refuses a rotation that is not to the version after the one in force, or is of
// another trust root: signatures of it would be collected for nothing.
func Follows(root *dsse.Root, e *dsse.Envelope) error {
	if e.PayloadType != dsse.KindTrust.PayloadType() {
		return nil
	}
	next, err := dsse.ParseRoot(e.Unverified)
	if err != nil {
		return err
	}
	if was, is := root.Spec(), next.Spec(); is.Name != was.Name || is.Version != was.Version+1 {
		return fmt.Errorf("it is version %d of %s, and version %d of %s is in force; version %d is required", is.Version, is.Name, was.Version, was.Name, was.Version+1)
	}
	return nil
}

// signedRoots returns the trust root in force and, for a rotation, the one that is signed.
func signedRoots(root *dsse.Root, e *dsse.Envelope) []*dsse.Root {
	roots := []*dsse.Root{root}
	if e.PayloadType == dsse.KindTrust.PayloadType() {
		if next, err := dsse.ParseRoot(e.Unverified); err == nil {
			roots = append(roots, next)
		}
	}
	return roots
}

// Owner returns the identity of a key that signs a document; "" for a stranger.
func Owner(root *dsse.Root, e *dsse.Envelope, key dsse.PublicKey) string {
	for _, root := range signedRoots(root, e) {
		if identity, _ := RolesOf(root, key); identity != "" {
			return identity
		}
	}
	return ""
}

// MaySign reports whether a key is of a role that signs the document: in the trust root in
// force or, for a rotation, in the one that is signed.
func MaySign(root *dsse.Root, e *dsse.Envelope, key dsse.PublicKey) bool {
	for _, root := range signedRoots(root, e) {
		_, roles := RolesOf(root, key)
		for _, role := range root.Spec().Roles {
			if slices.Contains(roles, role.Name) && slices.ContainsFunc(role.Kinds, func(k dsse.Kind) bool { return k.PayloadType() == e.PayloadType }) {
				return true
			}
		}
	}
	return false
}

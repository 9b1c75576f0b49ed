package dsse

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Signed is one signer of a verified document.
type Signed struct {
	Role     string
	Identity string
	KeyID    string
}

// Document is a payload whose signatures were verified.
type Document struct {
	Kind    Kind
	Payload []byte
	// Digest is the [Digest] of Payload.
	Digest string
	// Signed has an entry for each role and key of the valid signatures. A key of two roles
	// has two entries.
	Signed []Signed
}

// Identities returns the distinct owners of the keys that signed in a role, sorted.
func (d *Document) Identities(role string) []string {
	var out []string
	for _, s := range d.Signed {
		if s.Role == role {
			out = append(out, s.Identity)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// SignedBy reports whether a key of the identity signed, in whatever role.
func (d *Document) SignedBy(identity string) bool {
	return slices.ContainsFunc(d.Signed, func(s Signed) bool { return s.Identity == identity })
}

// Verify returns the payload of an envelope of the given kind, if at least one role that
// signs this kind reaches its threshold. The payload type is compared first, and the
// payload is not looked into. Signatures of unknown keys are ignored; one of a known key
// that does not verify is an error, since the document or the signature was changed.
func (r *Root) Verify(e *Envelope, kind Kind) (*Document, error) {
	if !kind.known() {
		return nil, fmt.Errorf("verify document: %s is not a kind of signed document", quote(string(kind)))
	}
	if e.PayloadType != kind.PayloadType() {
		return nil, fmt.Errorf("verify %s: the payload type is %s; %s is required", kind, quote(e.PayloadType), kind.PayloadType())
	}
	doc := &Document{Kind: kind, Payload: e.Unverified, Digest: e.Digest()}
	valid, revoked, err := r.validKeys(e)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", kind, err)
	}
	var short []string
	reached := false
	for _, role := range r.roles {
		if !slices.Contains(role.kinds, kind) {
			continue
		}
		for _, id := range role.keys {
			if slices.Contains(valid, id) {
				doc.Signed = append(doc.Signed, Signed{role.name, r.keys[id].identity, id})
			}
		}
		n := len(doc.Identities(role.name))
		reached = reached || n >= role.threshold
		short = append(short, fmt.Sprintf("%d of %d of role %s", n, role.threshold, role.name))
	}
	if !reached {
		return nil, fmt.Errorf("verify %s: %w", kind, notReached(kind, short, revoked))
	}
	return doc, nil
}

// validKeys returns the ids of the known keys whose signature verifies, and the owners of
// revoked keys that signed.
func (r *Root) validKeys(e *Envelope) (valid, revoked []string, err error) {
	message := PAE(e.PayloadType, e.Unverified)
	for _, s := range e.Signatures {
		k, known := r.keys[s.KeyID]
		switch {
		case !known:
		case k.revoked:
			revoked = append(revoked, s.KeyID)
		case !ed25519.Verify(k.public, message, s.Bytes):
			return nil, nil, fmt.Errorf("the signature of %s (key %s) does not verify: the document or the signature was changed", k.identity, s.KeyID)
		default:
			valid = append(valid, s.KeyID)
		}
	}
	return valid, revoked, nil
}

func notReached(kind Kind, short, revoked []string) error {
	var text string
	switch {
	case len(short) == 0:
		text = fmt.Sprintf("no role of the trust root signs kind %s", kind)
	default:
		text = "too few identities signed: " + strings.Join(short, ", ")
	}
	if len(revoked) > 0 {
		text += "; revoked keys do not count: " + strings.Join(revoked, ", ")
	}
	return errors.New(text)
}

// Rotate returns the root of an envelope that follows r: its version is the next one, and
// the role root of both r and the new root has signed it.
func (r *Root) Rotate(e *Envelope) (*Root, error) {
	doc, err := r.Verify(e, KindTrust)
	if err != nil {
		return nil, fmt.Errorf("rotate trust root: by version %d: %w", r.spec.Version, err)
	}
	next, err := ParseRoot(doc.Payload)
	if err != nil {
		return nil, fmt.Errorf("rotate trust root: %w", err)
	}
	switch {
	case next.spec.Name != r.spec.Name:
		return nil, fmt.Errorf("rotate trust root: its name is %s; %s is required", next.spec.Name, r.spec.Name)
	case next.spec.Version != r.spec.Version+1:
		return nil, fmt.Errorf("rotate trust root: its version is %d; %d follows %d", next.spec.Version, r.spec.Version+1, r.spec.Version)
	}
	if _, err := next.Verify(e, KindTrust); err != nil {
		return nil, fmt.Errorf("rotate trust root: by version %d itself: %w", next.spec.Version, err)
	}
	for _, id := range r.spec.Revoked {
		if !slices.Contains(next.spec.Revoked, id) {
			return nil, fmt.Errorf("rotate trust root: key %s is revoked in version %d and not in version %d; a revoked key stays revoked", id, r.spec.Version, next.spec.Version)
		}
	}
	return next, nil
}

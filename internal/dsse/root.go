package dsse

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// RoleRoot is the role whose keys sign trust roots.
const RoleRoot = "root"

// Root states whose keys are trusted, and for what. It is immutable once [ParseRoot] or
// [NewRoot] has returned it.
type Root struct {
	spec  RootSpec
	roles []role
	keys  map[string]key // by key id
}

// RootSpec is a trust root as written. Its JSON form is what [RoleRoot] signs.
type RootSpec struct {
	Name string `json:"name"`
	// Version is 1 at first, and one more at each rotation.
	Version int64      `json:"version"`
	Roles   []RoleSpec `json:"roles"`
	// Revoked are ids of keys whose signatures count for nothing any more, also earlier ones.
	Revoked []string `json:"revoked,omitempty"`
}

// RoleSpec is a role: people who may sign some kinds of documents.
type RoleSpec struct {
	Name string `json:"name"`
	// Threshold is how many identities have to sign a document of the role; 1 if it is 0.
	Threshold int `json:"threshold,omitempty"`
	// Kinds are the kinds of documents that the role signs.
	Kinds []Kind `json:"kinds"`
	// PredicateTypes are the in-toto predicate types of the evidence that the role signs.
	PredicateTypes []string  `json:"predicateTypes,omitempty"`
	Keys           []KeySpec `json:"keys"`
}

// KeySpec is one key of a person, or of a machine.
type KeySpec struct {
	// ID is the [PublicKey.KeyID] of Ed25519. It may be left out.
	ID string `json:"id,omitempty"`
	// Identity is the owner, as in ana@corp.example. Several keys may have one owner.
	Identity string `json:"identity"`
	// Ed25519 is the public key in base64, 32 bytes.
	Ed25519 string `json:"ed25519"`
}

type role struct {
	name      string
	threshold int
	kinds     []Kind
	keys      []string // ids
}

type key struct {
	identity string
	public   ed25519.PublicKey
	revoked  bool
}

// ParseRoot reads the JSON form of a root. The payload has to be trusted already: it comes
// from a file of the operator, or from [Root.Rotate].
func ParseRoot(payload []byte) (*Root, error) {
	var spec RootSpec
	if err := decode(payload, &spec, true); err != nil {
		return nil, fmt.Errorf("read trust root: %w", err)
	}
	return NewRoot(spec)
}

// NewRoot checks a root: every key belongs to one identity, every role can meet its
// threshold, and the role root is there and signs trust roots.
func NewRoot(spec RootSpec) (*Root, error) {
	r := &Root{spec: spec, keys: map[string]key{}}
	if !isText(spec.Name) || spec.Version < 1 {
		return nil, fmt.Errorf("trust root %s version %d: a name and a version from 1 are required", quote(spec.Name), spec.Version)
	}
	names := map[string]bool{}
	for i := range spec.Roles {
		if err := r.addRole(&spec.Roles[i], names); err != nil {
			return nil, fmt.Errorf("trust root %s: roles[%d]: %w", spec.Name, i, err)
		}
	}
	if err := r.checkIdentities(); err != nil {
		return nil, fmt.Errorf("trust root %s: %w", spec.Name, err)
	}
	for _, id := range spec.Revoked {
		if !isKeyID(id) { // one that is misspelled would revoke nothing
			return nil, fmt.Errorf("trust root %s: revoked: %s is not a key id; write SHA256: and 43 digits of base64, as the key's id", spec.Name, quote(id))
		}
		k := r.keys[id] // a key that no role lists any more is revoked as well
		k.revoked = true
		r.keys[id] = k
	}
	for _, role := range r.roles {
		if n := len(r.identities(role)); n < role.threshold {
			return nil, fmt.Errorf("trust root %s: role %s: threshold %d, but %d identities have a key that is not revoked", spec.Name, role.name, role.threshold, n)
		}
	}
	if !slices.ContainsFunc(r.roles, func(role role) bool { return role.name == RoleRoot && slices.Contains(role.kinds, KindTrust) }) {
		return nil, fmt.Errorf("trust root %s: no role %s signs kind %s; without one it could never be rotated", spec.Name, RoleRoot, KindTrust)
	}
	return r, nil
}

// addRole checks a role and its keys.
func (r *Root) addRole(spec *RoleSpec, names map[string]bool) error {
	if !isText(spec.Name) || names[spec.Name] {
		return fmt.Errorf("role %s has no name, or the name of another role", quote(spec.Name))
	}
	names[spec.Name] = true
	out := role{name: spec.Name, threshold: max(spec.Threshold, 1), kinds: spec.Kinds}
	if spec.Threshold < 0 || len(spec.Kinds) == 0 {
		return fmt.Errorf("role %s: a threshold from 1 and at least one kind are required", spec.Name)
	}
	for _, kind := range spec.Kinds {
		switch {
		case !kind.known():
			return fmt.Errorf("role %s: %s is not a kind of signed document", spec.Name, quote(string(kind)))
		case kind == KindTrust && spec.Name != RoleRoot:
			return fmt.Errorf("role %s: kind %s is signed by role %s alone", spec.Name, KindTrust, RoleRoot)
		}
	}
	for i := range spec.Keys {
		id, err := r.addKey(&spec.Keys[i])
		if err != nil {
			return fmt.Errorf("role %s: keys[%d]: %w", spec.Name, i, err)
		}
		out.keys = append(out.keys, id)
	}
	r.roles = append(r.roles, out)
	return nil
}

func (r *Root) addKey(spec *KeySpec) (id string, err error) {
	public, err := base64.StdEncoding.Strict().DecodeString(spec.Ed25519)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return "", fmt.Errorf("ed25519 of %s is not %d bytes in base64", quote(spec.Identity), ed25519.PublicKeySize)
	}
	if PublicKey(public).weak() {
		return "", fmt.Errorf("ed25519 of %s is no key of one person; make another one", quote(spec.Identity))
	}
	id = PublicKey(public).KeyID()
	known, again := r.keys[id]
	switch {
	case !isText(spec.Identity):
		return "", fmt.Errorf("key %s has no identity", id)
	case spec.ID != "" && spec.ID != id:
		return "", fmt.Errorf("id %s is not that of the key, which is %s", quote(spec.ID), id)
	case again && known.identity != spec.Identity:
		return "", fmt.Errorf("key %s belongs to %s and to %s", id, known.identity, spec.Identity)
	}
	r.keys[id] = key{identity: spec.Identity, public: public}
	return id, nil
}

// checkIdentities refuses identities that differ by the case of letters alone: one person
// would count as two.
func (r *Root) checkIdentities() error {
	known := map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(r.keys)) {
		identity := r.keys[id].identity
		folded := strings.ToLower(identity)
		if other, ok := known[folded]; ok && other != identity {
			first, second := min(identity, other), max(identity, other)
			return fmt.Errorf("identities %s and %s differ by case alone, and one person would count as two; write both alike", first, second)
		}
		known[folded] = identity
	}
	return nil
}

// isKeyID reports whether s has the form of a [PublicKey.KeyID].
func isKeyID(s string) bool {
	text, ok := strings.CutPrefix(s, "SHA256:")
	sum, err := base64.RawStdEncoding.Strict().DecodeString(text)
	return ok && err == nil && len(sum) == sha256.Size && len(text) == base64.RawStdEncoding.EncodedLen(sha256.Size)
}

// identities returns the owners of the role's keys that are not revoked.
func (r *Root) identities(role role) []string {
	var out []string
	for _, id := range role.keys {
		if k := r.keys[id]; !k.revoked {
			out = append(out, k.identity)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Spec returns the root as written. The caller must not change it.
func (r *Root) Spec() RootSpec { return r.spec }

// Digest returns the digest of the root: of its JSON form with the id of every key. Two roots
// with the same digest trust the same keys for the same.
func (r *Root) Digest() string {
	spec := r.spec
	spec.Roles = slices.Clone(spec.Roles)
	for i := range spec.Roles {
		keys := slices.Clone(spec.Roles[i].Keys)
		for j := range keys {
			public, err := base64.StdEncoding.DecodeString(keys[j].Ed25519)
			if err == nil { // NewRoot has checked it
				keys[j].ID = PublicKey(public).KeyID()
			}
		}
		spec.Roles[i].Keys, spec.Roles[i].Threshold = keys, max(spec.Roles[i].Threshold, 1)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return "" // strings and numbers alone are in it
	}
	return Digest(data)
}

// Threshold returns how many identities have to sign a document of the role, and 0 for a
// role that is not there.
func (r *Root) Threshold(name string) int {
	for _, role := range r.roles {
		if role.name == name {
			return role.threshold
		}
	}
	return 0
}

// isText reports whether s is printable ASCII without spaces, so that two names that look
// alike are alike.
func isText(s string) bool {
	return s != "" && len(s) <= maxText && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

func quote(s string) string { return strconv.QuoteToASCII(clip(s)) }

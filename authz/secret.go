package authz

import "encoding/json"

// redacted is what every way of printing a secret prints.
const redacted = "[redacted]"

// Secret is a value that does not print itself: every fmt verb, JSON and text
// encoding yield a placeholder. [Secret.Reveal] is the one way to the value,
// so a search for it finds every use. The zero Secret is empty.
type Secret struct {
	// A pointer hides the bytes from %#v and from reflection-based dumpers
	// that stop at pointers; the methods below deal with those that do not.
	value *string
}

// NewSecret returns value as a Secret.
func NewSecret(value string) Secret { return Secret{value: &value} }

// Reveal returns the value. Its callers put it on the wire to the one
// destination it is meant for, and nowhere else.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// Empty reports whether the secret is the empty string.
func (s Secret) Empty() bool { return s.value == nil || *s.value == "" }

// String returns a placeholder.
func (Secret) String() string { return redacted }

// GoString returns a placeholder, for %#v.
func (Secret) GoString() string { return redacted }

// MarshalJSON returns a placeholder.
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// MarshalText returns a placeholder.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

package authz

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
)

// redacted is what every way of printing a secret prints.
const redacted = "[redacted]"

// Secret is a value that does not print itself: every fmt verb, JSON and text
// encoding yield "[redacted]". [Secret.Reveal] is the only way to the value,
// so a search for it finds every use. The zero Secret is empty. Secrets
// compare with == by identity; [Secret.Equal] compares their values.
type Secret struct {
	// fmt does not call the methods of an unexported field, and dumpers built
	// on reflection follow pointers. Neither looks inside a function, so the
	// value lives in one. The pointer to it makes a Secret comparable.
	sealed *sealed
}

type sealed struct{ open func() string }

// NewSecret returns value as a Secret.
func NewSecret(value string) Secret {
	return Secret{&sealed{func() string { return value }}}
}

// Reveal returns the value. Callers put it on the wire to the one destination
// it is meant for, and nowhere else.
func (s Secret) Reveal() string {
	if s.sealed == nil {
		return ""
	}
	return s.sealed.open()
}

// Empty reports whether the secret is the empty string.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// Equal reports whether two secrets hold the same value, in constant time.
func (s Secret) Equal(other Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

// Format writes "[redacted]", for every verb of fmt.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String returns "[redacted]".
func (Secret) String() string { return redacted }

// GoString returns "[redacted]".
func (Secret) GoString() string { return redacted }

// MarshalJSON returns "[redacted]".
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// MarshalText returns "[redacted]".
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

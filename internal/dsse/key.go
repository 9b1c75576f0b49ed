package dsse

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Signer makes signatures with one key. A key in a file is a [PrivateKey]; a key that
// stays in Vault's transit engine is another.
type Signer interface {
	// Public returns the key's public half.
	Public() PublicKey
	// Sign returns the ed25519 signature of message (RFC 8032, section 5.1: not prehashed).
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// PublicKey is an ed25519 public key, 32 bytes.
type PublicKey ed25519.PublicKey

// KeyID returns the key's name in envelopes and trust roots: SHA256: and the base64
// SHA-256, without padding, of its SubjectPublicKeyInfo (RFC 8410).
func (k PublicKey) KeyID() string {
	der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(k))
	if err != nil {
		return "" // only a type of key that x509 does not know
	}
	sum := sha256.Sum256(der)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// weak reports whether k is one of the points of small order, for which everybody can make
// signatures that verify, or is not in canonical form, so that one key could have two ids
// (RFC 8032, sections 5.1.2 and 5.1.3). The sign of the other coordinate does not matter.
func (k PublicKey) weak() bool {
	y := string(k[:31]) + string(rune(k[31]&0x7f)) // little-endian
	switch y[1:31] {
	case "\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc":
		return y[0] == 0x26 && y[31] == 0x05 // of order 8
	case "\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03":
		return y[0] == 0xc7 && y[31] == 0x7a
	case strings.Repeat("\x00", 30):
		return y[0] <= 1 && y[31] == 0 // of order 4, and the neutral one
	case strings.Repeat("\xff", 30):
		return y[0] >= 0xec && y[31] == 0x7f // p-1, of order 2, and above
	}
	return false
}

// PrivateKey is an ed25519 key in memory.
type PrivateKey struct{ key ed25519.PrivateKey }

// GenerateKey makes a key from the system's random source.
func GenerateKey() (PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate key: %w", err)
	}
	return PrivateKey{key}, nil
}

const pemPrivate = "PRIVATE KEY"

// ParsePrivateKey reads a key in PKCS #8 and PEM (RFC 8410), as OpenSSL writes it.
func ParsePrivateKey(text []byte) (PrivateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemPrivate || len(rest) > 0 {
		return PrivateKey{}, errors.New("read private key: it is not one PEM block of type PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return PrivateKey{}, errors.New("read private key: it is not an ed25519 key in PKCS #8 (RFC 8410)")
	}
	return PrivateKey{key}, nil
}

// PEM returns the key in PKCS #8 and PEM. The caller keeps it secret.
func (k PrivateKey) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("write private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der}), nil
}

// Public returns the public half.
func (k PrivateKey) Public() PublicKey {
	public, _ := k.key.Public().(ed25519.PublicKey) // the method's documented type
	return PublicKey(public)
}

// Sign implements [Signer].
func (k PrivateKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(k.key, message), nil
}

// String hides the key from logs.
func (k PrivateKey) String() string { return "private key of " + k.Public().KeyID() }

// GoString hides the key from logs.
func (k PrivateKey) GoString() string { return k.String() }

// Sign returns an envelope with the signatures of the signers, in their order.
func Sign(ctx context.Context, kind Kind, payload []byte, signers ...Signer) (*Envelope, error) {
	if len(signers) == 0 {
		return nil, errors.New("sign document: no key is given")
	}
	if base64.StdEncoding.EncodedLen(len(payload)) > MaxEnvelope/2 {
		return nil, fmt.Errorf("sign document: it has %d bytes, too many for an envelope of %d", len(payload), MaxEnvelope)
	}
	out := &Envelope{PayloadType: kind.PayloadType(), Unverified: payload}
	for _, s := range signers {
		if err := out.Add(ctx, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Add adds a signature of one more key. A key that signed already signs again in its place.
func (e *Envelope) Add(ctx context.Context, s Signer) error {
	message := PAE(e.PayloadType, e.Unverified)
	id := s.Public().KeyID()
	sig, err := s.Sign(ctx, message)
	if err != nil {
		return fmt.Errorf("sign document with key %s: %w", id, err)
	}
	if !ed25519.Verify(ed25519.PublicKey(s.Public()), message, sig) {
		return fmt.Errorf("sign document with key %s: the signature does not verify", id)
	}
	for i := range e.Signatures {
		if e.Signatures[i].KeyID == id {
			e.Signatures[i].Bytes = sig
			return nil
		}
	}
	if len(e.Signatures) == maxSignatures {
		return fmt.Errorf("sign document: it has %d signatures already", maxSignatures)
	}
	e.Signatures = append(e.Signatures, Signature{id, sig})
	return nil
}

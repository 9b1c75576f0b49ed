package dsse

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of an envelope. A larger one is refused before it is decoded.
const (
	MaxEnvelope   = 4 << 20 // bytes
	maxSignatures = 64
	maxText       = 256 // bytes of a name, an identity or a key id
	maxDepth      = 64
)

// Kind is the kind of a signed document, as in grant or approval: lower-case letters, with
// dashes between them.
type Kind string

// The kinds of signed documents.
const (
	KindGrant      Kind = "grant"
	KindGuardrail  Kind = "guardrail"
	KindRevocation Kind = "revocation"
	KindRestore    Kind = "restore"
	KindHeartbeat  Kind = "heartbeat"
	KindApproval   Kind = "approval"
	KindSubmission Kind = "submission"
	KindEvidence   Kind = "evidence"
	KindTrust      Kind = "trust"
	KindExemption  Kind = "exemption"
	KindRubric     Kind = "rubric"
	KindSidecar    Kind = "sidecar"
	KindNotice     Kind = "notice"
	KindChecklist  Kind = "checklist"
)

const typePrefix, typeSuffix = "application/vnd.chaperone.", ".v1+json"

// PayloadType returns the media type of the kind, as in
// application/vnd.chaperone.grant.v1+json.
func (k Kind) PayloadType() string { return typePrefix + string(k) + typeSuffix }

// known reports whether the kind is one of the above. A kind that a later version adds is
// not trusted by this one.
func (k Kind) known() bool {
	switch k {
	case KindGrant, KindGuardrail, KindRevocation, KindRestore, KindHeartbeat, KindApproval, KindSubmission,
		KindEvidence, KindTrust, KindExemption, KindRubric, KindSidecar, KindNotice, KindChecklist:
		return true
	}
	return false
}

// Signature is one signature of an envelope.
type Signature struct {
	KeyID string // as in [KeyID]; a hint, which is not signed
	Bytes []byte
}

// Envelope is a payload with signatures, which are not verified yet.
type Envelope struct {
	PayloadType string
	// Unverified is the payload. Callers show it to the person who is to sign it; everything
	// else takes the payload from [Root.Verify].
	Unverified []byte
	Signatures []Signature
}

// PAE returns the bytes that are signed: the pre-authentication encoding of DSSE.
func PAE(payloadType string, payload []byte) []byte {
	out := make([]byte, 0, len(payloadType)+len(payload)+64)
	out = append(out, "DSSEv1 "...)
	out = strconv.AppendInt(out, int64(len(payloadType)), 10)
	out = append(out, ' ')
	out = append(out, payloadType...)
	out = append(out, ' ')
	out = strconv.AppendInt(out, int64(len(payload)), 10)
	out = append(out, ' ')
	return append(out, payload...)
}

// Digest returns the digest of the payload as documents refer to it: sha256: and 64
// hexadecimal digits.
func (e *Envelope) Digest() string { return Digest(e.Unverified) }

// Digest returns sha256: and the hexadecimal SHA-256 of data.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// envelopeJSON is the JSON form of an envelope.
type envelopeJSON struct {
	PayloadType string          `json:"payloadType"`
	Payload     string          `json:"payload"`
	Signatures  []signatureJSON `json:"signatures"`
}

type signatureJSON struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// Marshal returns the JSON form, ending in a newline.
func (e *Envelope) Marshal() []byte {
	out := envelopeJSON{PayloadType: e.PayloadType, Payload: base64.StdEncoding.EncodeToString(e.Unverified), Signatures: []signatureJSON{}}
	for _, s := range e.Signatures {
		out.Signatures = append(out.Signatures, signatureJSON{s.KeyID, base64.StdEncoding.EncodeToString(s.Bytes)})
	}
	data, _ := json.MarshalIndent(out, "", "  ") // strings always encode
	return append(data, '\n')
}

// Parse reads the JSON form. Unknown fields are ignored, as DSSE demands; a key that is
// given twice is an error, because two readers could take different ones.
func Parse(data []byte) (*Envelope, error) {
	var in envelopeJSON
	if err := decode(data, &in, false); err != nil {
		return nil, fmt.Errorf("read envelope: %w", err)
	}
	if in.PayloadType == "" || len(in.PayloadType) > maxText {
		return nil, fmt.Errorf("read envelope: payloadType has %d bytes; 1 to %d are allowed", len(in.PayloadType), maxText)
	}
	if len(in.Signatures) == 0 || len(in.Signatures) > maxSignatures {
		return nil, fmt.Errorf("read envelope: it has %d signatures; 1 to %d are allowed", len(in.Signatures), maxSignatures)
	}
	out := &Envelope{PayloadType: in.PayloadType}
	var err error
	if out.Unverified, err = decodeBase64(in.Payload); err != nil {
		return nil, fmt.Errorf("read envelope: payload: %w", err)
	}
	for i, s := range in.Signatures {
		sig, err := decodeBase64(s.Sig)
		if err != nil {
			return nil, fmt.Errorf("read envelope: signatures[%d].sig: %w", i, err)
		}
		if len(s.KeyID) > maxText {
			return nil, fmt.Errorf("read envelope: signatures[%d].keyid has %d bytes; at most %d are allowed", i, len(s.KeyID), maxText)
		}
		out.Signatures = append(out.Signatures, Signature{s.KeyID, sig})
	}
	return out, nil
}

// decodeBase64 reads either alphabet of RFC 4648, sections 4 and 5, as DSSE demands.
func decodeBase64(s string) ([]byte, error) {
	encoding := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		encoding = base64.URLEncoding
	}
	out, err := encoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("is not base64 with padding (RFC 4648)")
	}
	return out, nil
}

// Decode reads the payload of a verified document into out, as [Parse] reads an envelope:
// one JSON value in UTF-8, without a key that is given twice, of bounded size and depth.
// It refuses unknown fields.
func Decode(payload []byte, out any) error { return decode(payload, out, true) }

// decode reads one JSON value into out. strict refuses unknown fields.
func decode(data []byte, out any, strict bool) error {
	if len(data) > MaxEnvelope {
		return fmt.Errorf("it has %d bytes; at most %d are allowed", len(data), MaxEnvelope)
	}
	if err := CheckJSON(data); err != nil {
		return err
	}
	read := json.Unmarshal
	if strict {
		read = func(data []byte, out any) error {
			d := json.NewDecoder(bytes.NewReader(data))
			d.DisallowUnknownFields()
			return d.Decode(out)
		}
	}
	if err := read(data, out); err != nil {
		return fmt.Errorf("it is not the expected JSON: %w", err)
	}
	return nil
}

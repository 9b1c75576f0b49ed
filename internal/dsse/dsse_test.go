package dsse

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	oracle "github.com/secure-systems-lab/go-securesystemslib/dsse"
	"pgregory.net/rapid"
)

func newKey(t testing.TB) PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keySpec(identity string, k PrivateKey) KeySpec {
	return KeySpec{Identity: identity, Ed25519: base64.StdEncoding.EncodeToString(k.Public())}
}

func sign(t testing.TB, kind Kind, payload string, keys ...PrivateKey) *Envelope {
	t.Helper()
	signers := make([]Signer, len(keys))
	for i, k := range keys {
		signers[i] = k
	}
	e, err := Sign(t.Context(), kind, []byte(payload), signers...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// The example of the specification's protocol.md.
func TestPAE(t *testing.T) {
	got := string(PAE("http://example.com/HelloWorld", []byte("hello world")))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("PAE is %q, want %q", got, want)
	}
}

func TestKeyPEM(t *testing.T) {
	k := newKey(t)
	text, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParsePrivateKey(text)
	if err != nil || again.Public().KeyID() != k.Public().KeyID() {
		t.Fatalf("key read again is %v, %v", again, err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "text": []byte("key"), "two blocks": append(bytes.Clone(text), text...),
		"other type": bytes.ReplaceAll(text, []byte("PRIVATE KEY"), []byte("EC PRIVATE KEY")),
		"cut short":  []byte("-----BEGIN PRIVATE KEY-----\nMC4CAQ==\n-----END PRIVATE KEY-----\n"),
	} {
		if _, err := ParsePrivateKey(bad); err == nil {
			t.Errorf("%s was read as a private key", name)
		}
	}
	for _, shown := range []string{fmt.Sprintf("%v", k), fmt.Sprintf("%+v", k), fmt.Sprintf("%#v", k)} {
		if !strings.HasPrefix(shown, "private key of SHA256:") {
			t.Errorf("formatting shows %q", shown)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(sign(t, KindGrant, `{}`, newKey(t)).Marshal())
	tests := map[string]struct{ text, want string }{
		"nothing":           {"", "not JSON"},
		"list":              {"[]", "not the expected JSON"},
		"two values":        {good + good, "goes on"},
		"key twice":         {`{"payload":"e30=","payload":"e30K","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`, "given twice"},
		"key in two cases":  {`{"payload":"e30=","Payload":"e30K","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`, "given twice"},
		"key folded":        {`{"payload":"e30=","payloadType":"t","signatures":[{"keyid":"k","sig":"AA==","ſig":"AQ=="}]}`, "given twice"},
		"key escaped":       {`{"payload":"e30=","p\u0061yload":"e30K","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`, "given twice"},
		"no type":           {`{"payload":"e30=","signatures":[{"keyid":"k","sig":"AA=="}]}`, "payloadType has 0 bytes"},
		"no signature":      {`{"payload":"e30=","payloadType":"t","signatures":[]}`, "0 signatures"},
		"many signatures":   {`{"payload":"e30=","payloadType":"t","signatures":[` + strings.Repeat(`{"keyid":"k","sig":"AA=="},`, maxSignatures) + `{"keyid":"k","sig":"AA=="}]}`, "65 signatures"},
		"payload no base64": {`{"payload":"e30","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`, "payload: is not base64"},
		"payload in lines":  {`{"payload":"e3\n0=","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`, "payload: is not base64"},
		"loose bits":        {`{"payload":"e31=","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`, "payload: is not base64"},
		"sig no base64":     {`{"payload":"e30=","payloadType":"t","signatures":[{"keyid":"k","sig":"*"}]}`, "signatures[0].sig: is not base64"},
		"long key id":       {`{"payload":"e30=","payloadType":"t","signatures":[{"keyid":"` + strings.Repeat("k", maxText+1) + `","sig":"AA=="}]}`, "keyid has 257"},
		"deep":              {strings.Repeat("[", 1000) + strings.Repeat("]", 1000), "nests deeper"},
		"not UTF-8":         {"{\"payload\":\"\xff\"}", "not UTF-8"},
		"large":             {`{"x":"` + strings.Repeat("x", MaxEnvelope) + `"}`, "at most 4194304"},
	}
	for name, test := range tests {
		if _, err := Parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
}

// Another implementation accepts what this one signs, and the other way round.
func TestOtherImplementation(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		k := newKey(t)
		payload := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(r, "payload")
		ours, err := Sign(t.Context(), KindApproval, payload, k)
		if err != nil {
			r.Fatal(err)
		}
		other := oracleKey{k}
		verifier, err := oracle.NewEnvelopeVerifier(other)
		if err != nil {
			r.Fatal(err)
		}
		theirs := &oracle.Envelope{PayloadType: ours.PayloadType, Payload: base64.StdEncoding.EncodeToString(ours.Unverified)}
		for _, s := range ours.Signatures {
			theirs.Signatures = append(theirs.Signatures, oracle.Signature{KeyID: s.KeyID, Sig: base64.StdEncoding.EncodeToString(s.Bytes)})
		}
		if _, err := verifier.Verify(t.Context(), theirs); err != nil {
			r.Fatalf("the other implementation refuses ours: %v", err)
		}
		signer, err := oracle.NewEnvelopeSigner(other)
		if err != nil {
			r.Fatal(err)
		}
		signed, err := signer.SignPayload(t.Context(), ours.PayloadType, payload)
		if err != nil {
			r.Fatal(err)
		}
		raw, err := base64.StdEncoding.DecodeString(signed.Signatures[0].Sig)
		if err != nil || !ed25519.Verify(ed25519.PublicKey(k.Public()), PAE(ours.PayloadType, payload), raw) {
			r.Fatalf("the other implementation's signature does not verify (%v)", err)
		}
	})
}

// oracleKey is a key for the other implementation.
type oracleKey struct{ PrivateKey }

func (k oracleKey) Sign(ctx context.Context, data []byte) ([]byte, error) {
	return k.PrivateKey.Sign(ctx, data)
}

func (k oracleKey) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(ed25519.PublicKey(k.PrivateKey.Public()), data, sig) {
		return fmt.Errorf("does not verify")
	}
	return nil
}

func (k oracleKey) KeyID() (string, error) { return k.PrivateKey.Public().KeyID(), nil }

func (k oracleKey) Public() crypto.PublicKey { return ed25519.PublicKey(k.PrivateKey.Public()) }

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"payload":"e30=","payloadType":"t","signatures":[{"keyid":"k","sig":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(e.Marshal())
		if err != nil || again.PayloadType != e.PayloadType || !bytes.Equal(again.Unverified, e.Unverified) || len(again.Signatures) != len(e.Signatures) {
			t.Errorf("%q written and read again is %v, %v", data, again, err)
		}
	})
}

package vault

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Algorithm is a way to sign, by its name in JSON Web Signatures (RFC 7518,
// section 3.1; RFC 8037).
type Algorithm string

// The algorithms. The key in Vault's transit engine must be of their kind.
const (
	HS256 Algorithm = "HS256"
	HS384 Algorithm = "HS384"
	HS512 Algorithm = "HS512"
	RS256 Algorithm = "RS256"
	RS384 Algorithm = "RS384"
	RS512 Algorithm = "RS512"
	PS256 Algorithm = "PS256"
	PS384 Algorithm = "PS384"
	PS512 Algorithm = "PS512"
	ES256 Algorithm = "ES256"
	ES384 Algorithm = "ES384"
	ES512 Algorithm = "ES512"
	EdDSA Algorithm = "EdDSA"
)

// Sign has Vault's transit engine sign input and returns the signature as JSON Web
// Signatures want it: the bytes of an HMAC, of RSA or of Ed25519, and of ECDSA r and s side
// by side. The key never leaves Vault. ref.Path is MOUNT/sign/KEY, or MOUNT/hmac/KEY for
// HS256 and its like. Signatures are not kept: each call asks Vault. version is which of
// the key's versions signs, 0 for the latest; the one that did is returned. Its error holds
// no secret and not the input, and has a method RetryAfter if trying again may help.
func (b *Broker) Sign(ctx context.Context, ref authz.CredentialRef, with Algorithm, version int, input []byte) ([]byte, int, error) {
	path, body, err := signRequest(ref.Path, with, input)
	if err != nil {
		return nil, 0, fmt.Errorf("sign by %s: %w", ref.Path, err)
	}
	if version > 0 {
		body["key_version"] = version
	}
	if err := b.leases.checkSign(ref); err != nil {
		return nil, 0, err
	}
	answer, err := b.sign(ctx, path, call{op: "sign by " + ref.Path, method: http.MethodPost, path: path, body: body})
	if err != nil {
		return nil, 0, err
	}
	signature, signedBy, err := signatureOf(answer, with)
	if err == nil && version > 0 && signedBy != version {
		err = fmt.Errorf("version %d of the key signed in place of %d", signedBy, version)
	}
	if err != nil {
		return nil, 0, b.errors.unusable("sign by "+ref.Path, err)
	}
	return signature, signedBy, nil
}

// sign asks Vault, with a new token if Vault refuses the one in force.
func (b *Broker) sign(ctx context.Context, path string, c call) (*api.Secret, error) {
	for retried := false; ; retried = true {
		s, err := b.login.authenticate(ctx, 0)
		if err != nil {
			return nil, err
		}
		if err := b.limits.check(path, true); err != nil {
			return nil, err
		}
		c.token = s.token
		answer, err := b.client.do(ctx, c)
		b.limits.record(path, err)
		if !retried && b.login.tokenInvalid(ctx, s, err) {
			continue
		}
		return answer, err
	}
}

// signRequest returns what the transit engine is asked (Vault API, "Transit
// secrets engine", sign data and generate HMAC). Digests are sent where that is
// possible, so that a request is small whatever the input.
func signRequest(path string, with Algorithm, input []byte) (string, map[string]any, error) {
	parts := strings.Split(path, "/")
	verb := ""
	if len(parts) >= 3 {
		verb = parts[len(parts)-2]
	}
	kind, hash := with, ""
	if with != EdDSA && len(with) == len(HS256) {
		kind, hash = with[:2], "sha2-"+string(with[2:])
	}
	body := map[string]any{"input": base64.StdEncoding.EncodeToString(input)}
	if wanted := map[bool]string{true: "hmac", false: "sign"}[kind == "HS"]; verb != wanted {
		return "", nil, fmt.Errorf("algorithm %q needs a path such as transit/%s/KEY", with, wanted)
	}
	switch kind {
	case "HS":
		return path + "/" + hash, body, nil
	case EdDSA:
		return path, body, nil
	case "RS":
		body["signature_algorithm"] = "pkcs1v15"
	case "PS": // the salt is as long as the digest (RFC 7518, section 3.5)
		body["signature_algorithm"], body["salt_length"] = "pss", "hash"
	case "ES":
		body["marshaling_algorithm"] = "jws"
	default:
		return "", nil, fmt.Errorf("unknown algorithm %q", with)
	}
	digest, ok := digestOf(hash, input)
	if !ok {
		return "", nil, fmt.Errorf("unknown algorithm %q", with)
	}
	body["input"], body["prehashed"] = base64.StdEncoding.EncodeToString(digest), true
	return path + "/" + hash, body, nil
}

func digestOf(hash string, input []byte) ([]byte, bool) {
	switch hash {
	case "sha2-256":
		sum := sha256.Sum256(input)
		return sum[:], true
	case "sha2-384":
		sum := sha512.Sum384(input)
		return sum[:], true
	case "sha2-512":
		sum := sha512.Sum512(input)
		return sum[:], true
	}
	return nil, false
}

// signatureOf returns the bytes of "vault:v1:BASE64", and the version of the key. A
// signature that is marshalled as in JWS is in the base64 of JWS too.
func signatureOf(answer *api.Secret, with Algorithm) ([]byte, int, error) {
	var text string
	if answer != nil {
		text, _ = answer.Data["signature"].(string)
		if hmac, ok := answer.Data["hmac"].(string); ok {
			text = hmac
		}
	}
	parts := strings.Split(text, ":")
	if len(parts) != 3 || parts[0] != "vault" {
		return nil, 0, errors.New("the answer has no signature")
	}
	version, err := strconv.Atoi(strings.TrimPrefix(parts[1], "v"))
	if err != nil || version < 1 {
		return nil, 0, errors.New("the signature names no version of its key")
	}
	encoding := base64.StdEncoding
	if strings.HasPrefix(string(with), "ES") {
		encoding = base64.RawURLEncoding
	}
	signature, err := encoding.DecodeString(parts[2])
	if err != nil || len(signature) == 0 {
		return nil, 0, errors.New("the signature cannot be read")
	}
	return signature, version, nil
}

// versionInKeyID stands in a key id for the version of the key that signs.
const versionInKeyID = "{version}"

// SignJWT returns a JSON Web Token (RFC 7519) of claims that Vault has signed.
//
// ref.Token.KeyID is its kid, "" for none, in which {version} stands for the
// version of the key that signs. ref.Token.KeyVersion is that version. Where it is
// 0 the latest one signs if the kid can follow it, and else the one that signed
// the first token with this kid: after a rotation of the key, a kid that names the
// old version must not stand over a signature of the new one.
func (b *Broker) SignJWT(ctx context.Context, ref authz.CredentialRef, claims map[string]any) (authz.Secret, error) {
	follows := ref.Token.KeyVersion == 0 && (ref.Token.KeyID == "" || strings.Contains(ref.Token.KeyID, versionInKeyID))
	use := keyUse{path: ref.Path, keyID: ref.Token.KeyID}
	assumed := ref.Token.KeyVersion
	if assumed == 0 {
		assumed = b.keyVersion(use)
	}
	asked := assumed
	if follows {
		asked = 0
	}
	for range 3 { // the key may be rotated between two requests
		token, signedBy, err := b.signJWT(ctx, ref, asked, max(assumed, 1), claims)
		if err != nil {
			return authz.Secret{}, err
		}
		b.setKeyVersion(use, signedBy)
		if signedBy == max(assumed, 1) || !strings.Contains(ref.Token.KeyID, versionInKeyID) {
			return token, nil
		}
		assumed, asked = signedBy, signedBy
	}
	return authz.Secret{}, b.errors.unusable("sign by "+ref.Path, errors.New("the key's version does not stay the same"))
}

// signJWT asks for one signature by a version of the key, 0 for the latest, over
// a header that names another.
func (b *Broker) signJWT(ctx context.Context, ref authz.CredentialRef, version, named int, claims map[string]any) (authz.Secret, int, error) {
	with := Algorithm(ref.Token.Algorithm)
	header := map[string]string{"alg": string(with), "typ": "JWT"}
	if id := ref.Token.KeyID; id != "" {
		header["kid"] = strings.ReplaceAll(id, versionInKeyID, strconv.Itoa(named))
	}
	head, err := json.Marshal(header)
	if err != nil {
		return authz.Secret{}, 0, fmt.Errorf("encode header: %w", err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return authz.Secret{}, 0, errors.New("encode claims: they are not JSON") // the error may quote them
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(head) + "." + encode(payload)
	signature, signedBy, err := b.Sign(ctx, ref, with, version, []byte(signed))
	if err != nil {
		return authz.Secret{}, 0, err
	}
	return authz.NewSecret(signed + "." + encode(signature)), signedBy, nil
}

// keyUse is a key of the transit engine under one kid.
type keyUse struct{ path, keyID string }

// keyVersions remembers which version of a key signed last under each kid.
type keyVersions struct {
	mu    sync.Mutex
	byUse map[keyUse]int
}

// keyVersion returns the version that signed last, 0 where none did.
func (b *Broker) keyVersion(use keyUse) int {
	b.keys.mu.Lock()
	defer b.keys.mu.Unlock()
	return b.keys.byUse[use]
}

func (b *Broker) setKeyVersion(use keyUse, version int) {
	b.keys.mu.Lock()
	defer b.keys.mu.Unlock()
	if b.keys.byUse == nil {
		b.keys.byUse = make(map[keyUse]int)
	}
	b.keys.byUse[use] = version
}

package tokens

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/vault"
)

// brokerOf returns a broker that logs in to v with a policy.
func brokerOf(t testing.TB, v *testenv.Vault, policy string) *vault.Broker {
	t.Helper()
	login := testenv.MustGet(v.AppRole(t.Context(), "weather", testenv.AppRole{Policy: policy}))(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		testenv.Must(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	b := testenv.MustGet(vault.New(vault.Config{Plugin: "weather", Address: v.Address, Auth: vault.Auth{
		Method: vault.MethodAppRole, RoleIDFile: file("role-id", login.RoleID), SecretIDFile: file("secret-id", login.SecretID),
	}}))(t)
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = b.Run(ended)
	})
	return b
}

func jwtRef(algorithm, key string) authz.CredentialRef {
	return authz.CredentialRef{Plugin: "weather", Grant: "weather", Name: key, Path: "transit/sign/" + key, Token: authz.TokenSpec{
		Kind: authz.TokenJWT, Algorithm: algorithm, KeyID: "k1", Issuer: "chaperone", Subject: "weather", Audience: "https://api.example",
		Lifetime: 5 * time.Minute, Claims: `{"iss":"another","tenant":"a"}`,
	}}
}

// TestVaultSignsTokens has the real transit engine sign, and checks the
// signature with its public key.
func TestVaultSignsTokens(t *testing.T) {
	testenv.Require(t, testenv.VaultServer())
	v := testenv.MustVault(t, testenv.VaultConfig{})
	ctx := t.Context()
	testenv.Must(t, v.EnableEngine(ctx, "transit", "transit", nil))
	b := brokerOf(t, v, `path "transit/sign/*" { capabilities = ["update"] }`)
	clock := &clock{}
	s := testenv.MustGet(New(Config{Source: b, Sign: b.SignJWT, Dial: (&net.Dialer{}).DialContext, Now: clock.now}))(t)
	t.Cleanup(func() { _ = s.Close() })
	for algorithm, kind := range map[string]string{"RS256": "rsa-2048", "PS256": "rsa-2048", "ES256": "ecdsa-p256"} {
		key := strings.ToLower(algorithm)
		testenv.MustGet(v.Write(ctx, "transit/keys/"+key, map[string]any{"type": kind}))(t)
		ref := jwtRef(algorithm, key)
		c := testenv.MustGet(s.Credential(ctx, ref))(t)
		claims := verify(t, v, key, c.Fields["jwt"].Reveal())
		now := float64(clock.now().Unix())
		if claims["iss"] != "chaperone" || claims["sub"] != "weather" || claims["aud"] != "https://api.example" || claims["tenant"] != "a" {
			t.Errorf("%s: claims %v", algorithm, claims)
		}
		iat, exp := claims["iat"].(float64), claims["exp"].(float64)
		if exp-iat != 300 || now-iat > 30 || now < iat || float64(c.NotAfter.Unix()) > exp {
			t.Errorf("%s: from %v to %v, served until %d", algorithm, iat, exp, c.NotAfter.Unix())
		}
		again := testenv.MustGet(s.Credential(ctx, ref))(t)
		if again.Generation != c.Generation {
			t.Errorf("%s: signed again within its life", algorithm)
		}
		clock.advance(4 * time.Minute) // past two thirds
		wait(t, "the next token", func() bool {
			next, err := s.Credential(ctx, ref)
			return err == nil && verify(t, v, key, next.Fields["jwt"].Reveal())["jti"] != claims["jti"]
		})
	}
	if err := errorOf(s.Credential(ctx, jwtRef("RS256", "missing"))); !strings.Contains(err, "transit/sign/missing") {
		t.Error(err)
	}
}

func errorOf(_ authz.Credential, err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// verify checks a token of kid k1 with the first public key that Vault shows.
func verify(t testing.TB, v *testenv.Vault, key, token string) map[string]any {
	t.Helper()
	kid, claims := verifyBy(t, v, key, "1", token)
	if kid != "k1" {
		t.Fatalf("kid %q", kid)
	}
	return claims
}

// verifyBy checks a token with a version of a key, and returns its kid.
func verifyBy(t testing.TB, v *testenv.Vault, key, version, token string) (kid string, claims map[string]any) {
	t.Helper()
	answer := testenv.MustGet(v.Read(t.Context(), "transit/keys/"+key))(t)
	versions := answer["keys"].(map[string]any)
	text := versions[version].(map[string]any)["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
	public := testenv.MustGet(x509.ParsePKIXPublicKey(block.Bytes))(t)
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	decode := base64.RawURLEncoding.DecodeString
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	signature := testenv.MustGet(decode(parts[2]))(t)
	var header map[string]string
	testenv.Must(t, json.Unmarshal(testenv.MustGet(decode(parts[0]))(t), &header))
	var ok bool
	switch k := public.(type) {
	case *rsa.PublicKey:
		if header["alg"] == "PS256" {
			ok = rsa.VerifyPSS(k, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		} else {
			ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], signature) == nil
		}
	case *ecdsa.PublicKey:
		ok = len(signature) == 64 && ecdsa.Verify(k, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	if !ok || header["typ"] != "JWT" {
		t.Fatalf("the signature of %v is not that of version %s", header, version)
	}
	testenv.Must(t, json.Unmarshal(testenv.MustGet(decode(parts[1]))(t), &claims))
	return header["kid"], claims
}

// TestKeyRotation rotates the key of a token: the kid names the version that signs,
// before and after.
func TestKeyRotation(t *testing.T) {
	testenv.Require(t, testenv.VaultServer())
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableEngine(t.Context(), "transit", "transit", nil))
	testenv.MustGet(v.Write(t.Context(), "transit/keys/w", map[string]any{"type": "ecdsa-p256"}))(t)
	b := brokerOf(t, v, `path "transit/sign/*" { capabilities = ["update"] }`)
	type use struct {
		keyID   string
		version int
		want    [4]string // version and kid: before and after a rotation
	}
	uses := []use{
		{"w-1", 0, [4]string{"1", "w-1", "1", "w-1"}},
		{"w-{version}", 0, [4]string{"1", "w-1", "2", "w-2"}},
		{"", 0, [4]string{"1", "", "2", ""}},
		{"fixed", 1, [4]string{"1", "fixed", "1", "fixed"}},
	}
	check := func(u use, version, kid string) {
		t.Helper()
		ref := jwtRef("ES256", "w")
		ref.Token.KeyID, ref.Token.KeyVersion = u.keyID, u.version
		token := testenv.MustGet(b.SignJWT(t.Context(), ref, map[string]any{"sub": "weather"}))(t)
		if got, _ := verifyBy(t, v, "w", version, token.Reveal()); got != kid {
			t.Errorf("keyID %q, version %s: kid %q", u.keyID, version, got)
		}
	}
	for _, u := range uses {
		check(u, u.want[0], u.want[1])
	}
	testenv.MustGet(v.Write(t.Context(), "transit/keys/w/rotate", nil))(t)
	for _, u := range uses {
		check(u, u.want[2], u.want[3])
	}
	check(use{keyID: "new"}, "2", "new") // first used now
	testenv.MustGet(v.Write(t.Context(), "transit/keys/w/config", map[string]any{"min_encryption_version": 2}))(t)
	ref := jwtRef("ES256", "w")
	ref.Token.KeyID = "w-1"
	if _, err := b.SignJWT(t.Context(), ref, nil); err == nil {
		t.Error("a version that may no longer sign did")
	}
}

func TestTokensThatAreNotSigned(t *testing.T) {
	asked := 0
	sign := func(context.Context, authz.CredentialRef, map[string]any) (authz.Secret, error) {
		asked++
		return authz.Secret{}, errors.New("sealed")
	}
	r := newEnv(t, func(cfg *Config) { cfg.Sign = sign })
	for range 3 {
		if err := r.mustFail(t, jwtRef("RS256", "k")); !strings.Contains(err.Error(), "sealed") {
			t.Error(err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	short := jwtRef("RS256", "short")
	short.Lifetime = 100 * time.Millisecond
	_ = r.mustFail(t, short)
	none := newEnv(t, nil)
	_ = none.mustFail(t, jwtRef("RS256", "k"))
	odd := none.ref(func(ref *authz.CredentialRef) { ref.Token.Kind = "saml" })
	if err := none.mustFail(t, odd); !strings.Contains(err.Error(), "saml") || asked != 1 {
		t.Error(err)
	}
}

func TestClaimsKeepNumbersAndRefuseOtherJSON(t *testing.T) {
	claims := testenv.MustGet(claimsOf(authz.TokenSpec{Claims: `{"n":9007199254740993}`}, time.Now(), time.Minute))(t)
	if got := testenv.MustGet(json.Marshal(claims["n"]))(t); string(got) != "9007199254740993" {
		t.Errorf("n is %s", got)
	}
	for _, text := range []string{"null", "[]", "1", "{"} {
		if _, err := claimsOf(authz.TokenSpec{Claims: text}, time.Now(), time.Minute); err == nil {
			t.Errorf("claims %s", text)
		}
	}
}

// warmSource returns a source over a real broker with a token in it.
func warmSource(t testing.TB) (*Source, *vault.Broker, authz.CredentialRef) {
	t.Helper()
	testenv.Require(t, testenv.VaultServer())
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"client_id": clientID, "client_secret": clientSecret}))
	b := brokerOf(t, v, `path "secret/data/weather" { capabilities = ["read"] }`)
	r := newEnv(t, func(cfg *Config) { cfg.Source, cfg.Now = b, time.Now })
	ref := r.ref()
	r.token(t, ref)
	return r.source, b, ref
}

func TestWarmTokenAllocatesNothing(t *testing.T) {
	s, _, ref := warmSource(t)
	plain := ref
	plain.Token = authz.TokenSpec{}
	for _, ref := range []authz.CredentialRef{ref, plain} {
		testenv.MustGet(s.Credential(t.Context(), ref))(t)
		if got := testing.AllocsPerRun(1000, func() { _, _ = s.Credential(t.Context(), ref) }); got != 0 {
			t.Errorf("%v allocations with kind %q", got, ref.Token.Kind)
		}
	}
}

// BenchmarkCredential gets a warm token, and what the broker alone takes for
// what it is got with.
func BenchmarkCredential(b *testing.B) {
	s, broker, ref := warmSource(b)
	for name, source := range map[string]authz.CredentialSource{"broker": broker, "token": s} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := source.Credential(b.Context(), ref); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestBackdate: iat is before the present as stated, and the end stays.
func TestBackdate(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	claims := testenv.MustGet(claimsOf(authz.TokenSpec{Backdate: time.Minute}, now, 5*time.Minute))(t)
	if claims["iat"] != now.Unix()-60 || claims["exp"] != now.Unix()+300 {
		t.Errorf("claims %v", claims)
	}
}

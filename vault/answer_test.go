package vault

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// A static role's password is Vault's to replace. The old one is not served for
// longer than a poll after that, and never once an upstream has refused it.
func TestStaticRole(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.PostgreSQL())
	db := testenv.MustPostgres(t)
	testenv.MustGet(db.Query(t.Context(), "CREATE ROLE app LOGIN PASSWORD 'initial'"))(t)
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableDatabase(t.Context(), "database", db))
	testenv.Must(t, v.StaticDatabaseRole(t.Context(), "database", "app", "app", 5*time.Second))
	f := newFaults(t, v)
	var log journal
	b, stop := run(t, Config{Address: f.address, Recorder: &log, Auth: approle(t, v, "weather", testenv.AppRole{
		Policy: `path "database/static-creds/*" { capabilities = ["read"] }`, TokenTTL: time.Hour,
	})})
	app := ref("app", "database/static-creds/app")
	b.Retain(t.Context(), []authz.CredentialRef{app})
	stale := 0
	for end := time.Now().Add(14 * time.Second); time.Now().Before(end) && log.count("replaced") < 2; time.Sleep(20 * time.Millisecond) {
		c := testenv.MustGet(b.Credential(t.Context(), app))(t)
		if left := time.Until(c.NotAfter); left > 6*time.Second || c.Lease != "" {
			t.Fatalf("served for %s, lease %q", left, c.Lease)
		}
		if logsIn(t, db, c) {
			continue
		}
		stale++
		b.Refused(app.Grant, app.Name, c.Generation, http.StatusForbidden)
		until(t, "the refused value is replaced", func() bool {
			again := testenv.MustGet(b.Credential(t.Context(), app))(t)
			return again.Generation > c.Generation && logsIn(t, db, again)
		})
	}
	if log.count("replaced") < 2 || log.count("lost") != 0 || stale > 2 {
		t.Errorf("stale %d times, records %s", stale, &log)
	}
	asked := f.count("database/static-creds/app")
	if asked > 40 {
		t.Errorf("read %d times in two rotations", asked)
	}
	// A value that is refused over and over is not read over and over.
	for range 100 {
		c := testenv.MustGet(b.Credential(t.Context(), app))(t)
		b.Refused(app.Grant, app.Name, c.Generation, http.StatusForbidden)
	}
	if got := f.count("database/static-creds/app") - asked; got > 4 {
		t.Errorf("100 refusals read it %d times", got)
	}
	testenv.Must(t, stop())
}

const issueCertificates = `path "pki/issue/*" { capabilities = ["update"] }
path "pki/revoke" { capabilities = ["update"] }
`

// pki mounts an engine at pki/ with the role client, whose certificates live
// for ttl.
func pki(t testing.TB, v *testenv.Vault, ttl time.Duration, more map[string]any) {
	t.Helper()
	testenv.MustGet(v.EnablePKI(t.Context(), "pki"))(t)
	role := map[string]any{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "ttl": ttl.String(), "not_before_duration": "1s"}
	maps.Copy(role, more)
	testenv.MustGet(v.Write(t.Context(), "pki/roles/client", role))(t)
}

func issued(common string) authz.CredentialRef {
	r := ref("cert", "pki/issue/client")
	r.Parameters = `{"common_name":"` + common + `"}`
	return r
}

func keyPair(t testing.TB, c authz.Credential) *x509.Certificate {
	t.Helper()
	pair := testenv.MustGet(tls.X509KeyPair([]byte(c.PEM["certificate"].Reveal()), []byte(c.PEM["private_key"].Reveal())))(t)
	return pair.Leaf
}

func isRevoked(t testing.TB, v *testenv.Vault, serial string) bool {
	t.Helper()
	answer := testenv.MustGet(v.Read(t.Context(), "pki/cert/"+serial))(t)
	at, _ := answer["revocation_time"].(float64)
	return at > 0
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	pki(t, v, 9*time.Second, nil)
	state := filepath.Join(t.TempDir(), "leases.json")
	logger, logged := writing()
	var log journal
	auth := approle(t, v, "weather", testenv.AppRole{Policy: issueCertificates, TokenTTL: 4 * time.Second})
	cfg := Config{Plugin: plugin, Address: v.Address, Auth: auth, StateFile: state, Logger: logger, Recorder: &log}
	b, stop := run(t, cfg)
	client := issued("weather.plugins.example")
	b.Retain(t.Context(), []authz.CredentialRef{client})
	first := testenv.MustGet(b.Credential(t.Context(), client))(t)
	leaf := keyPair(t, first)
	if leaf.Subject.CommonName != "weather.plugins.example" || first.NotAfter.After(leaf.NotAfter) || first.PEM["issuing_ca"].Empty() {
		t.Errorf("certificate of %s until %s, served until %s", leaf.Subject, leaf.NotAfter, first.NotAfter)
	}
	serial := first.Fields["serial_number"].Reveal()
	if first.Lease != "pki/cert/"+serial {
		t.Errorf("lease %q of serial %q", first.Lease, serial)
	}
	var second authz.Credential
	until(t, "it is replaced in time", func() bool {
		second = testenv.MustGet(b.Credential(t.Context(), client))(t)
		if !time.Now().Before(keyPair(t, second).NotAfter) {
			t.Fatal("an ended certificate is served")
		}
		return second.Generation != first.Generation
	})
	if left := time.Until(leaf.NotAfter); left < time.Second || left > 6*time.Second || log.count("leased")+log.count("replaced") != 2 {
		t.Errorf("replaced %s before its end, records %s", left, &log)
	}
	until(t, "the former one is revoked", func() bool { return isRevoked(t, v, serial) })
	testenv.Must(t, stop())
	if last := second.Fields["serial_number"].Reveal(); !isRevoked(t, v, last) || len(stateOf(t, state)) != 0 {
		t.Errorf("after shutdown %q is left, and in the state file %q", last, stateOf(t, state))
	}

	// The next sidecar revokes the certificates of a killed one.
	killed := testenv.MustGet(New(cfg))(t)
	third := testenv.MustGet(killed.Credential(t.Context(), client))(t)
	run(t, cfg)
	until(t, "the certificate is revoked", func() bool { return isRevoked(t, v, third.Fields["serial_number"].Reveal()) })

	text := logged.String() + log.String() + string(testenv.MustGet(os.ReadFile(state))(t))
	for _, c := range []authz.Credential{first, second, third} {
		for line := range strings.Lines(c.PEM["private_key"].Reveal()) {
			if strings.Contains(text, strings.TrimSpace(line)) {
				t.Fatalf("a private key is printed: %s", text)
			}
		}
	}
}

// With leases a certificate is one like any other, but ends with itself; without the
// permission to revoke it stays, and a record reports that.
func TestCertificatesOtherwise(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	pki(t, v, time.Hour, map[string]any{"generate_lease": true})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: issueCertificates + revokeLeases, TokenTTL: 2 * time.Hour})
	b, stop := run(t, Config{Address: v.Address, Auth: auth})
	c := testenv.MustGet(b.Credential(t.Context(), issued("a.example")))(t)
	if !strings.HasPrefix(c.Lease, "pki/issue/client/") || len(testenv.MustGet(v.Leases(t.Context(), "pki/issue/client"))(t)) != 1 {
		t.Errorf("lease %q", c.Lease)
	}
	testenv.Must(t, stop())
	if !isRevoked(t, v, c.Fields["serial_number"].Reveal()) {
		t.Error("it is left after shutdown")
	}

	testenv.MustGet(v.Write(t.Context(), "pki/roles/client", map[string]any{"allow_any_name": true, "key_type": "ec", "key_bits": 256, "ttl": "1h"}))(t)
	auth = approle(t, v, "issuer", testenv.AppRole{Policy: `path "pki/issue/*" { capabilities = ["update"] }`, TokenTTL: time.Hour})
	var log journal
	b, _ = run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	testenv.MustGet(b.Credential(t.Context(), issued("a.example")))(t)
	report := b.Retain(t.Context(), nil)
	if report.Leases != 1 || len(report.Unconfirmed) != 1 || statusOf(report.Err) != 403 || log.count("left") != 1 || b.Status().Unconfirmed != 0 {
		t.Errorf("report %+v, records %s", report, &log)
	}

	bad := issued("a.example")
	for _, parameters := range []string{`[]`, `null`, `"a"`, `{`, `{} {}`} {
		bad.Parameters = parameters
		if _, err := b.Credential(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "not a JSON object") {
			t.Errorf("parameters %s: %v", parameters, err)
		}
	}
	bad.Parameters = `{"common_name":"a.example","ttl":"1000h"}`
	if _, err := b.Credential(t.Context(), bad); statusOf(err) != 400 && err != nil {
		t.Errorf("outside the role: got %v", err)
	}
}

// Parameters that are sent to a key-value engine would be its new secret.
func TestParametersOverwriteNothing(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	testenv.Must(t, v.EnableEngine(t.Context(), "old", "kv", nil))
	testenv.MustGet(v.Write(t.Context(), "old/issue/weather", map[string]any{"api_key": "wk_1"}))(t)
	b := broker(t, Config{Address: v.Address, Auth: approle(t, v, "weather", testenv.AppRole{
		Policy: `path "secret/*" { capabilities = ["create", "read", "update"] } path "old/*" { capabilities = ["create", "read", "update"] } path "pki/*" { capabilities = ["create", "read", "update"] }`,
	})})
	for _, path := range []string{"secret/data/weather", "old/issue/weather"} {
		overwriting := ref(path, path)
		overwriting.Parameters = `{"data":"x","ttl":"1h"}`
		_, err := b.Credential(t.Context(), overwriting)
		if err == nil || !strings.Contains(err.Error(), "key-value engine") {
			t.Errorf("%s: %v", path, err)
		}
		c := testenv.MustGet(b.Credential(t.Context(), ref("read "+path, path)))(t)
		if got := c.Fields["api_key"].Reveal(); got != "wk_1" {
			t.Errorf("%s: api_key is %q now", path, got)
		}
	}
	certificate := ref("certificate", "pki/issue/client")
	certificate.Parameters = `{"common_name":"weather.example"}`
	pki(t, v, time.Hour, nil)
	testenv.MustGet(v.Write(t.Context(), "auth/approle/role/weather", map[string]any{"token_no_default_policy": true}))(t)
	b.Revoke(t.Context())
	if c, err := b.Credential(t.Context(), certificate); err != nil || c.PEM["certificate"].Empty() {
		t.Errorf("where parameters are answered, by a token without the default policy: %v", err)
	}
	forbidden := ref("forbidden", "other/issue/x")
	forbidden.Parameters = `{"ttl":"1h"}`
	if _, err := b.Credential(t.Context(), forbidden); statusOf(err) != http.StatusForbidden {
		t.Errorf("a path that the policy does not allow: %v", err)
	}
}

func TestSigns(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableEngine(t.Context(), "transit", "transit", nil))
	for name, kind := range map[string]string{"rsa": "rsa-2048", "ec": "ecdsa-p256", "ed": "ed25519", "mac": "aes256-gcm96"} {
		testenv.MustGet(v.Write(t.Context(), "transit/keys/"+name, map[string]any{"type": kind}))(t)
	}
	f := newFaults(t, v)
	auth := approle(t, v, "weather", testenv.AppRole{TokenTTL: time.Hour, Policy: `path "transit/sign/*" { capabilities = ["update"] }
path "transit/hmac/*" { capabilities = ["update"] }
path "transit/verify/*" { capabilities = ["update"] }`})
	b := broker(t, Config{Address: f.address, Auth: auth})
	const canary = "CANARY-of-the-input"
	input := []byte(canary)
	digest := sha256.Sum256(input)
	for _, test := range []struct {
		path  string
		with  Algorithm
		valid func(key crypto.PublicKey, signature []byte) bool
	}{
		{"transit/sign/rsa", RS256, func(key crypto.PublicKey, signature []byte) bool {
			return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), crypto.SHA256, digest[:], signature) == nil
		}},
		{"transit/sign/rsa", PS256, func(key crypto.PublicKey, signature []byte) bool {
			return rsa.VerifyPSS(key.(*rsa.PublicKey), crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}},
		{"transit/sign/ed", EdDSA, func(key crypto.PublicKey, signature []byte) bool {
			return ed25519.Verify(key.(ed25519.PublicKey), input, signature)
		}},
		{"transit/hmac/mac", HS256, func(_ crypto.PublicKey, signature []byte) bool {
			_, err := v.Write(t.Context(), "transit/verify/mac/sha2-256", map[string]any{
				"input": base64.StdEncoding.EncodeToString(input), "hmac": "vault:v1:" + base64.StdEncoding.EncodeToString(signature),
			})
			return err == nil && len(signature) == sha256.Size
		}},
	} {
		signature, version, err := b.Sign(t.Context(), ref("key", test.path), test.with, 0, input)
		testenv.Must(t, err)
		if version != 1 {
			t.Errorf("%s by %s: version %d", test.with, test.path, version)
		}
		if !test.valid(publicKey(t, v, test.path), signature) {
			t.Errorf("%s by %s: the signature is wrong", test.with, test.path)
		}
	}
	signer := ref("key", "transit/sign/ec")
	signer.Token = authz.TokenSpec{Kind: authz.TokenJWT, Algorithm: string(ES256), KeyID: "k1"}
	token := testenv.MustGet(b.SignJWT(t.Context(), signer, map[string]any{
		"sub": "weather", "exp": time.Now().Add(time.Minute).Unix(),
	}))(t)
	claims := testenv.MustGet(testenv.Claims(token.Reveal(), publicKey(t, v, "transit/sign/ec")))(t)
	if claims["sub"] != "weather" {
		t.Errorf("claims %v", claims)
	}

	forgets(t, v, b) // the next one logs in again
	_, _, err := b.Sign(t.Context(), ref("key", "transit/sign/ed"), EdDSA, 0, input)
	testenv.Must(t, err)
	for _, test := range []struct {
		path string
		with Algorithm
		says string
	}{
		{"transit/sign/mac", HS256, "transit/hmac/KEY"},
		{"transit/hmac/mac", RS256, "transit/sign/KEY"},
		{"transit/sign/rsa", "RS1", "unknown algorithm"},
		{"transit/sign/rsa", "RS999", "unknown algorithm"},
		{"transit/sign/rsa", "none", "unknown algorithm"},
		{"transit/sign/rsa", "", "unknown algorithm"},
		{"sys/sign/rsa", RS256, "Vault's own"},
		{"transit/sign/none", EdDSA, "400"},
		{"transit/sign/ed", RS256, "400"},
		{"other/sign/ed", EdDSA, "403"},
	} {
		_, _, err := b.Sign(t.Context(), ref("key", test.path), test.with, 0, input)
		if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), canary) ||
			strings.Contains(err.Error(), base64.StdEncoding.EncodeToString(input)) {
			t.Errorf("%s by %s: %v, want %q", test.with, test.path, err, test.says)
		}
	}
	f.breaks("transit/", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) {
		text, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{"cannot sign " + string(text)}})
	})
	asked := f.count("transit/sign/ed")
	for range 50 {
		_, _, err := b.Sign(t.Context(), ref("key", "transit/sign/ed"), EdDSA, 0, input)
		if err == nil || strings.Contains(err.Error(), base64.StdEncoding.EncodeToString(input)) {
			t.Errorf("a failing engine: %v", err)
		}
		retryAfterOf(t, err)
	}
	if got := f.count("transit/sign/ed") - asked; got > 2 {
		t.Errorf("a failing engine was asked %d times", got)
	}
	b.Retain(t.Context(), nil)
	if _, _, err := b.Sign(t.Context(), ref("key", "transit/sign/ed"), EdDSA, 0, input); err == nil || !strings.Contains(err.Error(), errNotInForce.Error()) {
		t.Errorf("not in force: got %v", err)
	}
}

// publicKey returns the public key that a path signs with, nil for an HMAC.
func publicKey(t testing.TB, v *testenv.Vault, path string) crypto.PublicKey {
	t.Helper()
	_, name, _ := strings.Cut(path, "/sign/")
	if name == "" {
		return nil
	}
	answer := testenv.MustGet(v.Read(t.Context(), "transit/keys/"+name))(t)
	text := answer["keys"].(map[string]any)["1"].(map[string]any)["public_key"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil { // Ed25519
		return ed25519.PublicKey(testenv.MustGet(base64.StdEncoding.DecodeString(text))(t))
	}
	return testenv.MustGet(x509.ParsePKIXPublicKey(block.Bytes))(t)
}

// The aws engine is not in this Vault: what it would answer (Vault API, "AWS
// secrets engine", generate credentials) comes from the proxy before it.
func TestAWS(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	var asked, revoked atomic.Int64
	f.breaks("aws/", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) {
		var parameters map[string]any
		if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&parameters) != nil || parameters["ttl"] != "900s" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		n := asked.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"lease_id": "aws/sts/deploy/" + strings.Repeat("x", int(n)), "lease_duration": 4, "renewable": false,
			"data": map[string]any{
				"access_key": "ASIAEXAMPLE", "secret_key": "secret" + strings.Repeat("x", int(n)), "security_token": "token",
				"session_token": "token", "arn": "arn:aws:sts::1:assumed-role/deploy/x", "ttl": 4,
			},
		})
	})
	inner := f.fault.Load().handle
	f.breaks("", func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/aws/"):
			inner(w, r, forward)
			return
		case r.URL.Path == "/v1/sys/internal/ui/mounts/aws/sts/deploy":
			_, _ = io.WriteString(w, `{"data":{"type":"aws","accessor":"aws_1"}}`)
			return
		case r.URL.Path == "/v1/sys/leases/renew":
			t.Error("a lease that is not renewable was renewed")
		case r.URL.Path == "/v1/sys/leases/revoke":
			revoked.Add(1)
		}
		answer := forward()
		w.WriteHeader(answer.Code)
		_, _ = answer.Body.WriteTo(w)
	})
	b, stop := run(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: revokeLeases, TokenTTL: time.Hour})})
	sts := ref("aws", "aws/sts/deploy")
	sts.Parameters = `{"ttl":"900s"}`
	b.Retain(t.Context(), []authz.CredentialRef{sts})
	first := testenv.MustGet(b.Credential(t.Context(), sts))(t)
	if first.Fields["session_token"].Reveal() != "token" || time.Until(first.NotAfter) > 4*time.Second {
		t.Errorf("served until %s", first.NotAfter)
	}
	until(t, "they are replaced in time", func() bool {
		c := testenv.MustGet(b.Credential(t.Context(), sts))(t)
		return c.Generation > first.Generation && c.Lease != first.Lease
	})
	testenv.Must(t, stop())
	if asked.Load() != revoked.Load() {
		t.Errorf("%d were made and %d revoked", asked.Load(), revoked.Load())
	}
}

// Any path whose answer has fields will do: a token that Vault makes for each answer is
// made again when it is about to end, and not each minute.
func TestOtherAnswers(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.MustGet(v.Write(t.Context(), "identity/oidc/key/weather", map[string]any{"allowed_client_ids": "*"}))(t)
	testenv.MustGet(v.Write(t.Context(), "identity/oidc/role/weather", map[string]any{"key": "weather", "ttl": "4s"}))(t)
	testenv.Must(t, v.EnableEngine(t.Context(), "transit", "transit", nil))
	testenv.Must(t, v.EnableEngine(t.Context(), "old", "kv", nil))
	testenv.MustGet(v.Write(t.Context(), "old/weather", map[string]any{"api_key": "wk_1", "ttl": 7}))(t)
	f := newFaults(t, v)
	b, _ := run(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{
		TokenTTL: time.Hour,
		Policy: `path "identity/oidc/token/*" { capabilities = ["read"] }
path "transit/random/*" { capabilities = ["update"] }
path "old/*" { capabilities = ["read"] }
path "secret/*" { capabilities = ["read"] }`,
	})})
	id, random, old := ref("id", "identity/oidc/token/weather"), ref("random", "transit/random/16"), ref("old", "old/weather")
	random.Parameters = `{"format":"hex"}`
	b.Retain(t.Context(), []authz.CredentialRef{id, random, old})

	first := testenv.MustGet(b.Credential(t.Context(), id))(t)
	if left := time.Until(first.NotAfter); strings.Count(first.Fields["token"].Reveal(), ".") != 2 || left > 4*time.Second || left < time.Second {
		t.Errorf("a token of 4 s is served for %s", left)
	}
	until(t, "it is made again", func() bool {
		return testenv.MustGet(b.Credential(t.Context(), id))(t).Generation > first.Generation
	})
	if got := f.count("identity/oidc/token/weather"); got != 2 {
		t.Errorf("made %d times", got)
	}
	c := testenv.MustGet(b.Credential(t.Context(), random))(t)
	if len(c.Fields["random_bytes"].Reveal()) != 32 {
		t.Errorf("fields %v", c.Fields)
	}
	testenv.MustGet(v.Write(t.Context(), "old/like2", map[string]any{"data": map[string]any{"k": "v"}, "metadata": map[string]any{"version": 1}, "key": "wk_1"}))(t)
	like2 := testenv.MustGet(b.Credential(t.Context(), ref("like2", "old/like2")))(t)
	if like2.Fields["key"].Reveal() != "wk_1" || like2.Fields["data.k"].Reveal() != "v" {
		t.Errorf("a secret of version 1 is taken for one of version 2: %v", like2.Fields)
	}
	if _, err := b.Credential(t.Context(), ref("no data", "secret/weather")); err == nil || !strings.Contains(err.Error(), "Invalid path for a versioned K/V secrets engine") {
		t.Errorf("a path without data/: %v", err)
	}
	c = testenv.MustGet(b.Credential(t.Context(), old))(t)
	if left := time.Until(c.NotAfter); c.Fields["ttl"].Reveal() != "7" || left < 10*time.Minute {
		t.Errorf("a value with a field called ttl is served for %s", left)
	}
}

// Paths are sent as they are named, whatever is in them that prints.
func TestPathsThatVaultHas(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	b := broker(t, Config{Address: v.Address, Auth: auth})
	root := testenv.MustGet(New(Config{Plugin: plugin, Address: v.Address, Auth: auth}))(t)
	for _, name := range []string{"My Secret", "db:5432", "schlüssel", "a,b", "a(b)", "me@example.com", "100%", "50%25", "日本", "a&b=c;d", "a'b~c", "a+b"} {
		_, err := root.client.do(t.Context(), call{
			op: "write", method: http.MethodPost, path: "secret/data/" + name, token: authz.NewSecret(v.Token),
			body: map[string]any{"data": map[string]any{"API Key": "value of " + name}},
		})
		testenv.Must(t, err)
		c, err := b.Credential(t.Context(), ref(name, "secret/data/"+name))
		if err != nil || c.Fields["API Key"].Reveal() != "value of "+name {
			t.Errorf("%q: %v, %q", name, err, c.Fields["API Key"].Reveal())
		}
	}
	names := testenv.MustGet(v.Do(t.Context(), "LIST", "secret/metadata", v.Token, nil))(t)
	if text := fmt.Sprint(names); !strings.Contains(text, "My Secret") || !strings.Contains(text, "50%25") || !strings.Contains(text, "schlüssel") {
		t.Errorf("Vault has %s", text)
	}
}

// Vault makes keys that AWS accepts some seconds later. The former one is served until
// then, as long as its lease allows; a session of AWS is known at once.
func TestNewKeysAreGivenAMoment(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: `path "aws/*" { capabilities = ["read"] }` + "\n" + revokeLeases, TokenTTL: time.Hour})
	for name, test := range map[string]struct {
		kind    string
		data    map[string]any
		settles bool
	}{
		"a user of AWS":                  {"aws", map[string]any{"access_key": "AK", "secret_key": "SK", "security_token": nil}, true},
		"a user of AWS, by an old Vault": {"", map[string]any{"access_key": "AK", "secret_key": "SK", "security_token": nil}, true},
		"a session of AWS":               {"aws", map[string]any{"access_key": "AK", "secret_key": "SK", "security_token": "ST"}, false},
		"an application of Azure":        {"azure", map[string]any{"client_id": "c", "client_secret": "s"}, true},
		"a database user":                {"database", map[string]any{"username": "u", "password": "p"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFaults(t, v)
			var mu sync.Mutex
			made, revoked := map[string]time.Time{}, map[string]time.Time{}
			f.breaks("", func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
				mu.Lock()
				defer mu.Unlock()
				path := strings.TrimPrefix(r.URL.Path, "/v1/")
				switch {
				case path == "aws/creds/r":
					id := fmt.Sprint("aws/creds/r/", len(made))
					made[id] = time.Now()
					data := maps.Clone(test.data)
					data["number"] = fmt.Sprint(len(made))
					_ = json.NewEncoder(w).Encode(map[string]any{"lease_id": id, "lease_duration": 24, "renewable": false, "mount_type": test.kind, "data": data})
				case path == "sys/leases/revoke":
					var asked struct {
						ID string `json:"lease_id"`
					}
					_ = json.NewDecoder(r.Body).Decode(&asked)
					revoked[asked.ID] = time.Now()
					w.WriteHeader(http.StatusNoContent)
				default:
					replay(w, forward())
				}
			})
			b, stop := run(t, Config{Address: f.address, Auth: auth})
			key := ref("key", "aws/creds/r")
			b.Retain(t.Context(), []authz.CredentialRef{key})
			first := testenv.MustGet(b.Credential(t.Context(), key))(t)
			var second authz.Credential
			until(t, "the next one is served", func() bool {
				second = testenv.MustGet(b.Credential(t.Context(), key))(t)
				return second.Generation != first.Generation
			})
			mu.Lock()
			age := time.Since(made[second.Lease])
			at, gone := revoked[first.Lease]
			early := gone && at.Sub(made[second.Lease]) < 4*time.Second
			if early || test.settles != (age > 4*time.Second) || age > propagationDelay+2*time.Second {
				t.Errorf("a key of %s is served, the former one was revoked early: %v", age, early)
			}
			mu.Unlock()
			testenv.Must(t, stop())
			mu.Lock()
			defer mu.Unlock()
			if len(revoked) != len(made) {
				t.Errorf("%d were made and %d revoked", len(made), len(revoked))
			}
		})
	}
}

package vault

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// writing returns a logger and what it has written.
func writing() (*zap.Logger, *safeBuffer) {
	out := &safeBuffer{}
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "m"}), zapcore.Lock(out), zap.DebugLevel)), out
}

type safeBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *safeBuffer) Sync() error { return nil }

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// readsKey reads a KV secret by a login and fails the test if that does not work.
func readsKey(t testing.TB, b *Broker) {
	t.Helper()
	c := testenv.MustGet(b.Credential(t.Context(), ref("key", "secret/data/weather")))(t)
	if got := c.Fields["api_key"].Reveal(); got != "wk_1" {
		t.Errorf("api_key = %q", got)
	}
}

// forgets makes Vault forget the broker's token, so that it logs in again.
func forgets(t testing.TB, v *testenv.Vault, b *Broker) {
	t.Helper()
	accessor := b.login.current().accessor
	testenv.MustGet(v.Write(t.Context(), "auth/token/revoke-accessor", map[string]any{"accessor": accessor}))(t)
}

func weatherVault(t testing.TB, cfg testenv.VaultConfig) *testenv.Vault {
	t.Helper()
	v := testenv.MustVault(t, cfg)
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	testenv.Must(t, v.Policy(t.Context(), "weather", readForecast))
	return v
}

// The token of a pod and a JWT of an identity provider are short-lived and
// replaced on disk: each login takes what is there then.
func TestLogsInByTokensOfOthers(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	cluster := testenv.MustKubernetes(t)
	testenv.Must(t, v.EnableAuth(t.Context(), "kubernetes", "kubernetes"))
	testenv.MustGet(v.Write(t.Context(), "auth/kubernetes/config", map[string]any{
		"kubernetes_host": cluster.Address, "disable_local_ca_jwt": true,
	}))(t)
	testenv.MustGet(v.Write(t.Context(), "auth/kubernetes/role/weather", map[string]any{
		"bound_service_account_names": "weather", "bound_service_account_namespaces": "plugins", "audience": "vault",
		"token_policies": "weather", "token_ttl": "1h",
	}))(t)
	issuer := testenv.MustGet(testenv.NewIssuer("https://id.example"))(t)
	testenv.Must(t, v.EnableAuth(t.Context(), "spiffe", "jwt"))
	testenv.MustGet(v.Write(t.Context(), "auth/spiffe/config", map[string]any{
		"jwt_validation_pubkeys": testenv.MustGet(issuer.PublicKey())(t), "bound_issuer": issuer.Name, "default_role": "weather",
	}))(t)
	testenv.MustGet(v.Write(t.Context(), "auth/spiffe/role/weather", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "bound_subject": "spiffe://example/weather",
		"token_policies": "weather", "token_ttl": "1h",
	}))(t)
	pod := func(name string) string {
		return testenv.MustGet(cluster.ServiceAccountToken("plugins", name, time.Hour))(t)
	}
	id := func(name string) string {
		return testenv.MustGet(issuer.Token("spiffe://example/"+name, "vault", time.Hour, nil))(t)
	}
	for name, test := range map[string]struct {
		auth  Auth
		token func(name string) string
	}{
		"kubernetes":       {Auth{Method: MethodKubernetes, Role: "weather"}, pod},
		"jwt":              {Auth{Method: MethodJWT, Mount: "spiffe", Role: "weather"}, id},
		"jwt default role": {Auth{Method: MethodJWT, Mount: "spiffe"}, id},
	} {
		t.Run(name, func(t *testing.T) {
			path, wrong := write(t, "token", test.token("mail")), test.token("mail")
			test.auth.JWTFile = path
			logger, logged := writing()
			b := broker(t, Config{Address: v.Address, Auth: test.auth, Logger: logger})
			err := b.Login(t.Context())
			if statusOf(err) < 400 || statusOf(err) >= 500 {
				t.Errorf("a token of somebody else logs in: %v", err)
			}
			testenv.Must(t, os.WriteFile(path, []byte(test.token("weather")+"\n"), 0o600))
			until(t, "the token that was put there is taken", func() bool { return b.Login(t.Context()) == nil })
			readsKey(t, b)
			testenv.Must(t, os.WriteFile(path, []byte(test.token("weather")), 0o600))
			forgets(t, v, b)
			testenv.MustGet(b.Credential(t.Context(), ref("again", "secret/data/weather")))(t)
			if text := err.Error() + logged.String(); strings.Contains(text, wrong[len(wrong)-20:]) || strings.Contains(text, wrong[:60]) {
				t.Errorf("the token is printed: %s", text)
			}
		})
	}
}

func TestLogsInByCertificate(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{TLS: true})
	testenv.Must(t, v.EnableAuth(t.Context(), "cert", "cert"))
	authority := func(name string) *testenv.CA {
		ca := testenv.MustGet(testenv.NewCA(name))(t)
		testenv.MustGet(v.Write(t.Context(), "auth/cert/certs/"+name, map[string]any{
			"certificate": string(ca.PEM()), "allowed_common_names": "weather.plugins.example", "token_policies": "weather", "token_ttl": "3s",
		}))(t)
		return ca
	}
	ca := authority("old")
	dir := t.TempDir()
	auth := Auth{Method: MethodCert, CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	issue := func(name string) {
		pair := testenv.MustGet(ca.IssueFrom(&x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte(rand.Text()),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}))(t)
		testenv.Must(t, testenv.WritePair(pair, auth.CertFile, auth.KeyFile))
	}
	cfg := Config{Address: v.Address, CAFile: v.CAFile, Auth: auth, Plugin: plugin}
	if err := broker(t, cfg).Login(t.Context()); err == nil || !strings.Contains(err.Error(), "read key pair") {
		t.Errorf("without a key pair: %v", err)
	}
	issue("mail.plugins.example")
	if err := broker(t, cfg).Login(t.Context()); statusOf(err) != 400 {
		t.Errorf("a certificate of somebody else: %v", err)
	}
	issue("weather.plugins.example")
	var log journal
	cfg.Recorder = &log
	b, _ := run(t, cfg)
	readsKey(t, b)
	first := b.login.current()
	ends := first.end()
	until(t, "the token was renewed", func() bool {
		if b.login.current() != first {
			t.Fatal("it was replaced")
		}
		return ends.before(first.end())
	})
	// Vault does not renew a token on another identity than it was got by.
	ca = authority("new")
	issue("weather.plugins.example")
	until(t, "it logged in by the new certificate", func() bool {
		readsKey(t, b)
		s := b.login.current()
		return s != nil && s != first
	})
	if got := b.Status(); got.States[StateActive] != 1 || log.count("lost") != 0 {
		t.Errorf("status %+v, records %s", got, &log)
	}
	if _, err := New(Config{Plugin: plugin, Address: "http://127.0.0.1:1", Auth: auth}); err == nil {
		t.Error("a login by certificate without TLS is taken")
	}
	role := auth
	role.Role = "none"
	if err := broker(t, Config{Address: v.Address, CAFile: v.CAFile, Auth: role}).Login(t.Context()); statusOf(err) != 400 {
		t.Errorf("a role that is not there: %v", err)
	}
}

// wrappedRole makes an AppRole and returns a login whose secret id is wrapped,
// and how to wrap another.
func wrappedRole(t testing.TB, v *testenv.Vault) (auth Auth, wrap func(path string) string) {
	t.Helper()
	auth = approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	auth.SecretIDWrapped, auth.Role = true, "weather"
	wrap = func(path string) string {
		return testenv.MustGet(v.Wrap(t.Context(), http.MethodPut, path, time.Hour))(t)
	}
	auth.SecretIDFile = write(t, "wrapped", wrap("auth/approle/role/weather/secret-id"))
	return auth, wrap
}

func TestUnwrapsTheSecretIDOnce(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	auth, wrap := wrappedRole(t, v)
	f := newFaults(t, v)
	state := filepath.Join(t.TempDir(), "leases.json")
	var log journal
	cfg := Config{Plugin: plugin, Address: f.address, Auth: auth, StateFile: state, Recorder: &log}
	b := broker(t, cfg)
	f.breaksOnce("sys/wrapping/unwrap", answer(503, `{"errors":["Vault is sealed"]}`))
	until(t, "it logs in although Vault was away", func() bool { return b.Login(t.Context()) == nil })
	readsKey(t, b)
	for range 3 { // the secret id is kept for logging in again
		forgets(t, v, b)
		b.Retain(t.Context(), nil)
		readsKey(t, b)
	}
	testenv.Must(t, os.Remove(auth.SecretIDFile)) // as some agents do
	forgets(t, v, b)
	b.Retain(t.Context(), nil)
	readsKey(t, b)
	if f.count("sys/wrapping/unwrap") != 2 || log.count("incident") != 0 { // one was answered 503
		t.Errorf("unwrapped %d times, records %s", f.count("sys/wrapping/unwrap"), &log)
	}
	kept := string(testenv.MustGet(os.ReadFile(state))(t))
	if strings.Contains(kept, b.login.wrapped.secretID.Reveal()) || !strings.Contains(kept, b.login.wrapped.token) {
		t.Errorf("the state file holds %s", kept)
	}

	// The next sidecar finds the same token, which is no theft.
	again := wrap("auth/approle/role/weather/secret-id")
	testenv.Must(t, os.WriteFile(auth.SecretIDFile, []byte(again), 0o600))
	third := broker(t, cfg)
	testenv.Must(t, third.Login(t.Context()))
	before := f.count("sys/wrapping/lookup")
	err := broker(t, cfg).Login(t.Context())
	if err == nil || !strings.Contains(err.Error(), "earlier run") || log.count("incident") != 0 || f.count("sys/wrapping/lookup") != before {
		t.Errorf("after a restart: %v, records %s", err, &log)
	}
}

// A wrapping token that another party used is detected, and reported once.
func TestWrappedSecretIDIsStolen(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	for name, test := range map[string]struct {
		prepare func(t *testing.T, auth *Auth, wrap func(string) string)
		says    string
	}{
		"unwrapped by somebody else": {func(t *testing.T, auth *Auth, _ func(string) string) {
			token := string(testenv.MustGet(os.ReadFile(auth.SecretIDFile))(t))
			testenv.MustGet(v.Do(t.Context(), http.MethodPost, "sys/wrapping/unwrap", token, nil))(t)
		}, "another party unwrapped it"},
		"wrapped by somebody else": {func(t *testing.T, auth *Auth, wrap func(string) string) {
			testenv.Must(t, os.WriteFile(auth.SecretIDFile, []byte(wrap("sys/wrapping/wrap")), 0o600))
		}, `wrapped by "sys/wrapping/wrap"`},
		"of another role": {func(_ *testing.T, auth *Auth, _ func(string) string) {
			auth.Role = "mail"
		}, `not by "auth/approle/role/mail/secret-id"`},
		"of another path than declared": {func(_ *testing.T, auth *Auth, _ func(string) string) {
			auth.WrapPath = "auth/approle/role/weather/custom-secret-id"
		}, "custom-secret-id"},
		"the answer is lost": {func(_ *testing.T, _ *Auth, _ func(string) string) {
			f.breaks("sys/wrapping/unwrap", func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
				forward()
				w.WriteHeader(http.StatusBadGateway)
			})
		}, "502"},
	} {
		t.Run(name, func(t *testing.T) {
			f.mend()
			auth, wrap := wrappedRole(t, v)
			test.prepare(t, &auth, wrap)
			token := string(testenv.MustGet(os.ReadFile(auth.SecretIDFile))(t))
			logger, logged := writing()
			var log journal
			b := broker(t, Config{Address: f.address, Auth: auth, Logger: logger, Recorder: &log})
			err := b.Login(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("login: got %v, want %q", err, test.says)
			}
			lookups := f.count("sys/wrapping/lookup")
			for range 3 {
				if again := b.Login(t.Context()); again == nil || !strings.Contains(again.Error(), test.says) {
					t.Errorf("second login: got %v, want %q", again, test.says)
				}
			}
			if log.count("incident") != 1 || f.count("sys/wrapping/lookup") != lookups {
				t.Errorf("%d lookups, records %s", f.count("sys/wrapping/lookup"), &log)
			}
			if text := log.String() + logged.String() + err.Error(); strings.Contains(text, token) || !strings.Contains(logged.String(), "wrapped secret id not trusted") {
				t.Errorf("printed: %s", text)
			}
			// A new wrapping token is all that it needs.
			f.mend()
			if auth.Role == "weather" && auth.WrapPath == "" {
				testenv.Must(t, os.WriteFile(auth.SecretIDFile, []byte(wrap("auth/approle/role/weather/secret-id")), 0o600))
				until(t, "it logs in", func() bool { return b.Login(t.Context()) == nil })
			}
		})
	}
}

// Every request of every method has the namespace that it is for.
func TestNamespace(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	var mu sync.Mutex
	asked := map[string]string{}
	f.breaks("", func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
		mu.Lock()
		asked[r.URL.Path] = r.Header.Get("X-Vault-Namespace")
		mu.Unlock()
		r.Header.Del("X-Vault-Namespace") // this Vault has none
		answer := forward()
		w.WriteHeader(answer.Code)
		_, _ = answer.Body.WriteTo(w)
	})
	auth, _ := wrappedRole(t, v)
	b, stop := run(t, Config{Address: f.address, Auth: auth, Namespace: "/plugins/"})
	readsKey(t, b)
	testenv.Must(t, stop())
	mu.Lock()
	defer mu.Unlock()
	if len(asked) < 5 {
		t.Errorf("asked %v", asked)
	}
	for path, namespace := range asked {
		if namespace != "plugins" {
			t.Errorf("%s was asked for in namespace %q", path, namespace)
		}
	}
}

func TestTokensThatAreNotTaken(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: time.Hour})
	role := func(fields map[string]any) {
		testenv.MustGet(v.Write(t.Context(), "auth/approle/role/weather", fields))(t)
	}
	role(map[string]any{"token_num_uses": 3})
	logger, logged := writing()
	testenv.Must(t, broker(t, Config{Address: v.Address, Auth: auth, Logger: logger}).Login(t.Context()))
	if !strings.Contains(logged.String(), "uses limited") {
		t.Errorf("got no warning of num_uses: %s", logged)
	}

	role(map[string]any{"token_num_uses": 0, "token_type": "batch"})
	f := newFaults(t, v)
	logger, logged = writing()
	b, _ := run(t, Config{Address: f.address, Auth: auth, Logger: logger})
	readsKey(t, b)
	if !strings.Contains(logged.String(), "batch token") {
		t.Errorf("got no warning of batch tokens: %s", logged)
	}
	for range 2 {
		until(t, "no lease is made with a batch token", func() bool {
			_, err := b.Credential(t.Context(), ref("db", "database/creds/reader"))
			if err == nil {
				t.Fatal("a lease is served")
			}
			return strings.Contains(err.Error(), "token_type=service")
		})
		time.Sleep(600 * time.Millisecond)
	}
	if got := f.count("database/creds/reader"); got != 1 {
		t.Errorf("asked %d times", got)
	}
	until(t, "the lease is gone", func() bool { return len(users(t, db)) == 0 })

	// No method of ours can be made to give a root token; a gateway can.
	f.breaks("auth/approle/login", func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
		var login map[string]any
		_ = json.Unmarshal(forward().Body.Bytes(), &login)
		login["auth"].(map[string]any)["policies"] = []string{"root"}
		_ = json.NewEncoder(w).Encode(login)
	})
	if err := broker(t, Config{Address: f.address, Auth: auth}).Login(t.Context()); err == nil || !strings.Contains(err.Error(), "root token") {
		t.Errorf("a root token: %v", err)
	}
}

func TestAuthIsChecked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		auth Auth
		says string
	}{
		{Auth{}, `method ""`},
		{Auth{Method: "ldap"}, `method "ldap"`},
		{Auth{Method: MethodToken}, "needs a token file"},
		{Auth{Method: MethodAppRole}, "needs a role id file"},
		{Auth{Method: MethodAppRole, RoleIDFile: "a", SecretIDWrapped: true, Role: "r"}, "needs a secret id file"},
		{Auth{Method: MethodAppRole, RoleIDFile: "a", SecretIDFile: "b", SecretIDWrapped: true}, "needs a role or the path"},
		{Auth{Method: MethodKubernetes}, "needs a role"},
		{Auth{Method: MethodJWT, Role: "r"}, "needs a token file"},
		{Auth{Method: MethodCert, KeyFile: "k"}, "needs a certificate file"},
		{Auth{Method: MethodCert, CertFile: "c"}, "needs a key file"},
		{Auth{Method: MethodJWT, JWTFile: "j", Mount: "../sys"}, "mount"},
	} {
		_, err := New(Config{Plugin: plugin, Address: "https://127.0.0.1:1", Auth: test.auth})
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%+v: %v, want %q", test.auth, err, test.says)
		}
	}
	b := testenv.MustGet(New(Config{Plugin: plugin, Address: "https://127.0.0.1:1", Auth: Auth{Method: MethodKubernetes, Role: "r"}}))(t)
	if b.cfg.Auth.Mount != "kubernetes" || b.cfg.Auth.JWTFile != serviceAccountToken {
		t.Errorf("defaults: %+v", b.cfg.Auth)
	}
}

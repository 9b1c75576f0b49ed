package authz

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// keyPair returns a certificate and its private key, in PEM.
func keyPair(tb testing.TB) (certificate, key string) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: noon, NotAfter: noon.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		tb.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	block := func(kind string, data []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
	}
	return block("CERTIFICATE", der), block("EC PRIVATE KEY", encoded)
}

func secrets(fields map[string]string) map[string]Secret {
	out := map[string]Secret{}
	for name, value := range fields {
		out[name] = NewSecret(value)
	}
	return out
}

// with returns the grant with its credential injected in another way.
func with(inject Inject, path string) Grant {
	g := withKey(forecast())
	g.Credentials[0].Inject, g.Credentials[0].Vault.Path = inject, path
	return g
}

func revealed(all []Secret) []string {
	var out []string
	for _, s := range all {
		out = append(out, s.Reveal())
	}
	return out
}

// injections are credentials and what is made of them.
func injections() []injected {
	return []injected{
		{
			"header",
			Inject{Header: "X-Key", Value: "v1 {k}"},
			map[string]string{"k": "hunter2"},
			Injection{Kind: InjectHeader, Name: "x-key"},
			"v1 hunter2", "",
			[]string{"v1 hunter2", "hunter2"},
		},
		{
			"the field alone",
			Inject{Query: "Key", Value: "{k}"},
			map[string]string{"k": "hunter2"},
			Injection{Kind: InjectQuery, Name: "Key"},
			"hunter2", "",
			[]string{"hunter2"},
		},
		{
			"two fields",
			Inject{Cookie: "sid", Value: "{a}.{b}"},
			map[string]string{"a": "one", "b": "two"},
			Injection{Kind: InjectCookie, Name: "sid"},
			"one.two", "",
			[]string{"one.two", "one", "two"},
		},
		{
			"basic",
			Inject{Basic: &Basic{"{u}", "{p}"}},
			map[string]string{"u": "app", "p": "hunter2"},
			Injection{Kind: InjectHeader, Name: "authorization"},
			"Basic YXBwOmh1bnRlcjI=", "",
			[]string{"Basic YXBwOmh1bnRlcjI=", "app:hunter2", "hunter2"},
		},
		{
			"basic by name alone",
			Inject{Basic: &Basic{"{u}", ""}},
			map[string]string{"u": "hunter2"},
			Injection{Kind: InjectHeader, Name: "authorization"},
			"Basic aHVudGVyMjo=", "",
			[]string{"Basic aHVudGVyMjo=", "hunter2:", "hunter2"},
		},
		{
			"oauth2",
			Inject{OAuth2: &OAuth2{TokenURL: "https://id.example/token"}},
			map[string]string{"access_token": "t", "client_secret": "s"},
			Injection{Kind: InjectHeader, Name: "authorization"},
			"Bearer t", "",
			[]string{"Bearer t", "t"},
		},
		{
			"jwt in a cookie",
			Inject{JWT: &JWT{Algorithm: "ES256", Cookie: "jwt"}},
			map[string]string{"jwt": "a.b.c"},
			Injection{Kind: InjectCookie, Name: "jwt"},
			"a.b.c", "",
			[]string{"a.b.c"},
		},
		{
			"sigv4",
			Inject{SigV4: &SigV4{Service: "s3", Region: "eu-west-1"}},
			map[string]string{"access_key": "AKIA", "secret_key": "hunter2", "security_token": "session"},
			Injection{Kind: InjectSigV4, KeyID: "AKIA", Service: "s3", Region: "eu-west-1"},
			"hunter2", "session",
			[]string{"hunter2", "session"},
		},
		{
			"sigv4 under its later name",
			Inject{SigV4: &SigV4{Service: "s3", Region: "eu-west-1"}},
			map[string]string{"access_key": "AKIA", "secret_key": "hunter2", "session_token": "session"},
			Injection{Kind: InjectSigV4, KeyID: "AKIA", Service: "s3", Region: "eu-west-1"},
			"hunter2", "session",
			[]string{"hunter2", "session"},
		},
		{
			"sigv4 of a user",
			Inject{SigV4: &SigV4{Service: "s3", Region: "eu-west-1", AccessKeyID: "{id}", SecretAccessKey: "{key}"}},
			map[string]string{"id": "AKIA", "key": "hunter2"},
			Injection{Kind: InjectSigV4, KeyID: "AKIA", Service: "s3", Region: "eu-west-1"},
			"hunter2", "",
			[]string{"hunter2"},
		},
	}
}

type injected struct {
	name    string
	inject  Inject
	fields  map[string]string
	want    Injection // but for its secrets
	value   string
	session string
	secret  []string
}

// renders admits a request whose credential is injected so.
func renders(t *testing.T, inject Inject, fields map[string]string) (*Admission, error) {
	t.Helper()
	path := "secret/data/weather"
	if inject.JWT != nil {
		path = "transit/sign/weather"
	}
	w := newWorld(t, input(with(inject, path)))
	w.source.credential = Credential{Fields: secrets(fields), Generation: 3}
	return w.gate.Admit(t.Context(), get(t, forecastURL), Source{Door: DoorProxy})
}

// TestInjections renders each kind, and lists what must not come back.
func TestInjections(t *testing.T) {
	for _, test := range injections() {
		t.Run(test.name, func(t *testing.T) {
			a, err := renders(t, test.inject, test.fields)
			if err != nil {
				t.Fatal(err)
			}
			got := a.Injection
			if got.Value.Reveal() != test.value || got.Session.Reveal() != test.session || got.Generation != 3 {
				t.Errorf("%q, %q, %d", got.Value.Reveal(), got.Session.Reveal(), got.Generation)
			}
			if all := revealed(got.Secrets()); !slices.Equal(all, test.secret) {
				t.Errorf("must not come back: %q, want %q", all, test.secret)
			}
			got.Value, got.Session, got.Generation, got.secrets, got.public = Secret{}, Secret{}, 0, nil, nil
			if got != test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
	made := Injection{Value: NewSecret("a"), Session: NewSecret("b")}
	if got := revealed(made.Secrets()); !slices.Equal(got, []string{"a", "b"}) || (Injection{}).Secrets() != nil {
		t.Errorf("of one that was not rendered: %q", got)
	}
}

// TestUnsendable refuses what cannot be sent, without saying what it is.
func TestUnsendable(t *testing.T) {
	for _, test := range []struct {
		name   string
		inject Inject
		fields map[string]string
	}{
		{"a field that is missing", Inject{Header: "X-Key", Value: "{k}"}, map[string]string{"key": "hunter2"}},
		{"a stated session that is missing", Inject{SigV4: &SigV4{Service: "s3", Region: "r", SessionToken: "{session_token}"}}, map[string]string{"access_key": "AKIA", "secret_key": "hunter2"}},
		{"half a key", Inject{SigV4: &SigV4{Service: "s3", Region: "r"}}, map[string]string{"access_key": "AKIA"}},
		{"a key of two lines", Inject{SigV4: &SigV4{Service: "s3", Region: "r"}}, map[string]string{"access_key": "AKIA\r\nX: y", "secret_key": "hunter2"}},
		{"a token of two lines", Inject{OAuth2: &OAuth2{TokenURL: "https://id.example/token"}}, map[string]string{"access_token": "hunter2\r\nx: y"}},
		{"a cookie of two", Inject{JWT: &JWT{Algorithm: "ES256", Cookie: "jwt"}}, map[string]string{"jwt": "hunter2; a=b"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := renders(t, test.inject, test.fields)
			if err == nil || strings.Contains(err.Error(), "hunter2") || a.Decision.Reason != CredentialUnavailable || a.Injection != (Injection{}) {
				t.Errorf("%v, %s, %+v", err, a.Decision.Reason, a.Injection)
			}
		})
	}
}

// TestCertificates takes a certificate with its key and those above it, and
// nothing that would only look like one.
func TestCertificates(t *testing.T) {
	certificate, key := keyPair(t)
	above, otherKey := keyPair(t)
	for _, test := range []struct {
		name   string
		mtls   MTLS
		pem    map[string]string
		want   string // the chain, "" for a refusal
		error  string
		fields map[string]string
	}{
		{"as PKI answers", MTLS{}, map[string]string{"certificate": certificate, "private_key": key, "ca_chain": above}, certificate + above, "", nil},
		{"without a chain", MTLS{}, map[string]string{"certificate": strings.TrimSpace(certificate), "private_key": key}, certificate, "", nil},
		{"with one inside", MTLS{Certificate: "{c}", PrivateKey: "{k}"}, map[string]string{"c": certificate + above, "k": key}, certificate + above, "", nil},
		{"a stated chain that is missing", MTLS{Chain: "{ca_chain}"}, map[string]string{"certificate": certificate, "private_key": key}, "", "no field ca_chain", nil},
		{"no key", MTLS{}, map[string]string{"certificate": certificate}, "", "no field private_key", nil},
		{"the key of another", MTLS{}, map[string]string{"certificate": certificate, "private_key": otherKey}, "", "not that of the certificate", nil},
		{"the chain the wrong way round", MTLS{}, map[string]string{"certificate": above + certificate, "private_key": key}, "", "not that of the certificate", nil},
		{"a key for a certificate", MTLS{}, map[string]string{"certificate": key, "private_key": key}, "", "a PEM block of another type", nil},
		{"a key in the chain", MTLS{}, map[string]string{"certificate": certificate, "private_key": key, "ca_chain": key}, "", "a PEM block of another type", nil},
		{"two keys", MTLS{}, map[string]string{"certificate": certificate, "private_key": key + otherKey}, "", "not one PEM block", nil},
		{"a certificate for a key", MTLS{}, map[string]string{"certificate": certificate, "private_key": certificate}, "", "of an unknown kind", nil},
		{"half a certificate", MTLS{}, map[string]string{"certificate": certificate[:len(certificate)/2], "private_key": key}, "", "not whole PEM", nil},
		{"not in ASN.1", MTLS{}, map[string]string{"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "private_key": key}, "", "cannot be read", nil},
		{"fields that are not PEM", MTLS{}, nil, "", "field certificate of Vault's answer is not a PEM document", map[string]string{"certificate": certificate, "private_key": key}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, input(with(Inject{MTLS: &test.mtls}, "pki/issue/weather")))
			w.source.credential = Credential{PEM: secrets(test.pem), Fields: secrets(test.fields)}
			a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{Door: DoorProxy})
			if test.want == "" {
				if err == nil || !strings.Contains(err.Error(), test.error) || a.Injection != (Injection{}) || strings.Contains(err.Error(), "BEGIN") {
					t.Errorf("%v, want %s", err, test.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if i := a.Injection; i.Kind != InjectCertificate || i.Certificate.Reveal() != test.want || i.PrivateKey.Reveal() != key || len(i.Secrets()) != 0 {
				t.Errorf("%+v with %s", i, i.Certificate.Reveal())
			}
		})
	}
}

// TestRendersAnew: what is sent is what the source answers with, and not what
// it answered with before, in every part.
func TestRendersAnew(t *testing.T) {
	w := newWorld(t, input(with(Inject{SigV4: &SigV4{Service: "s3", Region: "r"}}, "aws/sts/weather")))
	fields := secrets(map[string]string{"access_key": "A1", "secret_key": "S1"})
	for _, step := range []struct{ field, value, want string }{
		{"access_key", "A2", "A2 S1 "}, {"secret_key", "S2", "A2 S2 "}, {"security_token", "T", "A2 S2 T"}, {"security_token", "", "A2 S2 "},
	} {
		fields = maps.Clone(fields)
		fields[step.field] = NewSecret(step.value)
		w.source.credential = Credential{Fields: fields}
		i := w.admit(t, get(t, forecastURL)).Injection
		if got := i.KeyID + " " + i.Value.Reveal() + " " + i.Session.Reveal(); got != step.want {
			t.Errorf("after %s=%s: %q, want %q", step.field, step.value, got, step.want)
		}
	}
}

// TestTokens: the input of a token source, and how it renders the client's
// credentials.
func TestTokens(t *testing.T) {
	g := with(Inject{OAuth2: &OAuth2{
		TokenURL: "https://id.example/token?tenant=1", Scopes: []string{"read", "write"}, Audience: "api", Style: "body", CAFile: "ca.pem", CA: "PEM", ClientID: "weather",
	}}, "idp/creds/weather")
	g.Credentials[0].Vault.Params = map[string]string{"b": "2", "a": "1"}
	g.Credentials[0].Vault.TrimNewline = true
	got := snapshot(t, input(g)).CredentialRefs("weather", noon)[0]
	want := CredentialRef{
		Plugin: "weather", Grant: "weather", Name: "key", Path: "idp/creds/weather", Parameters: `{"a":"1","b":"2"}`, TrimNewline: true,
		Token: TokenSpec{
			Kind: TokenOAuth2, TokenURL: "https://id.example/token?tenant=1", Scopes: "read write", Audience: "api", Style: StyleBody, CA: "PEM",
			ClientID: "weather", ClientSecret: "{client_secret}",
		},
	}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	id, secret, err := got.Token.Client(secrets(map[string]string{"client_secret": "hunter2"}))
	if id != "weather" || secret.Reveal() != "hunter2" || err != nil {
		t.Errorf("%s, %s, %v", id, secret.Reveal(), err)
	}
	for _, fields := range []map[string]string{nil, {"client_secret": ""}, {"client_secret": "hunter2\n"}} {
		if id, secret, err := got.Token.Client(secrets(fields)); id != "" || !secret.Empty() || err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v: %s, %v", fields, id, err)
		}
	}

	jwt := with(Inject{JWT: &JWT{Algorithm: "RS256", KeyID: "k", Issuer: "i", Subject: "s", Audience: "a", Claims: map[string]string{"z": "<1>", "b": "2"}}}, "transit/sign/weather")
	for ceiling, lifetime := range map[time.Duration]time.Duration{0: 5 * time.Minute, time.Hour: 5 * time.Minute, time.Minute: time.Minute} {
		in := input(jwt)
		in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"**"}, Ceilings: Ceilings{CredentialLifetime: Duration(ceiling)}}}
		got := snapshot(t, in).CredentialRefs("weather", noon)[0]
		want := TokenSpec{
			Kind: TokenJWT, Algorithm: "RS256", KeyID: "k", Issuer: "i", Subject: "s", Audience: "a", Lifetime: lifetime, Claims: `{"b":"2","z":"\u003c1\u003e"}`,
		}
		if got.Token != want || got.Lifetime != ceiling {
			t.Errorf("under %s: %+v, want %+v", ceiling, got, want)
		}
	}
}

// TestPlaceholders: the placeholders of credentials in force only.
func TestPlaceholders(t *testing.T) {
	g := withKey(forecast())
	g.Credentials[0].Placeholder = &PlaceholderSpec{Env: "WEATHER_KEY", Like: "wk_{24}-x"}
	g.Credentials = append(g.Credentials, CredentialSpec{
		Name: "unused", Vault: VaultPath{Path: "kv/a"}, Inject: Inject{Header: "X", Value: "{k}"}, Placeholder: &PlaceholderSpec{Env: "UNUSED", Like: "{8}"},
	})
	s := snapshot(t, input(g))
	got := s.Placeholders("weather", noon)
	if want := []Placeholder{{"weather", "key", "WEATHER_KEY", "wk_{24}-x"}}; !slices.Equal(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if before, random, after, err := got[0].Parts(); before != "wk_" || random != 24 || after != "-x" || err != nil {
		t.Errorf("%q %d %q %v", before, random, after, err)
	}
	revoked := snapshot(t, input(g), Revocation{ID: "1", Plugin: "weather", Level: LevelQuarantine})
	if s.Placeholders("nobody", noon) != nil || s.Placeholders("weather", g.NotAfter) != nil || revoked.Placeholders("weather", noon) != nil {
		t.Error("a placeholder for a credential that is not in force")
	}
	w := newWorld(t, input(g))
	if !w.admit(t, get(t, forecastURL)).Injection.Placeholder {
		t.Error("Injection.Placeholder = false, want true")
	}
	// Another grant of the plugin's cannot have the same variable; another plugin's can.
	again, other := g, g
	again.Name, other.Name, other.Plugin = "again", "other", "other"
	if _, problems := Compile(input(g, other), noon); len(problems) != 0 {
		t.Error(problems)
	}
	if _, problems := Compile(input(g, again), noon); len(problems) != 2 || !strings.Contains(problems[0].Message, "already set to the placeholder of credential key of grant weather") {
		t.Error(problems)
	}
}

// TestRefuseMisplaced refuses after admission and records it,
// without what was sent.
func TestRefuseMisplaced(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	a := w.admit(t, get(t, forecastURL))
	r := a.RefuseMisplaced("weather", "key")
	if r.Reason != CredentialMisplaced || r.Status() != 403 || r.Remedy != "send the placeholder of credential key in header authorization only" || a.StillAllowed() {
		t.Errorf("%+v", r)
	}
	if err := a.End(Outcome{}); err != nil {
		t.Fatal(err)
	}
	if last := w.recorder.all()[1]; last.Allowed || last.Reason != "credential_misplaced" || last.Detail != r.Detail || r.Detail == "" {
		t.Errorf("%+v", last)
	}
	if r := (&Admission{}).RefuseMisplaced("weather", "key"); r.Reason != CredentialMisplaced || r.Remedy == "" {
		t.Errorf("%+v", r)
	}
}

// TestWarmCredentialIsFree: a credential that was rendered before adds no
// allocation to Admit.
func TestWarmCredentialIsFree(t *testing.T) {
	allocations := func(warm warmCredential) float64 {
		engine := &Engine{}
		engine.Install(compile(t, input(warm.grant)))
		gate, err := NewGate(GateConfig{
			Engine: engine, Ledger: NewLedger(), Recorder: nowhere{}, Now: time.Now, Credentials: &source{credential: warm.credential},
		})
		if err != nil {
			t.Fatal(err)
		}
		req := get(t, forecastURL)
		return testing.AllocsPerRun(100, func() {
			if a, err := gate.Admit(t.Context(), req, Source{Door: DoorProxy}); err != nil || !a.Decision.Allowed() {
				t.Fatal(err)
			}
		})
	}
	without := allocations(warmCredential{grant: forecast()})
	for _, warm := range warmCredentials(t) {
		if n := allocations(warm); n > without {
			t.Errorf("%s: %v allocations, %v without a credential", warm.name, n, without)
		}
	}
}

type warmCredential struct {
	name       string
	grant      Grant
	credential Credential
}

func warmCredentials(tb testing.TB) []warmCredential {
	tb.Helper()
	certificate, key := keyPair(tb)
	return []warmCredential{
		{"header", withKey(forecast()), apiKey("hunter2")},
		{
			"basic", with(Inject{Basic: &Basic{"{u}", "{p}"}}, "database/creds/weather"),
			Credential{Fields: secrets(map[string]string{"u": "app", "p": "hunter2"})},
		},
		{
			"mtls", with(Inject{MTLS: &MTLS{}}, "pki/issue/weather"),
			Credential{PEM: secrets(map[string]string{"certificate": certificate, "private_key": key, "ca_chain": certificate})},
		},
		{
			"sigv4", with(Inject{SigV4: &SigV4{Service: "s3", Region: "eu-west-1"}}, "aws/sts/weather"),
			Credential{Fields: secrets(map[string]string{"access_key": "AKIA", "secret_key": "hunter2", "security_token": "t"})},
		},
		{
			"oauth2", with(Inject{OAuth2: &OAuth2{TokenURL: "https://id.example/token"}}, "secret/data/idp"),
			Credential{Fields: secrets(map[string]string{"access_token": "t"})},
		},
	}
}

package main

import (
	"context"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestTransitKey signs with a key that stays in a real Vault.
func TestTransitKey(t *testing.T) {
	testenv.Require(t, testenv.VaultServer())
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableEngine(t.Context(), "transit", "transit", nil))
	for name, kind := range map[string]string{"ana": "ed25519", "rsa": "rsa-2048"} {
		testenv.MustGet(v.Write(t.Context(), "transit/keys/"+name, map[string]any{"type": kind}))(t)
	}
	testenv.MustGet(v.Write(t.Context(), "transit/keys/derived", map[string]any{"type": "ed25519", "derived": true}))(t)
	t.Setenv("VAULT_ADDR", v.Address)
	t.Setenv("VAULT_TOKEN", v.Token)

	k := testenv.MustGet(signer(t.Context(), "vault:transit/ana"))(t)
	e := testenv.MustGet(dsse.Sign(t.Context(), dsse.KindGuardrail, []byte(`{}`), k))(t)
	root := rootOf(t, k.Public())
	if _, err := root.Verify(e, dsse.KindGuardrail); err != nil {
		t.Fatalf("document signed in vault: %v", err)
	}

	// A key that Vault has rotated still signs with the version that was read.
	testenv.MustGet(v.Write(t.Context(), "transit/keys/ana/rotate", nil))(t)
	testenv.Must(t, e.Add(t.Context(), k))
	newer := testenv.MustGet(signer(t.Context(), "vault:transit/ana"))(t)
	if newer.Public().KeyID() == k.Public().KeyID() {
		t.Error("a rotated key has its old id")
	}
	if _, err := root.Verify(testenv.MustGet(dsse.Sign(t.Context(), dsse.KindGuardrail, []byte(`{}`), newer))(t), dsse.KindGuardrail); err == nil {
		t.Error("a version that the trust root does not list was accepted")
	}

	for key, want := range map[string]string{
		"vault:transit/none":    "it does not exist; make it: vault write -f transit/keys/none type=ed25519",
		"vault:transit/rsa":     `its type is "rsa-2048"; ed25519 is required`,
		"vault:transit/derived": "derived by context",
		"vault:nowhere/ana":     "read key nowhere/ana of vault",
		"vault:ana":             "write vault:MOUNT/NAME",
		"vault:/ana":            "write vault:MOUNT/NAME",
	} {
		if _, err := signer(t.Context(), key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", key, err, want)
		}
	}
	t.Run("without permission", func(t *testing.T) {
		testenv.Must(t, v.Policy(t.Context(), "read-only", `path "transit/keys/*" { capabilities = ["read"] }`))
		t.Setenv("VAULT_TOKEN", testenv.MustGet(v.NewToken(t.Context(), time.Hour, "read-only"))(t))
		k := testenv.MustGet(signer(t.Context(), "vault:transit/ana"))(t)
		if _, err := dsse.Sign(t.Context(), dsse.KindGuardrail, []byte(`{}`), k); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("error is %v", err)
		}
	})
}

// TestTransitNamespace sends the namespace with each request: a recording proxy stands for a
// Vault that has namespaces. A token that has ended, or wraps another, is refused with the
// way out.
func TestTransitNamespace(t *testing.T) {
	testenv.Require(t, testenv.VaultServer())
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableEngine(t.Context(), "transit", "transit", nil))
	testenv.MustGet(v.Write(t.Context(), "transit/keys/ana", map[string]any{"type": "ed25519"}))(t)
	var mu sync.Mutex
	var namespaces []string
	target := testenv.MustGet(url.Parse(v.Address))(t)
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		mu.Lock()
		namespaces = append(namespaces, r.In.Method+" "+r.In.URL.Path+" "+r.In.Header.Get("X-Vault-Namespace"))
		mu.Unlock()
		r.SetURL(target)
		r.Out.Header.Del("X-Vault-Namespace") // this Vault has none
	}})
	defer proxy.Close()
	t.Setenv("VAULT_ADDR", proxy.URL)
	t.Setenv("VAULT_NAMESPACE", "teams/weather")
	t.Setenv("VAULT_TOKEN", v.Token)
	k := testenv.MustGet(signer(t.Context(), "vault:transit/ana"))(t)
	testenv.MustGet(dsse.Sign(t.Context(), dsse.KindGuardrail, []byte(`{}`), k))(t)
	mu.Lock()
	got := strings.Join(namespaces, ", ")
	mu.Unlock()
	if want := "GET /v1/transit/keys/ana teams/weather, PUT /v1/transit/sign/ana teams/weather"; got != want {
		t.Errorf("vault received %s, want %s", got, want)
	}
	t.Setenv("VAULT_TOKEN", "hvs.ended")
	if _, err := signer(t.Context(), "vault:transit/ana"); err == nil || !strings.Contains(err.Error(), "the token (VAULT_TOKEN) has ended, wraps another one (vault unwrap)") {
		t.Errorf("error is %v", err)
	}
}

func rootOf(t *testing.T, key dsse.PublicKey) *dsse.Root {
	t.Helper()
	spec := dsse.KeySpec{Identity: "ana@corp", Ed25519: halfOf(key, "").Ed25519}
	return testenv.MustGet(dsse.NewRoot(dsse.RootSpec{Name: "corp", Version: 1, Roles: []dsse.RoleSpec{
		{Name: dsse.RoleRoot, Kinds: []dsse.Kind{dsse.KindTrust}, Keys: []dsse.KeySpec{spec}},
		{Name: "policy", Kinds: []dsse.Kind{dsse.KindGuardrail}, Keys: []dsse.KeySpec{spec}},
	}}))(t)
}

// TestSignWithTransit signs a guardrail through the command line.
func TestSignWithTransit(t *testing.T) {
	testenv.Require(t, testenv.VaultServer())
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableEngine(t.Context(), "transit", "transit", nil))
	testenv.MustGet(v.Write(t.Context(), "transit/keys/ana", map[string]any{"type": "ed25519"}))(t)
	t.Setenv("VAULT_ADDR", v.Address)
	t.Setenv("VAULT_TOKEN", v.Token)
	k := testenv.MustGet(signer(t.Context(), "vault:transit/ana"))(t)
	dir := t.TempDir()
	run := func(args ...string) (string, int) {
		var out strings.Builder
		status := execute(context.WithoutCancel(t.Context()), append([]string{"plugin"}, args...), strings.NewReader(""), &out, &out, time.Now)
		return out.String(), status
	}
	if out, status := run("trust", "init", dir, "--signer", "root,policy=ana@corp="+halfOf(k.Public(), "").Ed25519); status != 0 {
		t.Fatal(out)
	}
	file := filepath.Join(dir, "company.yaml")
	testenv.Must(t, os.WriteFile(file, []byte("apiVersion: chaperone.dev/v1alpha1\nkind: PluginGuardrail\nmetadata: {name: company}\nspec: {plugins: [\"**\"]}\n"), 0o600))
	if out, status := run("sign", file, "--key", "vault:transit/ana"); status != 0 || !strings.Contains(out, "signed by ana@corp") {
		t.Fatalf("status %d: %s", status, out)
	}
}

package testenv_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.Lingering()) }

func TestVaultSecretsLoginAndSeal(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		vault := testenv.MustVault(t, testenv.VaultConfig{TLS: withTLS})
		if got := strings.HasPrefix(vault.Address, "https://"); got != withTLS {
			t.Fatalf("address is %s with TLS %v", vault.Address, withTLS)
		}
		testenv.Must(t, vault.PutSecret(t.Context(), "weather", map[string]any{"api_key": "k"}))
		login := testenv.MustGet(vault.AppRole(t.Context(), "weather", testenv.AppRole{
			Policy:   `path "secret/data/weather" { capabilities = ["read"] }`,
			TokenTTL: time.Minute,
		}))(t)
		answer := testenv.MustGet(vault.Do(t.Context(), http.MethodPost, "auth/approle/login", "", map[string]any{
			"role_id": login.RoleID, "secret_id": login.SecretID,
		}))(t)
		auth, _ := answer["auth"].(map[string]any)
		token, _ := auth["client_token"].(string)
		if _, err := vault.Do(t.Context(), http.MethodGet, "secret/data/weather", token, nil); err != nil {
			t.Errorf("read with the AppRole's token: %v", err)
		}
		var refused *testenv.VaultError
		_, err := vault.Do(t.Context(), http.MethodGet, "secret/data/other", token, nil)
		if !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
			t.Errorf("read of another secret: %v, want 403", err)
		}
		testenv.Must(t, vault.Seal(t.Context()))
		if _, err := vault.Read(t.Context(), "secret/data/weather"); !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable {
			t.Errorf("read while sealed: %v, want 503", err)
		}
		testenv.Must(t, vault.Unseal(t.Context()))
		testenv.MustGet(vault.Read(t.Context(), "secret/data/weather"))(t)
	}
}

func TestVaultPauseAndKill(t *testing.T) {
	vault := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, vault.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := vault.Read(ctx, "secret/config"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read of a paused Vault: %v, want a timeout", err)
	}
	testenv.Must(t, vault.Resume())
	testenv.MustGet(vault.Read(t.Context(), "secret/config"))(t)
	testenv.Must(t, vault.Kill())
	if _, err := vault.Read(t.Context(), "secret/config"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read of a killed Vault: %v, want connection refused", err)
	}
}

func TestDatabaseLease(t *testing.T) {
	testenv.Require(t, testenv.PostgreSQL())
	db := testenv.MustPostgres(t)
	vault := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, vault.EnableDatabase(t.Context(), "database", db))
	testenv.Must(t, vault.DatabaseRole(t.Context(), "database", "reader", testenv.DatabaseRole{}))
	creds := testenv.MustGet(vault.Read(t.Context(), "database/creds/reader"))(t)
	user, _ := creds["username"].(string)
	password, _ := creds["password"].(string)
	if _, err := db.QueryAs(t.Context(), user, password, "SELECT current_user"); err != nil {
		t.Fatalf("log in with the leased user: %v", err)
	}
	leases := testenv.MustGet(vault.Leases(t.Context(), "database"))(t)
	if len(leases) != 1 || !strings.HasPrefix(leases[0], "database/creds/reader/") {
		t.Fatalf("leases are %q, want one below database/creds/reader/", leases)
	}
	testenv.Must(t, vault.RevokeLeases(t.Context(), "database/creds/reader"))
	if leases := testenv.MustGet(vault.Leases(t.Context(), "database/creds/reader"))(t); len(leases) != 0 {
		t.Errorf("leases are %q after the revocation, want none", leases)
	}
	if rows := testenv.MustGet(db.Query(t.Context(), "SELECT rolname FROM pg_roles WHERE rolname = '"+user+"'"))(t); len(rows) != 0 {
		t.Errorf("the leased user still exists: %q", rows)
	}
}

func TestRootAndCacheDir(t *testing.T) {
	root := testenv.MustGet(testenv.Root())(t)
	if _, err := os.Stat(filepath.Join(root, "internal", "testenv", "vaultdev", "go.mod")); err != nil {
		t.Error(err)
	}
	dir := filepath.Join(t.TempDir(), "cache")
	t.Setenv("CHAPERONE_CACHE", dir)
	if got := testenv.MustGet(testenv.CacheDir())(t); got != dir {
		t.Errorf("cache is %s, want %s", got, dir)
	}
}

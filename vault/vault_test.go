package vault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.Lingering()) }

const plugin = "weather"

// journal collects audit records.
type journal struct {
	mu      sync.Mutex
	records []authz.Record
}

func (j *journal) Record(r *authz.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records = append(j.records, *r)
	return nil
}

// String returns what happened to what.
func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var s strings.Builder
	for _, r := range j.records {
		fmt.Fprintf(&s, "\n%s %s %s %s %s", r.Time.Format("05.000"), r.Reason, r.Credential, r.Lease, r.Detail)
	}
	return s.String()
}

// count returns how many records say what.
func (j *journal) count(what string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, r := range j.records {
		if r.Reason == what {
			n++
		}
	}
	return n
}

// last returns the reason of the last record of a lease, "" without one.
func (j *journal) last(lease string) (reason string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.records {
		if r.Lease == lease {
			reason = r.Reason
		}
	}
	return reason
}

func ref(name, path string) authz.CredentialRef {
	return authz.CredentialRef{Plugin: plugin, Grant: "weather", Name: name, Path: path}
}

// write writes a file of the test's own and returns its path.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	testenv.Must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// approle makes a role with a policy and returns how to log in with it.
func approle(t testing.TB, v *testenv.Vault, name string, role testenv.AppRole) Auth {
	t.Helper()
	login := testenv.MustGet(v.AppRole(t.Context(), name, role))(t)
	return Auth{
		Method:       MethodAppRole,
		RoleIDFile:   write(t, "role-id", login.RoleID+"\n"),
		SecretIDFile: write(t, "secret-id", login.SecretID+"\n"),
	}
}

// broker makes a broker that gives back what it has when the test ends.
func broker(t testing.TB, cfg Config) *Broker {
	t.Helper()
	if cfg.Plugin == "" {
		cfg.Plugin = plugin
	}
	b := testenv.MustGet(New(cfg))(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = b.Run(ctx) // revocations that Vault does not confirm have tests of their own
	})
	return b
}

// run runs a broker until stop is called or the test ends.
func run(t testing.TB, cfg Config) (b *Broker, stop func() error) {
	t.Helper()
	if cfg.Plugin == "" {
		cfg.Plugin = plugin
	}
	b = testenv.MustGet(New(cfg))(t)
	b.leases.grace = time.Second
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return b, stop
}

// until waits until what holds.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute) // twice what a failure may hold up the next try
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const readForecast = `path "secret/data/*" { capabilities = ["read"] }`

func TestReadsKV(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{TLS: true})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1", "limit": 7}))
	testenv.Must(t, v.EnableEngine(t.Context(), "old", "kv", nil))
	testenv.MustGet(v.Write(t.Context(), "old/weather", map[string]any{"api_key": "wk_old"}))(t)

	auths := map[string]Auth{
		"approle": approle(t, v, "weather", testenv.AppRole{
			Policy: readForecast + ` path "old/*" { capabilities = ["read"] }`, TokenTTL: time.Hour,
		}),
	}
	token := testenv.MustGet(v.NewToken(t.Context(), time.Hour, "weather"))(t)
	auths["token"] = Auth{Method: MethodToken, TokenFile: write(t, "token", token+"\n")}
	for name, auth := range auths {
		t.Run(name, func(t *testing.T) {
			b := broker(t, Config{Address: v.Address, CAFile: v.CAFile, Auth: auth})
			testenv.Must(t, b.Login(t.Context()))
			if s := b.Status(); !s.LoggedIn || time.Until(s.TokenExpires) < 50*time.Minute || s.LastErr != "" {
				t.Errorf("status after login: %+v", s)
			}
			c := testenv.MustGet(b.Credential(t.Context(), ref("key", "secret/data/weather")))(t)
			if got := c.Fields["api_key"].Reveal(); got != "wk_1" {
				t.Errorf("api_key = %q", got)
			}
			if got := c.Fields["limit"].Reveal(); got != "7" {
				t.Errorf("limit = %q", got)
			}
			if c.Lease != "" || c.Generation == 0 || c.NotAfter.IsZero() {
				t.Errorf("credential = %+v", c)
			}
			c = testenv.MustGet(b.Credential(t.Context(), ref("old", "old/weather")))(t)
			if got := c.Fields["api_key"].Reveal(); got != "wk_old" {
				t.Errorf("api_key of KV version 1 = %q", got)
			}
		})
	}
}

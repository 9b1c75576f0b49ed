package vault

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// How long what Vault gives without a lease lives is read in every form that
// engines write it, and never from a key-value secret.
func TestLifeOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) string { return fmt.Sprint(now.Add(d).Unix()) }
	for _, test := range []struct {
		name, answer string
		life         time.Duration // below 0: none is stated
	}{
		{"GCP", `{"mount_type":"gcp","data":{"token":"t","token_ttl":3599,"expires_at_seconds":` + in(3590*time.Second) + `}}`, 3590 * time.Second},
		{"duration alone", `{"data":{"token":"t","token_ttl":8}}`, 8 * time.Second},
		{"number as text", `{"data":{"token":"t","expires_in":"3600"}}`, time.Hour},
		{"fraction", `{"data":{"token":"t","ttl":1.5}}`, 1500 * time.Millisecond},
		{"Go's duration", `{"data":{"token":"t","ttl":"1h30m"}}`, 90 * time.Minute},
		{"RFC 3339", `{"data":{"token":"t","expires_at":"2026-11-29T13:00:00Z"}}`, time.Hour},
		{"RFC 3339 elsewhere", `{"data":{"token":"t","expires_at":"2026-11-29T13:00:00.5+01:00"}}`, 500 * time.Millisecond},
		{"moment as text", `{"data":{"token":"t","expires_at":"` + in(time.Minute) + `"}}`, time.Minute},
		{"milliseconds", `{"data":{"token":"t","expires_at":` + in(time.Minute) + `000}}`, time.Minute},
		{"the moment is earlier", `{"data":{"ttl":600,"expires_at":` + in(time.Minute) + `}}`, time.Minute},
		{"the duration is shorter", `{"data":{"ttl":60,"expires_at":` + in(time.Hour) + `}}`, time.Minute},
		{"our clock is ahead", `{"data":{"ttl":60,"expires_at":` + in(-time.Hour) + `}}`, time.Minute},
		{"it has ended", `{"data":{"token":"t","expires_at":` + in(-time.Hour) + `}}`, 0},
		{"zero is no duration", `{"data":{"token":"t","ttl":0}}`, -1},
		{"zero is no moment", `{"data":{"token":"t","expires_at":"0001-01-01T00:00:00Z"}}`, -1},
		{"words", `{"data":{"token":"t","ttl":"soon","expires_at":"never"}}`, -1},
		{"not a number", `{"data":{"token":"t","ttl":"NaN"}}`, -1},
		{"for ever", `{"data":{"token":"t","ttl":1e30}}`, 10 * 365 * 24 * time.Hour},
		{"static, due now", `{"data":{"ttl":0,"last_vault_rotation":"2026-11-29T11:00:00Z"}}`, 0},
		{"version 1", `{"lease_duration":2764800,"data":{"ttl":7,"expires_at":` + in(time.Minute) + `}}`, -1},
		{"version 1, named", `{"mount_type":"kv","data":{"ttl":7}}`, -1},
		{"version 2", `{"data":{"data":{"ttl":7},"metadata":{"version":1},"ttl":7}}`, -1},
		{"a lease", `{"lease_id":"a/b","lease_duration":60,"data":{"ttl":7}}`, -1},
	} {
		life, ends := lifeOf(parse(t, test.answer), now)
		if ends != (test.life >= 0) || ends && life != test.life {
			t.Errorf("%s: %s, %v; want %s", test.name, life, ends, test.life)
		}
	}
}

// respond answers every request under a path with the fields of data.
func respond(kind string, data func() map[string]any) func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder) {
	return func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"lease_id": "", "lease_duration": 0, "renewable": false, "mount_type": kind, "data": data(),
		})
	}
}

// A token that an engine gives without a lease is never served past its end, is
// fetched again before, and not minted each minute.
func TestTokensWithoutALease(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: `path "gcp/*" { capabilities = ["read"] }`, TokenTTL: time.Hour})
	f := newFaults(t, v)
	var made atomic.Int64
	var ends atomic.Pointer[map[string]time.Time]
	ends.Store(&map[string]time.Time{})
	f.breaks("gcp/", respond("gcp", func() map[string]any {
		end, token := time.Now().Add(8*time.Second), fmt.Sprintf("ya29.%d", made.Add(1))
		all := map[string]time.Time{token: end}
		maps.Copy(all, *ends.Load())
		ends.Store(&all)
		return map[string]any{"token": token, "token_ttl": 8, "expires_at_seconds": end.Unix()}
	}))
	var log journal
	b, _ := run(t, Config{Address: f.address, Auth: auth, Recorder: &log, Refresh: time.Second})
	token := ref("token", "gcp/roleset/r/token")
	b.Retain(t.Context(), []authz.CredentialRef{token})
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c := testenv.MustGet(b.Credential(t.Context(), token))(t)
		if left := time.Until((*ends.Load())[c.Fields["token"].Reveal()]); left < 0 {
			t.Fatalf("served %s after its end", -left)
		}
	}
	if n := made.Load(); n < 2 || n > 6 {
		t.Errorf("made %d tokens of 8 s in 15 s", n)
	}
	if log.count("lost") != 0 {
		t.Errorf("records %s", &log)
	}
}

// A one-time password is good for the moment: it is fetched when it is asked for.
func TestOneTimePasswords(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: `path "totp/*" { capabilities = ["read"] }`, TokenTTL: time.Hour})
	for _, kind := range []string{"totp", ""} {
		f := newFaults(t, v)
		var made atomic.Int64
		f.breaks("totp/", respond(kind, func() map[string]any {
			return map[string]any{"code": fmt.Sprint(810920 + made.Add(1))}
		}))
		var log journal
		b, _ := run(t, Config{Address: f.address, Auth: auth, Recorder: &log})
		code := ref("code", "totp/code/weather")
		b.Retain(t.Context(), []authz.CredentialRef{code})
		first := testenv.MustGet(b.Credential(t.Context(), code))(t)
		if left := time.Until(first.NotAfter); left > oneTimePasswordLife {
			t.Errorf("kind %q: a code is served for %s", kind, left)
		}
		time.Sleep(oneTimePasswordLife + 2*time.Second)
		if n := made.Load(); n != 1 {
			t.Errorf("kind %q: %d codes were made for one request", kind, n)
		}
		second := testenv.MustGet(b.Credential(t.Context(), code))(t)
		if second.Fields["code"].Equal(first.Fields["code"]) || log.count("lost") != 0 {
			t.Errorf("kind %q: the code of %s ago is served, records %s", kind, oneTimePasswordLife, &log)
		}
	}
}

// With a rotation_schedule Vault begins the next period before it replaces the password.
// The password is asked for until it is another, by callers that get no refusal of an
// upstream's as well.
func TestPasswordsThatAreReplacedLate(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: `path "database/*" { capabilities = ["read"] }`, TokenTTL: time.Hour})
	f := newFaults(t, v)
	start := time.Now()
	const period, late = 8 * time.Second, 4 * time.Second
	password := func() int { return int((time.Since(start) - late) / period) }
	f.breaks("database/", respond("database", func() map[string]any {
		passed := time.Since(start)
		return map[string]any{
			"username": "app", "password": fmt.Sprint("password-", password()), "rotation_schedule": "* * * * *",
			"ttl":                 int((period - passed%period).Seconds()),
			"last_vault_rotation": start.Add(time.Duration(password()) * period).Format(time.RFC3339),
		}
	}))
	var log journal
	b, _ := run(t, Config{Address: f.address, Auth: auth, Recorder: &log})
	app := ref("app", "database/static-creds/app")
	b.Retain(t.Context(), []authz.CredentialRef{app})
	var wrong time.Duration
	for end := start.Add(3 * period); time.Now().Before(end); {
		c := testenv.MustGet(b.Credential(t.Context(), app))(t)
		at := time.Now()
		time.Sleep(20 * time.Millisecond)
		if want := fmt.Sprint("password-", password()); c.Fields["password"].Reveal() != want {
			wrong += time.Since(at)
		}
	}
	if wrong > 4*time.Second || log.count("lost") != 0 {
		t.Errorf("the old password was served for %s of two rotations, records %s", wrong, &log)
	}
	if n := log.count("replaced"); n != 2 && n != 3 {
		t.Errorf("%d replacements: a ttl that counts down is no other password", n)
	}
	if n := f.count("database/static-creds/app"); n > 60 {
		t.Errorf("read %d times", n)
	}
}

// A value without a lease is served for as long as it may be stale while Vault is
// away, although the login ends before; not when Vault is there and refuses.
func TestValuesOutliveTheLogin(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(t *testing.T, v *testenv.Vault) (back func()){
		"paused": func(t *testing.T, v *testenv.Vault) func() {
			testenv.Must(t, v.Pause())
			return func() { testenv.Must(t, v.Resume()) }
		},
		"sealed": func(t *testing.T, v *testenv.Vault) func() {
			testenv.Must(t, v.Seal(t.Context()))
			return func() { testenv.Must(t, v.Unseal(t.Context())) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := weatherVault(t, testenv.VaultConfig{})
			auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: 5 * time.Second})
			var log journal
			b, _ := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log, Timeout: time.Second, Refresh: time.Second})
			key := ref("key", "secret/data/weather")
			b.Retain(t.Context(), []authz.CredentialRef{key})
			testenv.MustGet(b.Credential(t.Context(), key))(t)
			back := away(t, v)
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				testenv.MustGet(b.Credential(t.Context(), key))(t)
			}
			if b.Status().LoggedIn || log.count("lost") != 0 {
				t.Errorf("status %+v, records %s", b.Status(), &log)
			}
			back()
			until(t, "it is logged in again", func() bool { return b.Status().LoggedIn })
			testenv.MustGet(b.Credential(t.Context(), key))(t)

			// Now Vault is there, and gives nothing more to this role.
			testenv.Must(t, v.Delete(t.Context(), "auth/approle/role/weather"))
			until(t, "the value is lost", func() bool {
				_, err := b.Credential(t.Context(), key)
				return err != nil
			})
			if !strings.Contains(log.String(), "lost key") {
				t.Errorf("records %s", &log)
			}
		})
	}
}

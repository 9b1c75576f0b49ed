package vault

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const (
	readDatabase = `path "database/creds/*" { capabilities = ["read"] }` + "\n"
	revokeLeases = `path "sys/leases/revoke" { capabilities = ["update"] }` + "\n"
)

// database starts a Vault that leases users of a PostgreSQL by the roles that
// are given.
func database(t *testing.T, roles map[string]testenv.DatabaseRole) (*testenv.Vault, *testenv.Postgres) {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL())
	db := testenv.MustPostgres(t)
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.EnableDatabase(t.Context(), "database", db))
	for name, role := range roles {
		testenv.Must(t, v.DatabaseRole(t.Context(), "database", name, role))
	}
	return v, db
}

func users(t testing.TB, db *testenv.Postgres) []string {
	t.Helper()
	return testenv.MustGet(db.Query(context.WithoutCancel(t.Context()), "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%' ORDER BY 1"))(t)
}

func logsIn(t testing.TB, db *testenv.Postgres, c authz.Credential) bool {
	t.Helper()
	_, err := db.QueryAs(t.Context(), c.Fields["username"].Reveal(), c.Fields["password"].Reveal(), "SELECT 1")
	return err == nil
}

func TestLeasesDatabaseUsers(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	kept, dropped := ref("kept", "database/creds/reader"), ref("dropped", "database/creds/reader")
	var log journal
	state := filepath.Join(t.TempDir(), "leases.json")
	b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log, StateFile: state})
	b.Retain(t.Context(), []authz.CredentialRef{kept, dropped})

	first := testenv.MustGet(b.Credential(t.Context(), kept))(t)
	second := testenv.MustGet(b.Credential(t.Context(), dropped))(t)
	again := testenv.MustGet(b.Credential(t.Context(), kept))(t)
	if !logsIn(t, db, first) || !logsIn(t, db, second) {
		t.Fatal("a leased user cannot log in to the database")
	}
	if first.Lease == "" || first.Lease == second.Lease || again.Lease != first.Lease || again.Generation != first.Generation {
		t.Errorf("leases %q, %q, %q", first.Lease, second.Lease, again.Lease)
	}
	if left := time.Until(first.NotAfter); left < 50*time.Minute || left > 58*time.Minute {
		t.Errorf("of a lease of an hour %s may be used, not 57 minutes", left)
	}
	if got := stateOf(t, state); len(got) != 2 {
		t.Errorf("state file holds %q", got)
	}

	report := b.Retain(t.Context(), []authz.CredentialRef{kept})
	if report.Leases != 1 || report.Confirmed != 1 || report.Err != nil || report.Unconfirmed != nil {
		t.Errorf("report of Retain: %+v", report)
	}
	if got := users(t, db); len(got) != 1 || logsIn(t, db, second) || !logsIn(t, db, first) {
		t.Errorf("users left in the database: %q", got)
	}
	if got := stateOf(t, state); len(got) != 1 || got[0] != first.Lease {
		t.Errorf("state file holds %q", got)
	}

	testenv.Must(t, stop())
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database after shutdown: %q", got)
	}
	if got := stateOf(t, state); len(got) != 0 {
		t.Errorf("state file holds %q after shutdown", got)
	}
	if log.count("leased") != 2 || log.count("revoked") != 3 { // two leases and the token
		t.Errorf("records: %s", &log)
	}
	if _, err := b.Credential(t.Context(), kept); !errors.Is(err, errStopping) {
		t.Errorf("after shutdown Credential returned %v", err)
	}
	if err := b.Login(t.Context()); !errors.Is(err, errStopping) {
		t.Errorf("after shutdown Login returned %v", err)
	}
}

func stateOf(t testing.TB, path string) []string {
	t.Helper()
	info := testenv.MustGet(os.Stat(path))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the state file has mode %v", info.Mode())
	}
	var kept storedState
	testenv.Must(t, json.Unmarshal(testenv.MustGet(os.ReadFile(path))(t), &kept))
	var ids []string
	for _, l := range kept.Leases {
		ids = append(ids, l.ID)
	}
	return ids
}

func TestRenewsThenReplaces(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"brief": {TTL: 4 * time.Second, MaxTTL: 10 * time.Second}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	brief := ref("brief", "database/creds/brief")
	var log journal
	b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	b.Retain(t.Context(), []authz.CredentialRef{brief})

	first := testenv.MustGet(b.Credential(t.Context(), brief))(t)
	var last authz.Credential
	until(t, "the lease was replaced twice", func() bool {
		last = testenv.MustGet(b.Credential(t.Context(), brief))(t)
		if !logsIn(t, db, last) {
			t.Error("served a user that cannot log in")
		}
		return log.count("replaced") >= 2
	})
	if log.count("renewed") < 2 || log.count("lost") != 0 || last.Generation <= first.Generation || last.Lease == first.Lease {
		t.Errorf("first %+v, last %+v, records %s", first, last, &log)
	}
	testenv.Must(t, stop())
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database: %q", got)
	}
}

func TestMintsOnceForManyCallers(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	f := newFaults(t, v)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	b := broker(t, Config{Address: f.address, Auth: auth})
	db1 := ref("db", "database/creds/reader")
	minting, release := f.hold("database/")

	// The first caller's end must not fail the others.
	impatient, giveUp := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := b.Credential(impatient, db1)
		first <- err
	}()
	<-minting
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up got %v", err)
	}
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if _, err := b.Credential(t.Context(), db1); err != nil {
				t.Error(err)
			}
		})
	}
	release()
	all.Wait()
	if got := users(t, db); len(got) != 1 {
		t.Errorf("201 callers made %d users", len(got))
	}
}

// A credential that is taken out of force while it is fetched is given back,
// and not handed out. Vault is not cut short, which could leave a user behind.
func TestTakenAwayWhileFetched(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	for name, take := range map[string]func(context.Context, *Broker, func() error) Report{
		"no longer granted": func(ctx context.Context, b *Broker, _ func() error) Report { return b.Retain(ctx, nil) },
		"revoked":           func(ctx context.Context, b *Broker, _ func() error) Report { return b.Revoke(ctx) },
		"shut down": func(_ context.Context, _ *Broker, stop func() error) Report {
			return Report{Leases: 1, Confirmed: 1, Err: stop()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaults(t, v)
			auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
			var log journal
			b, stop := run(t, Config{Address: f.address, Auth: auth, Recorder: &log})
			db1 := ref("db", "database/creds/reader")
			b.Retain(t.Context(), []authz.CredentialRef{db1})
			minting, release := f.hold("database/")
			got := make(chan error, 1)
			go func() {
				_, err := b.Credential(context.WithoutCancel(t.Context()), db1)
				got <- err
			}()
			<-minting
			reported := make(chan Report, 1)
			go func() { reported <- take(context.WithoutCancel(t.Context()), b, stop) }()
			until(t, "it is out of force", func() bool {
				b.leases.mu.RLock()
				defer b.leases.mu.RUnlock()
				return len(b.leases.entries) == 0 || b.leases.closed
			})
			release()
			if err := <-got; !errors.Is(err, errNotInForce) {
				t.Errorf("the request was answered %v", err)
			}
			if report := <-reported; report.Leases != 1 || report.Confirmed != 1 || report.Err != nil {
				t.Errorf("report: %+v", report)
			}
			if text := log.String(); !strings.Contains(text, "revoked db database/creds/reader/") {
				t.Errorf("the lease was cut short and not revoked by its id: %s", text)
			}
			if got := users(t, db); len(got) != 0 {
				t.Errorf("users left in the database: %q", got)
			}
		})
	}
}

// Confirmed means that the user is gone from the database, and not that Vault
// will see to it.
func TestConfirmedMeansGone(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	b := broker(t, Config{Address: v.Address, Auth: auth})
	testenv.MustGet(b.Credential(t.Context(), ref("db", "database/creds/reader")))(t)
	testenv.Must(t, db.Kill())
	if report := b.Retain(t.Context(), nil); report.Confirmed != 0 || len(report.Unconfirmed) != 1 || report.Err == nil {
		t.Errorf("report without a database: %+v", report)
	}
}

// Fetches under way when the sidecar ends neither hold it up nor leave leases.
func TestEndsWhileMinting(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	f := newFaults(t, v)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	b, stop := run(t, Config{Address: f.address, Auth: auth, Timeout: time.Hour})
	minted := make(chan struct{})
	f.breaks("database/", func(_ http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
		forward()
		close(minted)
		<-r.Context().Done()
	})
	got := make(chan error, 1)
	go func() {
		_, err := b.Credential(context.WithoutCancel(t.Context()), ref("db", "database/creds/reader"))
		got <- err
	}()
	<-minted
	testenv.Must(t, stop())
	if err := <-got; err == nil {
		t.Error("the request was answered")
	}
	until(t, "the user of the lost answer is gone", func() bool { return len(users(t, db)) == 0 })
}

// After a suspension, or when the clock was set, Vault is asked before anything is served
// that has ended in between; and what nobody has used is given back and not renewed.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: 10 * time.Hour})
	var jumped atomic.Int64
	var log journal
	f := newFaults(t, v)
	b, _ := run(t, Config{Address: f.address, Auth: auth, Recorder: &log, Now: func() time.Time {
		return time.Now().Add(time.Duration(jumped.Load()))
	}})
	db1 := ref("db", "database/creds/reader")
	b.Retain(t.Context(), []authz.CredentialRef{db1})
	first := testenv.MustGet(b.Credential(t.Context(), db1))(t)
	f.breaks("", answer(http.StatusServiceUnavailable, `{"errors":["Vault is sealed"]}`))
	jumped.Store(int64(2 * time.Hour))
	if _, err := b.Credential(t.Context(), db1); err == nil {
		t.Error("a lease of an hour is served after two")
	}
	f.mend()
	var second authz.Credential
	until(t, "Vault was asked", func() (ok bool) {
		c, err := b.Credential(t.Context(), db1)
		second = c
		return err == nil
	})
	if log.count("renewed")+log.count("leased") != 2 || second.NotAfter.Sub(first.NotAfter) < time.Hour {
		t.Errorf("served until %s, then until %s, records %s", first.NotAfter, second.NotAfter, &log)
	}

	jumped.Store(int64(2*time.Hour + 50*time.Minute)) // it is due to be renewed
	b.wakeUp()
	until(t, "it is given back", func() bool { return len(users(t, db)) == 0 })
	if log.count("released") != 1 {
		t.Errorf("records %s", &log)
	}
}

// A lease that ended by our clock while it was renewed is either renewed or
// revoked, and not both.
func TestEndsWhileRenewed(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: 10 * time.Hour})
	f := newFaults(t, v)
	var log journal
	b := testenv.MustGet(New(Config{Plugin: plugin, Address: f.address, Auth: auth, Recorder: &log}))(t)
	var wall atomic.Int64 // the wall clock alone: by the other one the lease is in use
	b.clock.adjust = func(now dualTime) dualTime { return dualTime{now.mono, now.wall + wall.Load()} }
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	db1 := ref("db", "database/creds/reader")
	b.Retain(t.Context(), []authz.CredentialRef{db1})
	for _, test := range []struct {
		renewed  bool
		due, end time.Duration // from then on; of 57 minutes it is renewed after 34 to 42
	}{{true, 45 * time.Minute, 15 * time.Minute}, {false, 30 * time.Minute, 15 * time.Minute}} {
		c := testenv.MustGet(b.Credential(t.Context(), db1))(t)
		lost, renewed := log.count("lost"), test.renewed
		renewing, release := f.hold("sys/leases/renew")
		wall.Add(int64(test.due))
		b.wakeUp()
		<-renewing
		wall.Add(int64(test.end))
		b.wakeUp()
		until(t, "it is lost", func() bool { return log.count("lost") > lost })
		if !renewed {
			testenv.Must(t, v.RevokeLeases(t.Context(), "database/creds/reader"))
		}
		release()
		var next authz.Credential
		until(t, "it is served again", func() (ok bool) {
			got, err := b.Credential(t.Context(), db1)
			next = got
			return err == nil
		})
		f.mend()
		if (next.Lease == c.Lease) != renewed {
			t.Errorf("renewed: %v, lease %q, then %q, records %s", renewed, c.Lease, next.Lease, &log)
		}
		until(t, "no revocation is left", func() bool { return b.Status().Unconfirmed == 0 })
		if !logsIn(t, db, next) {
			t.Error("served a user that cannot log in")
		}
	}
	cancel()
	testenv.Must(t, <-done)
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database: %q", got)
	}
}

// A token that dies before the leases it made takes them along, whatever Vault
// says of them. The lease must not be served past the token's end.
func TestOutlivesItsToken(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{
		Policy: readDatabase + revokeLeases, TokenTTL: 4 * time.Second, TokenMaxTTL: 10 * time.Second,
	})
	db1 := ref("db", "database/creds/reader")
	var log journal
	b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	b.Retain(t.Context(), []authz.CredentialRef{db1})
	for end := time.Now().Add(14 * time.Second); time.Now().Before(end); {
		c := testenv.MustGet(b.Credential(t.Context(), db1))(t)
		if left := time.Until(c.NotAfter); left > 5*time.Second {
			t.Fatalf("served for %s with a token of 4 s", left)
		}
		if !logsIn(t, db, c) {
			t.Fatal("served a user that died with its token")
		}
	}
	if log.count("replaced") < 1 || log.count("lost") != 0 {
		t.Errorf("records: %s", &log)
	}
	testenv.Must(t, stop())
	until(t, "no user is left", func() bool { return len(users(t, db)) == 0 })
}

func TestLifetimeIsACeiling(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: time.Hour})
	capped, key := ref("db", "database/creds/reader"), ref("key", "secret/data/weather")
	capped.Lifetime, key.Lifetime = 4*time.Second, 4*time.Second
	var log journal
	b, _ := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	b.Retain(t.Context(), []authz.CredentialRef{capped, key})
	first := testenv.MustGet(b.Credential(t.Context(), capped))(t)
	if left := time.Until(first.NotAfter); left > 4*time.Second {
		t.Errorf("a lease of an hour with a ceiling of 4 s may be used for %s", left)
	}
	static := testenv.MustGet(b.Credential(t.Context(), key))(t)
	if left := time.Until(static.NotAfter); left > 4*time.Second {
		t.Errorf("a value with a ceiling of 4 s may be used for %s", left)
	}
	until(t, "the lease was replaced and not renewed", func() bool { return log.count("replaced") == 1 })
	if log.count("renewed") != 0 {
		t.Error("a lease was renewed at its ceiling")
	}
	if second := testenv.MustGet(b.Credential(t.Context(), capped))(t); second.Lease == first.Lease || !logsIn(t, db, second) {
		t.Errorf("second lease %+v", second)
	}
	until(t, "the former user is gone", func() bool { return !logsIn(t, db, first) })
}

// Without sys/leases/revoke in the policy, which the default one lacks, leases
// are ended with the token that made them.
func TestRevokesWithoutThePermission(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase, TokenTTL: time.Hour})
	kept, dropped := ref("kept", "database/creds/reader"), ref("dropped", "database/creds/reader")
	b, stop := run(t, Config{Address: v.Address, Auth: auth})
	b.Retain(t.Context(), []authz.CredentialRef{kept, dropped})
	testenv.MustGet(b.Credential(t.Context(), kept))(t)
	gone := testenv.MustGet(b.Credential(t.Context(), dropped))(t)

	report := b.Retain(t.Context(), []authz.CredentialRef{kept})
	if report.Confirmed != 0 || len(report.Unconfirmed) != 1 || statusOf(report.Err) != 403 {
		t.Errorf("report of Retain: %+v", report)
	}
	until(t, "the user is gone", func() bool { return !logsIn(t, db, gone) })
	until(t, "it is confirmed", func() bool { return b.Status().Unconfirmed == 0 })
	if c := testenv.MustGet(b.Credential(t.Context(), kept))(t); !logsIn(t, db, c) {
		t.Error("the credential in force was lost with the token")
	}

	report = b.Revoke(t.Context())
	if report.Leases != 1 || report.Confirmed != 1 || report.Err != nil {
		t.Errorf("report of Revoke: %+v", report)
	}
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database: %q", got)
	}
	testenv.MustGet(b.Credential(t.Context(), kept))(t)
	testenv.Must(t, stop())
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database after shutdown: %q", got)
	}
}

func TestRevokeTakesEverything(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	var log journal
	b, _ := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	for _, name := range []string{"a", "b", "c"} {
		testenv.MustGet(b.Credential(t.Context(), ref(name, "database/creds/reader")))(t)
	}
	token := b.login.current().token.Reveal()
	report := b.Revoke(t.Context())
	if report.Leases != 3 || report.Confirmed != 3 || report.Err != nil {
		t.Errorf("report: %+v", report)
	}
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database: %q", got)
	}
	if _, err := v.Do(t.Context(), "GET", "auth/token/lookup-self", token, nil); err == nil {
		t.Error("the token lives on")
	}
	until(t, "it is logged in again", func() bool { return b.Status().LoggedIn })
	if log.count("lost") != 0 {
		t.Errorf("records: %s", &log)
	}
}

// The next sidecar revokes the leases of a killed one.
func TestRevokesWhatAnEarlierSidecarLeft(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	path := filepath.Join(t.TempDir(), "leases.json")
	killed := testenv.MustGet(New(Config{Plugin: plugin, Address: v.Address, Auth: auth, StateFile: path}))(t)
	testenv.MustGet(killed.Credential(t.Context(), ref("db", "database/creds/reader")))(t)

	b, _ := run(t, Config{Address: v.Address, Auth: auth, StateFile: path})
	until(t, "the lease is revoked", func() bool { return len(users(t, db)) == 0 })
	until(t, "the state file is empty", func() bool { return len(stateOf(t, path)) == 0 })
	if s := b.Status(); s.Unconfirmed != 0 {
		t.Errorf("status: %+v", s)
	}
}

// A lease that a generation no longer names must not stay because a request
// decided before fetched it after.
func TestGivesBackWhatNobodyNames(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	b, _ := run(t, Config{Address: v.Address, Auth: auth})
	b.Retain(t.Context(), nil)
	testenv.MustGet(b.Credential(t.Context(), ref("late", "database/creds/reader")))(t)
	until(t, "the user is gone", func() bool { return len(users(t, db)) == 0 })
	if slices.ContainsFunc(b.Status().Leases, func(l LeaseStatus) bool { return l.Credential == "late" }) {
		t.Error("the credential is still there")
	}
}

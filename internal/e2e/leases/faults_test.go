package leases

import (
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const endless = "SELECT pg_sleep(600)"

// A lease that an operator revokes in Vault cuts the sessions that carry it, running
// statements too, at the database as well; the next session has another lease.
func TestLeaseRevokedInVault(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{})
	c := l.startConsole()
	c.rows("idle", "SELECT count(*) FROM orders")
	wait := c.begin("busy", endless)
	l.awaitSessions(1, true)
	testenv.Must(t, l.Vault.RevokeLeases(t.Context(), "database/creds/shop"))
	c.refused(wait(), "credential_unavailable")
	if a := c.do("idle", "SELECT 1"); a.Error == "" {
		t.Error("an idle session outlives its lease")
	}
	l.awaitSessions(0, false)
	if rows := c.rows("next", "SELECT count(*) FROM orders"); rows[0] != "100" || l.credentialRecords("leased") != 2 || l.credentialRecords("lost") != 1 {
		t.Errorf("rows %v, %d leased, %d lost", rows, l.credentialRecords("leased"), l.credentialRecords("lost"))
	}
	ends := l.records(func(r record) bool { return r.Kind == "end" && !r.Allowed && r.Reason == "credential_unavailable" })
	if len(ends) != 3 { // of two sessions and a statement
		t.Errorf("records of the ends: %+v", ends)
	}
}

// While Vault is away sessions go on until their lease ends, and new ones as long as it
// may be used; then a new session is refused, and works again when Vault is back.
func TestVaultDown(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{role: testenv.DatabaseRole{TTL: 12 * time.Second, MaxTTL: 12 * time.Second}})
	c := l.startConsole()
	c.rows("idle", "SELECT count(*) FROM orders")
	begun := time.Now()
	wait := c.begin("busy", endless)
	l.awaitSessions(1, true)
	testenv.Must(t, l.Vault.Pause())
	c.rows("new", "SELECT 1")
	c.refused(wait(), "credential_unavailable")
	if lived := time.Since(begun); lived < 7*time.Second || lived > 12*time.Second+soon {
		t.Errorf("a session of a lease of 12 s was cut after %s", lived)
	}
	l.awaitSessions(0, false)
	c.refused(c.do("refused", "SELECT 1"), "credential_unavailable")
	testenv.Must(t, l.Vault.Resume())
	testenv.Eventually(t, "a new session works", func() (answer, bool) {
		a := c.do("again", "SELECT 1")
		c.do("again", "")
		return a, a.Error == ""
	})
}

// A database that ends its sessions sends the reason itself; one that is away is refused with the
// reason; both work again when it is back.
func TestDatabaseRestarted(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{})
	c := l.startConsole()
	wait := c.begin("busy", endless)
	l.awaitSessions(1, true)
	testenv.Must(t, l.db.Stop())
	if a := wait(); a.Code != "57P01" || decisionID.MatchString(a.Error) {
		t.Errorf("the session's last message is %+v, want the server's own 57P01", a)
	}
	c.refused(c.do("away", "SELECT 1"), "upstream_unreachable")
	testenv.Must(t, l.db.Start(t.Context()))
	if rows := c.rows("back", "SELECT count(*) FROM orders"); rows[0] != "100" || l.credentialRecords("leased") != 1 {
		t.Errorf("rows %v, %d leases", rows, l.credentialRecords("leased"))
	}
	wait = c.begin("killed", endless)
	l.awaitSessions(1, true)
	testenv.Must(t, l.db.Kill())
	if a := wait(); a.Error == "" {
		t.Errorf("a session whose database crashed got %+v", a)
	}
}

// A password that was replaced since it was fetched is refused by the database once, and
// the login is made again with the new one: the plugin sees nothing of it. Sessions that
// are open go on.
func TestPasswordRotated(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{path: "database/static-creds/app"})
	testenv.MustGet(l.db.Query(t.Context(), "CREATE ROLE app LOGIN PASSWORD 'first'; GRANT SELECT ON orders TO app"))(t)
	testenv.Must(t, l.Vault.StaticDatabaseRole(t.Context(), "database", "app", "app", time.Hour))
	c := l.startConsole()
	before := c.rows("before", "SELECT current_user, pg_backend_pid()")
	testenv.MustGet(l.Vault.Write(t.Context(), "database/rotate-role/app", map[string]any{}))(t)
	wait := c.begin("busy", "SELECT pg_sleep(1), count(*) FROM orders")
	if rows := c.rows("after", "SELECT current_user"); rows[0] != "app" {
		t.Errorf("rows %v", rows)
	}
	if a := wait(); a.Error != "" {
		t.Errorf("a login at the same time: %s", a.Error)
	}
	if n := l.credentialRecords("replaced"); n != 1 {
		t.Errorf("the password was replaced %d times, before %v", n, before)
	}
}

// A credential that the database refuses is refused with the reason: the database's own
// text, which may name users, does not reach the plugin, and the password no log.
func TestCredentialRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{path: "secret/data/shop"})
	testenv.Must(t, l.Vault.PutSecret(t.Context(), "shop", map[string]any{"username": "app", "password": "not-the-password"}))
	testenv.MustGet(l.db.Query(t.Context(), "CREATE ROLE app LOGIN PASSWORD 'another'; GRANT SELECT ON orders TO app"))(t)
	c := l.startConsole()
	a := c.do("refused", "SELECT 1")
	c.refused(a, "credential_unavailable")
	if a.Code != "28000" || strings.Contains(a.Error, "app") {
		t.Errorf("the error is %+v", a)
	}
	if len(l.sessions(false)) != 0 {
		t.Error("the database has a session")
	}
	// The operator corrects it: the next login works, without a restart.
	testenv.MustGet(l.db.Query(t.Context(), "ALTER ROLE app PASSWORD 'not-the-password'"))(t)
	if rows := c.rows("corrected", "SELECT count(*) FROM orders"); rows[0] != "100" {
		t.Errorf("rows %v", rows)
	}
	for _, text := range []string{c.process.Output.String(), l.Read("state/audit.jsonl")} {
		if strings.Contains(text, "not-the-password") {
			t.Error("the password is in a log")
		}
	}
}

// Sessions that connect at the same time, before there is a lease, share one.
func TestColdConnectsShareALease(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{})
	c := l.startConsole()
	var waits []func() answer
	for i := range 50 {
		waits = append(waits, c.begin(string(rune('A'+i)), "SELECT current_user"))
	}
	users := map[string]bool{}
	for _, wait := range waits {
		a := wait()
		if a.Error != "" {
			t.Fatal(a.Error)
		}
		users[a.Rows[0]] = true
	}
	leases := testenv.MustGet(l.Vault.Leases(t.Context(), "database/creds/shop"))(t)
	if len(users) != 1 || len(leases) != 1 || l.credentialRecords("leased") != 1 {
		t.Errorf("%d users, %d leases, %d records", len(users), len(leases), l.credentialRecords("leased"))
	}
}

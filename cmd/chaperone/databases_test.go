package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// withShop starts a PostgreSQL with a shop, whose users Vault leases, and returns an
// environment whose plugin may read its orders and, by another rule, sleep in it.
func withShop(t *testing.T) (*env, *testenv.Postgres) {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL(), testenv.Program("psql"))
	w := newEnv(t, "required", "")
	db := testenv.MustPostgresOf(t, testenv.PostgresConfig{Names: []string{"db.internal"}, Database: "shop"})
	testenv.MustGet(db.Query(t.Context(), `CREATE TABLE orders (id int); INSERT INTO orders VALUES (7), (8);
		CREATE TABLE customers (name text); INSERT INTO customers VALUES ('ada');`))(t)
	testenv.Must(t, w.Vault.EnableDatabase(t.Context(), "database", db))
	testenv.Must(t, w.Vault.DatabaseRole(t.Context(), "database", "shop", testenv.DatabaseRole{
		Grants: []string{`GRANT SELECT ON orders TO "{{name}}"`},
	}))
	testenv.Must(t, w.Vault.Policy(t.Context(), "weather", `path "database/creds/shop" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }`))
	testenv.Must(t, db.CA.WriteFile(w.File("db-ca.pem")))
	w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), "dns: {hosts: {", "dns: {hosts: {db.internal: [127.0.0.1], ", 1))
	to := fmt.Sprintf("{scheme: postgres, hosts: [db.internal], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: db-ca.pem}}", db.Addr.Port())
	w.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: crm}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: orders
    reason: Tests
    to: %s
    databases: [shop]
    statements: {verbs: [select], tables: [public.orders], functions: [safe]}
    credential: login
  - id: sleep
    reason: Tests
    to: %s
    databases: [shop]
    statements: {verbs: [select], functions: [pg_catalog.pg_sleep]}
    credential: login
  credentials:
  - {name: login, vault: {path: database/creds/shop}, inject: {database: {}}}
`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), to, to))
	return w, db
}

// psql returns the shell command of psql with statements, by the name of the server.
func psql(db *testenv.Postgres, options string, statements ...string) string {
	command := fmt.Sprintf("psql -X -A -t 'host=db.internal port=%d dbname=shop user=anyone sslmode=verify-full %s'", db.Addr.Port(), options)
	for _, s := range statements {
		command += fmt.Sprintf(" -c %q", s)
	}
	return command
}

// TestPsql reads a granted table through the kernel's redirect, over TLS that libpq
// verifies, and is refused another; the refusal is on standard error with its remedy.
func TestPsql(t *testing.T) {
	w, db := withShop(t)
	r := w.Run("sh", "-c", psql(db, "", "SELECT id FROM orders ORDER BY id", "SELECT name FROM customers", "SELECT count(*) FROM orders")+
		"; echo status $?; "+psql(db, "dbname=other", "SELECT 1"))
	scenario.Contains(t, r.Stdout, "7\n8\n", "2\n", "status 0")
	scenario.Contains(t, r.Stderr, "statement_not_granted", "public.customers", "crm")
	if strings.Contains(r.Stdout+r.Stderr, "ada") {
		t.Errorf("a table that is not granted was read:\n%s%s", r.Stdout, r.Stderr)
	}
	log := w.Read("state/audit.jsonl")
	scenario.Contains(t, log, `"table:public.customers"`, `"protocol":"postgres"`)
	if strings.Contains(log+r.Stderr, db.Password) {
		t.Error("the password of the database is in the log or on standard error")
	}
	testenv.Eventually(t, "the lease is revoked with the sidecar's end", func() (int, bool) {
		leases, err := w.Vault.Leases(t.Context(), "database/creds/shop")
		return 0, err == nil && len(leases) == 0
	})
}

// sleepInShop starts a plugin with a statement that sleeps, and returns when it runs.
func sleepInShop(t *testing.T, w *env, db *testenv.Postgres) (*scenario.Process, admin.Session) {
	t.Helper()
	p := w.Start("sh", "-c", psql(db, "", "SELECT pg_sleep(300)")+"; echo status $?; "+psql(db, "", "SELECT id FROM orders")+"; echo then $?; sleep 60")
	s := testenv.Eventually(t, "a statement runs", func() (admin.Session, bool) {
		s, err := admin.Dial(w.File("state/admin.sock")).Status(t.Context())
		if err != nil || len(s.Sessions) != 1 || s.Sessions[0].Running != 1 {
			return admin.Session{}, false
		}
		n, err := db.Query(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
		return s.Sessions[0], err == nil && len(n) == 1 && n[0] == "1"
	})
	return p, s
}

// noSleep waits until the server has ended the statement too.
func noSleep(t *testing.T, db *testenv.Postgres) {
	t.Helper()
	testenv.Eventually(t, "the server has ended the statement", func() (int, bool) {
		n, err := db.Query(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'")
		return 0, err == nil && len(n) == 1 && n[0] == "0"
	})
}

// TestRevokeARunningStatement revokes the rule of a statement while it runs: psql reads
// why, the server stops, and the other rule's statements go on.
func TestRevokeARunningStatement(t *testing.T) {
	w, db := withShop(t)
	p, s := sleepInShop(t, w, db)
	if s.Protocol != "postgres" || s.Host != "db.internal" || s.Database != "shop" || s.Credential != "login" || s.Statement == "" || s.PID == 0 {
		t.Errorf("status shows the session as %+v", s)
	}
	table := w.Chaperone("status", "--config", w.File("sidecar.yaml"))
	scenario.Contains(t, table.Stdout, fmt.Sprintf("postgres://db.internal:%d/shop", db.Addr.Port()), "runs 1 statement (decision "+s.Statement+")")
	r := w.Revoke("--rule", "crm/sleep")
	if r.Cut != 1 || r.MS > 1000 {
		t.Errorf("the revocation is %+v, want 1 cut within a second", r)
	}
	testenv.Eventually(t, "psql has ended, and reads again", func() (bool, bool) { return true, strings.Contains(p.Output.String(), "then 0") })
	scenario.Contains(t, p.Output.String(), "revoked", "status 2", "7\n8\nthen 0")
	noSleep(t, db)
	explained := w.Chaperone("audit", "query", "--config", w.File("sidecar.yaml"), "--decision", s.Statement)
	scenario.Contains(t, explained.Stdout, "crm", "sleep")
}

// TestRevokeEverything revokes the whole plugin while a statement runs, and its lease.
func TestRevokeEverything(t *testing.T) {
	w, db := withShop(t)
	sleepInShop(t, w, db)
	r := w.Revoke()
	if r.Cut != 1 || r.Vault.Confirmed != 1 {
		t.Errorf("the revocation is %+v, want 1 cut and its lease confirmed", r)
	}
	noSleep(t, db)
	users := testenv.MustGet(db.Query(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'"))(t)
	if users[0] != "0" {
		t.Errorf("%s leased users are left", users[0])
	}
}

// TestPsqlMetrics reads the figures of sessions and statements.
func TestPsqlMetrics(t *testing.T) {
	w, db := withShop(t)
	metrics := w.serveMetrics()
	w.Start("sh", "-c", psql(db, "", "SELECT id FROM orders", "SELECT name FROM customers")+"; "+psql(db, "", "SELECT pg_sleep(300)"))
	for series, want := range map[string]float64{
		`chaperone_sessions_open{protocol="postgres"}`:                                                 1,
		`chaperone_statements_total{protocol="postgres",reason="statement_not_granted",verb="select"}`: 1,
		`chaperone_statements_total{protocol="postgres",reason="granted",verb="select"}`:               2,
		`chaperone_statements_total{protocol="postgres",reason="granted",verb="connect"}`:              2,
	} {
		testenv.Eventually(t, series, func() (int, bool) { return 0, scrape(t, metrics)[series] == want })
	}
	for _, rule := range []string{"crm/orders", "crm/sleep"} {
		testenv.Eventually(t, "bytes of "+rule, func() (int, bool) {
			return 0, scrape(t, metrics)[`chaperone_rule_network_bytes_total{direction="sent",rule="`+rule+`"}`] > 0
		})
	}
}

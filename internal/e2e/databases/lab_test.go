package databases

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// The names that the databases have for plugins.
const (
	shopHost  = "db.shop.example"
	cacheHost = "cache.shop.example"
)

// The users of the cache: the sidecar's, and one for the reference.
const (
	cacheUser  = "leased"
	directUser = "direct"
)

// runLimit bounds one run of a client.
const runLimit = 3 * time.Minute

// tables are the tables of the shop: orders and notes are granted, secrets are not.
const tables = `
CREATE TABLE orders (id int PRIMARY KEY, customer text NOT NULL, amount numeric(8,2) NOT NULL, placed date NOT NULL);
INSERT INTO orders SELECT n, 'customer ' || n % 17, n * 1.25, date '2026-01-01' + n FROM generate_series(1, 100) n;
CREATE TABLE notes (client text, n int, body text NOT NULL, PRIMARY KEY (client, n));
CREATE TABLE secrets (id int PRIMARY KEY, value text NOT NULL);
INSERT INTO secrets VALUES (1, 'the secret');
CREATE ROLE direct LOGIN PASSWORD 'direct';
GRANT SELECT ON orders TO direct;
GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO direct;
`

// leasedGrants are the rights of the leased users: also on secrets, so that a refusal
// is the sidecar's and not the role's.
var leasedGrants = []string{
	`GRANT SELECT ON orders, secrets TO "{{name}}"`,
	`GRANT INSERT ON secrets TO "{{name}}"`,
	`GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO "{{name}}"`,
}

// lab is a PostgreSQL and a Redis that a plugin is granted parts of, with a Vault that
// leases their users, and the clients.
type lab struct {
	*scenario.Env
	db    *testenv.Postgres
	cache *testenv.Redis

	cachePassword string // of its users
}

// newLab starts the lab, with the installed PostgreSQL or with the newest.
func newLab(t *testing.T, newest bool) *lab {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL(), testenv.Program("psql"), testenv.RedisServer())
	l := &lab{Env: scenario.New(t, "required", "")}
	ctx := context.WithoutCancel(t.Context())
	l.db = testenv.MustPostgresOf(t, testenv.PostgresConfig{Names: []string{shopHost}, Newest: newest})
	withoutTLS(t, l.db)
	_, err := l.db.Query(ctx, tables)
	testenv.Must(t, err)
	l.cachePassword = rand.Text()
	l.cache = testenv.MustRedis(t, testenv.RedisConfig{Names: []string{cacheHost}, Users: []string{
		fmt.Sprintf("user %s on >%s ~* &* +@all", cacheUser, l.cachePassword),
		fmt.Sprintf("user %s on >%s ~app:* resetchannels &app.* +@all", directUser, l.cachePassword),
	}})
	l.Write("databases-ca.pem", string(l.db.CA.PEM())+string(l.cache.CA.PEM()))
	testenv.Must(t, errors.Join(
		l.Vault.EnableDatabase(ctx, "database", l.db),
		l.Vault.DatabaseRole(ctx, "database", "shop", testenv.DatabaseRole{Grants: leasedGrants}),
		l.Vault.PutSecret(ctx, "cache", map[string]any{"username": cacheUser, "password": l.cachePassword}),
		l.Vault.Policy(ctx, "weather", `
path "database/creds/shop" { capabilities = ["read"] }
path "secret/data/cache" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }
`),
	))
	l.Write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  stateDir: state
  kernel: required
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {%s: [127.0.0.1], %s: [127.0.0.1]}}
  audit: {paths: full}
  drain: 2s
  vault: {address: %s, auth: {method: approle, roleIDFile: role-id, secretIDFile: secret-id}}
`, shopHost, cacheHost, l.Vault.Address))
	l.grant()
	testenv.Must(t, os.CopyFS(l.File("clients"), os.DirFS("testdata")))
	t.Cleanup(func() {
		if t.Failed() {
			l.Chaperone("detach", "--config", l.File("sidecar.yaml"), "--kill")
		}
	})
	return l
}

// grant writes the grant of both databases.
func (l *lab) grant() {
	l.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: shop
    reason: Tests
    to: {scheme: postgres, hosts: [%s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: databases-ca.pem}}
    databases: [postgres]
    statements:
      verbs: [select, insert, update, delete, copy-in, copy-out, lock]
      tables:
      - public.orders
      - public.notes
      - catalog
      - pg_catalog.pg_roles # psql and pg_dump
      - pg_catalog.pg_publication_namespace # psql
      - "pg_catalog.pg_foreign_*" # pg_dump, as those that follow
      - pg_catalog.pg_subscription
      - pg_catalog.pg_seclabels
      - pg_catalog.pg_shseclabel
      - pg_catalog.pg_db_role_setting
      functions: [safe, pg_catalog.pg_sleep, information_schema._pg_expandarray]
    credential: shop
  - id: cache
    reason: Tests
    to: {scheme: redis, hosts: [%s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: databases-ca.pem}}
    databases: [0]
    commands: ["@read", "@write", "@connection", "@transaction", "@pubsub", info]
    keys: ["app:*"]
    channels: ["app.*"]
    credential: cache
  credentials:
  - {name: shop, vault: {path: database/creds/shop}, inject: {database: {}}}
  - {name: cache, vault: {path: secret/data/cache}, inject: {database: {}}}
`, time.Now().Add(90*24*time.Hour).UTC().Format(time.RFC3339), shopHost, l.db.Addr.Port(), cacheHost, l.cache.TLSAddr.Port()))
}

// withoutTLS has a PostgreSQL also accept connections without TLS: the reference of
// clients that use none by default.
func withoutTLS(t *testing.T, db *testenv.Postgres) {
	t.Helper()
	rules := "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"
	testenv.Must(t, os.WriteFile(filepath.Join(db.SocketDir, "data", "pg_hba.conf"), []byte(rules), 0o600))
	_, err := db.Query(t.Context(), "SELECT pg_reload_conf()")
	testenv.Must(t, err)
}

// variables are the environment that a client finds its databases by.
func (l *lab) variables(direct bool) []string {
	all := []string{
		"PGHOST=" + shopHost, fmt.Sprintf("PGPORT=%d", l.db.Addr.Port()), "PGDATABASE=postgres", "PGUSER=plugin", "PGPASSWORD=none",
		"REDIS_HOST=" + cacheHost, fmt.Sprintf("REDIS_PORT=%d", l.cache.TLSAddr.Port()), "REDIS_USER=plugin", "REDIS_PASSWORD=none",
		"PYTHONPATH=" + l.File("clients/site"), "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C.UTF-8", "PSQLRC=/dev/null", "PSQL_HISTORY=/dev/null",
	}
	if direct {
		all = append(all, "PGHOST=127.0.0.1", "PGUSER=direct", "PGPASSWORD=direct", "HOME=/nonexistent",
			"REDIS_HOST=127.0.0.1", fmt.Sprintf("REDIS_PORT=%d", l.cache.Addr.Port()), "REDIS_USER="+directUser, "REDIS_PASSWORD="+l.cachePassword)
	}
	return all
}

// direct runs a client without the sidecar.
func (l *lab) direct(args ...string) scenario.Result {
	l.T.Helper()
	return l.run(exec.Command(args[0], args[1:]...), true)
}

// through runs a client as the plugin.
func (l *lab) through(args ...string) scenario.Result {
	l.T.Helper()
	return l.run(l.Command(append([]string{"run", "--config", l.File("sidecar.yaml"), "--"}, args...)...), false)
}

// The user and the group of clients without the sidecar.
const nobody = 65534

// empty removes what clients have written.
func (l *lab) empty() {
	l.T.Helper()
	_, err := l.db.Query(l.T.Context(), "DELETE FROM notes")
	testenv.Must(l.T, err)
	_, err = l.cache.Do(l.T.Context(), "FLUSHALL")
	testenv.Must(l.T, err)
}

func (l *lab) run(cmd *exec.Cmd, direct bool) scenario.Result {
	l.T.Helper()
	cmd.Dir = l.File("clients")
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, l.variables(direct)...)
	if direct { // as another user, like a plugin
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	l.empty()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	testenv.Must(l.T, cmd.Start())
	limit := time.AfterFunc(runLimit, func() { _ = cmd.Process.Signal(os.Interrupt) }) // a client that hangs
	_ = cmd.Wait()                                                                     // its status is compared
	if !limit.Stop() {
		l.T.Errorf("%q did not end within %v", cmd.Args, runLimit)
	}
	return scenario.Result{Stdout: stdout.String(), Stderr: stderr.String(), Status: cmd.ProcessState.ExitCode()}
}

// compare runs a client directly and through the sidecar.
func (l *lab) compare(args ...string) {
	t := l.T
	t.Helper()
	reference := l.direct(args...)
	wanted, denied := split(reference.Stdout)
	if reference.Status != 0 || denied == nil || strings.Contains(reference.Stdout, "broken") {
		t.Fatalf("directly it does not do what it is to: %s", show(reference))
	}
	if os.Getenv("DATABASES_DIRECT") == "1" { // for people
		t.Log(reference.Stdout, reference.Stderr)
		return
	}
	through := l.through(args...)
	got, refused := split(through.Stdout)
	if d := difference(wanted, got); d != "" || through.Status != 0 {
		t.Errorf("the client does not do the same through the sidecar: %s\n%s", d, show(through))
	}
	if len(refused) != len(denied) {
		t.Errorf("%d statements were refused, directly %d", len(refused), len(denied))
	}
	for _, line := range refused {
		if !strings.Contains(line, "statement_not_granted") || !decision.MatchString(line) {
			t.Errorf("a refusal without its reason and decision: %s", line)
		}
	}
	if strings.Contains(through.Stdout, "the secret") {
		t.Error("a refused statement was answered")
	}
}

// split parts the lines of the statements that are not granted from the others.
func split(output string) (same, refused []string) {
	for line := range strings.Lines(output) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "refused") {
			refused = append(refused, line)
			line, _, _ = strings.Cut(line, ":")
		}
		same = append(same, line)
	}
	return same, refused
}

// difference describes the first lines that are not the same.
func difference(want, got []string) string {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			return fmt.Sprintf("line %d is more: %s", i+1, got[i])
		case i >= len(got):
			return fmt.Sprintf("line %d is missing: %s", i+1, want[i])
		case want[i] != got[i]:
			return fmt.Sprintf("line %d is\n\t%s\nand directly\n\t%s", i+1, got[i], want[i])
		}
	}
	return ""
}

func show(r scenario.Result) string {
	return fmt.Sprintf("status %d\n--- stdout\n%s\n--- stderr\n%s", r.Status, tail(r.Stdout), tail(r.Stderr))
}

func tail(text string) string { return text[max(0, len(text)-5000):] }

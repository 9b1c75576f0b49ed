package leases

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

const shopHost = "db.shop.example"

var decisionID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// lab is a PostgreSQL with a Vault that leases its users, and the files of a sidecar
// whose plugin may read one of its tables.
type lab struct {
	*scenario.Env
	db     *testenv.Postgres
	plugin string // the program
	// connect is the variable by which the program finds its database.
	connect string
}

// labConfig is what differs between labs.
type labConfig struct {
	role testenv.DatabaseRole // of the leased users; its Grants are set
	path string               // of the credential in Vault; "": the role's
}

func newLab(t *testing.T, cfg labConfig) *lab {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL())
	l := &lab{Env: scenario.New(t, "required", "")}
	ctx := context.WithoutCancel(t.Context())
	l.db = testenv.MustPostgresOf(t, testenv.PostgresConfig{Names: []string{shopHost}, Database: "shop", Settings: []string{"max_connections=100"}})
	testenv.MustGet(l.db.Query(ctx, `CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 100)`))(t)
	cfg.role.Grants = []string{`GRANT SELECT ON public.orders TO "{{name}}"`}
	if cfg.path == "" {
		cfg.path = "database/creds/shop"
	}
	testenv.Must(t, errors.Join(
		l.Vault.EnableDatabase(ctx, "database", l.db),
		l.Vault.DatabaseRole(ctx, "database", "shop", cfg.role),
		l.Vault.Policy(ctx, "weather", `
path "database/creds/*" { capabilities = ["read"] }
path "database/static-creds/*" { capabilities = ["read"] }
path "secret/data/shop" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }
`),
		os.WriteFile(l.File("shop-ca.pem"), l.db.CA.PEM(), 0o644),
	))
	l.configure(shopHost, fmt.Sprintf(`
  - id: shop
    reason: Tests
    to: {scheme: postgres, hosts: [%s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: shop-ca.pem}}
    databases: [shop]
    statements: {verbs: [select], tables: [public.orders], functions: [safe, pg_catalog.pg_sleep]}
`, shopHost, l.db.Addr.Port()), cfg.path)
	l.connect = fmt.Sprintf("LEASES_CONNECT=host=%s port=%d dbname=shop user=plugin sslmode=verify-full", shopHost, l.db.Addr.Port())
	return l
}

// configure writes the files of a sidecar whose plugin has one rule, with a credential at a path
// in Vault, and makes the plugin's program.
func (l *lab) configure(host, rule, path string) {
	l.Write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  stateDir: state
  kernel: required
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {%s: [127.0.0.1]}}
  audit: {paths: full}
  drain: 2s
  vault: {address: %s, auth: {method: approle, roleIDFile: role-id, secretIDFile: secret-id}}
`, host, l.Vault.Address))
	l.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:%s    credential: shop
  credentials:
  - {name: shop, vault: {path: %s}, inject: {database: {}}}
`, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339), rule, path))
	l.plugin = l.CopyProgram("plugin")
	l.T.Cleanup(func() {
		if l.T.Failed() {
			l.Chaperone("detach", "--config", l.File("sidecar.yaml"), "--kill")
		}
	})
}

// pluginCommand is the command that runs a program as the plugin, with what the plugins
// of these tests read from their environment.
func (l *lab) pluginCommand(as string, program ...string) *exec.Cmd {
	cmd := l.Command(append([]string{"run", "--config", l.File("sidecar.yaml"), "--"}, program...)...)
	cmd.Env = append(cmd.Env, asPlugin+"="+as, l.connect)
	return cmd
}

// record is what the tests read of an audit record.
type record struct {
	Kind, Reason, Credential, Lease, Decision, Session, Detail string
	Allowed                                                    bool
}

// records returns the audit records so far for which is holds.
func (l *lab) records(is func(record) bool) []record {
	l.T.Helper()
	text, err := os.ReadFile(l.File("state/audit.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	testenv.Must(l.T, err)
	var out []record
	for line := range strings.Lines(string(text)) {
		var r record
		if json.Unmarshal([]byte(line), &r) == nil && is(r) {
			out = append(out, r)
		}
	}
	return out
}

// credentialRecords counts what has happened to leases.
func (l *lab) credentialRecords(reason string) int {
	l.T.Helper()
	return len(l.records(func(r record) bool { return r.Kind == "credential" && r.Reason == reason && r.Credential == "shop" }))
}

// sessions returns the sessions of leased users that the database has, or those that run a
// statement.
func (l *lab) sessions(running bool) []string {
	l.T.Helper()
	where := ""
	if running {
		where = " AND state = 'active'"
	}
	const sessions = "SELECT pid, usename, state, wait_event, query FROM pg_stat_activity " +
		"WHERE datname = 'shop' AND usename IS DISTINCT FROM 'postgres'" // a user that was dropped has no name
	return testenv.MustGet(l.db.Query(context.WithoutCancel(l.T.Context()), sessions+where))(l.T)
}

// awaitSessions waits until the database has n sessions of leased users.
func (l *lab) awaitSessions(n int, running bool) {
	l.T.Helper()
	for deadline := time.Now().Add(time.Minute); len(l.sessions(running)) != n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.T.Fatalf("the database has %q, want %d sessions (running: %v)", l.sessions(running), n, running)
		}
	}
}

package configs

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

// databaseGrant is a grant of one rule with these fields.
func databaseGrant(scheme, host, fields string) string {
	return `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: crm}
spec:
  plugin: crm
  notAfter: 2027-01-31T00:00:00Z
  rules:
  - id: read-orders
    reason: Order status
    to: {scheme: ` + scheme + `, hosts: [` + host + `]}
    credential: login
` + fields + `
  credentials:
  - {name: login, vault: {path: database/creds/shop}, inject: {database: {}}}
`
}

// checkGrant checks a grant and returns what was found.
func checkGrant(t *testing.T, text string) Checked {
	t.Helper()
	c, err := CheckWith(CheckOptions{Now: now, Stdin: strings.NewReader(text)}, stdinName)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// decide decides facts of a request to the database shop, or 0 of redis.
func decide(t *testing.T, c Checked, scheme authz.Scheme, host string, facts []authz.Fact) authz.Decision {
	t.Helper()
	database := map[authz.Scheme]string{authz.SchemePostgres: "shop", authz.SchemeRedis: "0"}[scheme]
	set, err := authz.NewFacts(scheme.Protocol(), append(slices.Clone(facts), authz.Fact{Kind: authz.FactDatabase, Name: database})...)
	if err != nil {
		t.Fatal(err)
	}
	to, err := authz.NewDestination(scheme, host, "")
	if err != nil {
		t.Fatal(err)
	}
	var engine authz.Engine
	engine.Install(c.Policies[0].Policy)
	return engine.Current().Decide(authz.Request{Principal: "crm", Destination: to, Facts: set}, authz.Usage{}, now)
}

// TestPostgresRule: what a file grants is what the reader of statements finds.
func TestPostgresRule(t *testing.T) {
	const reader = `    databases: [shop, "tenant_*"]
    statements: {verbs: [select, copy-out], tables: [public.orders, "public.order_*", catalog], functions: [safe, public.price_of]}`
	const writer = `    databases: ["*"]
    statements: {verbs: [select, insert, "ddl-create-*"], tables: ["public.*"], functions: [safe]}`
	const opaque = `    databases: [shop]
    opaque: allow`
	for name, test := range map[string]struct {
		fields          string
		granted, denied []string
		readOnly        bool
	}{
		"a rule that reads": {
			reader,
			[]string{
				"SELECT * FROM orders", "select lower(name) from public.order_lines", "BEGIN", "COMMIT", "SHOW timezone", "SET application_name = 'x'",
				"EXPLAIN SELECT 1 FROM orders", "COPY orders TO STDOUT", "SELECT price_of(1)", "SELECT relname FROM pg_class", "SET TRANSACTION READ ONLY",
			},
			[]string{
				"DELETE FROM orders", "SELECT * FROM invoices", "EXPLAIN ANALYZE DELETE FROM orders", "SELECT pg_read_file('x')", "SET ROLE admin",
				"SET search_path = evil", "DO $$begin end$$", "COPY orders FROM PROGRAM 'id'", "SET TRANSACTION READ WRITE", "SELECT * FROM pg_authid", "CREATE TABLE public.t ()",
			},
			true,
		},
		"a rule that writes": {
			writer,
			[]string{"INSERT INTO invoices VALUES (1)", "SET TRANSACTION READ WRITE", "CREATE TABLE t (a int)"},
			[]string{"DELETE FROM invoices", "DROP TABLE t", "CALL p()", "SELECT * FROM private.t", "SET ROLE admin"},
			false,
		},
		"an opaque rule": {opaque, []string{"DO $$begin end$$", "CALL p()", "BEGIN"}, []string{"SELECT * FROM orders", "SET ROLE admin"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := checkGrant(t, databaseGrant("postgres", "db.internal", test.fields))
			for want, texts := range map[bool][]string{true: test.granted, false: test.denied} {
				for _, text := range texts {
					var facts []authz.Fact
					reading := sql.Read(text)
					for _, s := range reading.Statements {
						facts = append(facts, s.Facts...)
					}
					if reading.Unreadable != "" || len(facts) == 0 {
						t.Errorf("%s: %s", text, reading.Unreadable)
						continue
					}
					if d := decide(t, c, authz.SchemePostgres, "db.internal", facts); d.Allowed() != want {
						t.Errorf("%s: %v is %s", text, facts, d.Reason)
					}
				}
			}
			var engine authz.Engine
			engine.Install(c.Policies[0].Policy)
			to, err := authz.NewDestination(authz.SchemePostgres, "db.internal", "")
			if err != nil {
				t.Fatal(err)
			}
			if got := engine.Current().SessionReadOnly("crm", to, "shop", now); got != test.readOnly {
				t.Errorf("the session is read-only: %t", got)
			}
		})
	}
}

// TestRedisRule: what a file grants is what the reader of commands finds.
func TestRedisRule(t *testing.T) {
	c := checkGrant(t, databaseGrant("redis", "cache.internal", `    databases: [0]
    commands: ["@read", set, "config get", subscribe]
    keys: ["app:*"]
    channels: [news]`))
	for command, want := range map[string]bool{
		"GET app:1": true, "MGET app:1 app:2": true, "SET app:1 x": true, "PING": true, "MULTI": true, "CONFIG GET maxmemory": true, "SUBSCRIBE news": true,
		"GET other:1": false, "MGET app:1 other:1": false, "DEL app:1": false, "CONFIG SET dir /": false, "MONITOR": false, "SUBSCRIBE other": false,
		"EVAL x 0": false, "FROB app:1": false,
	} {
		var args [][]byte
		for word := range strings.FieldsSeq(command) {
			args = append(args, []byte(word))
		}
		reading := resp.Read(args)
		if reading.Unreadable != "" || len(reading.Facts) == 0 {
			if want {
				t.Errorf("%s: %q", command, reading.Unreadable)
			}
			continue
		}
		if d := decide(t, c, authz.SchemeRedis, "cache.internal", reading.Facts); d.Allowed() != want {
			t.Errorf("%s: %v is %s", command, reading.Facts, d.Reason)
		}
	}
	for _, name := range redisCategories() {
		if _, err := resp.Expand(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDatabaseWarnings: what is allowed and hardly meant is a warning.
func TestDatabaseWarnings(t *testing.T) {
	c := checkGrant(t, databaseGrant("postgres", "db.internal", `    databases: [shop]
    statements:
      verbs: [select, delete]
      tables: ["*", public.Orders, "pg_catalog.*", public.orders]
      functions: [safe, "pg_catalog.pg_*"]
    opaque: allow`))
	want := []string{
		`-:14:14: spec.rules[0].statements.verbs: grants delete, and the rule is called read-orders; without verbs that write its sessions are read-only`,
		`-:15:16: spec.rules[0].statements.tables[0]: "*" grants every relation, also those of pg_catalog that hold statistics of data and sessions of others; name those that the plugin needs`,
		`-:15:21: spec.rules[0].statements.tables[1]: "public.Orders" is only a name that was created in quotes; the server folds others to public.orders`,
		`-:15:36: spec.rules[0].statements.tables[2]: "pg_catalog.*" grants every relation, also those of pg_catalog that hold statistics of data and sessions of others; name those that the plugin needs`,
		`-:16:25: spec.rules[0].statements.functions[1]: "pg_catalog.pg_*" grants every function, also those that run SQL from text and read the server's files, as far as the role may; name those that the plugin needs`,
		`-:17:13: spec.rules[0].opaque: allows statements as DO, CALL and CREATE FUNCTION, which may do whatever the role in the database may, beyond what the rule names`,
	}
	if diff := cmp.Diff(strings.Join(want, "\n"), c.Warnings.Error()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

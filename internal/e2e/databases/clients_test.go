package databases

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// decision is an id as refusals name it.
var decision = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// client is a program that takes the steps.
type client struct {
	name string
	args []string
	// newest is set for the clients that also run with the newest PostgreSQL: one of each
	// implementation of the protocol. CHAPERONE_LONG runs the others too.
	newest bool
}

// postgresClients are those of PostgreSQL.
func (l *lab) postgresClients() []client {
	return []client{
		{"psql", []string{"psql", "-X", "-f", l.File("clients/sh/psql.sql")}, true},
		{"pgbench", l.shell("pgbench.sh"), false},
		{"PgBouncer", l.shell("pgbouncer.sh"), false},
		{"pgx", l.golang("pgx"), true},
		{"pgxpool", l.golang("pgxpool"), false},
		{"lib pq", l.golang("pq"), false},
		{"psycopg 3", l.python("psycopg3.py"), true},
		{"psycopg 2", l.python("psycopg_2.py"), false},
		{"asyncpg", l.python("asyncpg_.py"), true},
		{"SQLAlchemy psycopg", l.python("sqlalchemy_.py", "psycopg"), false},
		{"SQLAlchemy psycopg2", l.python("sqlalchemy_.py", "psycopg2"), false},
		{"Django", l.python("django_.py"), false},
		{"JDBC", l.java("jdbc"), true},
		{"HikariCP", l.java("hikari"), false},
		{"node-postgres", l.node("pg.mjs"), true},
		{"postgres.js", l.node("postgresjs.mjs"), false},
	}
}

// otherClients are those of Redis, and pg_dump, which reads no server newer than itself.
func (l *lab) otherClients() []client {
	return []client{
		{"pg_dump", l.shell("pgdump.sh"), false},
		{"redis-cli", l.shell("rediscli.sh"), false},
		{"go-redis", l.golang("goredis"), false},
		{"rueidis", l.golang("rueidis"), false},
		{"redis-py", l.python("redis_py.py"), false},
		{"ioredis", l.node("ioredis.mjs"), false},
		{"node-redis", l.node("noderedis.mjs"), false},
		{"jedis", l.java("jedis"), false},
	}
}

func (l *lab) python(script string, args ...string) []string {
	return append([]string{testenv.SystemPython, l.File("clients/python/" + script)}, args...)
}

func (l *lab) node(script string) []string { return []string{"node", l.File("clients/node/" + script)} }

func (l *lab) java(client string) []string {
	return []string{"java", "-Xmx128m", "-cp", l.File("clients/java") + ":" + l.File("clients/jars") + "/*", "Clients", client}
}

func (l *lab) golang(client string) []string { return []string{l.File("clients/bin"), client} }

func (l *lab) shell(script string) []string { return []string{"bash", l.File("clients/sh/" + script)} }

// needClients are the programs that the clients need.
func needClients(t *testing.T) {
	t.Helper()
	testenv.Require(t, testenv.Program("pgbench"), testenv.Program("pg_dump"), testenv.PgBouncerServer(), testenv.Program("redis-cli"),
		testenv.Program("node"), testenv.Program("npm"), testenv.Program("javac"), testenv.Program("mvn"), testenv.Program(testenv.SystemPython))
}

// TestClients runs each client directly and as the plugin.
func TestClients(t *testing.T) {
	needClients(t)
	l := newLab(t, false)
	l.install()
	for _, c := range append(l.postgresClients(), l.otherClients()...) {
		t.Run(c.name, func(t *testing.T) { l.in(t).compare(c.args...) })
	}
}

// TestClientsWithTheNewestPostgreSQL runs clients of PostgreSQL with its newest version.
func TestClientsWithTheNewestPostgreSQL(t *testing.T) {
	needClients(t)
	testenv.Require(t, testenv.NewestPostgres())
	l := newLab(t, true)
	l.install()
	for _, c := range l.postgresClients() {
		if c.newest || os.Getenv("CHAPERONE_LONG") == "1" {
			t.Run(c.name, func(t *testing.T) { l.in(t).compare(c.args...) })
		}
	}
}

// in returns the lab for a subtest.
func (l *lab) in(t *testing.T) *lab {
	env := *l.Env
	env.T = t
	return &lab{&env, l.db, l.cache, l.cachePassword}
}

// install puts the clients where the plugin's user can read them.
func (l *lab) install() {
	t := l.T
	t.Helper()
	node := testenv.MustGet(testenv.InstallNodeDatabaseClients(t.Context(), nil))(t)
	python := testenv.MustGet(testenv.InstallPythonDatabaseClients(t.Context(), nil))(t)
	jars := testenv.MustGet(testenv.InstallJavaDatabaseClients(t.Context(), nil))(t)
	for _, step := range []struct {
		dir  string
		args []string
	}{
		{"clients/go", []string{"env", "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "go", "build", "-o", l.File("clients/bin"), "."}},
		{"clients/java", []string{"javac", "-cp", jars + "/*", "-d", l.File("clients/java"), "Clients.java"}},
		{"clients", []string{"cp", "-a", filepath.Join(node, "node_modules"), "node/node_modules"}},
		{"clients", []string{"cp", "-a", python, "site"}},
		{"clients", []string{"cp", "-a", jars, "jars"}},
	} {
		cmd := exec.Command(step.args[0], step.args[1:]...)
		cmd.Dir = l.File(step.dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", step.args, err, out)
		}
	}
}

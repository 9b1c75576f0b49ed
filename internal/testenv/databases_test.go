package testenv_test

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestPostgresWithTLS(t *testing.T) {
	testenv.Require(t, testenv.PostgreSQL())
	for name, cfg := range map[string]testenv.PostgresConfig{
		"installed": {Names: []string{"db.internal"}, Database: "shop", Settings: []string{"log_min_messages=error"}},
		"newest":    {Names: []string{"db.internal"}, Database: "shop", Newest: true},
	} {
		t.Run(name, func(t *testing.T) {
			if cfg.Newest {
				testenv.Require(t, testenv.NewestPostgres())
			}
			db := testenv.MustPostgresOf(t, cfg)
			const facts = "SELECT current_database(), s.ssl, current_setting('server_version_num')::int FROM pg_stat_ssl s WHERE pid = pg_backend_pid()"
			rows := testenv.MustGet(db.Query(t.Context(), facts))(t)
			database, rest, _ := strings.Cut(rows[0], "|")
			ssl, version, _ := strings.Cut(rest, "|")
			if number, err := strconv.Atoi(version); database != "shop" || ssl != "t" || err != nil || cfg.Newest != (number >= 180000) {
				t.Errorf("rows %q", rows)
			}
			psql := filepath.Join(testenv.MustGet(testenv.PostgreSQLBin())(t), "psql")
			plain := exec.Command(psql, "-XAtqc", "SELECT 1", "sslmode=disable host=127.0.0.1 user=postgres dbname=shop port="+strconv.Itoa(int(db.Addr.Port())))
			plain.Env = []string{"PGPASSWORD=" + db.Password}
			if out, err := plain.CombinedOutput(); err == nil || !strings.Contains(string(out), "pg_hba.conf") {
				t.Errorf("without TLS: %v, %s", err, out)
			}
			if out, err := exec.Command(psql, "-XAtqc", "SELECT 1", db.URL(db.User, db.Password)).CombinedOutput(); err != nil {
				t.Errorf("with verified TLS: %v, %s", err, out)
			}
			address := db.Addr
			testenv.Must(t, db.Restart(t.Context()))
			if rows := testenv.MustGet(db.Query(t.Context(), "SELECT 1"))(t); rows[0] != "1" || db.Addr != address {
				t.Errorf("after a restart %q at %s", rows, db.Addr)
			}
		})
	}
}

// A Vault leases users of a database with TLS, who may read its tables.
func TestDatabaseLeaseWithTLS(t *testing.T) {
	testenv.Require(t, testenv.PostgreSQL())
	db := testenv.MustPostgresOf(t, testenv.PostgresConfig{Names: []string{"db.internal"}, Database: "shop"})
	testenv.MustGet(db.Query(t.Context(), "CREATE TABLE orders (id int); INSERT INTO orders VALUES (7)"))(t)
	vault := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, vault.EnableDatabase(t.Context(), "database", db))
	testenv.Must(t, vault.DatabaseRole(t.Context(), "database", "reader", testenv.DatabaseRole{
		Grants: []string{`GRANT SELECT ON public.orders TO "{{name}}"`},
	}))
	lease := testenv.MustGet(vault.Read(t.Context(), "database/creds/reader"))(t)
	user, _ := lease["username"].(string)
	password, _ := lease["password"].(string)
	if rows := testenv.MustGet(db.QueryAs(t.Context(), user, password, "SELECT id FROM orders"))(t); rows[0] != "7" {
		t.Errorf("rows %q", rows)
	}
	if _, err := db.QueryAs(t.Context(), user, password, "DELETE FROM orders"); err == nil {
		t.Error("a reader deleted")
	}
}

func TestPgBouncer(t *testing.T) {
	testenv.Require(t, testenv.PostgreSQL(), testenv.PgBouncerServer())
	db := testenv.MustPostgresOf(t, testenv.PostgresConfig{Names: []string{"db.internal"}, Database: "shop"})
	pool := testenv.MustPgBouncer(t, testenv.PgBouncerConfig{Server: db, Names: []string{"pool.internal"}})
	psql := filepath.Join(testenv.MustGet(testenv.PostgreSQLBin())(t), "psql")
	for _, mode := range []string{"disable", "verify-full"} {
		out, err := exec.Command(psql, "-XAtqc", "SELECT current_database(), current_user",
			"host=127.0.0.1 user=anybody dbname=shop sslmode="+mode+" sslrootcert="+pool.CAFile+" port="+strconv.Itoa(int(pool.Addr.Port()))).CombinedOutput()
		if err != nil || string(out) != "shop|postgres\n" {
			t.Errorf("sslmode %s: %v, %q", mode, err, out)
		}
	}
}

func TestRedis(t *testing.T) {
	testenv.Require(t, testenv.RedisServer())
	r := testenv.MustRedis(t, testenv.RedisConfig{Names: []string{"cache.internal"}, Users: []string{"user reader on >secret ~app:* +@read"}})
	testenv.MustGet(r.Do(t.Context(), "SET", "app:1", "one"))(t)
	if got := testenv.MustGet(r.DoAs(t.Context(), "reader", "secret", "GET", "app:1"))(t); got != "one" {
		t.Errorf("answer %q", got)
	}
	for _, refused := range [][]string{{"reader", "secret", "SET", "app:1", "two"}, {"reader", "wrong", "GET", "app:1"}, {"nobody", "", "GET", "app:1"}} {
		if out, err := r.DoAs(t.Context(), refused[0], refused[1], refused[2:]...); err == nil {
			t.Errorf("%v is answered with %q", refused, out)
		}
	}
	out, err := exec.Command("redis-cli", "--tls", "--cacert", r.CAFile, "-h", "127.0.0.1", "-p", strconv.Itoa(int(r.TLSAddr.Port())),
		"--no-auth-warning", "--user", "reader", "--pass", "secret", "GET", "app:1").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "one" {
		t.Errorf("with TLS: %v, %s", err, out)
	}
	addresses := [2]netip.AddrPort{r.Addr, r.TLSAddr}
	testenv.Must(t, r.Stop())
	if _, err := r.Do(t.Context(), "PING"); err == nil {
		t.Error("a server that was stopped answers")
	}
	testenv.Must(t, r.Start(t.Context()))
	if testenv.MustGet(r.Do(t.Context(), "PING"))(t); addresses != [2]netip.AddrPort{r.Addr, r.TLSAddr} {
		t.Error("it listens elsewhere after a restart")
	}
}

package postgres

import (
	"strings"
	"testing"
)

// TestKeywordsAsNames refuses statements that the server runs, in which a keyword that is an
// alias is before the name of a table that is not granted.
func TestKeywordsAsNames(t *testing.T) {
	db, to := startPostgres(t, false)
	w := newWorld(t, to, rule("orders", "verb:select", "verb:insert", "verb:delete", "verb:ddl-create-table", "table:public.orders", "table:public.sink",
		"table:public.copied"))
	if out, err := w.psql("-c", "SELECT count(*) FROM orders"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, statement := range []string{
		"SELECT value FROM orders values (a, b), secrets LIMIT 1",
		"INSERT INTO sink SELECT secrets.id, value FROM orders values (a, b), secrets LIMIT 1",
		"SELECT value FROM generate_series(1, 1) WITH ORDINALITY AS materialized (a, b), secrets",
		"CREATE TABLE public.copied AS SELECT value FROM orders AS execute JOIN secrets ON true LIMIT 1",
		"CREATE TABLE public.copied AS WITH gone AS (DELETE FROM orders exclude USING secrets WHERE name = 'none' RETURNING value) SELECT * FROM gone",
	} {
		direct, err := db.QueryAs(t.Context(), to.user, to.password, statement+"; DROP TABLE IF EXISTS public.copied")
		if err != nil {
			t.Errorf("%s: the server refuses it: %v", statement, err)
		}
		// A name that the plugin has prepared is not unknown.
		out, err := w.psql("-c", `PREPARE "join" AS SELECT 1`, "-c", statement)
		if err == nil || !strings.Contains(out, "ERROR:  42501: statement_not_granted: ") || strings.Contains(out, "top") {
			t.Errorf("%s: got %v, %s, want it refused (the server answers %q)", statement, err, out, direct)
		}
	}
}

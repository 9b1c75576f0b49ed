package postgres

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestLastWritingRule cuts a session that is not pinned read-only once no rule writes: a
// granted function would still write in it.
func TestLastWritingRule(t *testing.T) {
	db, to := startPostgres(t, false)
	testenv.MustGet(db.Query(t.Context(), `CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'INSERT INTO sink VALUES (1) RETURNING id'`))(t)
	write := rule("write", "verb:insert", "table:public.sink")
	w := newWorld(t, to, rule("read", "verb:select", "table:public.orders", "function:public.writes"), write)
	c := w.open()
	if got := c.query("SELECT writes()"); got[0].kind != msgRowDescription {
		t.Fatalf("the function answers %v, want a row", got)
	}
	w.awaitEnds()
	w.revoke("write")
	c.expectFatal(stateAdminShutdown, "statement_not_granted: access was revoked")
	out, err := w.psql("-c", "SELECT writes()")
	if err == nil || !strings.Contains(out, "25006") {
		t.Errorf("got %v, %s, want an error 25006 of a read-only transaction", err, out)
	}
	c = w.open()
	c.query("SELECT 1")
	w.awaitEnds()
	if n := w.revoke("none"); n != 0 {
		t.Errorf("%d sessions are cut that are pinned, want 0", n)
	}
}

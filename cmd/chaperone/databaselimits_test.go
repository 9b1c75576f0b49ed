package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// withCopies is withShop for a plugin that may copy its orders in and out, within limits.
func withCopies(t *testing.T, limits string) (*env, *testenv.Postgres) {
	t.Helper()
	w, db := withShop(t)
	testenv.Must(t, w.Vault.DatabaseRole(t.Context(), "database", "shop", testenv.DatabaseRole{
		Grants: []string{`GRANT SELECT, INSERT ON orders TO "{{name}}"`},
	}))
	w.Write("grant.yaml", strings.NewReplacer(
		"verbs: [select], tables", "verbs: [select, copy-in, copy-out], tables", "  rules:\n", "  limits: {"+limits+"}\n  rules:\n",
	).Replace(w.Read("grant.yaml")))
	return w, db
}

// The two directions of a COPY of about 700 kB.
const (
	copyOut = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 700)) TO STDOUT"
	copyIn  = "COPY orders FROM STDIN"
	numbers = "seq 100000 199999 | "
)

// TestCopyBeyondALimit exceeds limits on bytes in the midst of a COPY: each action holds for
// a session of a database as for any other connection, and the server keeps nothing of a COPY
// that did not end.
func TestCopyBeyondALimit(t *testing.T) {
	for _, c := range []struct {
		name, limits, before, statement string
		status                          int
		says                            string
	}{
		{"out", "receivedBytes: 200KiB/1h", "timeout 8 ", copyOut, 124, "receivedBytes exceeded: 200KiB/1h; further use is refused"},
		{"in", "sentBytes: 200KiB/1h", numbers + "timeout 8 ", copyIn, 124, "sentBytes exceeded: 200KiB/1h; further use is refused"},
		{"out, killed", "receivedBytes: 200KiB, onExceeded: kill", "", copyOut, 128 + int(syscall.SIGKILL), "receivedBytes exceeded: 200KiB; the plugin is ended"},
		{"in, killed", "sentBytes: 200KiB, onExceeded: kill", numbers, copyIn, 128 + int(syscall.SIGKILL), "sentBytes exceeded: 200KiB; the plugin is ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, db := withCopies(t, c.limits)
			r := w.Run("sh", "-c", c.before+psql(db, "", c.statement))
			if r.Status != c.status || len(r.Stdout) > 200<<10 {
				t.Errorf("status %d, want %d, with %d bytes\n%s", r.Status, c.status, len(r.Stdout), r.Stderr)
			}
			scenario.Contains(t, w.Read("state/audit.jsonl"), c.says)
			testenv.Eventually(t, "the server has ended the COPY", func() (int, bool) {
				n, err := db.Query(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%'")
				return 0, err == nil && n[0] == "0"
			})
			if n := testenv.MustGet(db.Query(t.Context(), "SELECT count(*) FROM orders"))(t); n[0] != "2" {
				t.Errorf("%s rows are in the table", n[0])
			}
		})
	}
}

// TestCopyWithinARate slows a COPY, or stops its plugin in the midst of it: it ends whole.
func TestCopyWithinARate(t *testing.T) {
	t.Run("throttled", func(t *testing.T) {
		w, db := withCopies(t, "receivedBytes: 200KiB/1s, onExceeded: throttle")
		begun := time.Now()
		r := w.Run("sh", "-c", psql(db, "", copyOut)+" | wc -c")
		if took := time.Since(begun); strings.TrimSpace(r.Stdout) != "700700" || took < 2*time.Second {
			t.Errorf("%q within %v\n%s", r.Stdout, took, r.Stderr)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		w, db := withCopies(t, "sentBytes: 400KiB/4s, onExceeded: stop")
		p := w.Start("sh", "-c", numbers+psql(db, "", copyIn)+"; echo status $?")
		testenv.Eventually(t, "the plugin is stopped", func() (int, bool) {
			s, err := admin.Dial(w.File("state/admin.sock")).Status(t.Context())
			return 0, err == nil && s.Process != nil && s.Process.State == "stopped"
		})
		testenv.Eventually(t, "the COPY has ended", func() (int, bool) { return 0, strings.Contains(p.Output.String(), "status") })
		scenario.Contains(t, p.Output.String(), "COPY 100000", "status 0")
	})
}

// TestLevelsWhileAStatementRuns revokes at the other levels: a pause has the statement end by
// itself and refuses the next, and halt ends the plugin, with the statement at the server.
func TestLevelsWhileAStatementRuns(t *testing.T) {
	t.Run("pause", func(t *testing.T) {
		w, db := withShop(t)
		p := w.Start("sh", "-c", psql(db, "", "SELECT 'slept' FROM pg_sleep(4)", "SELECT id FROM orders")+"; echo status $?; "+psql(db, "", "SELECT id FROM orders")+"; echo then $?")
		awaitRunning(t, w)
		if r := w.Revoke("--level", "pause"); r.Cut != 0 {
			t.Errorf("the revocation is %+v, want nothing cut", r)
		}
		testenv.Eventually(t, "psql has ended twice", func() (int, bool) { return 0, strings.Contains(p.Output.String(), "then") })
		scenario.Contains(t, p.Output.String(), "slept", "revoked", "status 1", "then 2")
		if strings.Contains(p.Output.String(), "\n7\n") {
			t.Errorf("a statement passed: %s", p.Output.String())
		}
	})
	t.Run("halt", func(t *testing.T) {
		w, db := withShop(t)
		p, _ := sleepInShop(t, w, db)
		if r := w.Revoke("--level", "halt"); r.Cut != 1 || r.Vault.Confirmed != 1 {
			t.Errorf("the revocation is %+v, want 1 cut and its lease confirmed", r)
		}
		if status := p.Wait(); status != exitSidecar {
			t.Errorf("the plugin ended with %d", status)
		}
		noSleep(t, db)
	})
}

// awaitRunning waits until a statement runs.
func awaitRunning(t *testing.T, w *env) {
	t.Helper()
	testenv.Eventually(t, "a statement runs", func() (int, bool) {
		s, err := admin.Dial(w.File("state/admin.sock")).Status(t.Context())
		return 0, err == nil && len(s.Sessions) == 1 && s.Sessions[0].Running == 1
	})
}

// TestRevokeARuleForATime revokes a rule until a time: its statement is cut, and it grants
// again afterwards, without a restore.
func TestRevokeARuleForATime(t *testing.T) {
	w, db := withShop(t)
	p := w.Start("sh", "-c", psql(db, "", "SELECT pg_sleep(300)")+"; echo status $?; until "+psql(db, "", "SELECT pg_sleep(0)")+"; do echo denied; sleep 0.2; done; echo again $?")
	awaitRunning(t, w)
	if r := w.Revoke("--rule", "crm/sleep", "--until", "5s"); r.Cut != 1 {
		t.Errorf("the revocation is %+v, want 1 cut", r)
	}
	testenv.Eventually(t, "the statement passes again", func() (int, bool) { return 0, strings.Contains(p.Output.String(), "again 0") })
	scenario.Contains(t, p.Output.String(), "status 2", "denied", "revoked")
	noSleep(t, db)
}

// TestGrantThatExpiresWhileAStatementRuns has a grant end under a statement.
func TestGrantThatExpiresWhileAStatementRuns(t *testing.T) {
	w, db := withShop(t)
	p, _ := sleepInShop(t, w, db)
	before, after, _ := strings.Cut(w.Read("grant.yaml"), "notAfter: ")
	_, after, _ = strings.Cut(after, "\n")
	w.Write("grant.yaml", before+"notAfter: "+time.Now().Add(4*time.Second).UTC().Format(time.RFC3339)+"\n"+after)
	if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
		t.Fatalf("reload: %s", r.Stderr)
	}
	testenv.Eventually(t, "psql has ended twice", func() (int, bool) { return 0, strings.Contains(p.Output.String(), "then") })
	scenario.Contains(t, p.Output.String(), "grant_expired", "status 2", "then 2")
	noSleep(t, db)
}

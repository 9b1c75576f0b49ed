package postgres

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/policy"
)

// startSilent starts a server that is the real one for the login, and then executes
// nothing: it answers each Query as if it had.
func startSilent(t testing.TB, db *testenv.Postgres) target {
	_, to := startServer(t, "S", func(_ *recordingServer, conn net.Conn, startup packet) {
		up, err := net.Dial("unix", fmt.Sprintf("%s/.s.PGSQL.%d", db.SocketDir, db.Addr.Port()))
		if err != nil {
			return
		}
		defer up.Close()
		_, _ = up.Write(startupPacketOf(startup))
		plugin, server := &wire{conn: conn}, &wire{conn: up}
		for ready := false; !ready; {
			f, err := server.next()
			if err != nil {
				return
			}
			if _, err := conn.Write(raw(f.kind, f.body...)); err != nil {
				return
			}
			// The server waits for an answer to its SASL messages but the last.
			if f.kind == 'R' && (f.body[3] == 10 || f.body[3] == 11) {
				if f, err = plugin.next(); err != nil {
					return
				}
				_, _ = up.Write(raw(f.kind, f.body...))
			}
			ready = f.kind == msgReadyForQuery
		}
		for {
			f, err := plugin.next()
			if err != nil || f.kind != msgQuery {
				return
			}
			answer := pgproto3.BackendMessage(&pgproto3.CommandComplete{CommandTag: []byte("DONE")})
			if strings.Contains(string(f.body), "chaperone_") { // the text in place of a refused one
				answer = &pgproto3.ErrorResponse{Severity: "ERROR", Code: stateSyntaxError, Message: "at " + string(f.body[:len(f.body)-1])}
			}
			_, _ = conn.Write(reply(answer, &pgproto3.ReadyForQuery{TxStatus: 'I'}))
		}
	})
	return to
}

// corpus returns the statements whose facts package sql is tested with, and some of several
// statements that share textsWithNames.
func corpus(t testing.TB) (all []string) {
	data := testenv.MustGet(os.ReadFile("../../facts/sql/testdata/statements.txt"))(t)
	var statement strings.Builder
	for line := range strings.Lines(string(data)) {
		switch {
		case strings.HasPrefix(line, "\t"):
			all = append(all, strings.TrimSuffix(statement.String(), "\n"))
			statement.Reset()
		case statement.Len() > 0 || !strings.HasPrefix(line, "#") && line != "\n":
			statement.WriteString(line)
		}
	}
	return append(all,
		"PREPARE a AS SELECT id FROM orders; EXECUTE a", "PREPARE a AS SELECT id FROM orders; DEALLOCATE a; EXECUTE a",
		"PREPARE a AS SELECT id FROM orders; DEALLOCATE ALL; EXECUTE a", "PREPARE a AS SELECT 1; PREPARE a AS SELECT id FROM orders; EXECUTE a",
		"EXECUTE a; PREPARE a AS SELECT id FROM orders", "PREPARE a AS DELETE FROM orders; EXECUTE b", "DECLARE c CURSOR FOR SELECT id FROM orders; FETCH c",
		"PREPARE a AS SELECT id FROM orders; DISCARD ALL; EXECUTE a", "PREPARE a AS SELECT id FROM secrets; EXECUTE a; EXECUTE a",
		"SELECT "+strings.Repeat("(", 20_000)+"1"+strings.Repeat(")", 20_000), "SELECT 1 FROM "+strings.Repeat("a, ", 300)+"a",
		"SELECT "+strings.Repeat("1, ", 300_000)+"1", "SELECT '"+strings.Repeat("x", 900<<10)+"'",
	)
}

// TestExplainAndTheDoorAgree decides each statement of the corpus twice under several
// policies: as explain and the policy commands do, and at the door, with a server that
// executes nothing.
func TestExplainAndTheDoorAgree(t *testing.T) {
	db, _ := sharedServer(t)
	to := startSilent(t, db)
	reads := rule("b-reads", "verb:select", "verb:copy-out", "table:public.orders", "table:public.a", "table:catalog")
	two := rule("c-two", "verb:*", "table:public.*", "function:public.*")
	two.Matcher.Writes = true
	for name, rules := range map[string][]authz.Rule{
		"everything": {grantAll()},
		"one table":  {reads},
		"two rules":  {reads, two},
		"opaque":     {rule("opaque", "verb:*", "opaque:*")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, to, rules...)
			allowed, denied := 0, 0
			var c *wire
			for _, text := range corpus(t) {
				if c == nil || textsWithNames.MatchString(text) { // in a session without names
					c = w.open()
				}
				door := w.decisionOf(c, text)
				if textsWithNames.MatchString(text) {
					c = nil
				}
				if d := w.explained(text); d != door {
					t.Errorf("%.300s\nexplain: %.600s\ndoor:    %.600s", text, d, door)
				}
				if allowed++; !strings.HasPrefix(door, "granted") {
					allowed--
					denied++
				}
			}
			t.Logf("%d allowed, %d denied", allowed, denied)
			if allowed == 0 || denied == 0 {
				t.Error("the policy separates nothing")
			}
		})
	}
}

// textsWithNames matches texts that set or use names of prepared statements and cursors.
var textsWithNames = regexp.MustCompile(`(?i)prepare|execute|declare|fetch|move|discard|close`)

const verdict = "%s %q/%q detail %q facts %q"

// decisionOf returns what the door decides on a Query.
func (w *world) decisionOf(c *wire, text string) string {
	w.t.Helper()
	before, refusals := len(w.records.of(authz.KindDecision)), len(w.refused())
	answer := c.query(text)
	records := w.records.of(authz.KindDecision)[before:]
	records = slices.DeleteFunc(records, func(r authz.Record) bool { return r.Session == "" })
	if len(records) != 1 {
		return fmt.Sprintf("%d decisions, %v", len(records), answer[0])
	}
	r := records[0]
	if refused := answer[0].kind == msgErrorResponse; refused == r.Allowed {
		w.t.Errorf("answered %v to a statement with %+v", answer[0], r)
	}
	if got := len(w.refused()) - refusals; r.Allowed != (got == 0) {
		w.t.Errorf("%d refusals of a statement with %+v", got, r)
	}
	detail := r.Detail
	if !r.Allowed {
		detail = w.refused()[refusals].Detail
	}
	return fmt.Sprintf(verdict, r.Reason, r.Grant, r.Rule, detail, r.Facts)
}

// explained returns what explain prints.
func (w *world) explained(text string) string {
	w.t.Helper()
	url := fmt.Sprintf("postgres://%s:%d/%s", host, w.port, databaseName)
	req, err := policy.Request(plugin, policy.Words{Method: "-", URL: url, Statement: text})
	if err != nil {
		return fmt.Sprintf(verdict, policy.ReasonOf(err), "", "", strings.TrimPrefix(err.Error(), "statement is unreadable: "), []string(nil))
	}
	e := w.engine.Current().Explain(req, authz.Usage{}, time.Now())
	detail := e.Detail
	if e.Decision.Allowed() {
		detail = ""
	}
	return fmt.Sprintf(verdict, e.Decision.Reason, e.Decision.Grant, e.Decision.Rule, detail, req.Facts.All())
}

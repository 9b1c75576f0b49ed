package postgres

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// grantAll grants every statement that the tests have.
func grantAll() authz.Rule {
	r := rule("all", "verb:*", "table:*", "function:*", "opaque:*", "setting:*")
	r.Matcher.Writes = true
	return r
}

func TestCancelReachesTheStatementOfItsKey(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, grantAll())
	for _, version := range []uint32{protocol30, protocol32} {
		c := w.dial()
		c.begin(startupPacket(version, "user", "x", "database", databaseName))
		c.send(encode(&pgproto3.Query{String: "SELECT pg_sleep(600)"}))
		eventually(t, "the statement runs", func() bool { return len(w.front.Sessions()) > 0 && w.front.Sessions()[0].Running == 1 })
		guess := append([]byte(nil), c.key...)
		guess[len(guess)-1]++
		for _, key := range [][]byte{guess, c.key} {
			request := w.dial()
			request.send(append([]byte{0, 0, 0, byte(8 + len(key)), 4, 210, 22, 46}, key...))
			if f, err := request.next(); err == nil {
				t.Fatalf("a cancel was answered %v", f)
			}
		}
		answer := c.until(msgReadyForQuery)
		if len(answer) != 3 || answer[1].field('C') != "57014" {
			t.Fatalf("answered %v, want an error 57014", answer)
		}
		c.query("SELECT 1")
		_ = c.conn.Close()
		eventually(t, "the session has ended", func() bool { return len(w.front.Sessions()) == 0 })
	}
}

func TestRevocationCutsARunningStatement(t *testing.T) {
	db, to := sharedServer(t)
	w := newWorld(t, to, grantAll())
	c := w.open()
	c.send(encode(&pgproto3.Query{String: "SELECT pg_sleep(601)"}))
	active := func() bool {
		rows, err := db.Query(t.Context(), "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(601)%' AND pid <> pg_backend_pid() AND usename = 'v_crm'")
		testenv.Must(t, err)
		return len(rows) > 0
	}
	eventually(t, "the statement runs", active)
	begun := time.Now()
	if cut := w.revoke(""); cut != 1 {
		t.Fatalf("%d sessions were cut", cut)
	}
	c.expectFatal(stateAdminShutdown, "revoked")
	t.Logf("cut after %v", time.Since(begun))
	eventually(t, "the server has ended the statement", func() bool { return !active() })
}

// A LISTEN goes on after its statement has ended: its session is cut with its rule.
func TestRevocationCutsASessionThatListens(t *testing.T) {
	for name, send := range map[string][]byte{
		"Query":    encode(&pgproto3.Query{String: "LISTEN orders"}),
		"extended": encode(&pgproto3.Parse{Query: "LISTEN orders"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}),
		"EXECUTE":  encode(&pgproto3.Parse{Name: "s", Query: "LISTEN orders"}, &pgproto3.Sync{}, &pgproto3.Query{String: "EXECUTE s"}),
	} {
		t.Run(name, func(t *testing.T) {
			_, to := sharedServer(t)
			w := newWorld(t, to, rule("a-rest", "verb:select", "table:public.sink"), rule("listen", "verb:listen"),
				rule("other", "verb:select", "table:public.orders"))
			c := w.open()
			c.send(send)
			c.until(msgReadyForQuery)
			w.awaitEnds()
			if cut := w.revoke("other"); cut != 0 {
				t.Fatalf("%d sessions were cut by the revocation of another rule", cut)
			}
			if cut := w.revoke("listen"); cut != 1 {
				t.Fatalf("%d sessions were cut", cut)
			}
			c.expectFatal(stateAdminShutdown, "revoked")
		})
	}
}

// A cursor or portal whose rule was revoked is not read further by FETCH.
func TestFetchIsDecidedOnThePolicyInForce(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, rule("a-rest", "verb:select", "table:public.sink"), rule("orders", "verb:select", "table:public.orders"))
	c := w.open()
	c.query("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT name FROM orders")
	c.send(encode(&pgproto3.Parse{Query: "SELECT name FROM orders"}, &pgproto3.Bind{DestinationPortal: "p"}, &pgproto3.Sync{}))
	c.until(msgReadyForQuery)
	for _, text := range []string{"FETCH 1 FROM c", "FETCH c", "FETCH FORWARD 2 IN \"p\""} {
		if got := c.query(text); got[1].kind != msgDataRow {
			t.Fatalf("%s was answered %v", text, got)
		}
	}
	c.query("COMMIT")
	w.awaitEnds()
	w.revoke("orders")
	for _, text := range []string{"FETCH 1 FROM c", "FETCH C", "MOVE c"} {
		if got := c.query(text); len(got) != 2 || got[0].field('C') != statePrivilege {
			t.Fatalf("%s was answered %v, want a refusal", text, got)
		}
	}
}

// A cursor that outlives its transaction has its facts also where its name was forgotten, or
// where a DECLARE that may have been executed would give it others.
func TestFetchOfACursorThatOutlivesItsTransaction(t *testing.T) {
	sync := &pgproto3.Sync{}
	binds := func(from, to int) (out []byte) {
		for i := range to - from {
			out = append(out, encode(&pgproto3.Bind{DestinationPortal: time.Duration(from + i).String(), PreparedStatement: "x"}, sync)...)
		}
		return out
	}
	for _, tc := range []struct {
		name string
		send [][]byte
	}{
		{"as declared", nil},
		{"many portals", [][]byte{binds(0, maxNames-10), binds(maxNames, maxNames+20)}},
		{"a portal of one of two statements", [][]byte{encode(
			&pgproto3.Query{String: "BEGIN"},
			&pgproto3.Parse{Name: "y", Query: "DECLARE c CURSOR FOR SELECT id FROM sink"}, sync,
			&pgproto3.Bind{DestinationPortal: "p", PreparedStatement: "y"}, sync,
			&pgproto3.Close{ObjectType: 'P', Name: "p"}, sync,
			&pgproto3.Bind{DestinationPortal: "p", PreparedStatement: "x"}, sync,
			&pgproto3.Execute{Portal: "p"}, sync, &pgproto3.Query{String: "COMMIT"},
		)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, to := sharedServer(t)
			w := newWorld(t, to, rule("a-rest", "verb:select", "table:public.sink"), rule("orders", "verb:select", "table:public.orders"))
			c := w.open()
			c.query("DECLARE c CURSOR WITH HOLD FOR SELECT name FROM orders")
			c.send(encode(&pgproto3.Parse{Name: "x", Query: "SELECT id FROM sink WHERE false"}, sync))
			c.until(msgReadyForQuery)
			w.awaitEnds()
			w.revoke("orders")
			for _, messages := range tc.send {
				c.send(append(messages, encode(&pgproto3.Query{String: "SELECT 'sent'"})...))
				c.until(msgDataRow)
				c.until(msgReadyForQuery)
			}
			if got := c.query("FETCH 1 FROM c"); len(got) != 2 || got[0].field('C') != statePrivilege {
				t.Fatalf("answered %v, want a refusal", got)
			}
		})
	}
}

// A prepared statement whose rule was revoked is refused at its execution, also where the
// plugin attempts to have the name stand for another.
func TestExecutionIsDecidedOnThePolicyInForce(t *testing.T) {
	for _, tc := range []struct {
		name    string
		between func(c *wire)
	}{
		{"as prepared", func(*wire) {}},
		{"a Parse of the name that fails", func(c *wire) {
			c.send(encode(&pgproto3.Parse{Name: "s", Query: "SELECT id FROM sink"}, &pgproto3.Sync{}))
			c.until(msgReadyForQuery)
		}},
		{"a Parse of the name that is skipped", func(c *wire) {
			c.send(encode(&pgproto3.Parse{Name: "x", Query: "SELECT FROM WHERE"}, &pgproto3.Close{ObjectType: 'S', Name: "s"},
				&pgproto3.Parse{Name: "s", Query: "SELECT id FROM sink"}, &pgproto3.Sync{}))
			c.until(msgReadyForQuery)
		}},
		{"a DEALLOCATE that is skipped", func(c *wire) {
			c.send(encode(&pgproto3.Parse{Name: "x", Query: "SELECT FROM WHERE"}, &pgproto3.Query{String: "DEALLOCATE s"}, &pgproto3.Sync{},
				&pgproto3.Parse{Name: "s", Query: "SELECT id FROM sink"}, &pgproto3.Sync{}))
			c.until(msgReadyForQuery)
			c.until(msgReadyForQuery)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, to := sharedServer(t)
			w := newWorld(t, to, rule("orders", "verb:select", "table:public.orders"), rule("rest", "verb:select", "table:public.sink"))
			c := w.open()
			c.send(encode(&pgproto3.Parse{Name: "s", Query: "SELECT name FROM orders WHERE id = 7"}, &pgproto3.Sync{}))
			c.until(msgReadyForQuery)
			run := encode(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{})
			c.send(run)
			if got := c.until(msgReadyForQuery); got[1].kind != msgDataRow {
				t.Fatalf("answered %v", got)
			}
			w.awaitEnds()
			if cut := w.revoke("orders"); cut != 0 {
				t.Fatalf("%d sessions were cut; another rule grants it", cut)
			}
			tc.between(c)
			c.send(run)
			got := c.until(msgReadyForQuery)
			if len(got) != 3 || got[1].field('C') != statePrivilege {
				t.Fatalf("answered %v, want a refusal", got)
			}
			c.send(encode(&pgproto3.Query{String: "EXECUTE s"}))
			if got := c.until(msgReadyForQuery); len(got) != 2 || got[0].field('C') != statePrivilege {
				t.Fatalf("EXECUTE was answered %v, want a refusal", got)
			}
			if got := c.query("SELECT id FROM sink"); got[0].kind != msgRowDescription {
				t.Fatalf("the session does not go on: %v", got)
			}
		})
	}
}

func TestNamesAreBounded(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	c := w.open()
	var out []byte
	for i := range maxNames + 1 {
		out = append(out, encode(&pgproto3.Parse{Name: "s" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + time.Duration(i).String(), Query: "SELECT 1"})...)
	}
	go c.send(append(out, encode(&pgproto3.Sync{})...))
	answer := c.until(msgReadyForQuery)
	last := answer[len(answer)-2]
	if len(answer) != maxNames+2 || last.field('C') != stateProgramLimit || !strings.Contains(last.field('M'), "1000 prepared statements") {
		t.Fatalf("%d answers, the last is %v", len(answer), last)
	}
	c.query("DEALLOCATE ALL")
	c.send(encode(&pgproto3.Parse{Name: "another", Query: "SELECT 1"}, &pgproto3.Sync{}))
	if got := c.until(msgReadyForQuery); got[0].kind != msgParseComplete {
		t.Fatalf("after DEALLOCATE ALL a Parse was answered %v", got)
	}
	for i := range 3 * maxNames { // portals end with their transaction
		c.send(encode(&pgproto3.Bind{DestinationPortal: time.Duration(i).String(), PreparedStatement: "another"}, &pgproto3.Sync{}))
		if got := c.until(msgReadyForQuery); got[0].kind != msgBindComplete {
			t.Fatalf("a Bind was answered %v", got)
		}
	}
}

func TestMessagesOutOfRangeEndTheSession(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, grantAll())
	for _, tc := range []struct {
		name, state, message string
		frame                []byte
	}{
		{"length 3", stateProtocolViolation, "out of range", []byte{'Q', 0, 0, 0, 3, 'x'}},
		{"length 2^31", stateProtocolViolation, "out of range", []byte{'B', 0x80, 0, 0, 0, 'x'}},
		{"a long text", stateProgramLimit, "statement_too_large", raw('Q', append([]byte(strings.Repeat("x", 2<<20)), 0)...)},
		{"an unknown type", stateProtocolViolation, "0x07", raw(7, 1, 2, 3)},
		{"a password", stateProtocolViolation, "0x70", raw('p', 'x', 0)},
		{"a Parse without an end", stateProtocolViolation, "Parse", raw('P', 'x')},
		{"a name without an end", stateProtocolViolation, "Bind", raw('B', []byte(strings.Repeat("x", 2000))...)},
		{"a long name", stateProtocolViolation, "too long", raw('D', []byte(strings.Repeat("x", 2000))...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, c := range []*wire{w.open(), w.openTLS()} {
				_, _ = c.conn.Write(tc.frame) // the session may end before all of it is read
				c.expectFatal(tc.state, tc.message)
			}
		})
	}
}

func TestStatementsAreRecordedWithRows(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	c := w.open()
	c.query("SELECT id FROM orders WHERE id <= 5")
	c.query("SELECT id FROM orders WHERE id <= 3; SELECT id FROM orders WHERE id <= 4")
	c.query("SELECT value FROM secrets")
	c.query("SELECT nothing FROM orders")
	run := func(rows uint32) []pgproto3.FrontendMessage {
		return []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{MaxRows: rows}}
	}
	c.send(encode(append([]pgproto3.FrontendMessage{&pgproto3.Parse{Name: "s", Query: "SELECT id FROM orders WHERE id <= 6"}}, append(run(0), &pgproto3.Sync{})...)...))
	c.until(msgReadyForQuery)
	c.send(encode(append(append(run(0), run(0)...), &pgproto3.Sync{})...))
	c.until(msgReadyForQuery)
	c.send(encode(&pgproto3.Query{String: "COPY sink FROM STDIN"}))
	c.until(msgCopyInResponse)
	c.send(encode(&pgproto3.CopyData{Data: []byte("1\ta\n2\tb\n")}, &pgproto3.CopyDone{}))
	c.until(msgReadyForQuery)
	c.send(encode(&pgproto3.Terminate{}))
	eventually(t, "the session has ended", func() bool { return len(w.front.Sessions()) == 0 })
	var rows []int64
	for _, end := range w.records.of(authz.KindEnd) {
		if end.Session != "" {
			rows = append(rows, end.Rows)
		}
		if strings.Contains(end.Detail, "nothing") || end.Detail != "" && end.Detail != "SQLSTATE 42703" {
			t.Errorf("a record has the detail %q", end.Detail)
		}
	}
	want := []int64{5, 7, 0, 6, 6, 6, 2}
	if len(rows) != len(want) {
		t.Fatalf("rows %v, want %v", rows, want)
	}
	for i := range want {
		if rows[i] != want[i] {
			t.Fatalf("rows %v, want %v", rows, want)
		}
	}
}

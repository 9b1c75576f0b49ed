package postgres

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

func TestNewestServer(t *testing.T) {
	_, to := startPostgres(t, true)
	granted := readOrders()
	granted.Matcher.Facts = append(granted.Matcher.Facts, unknownNameFact())
	w := newWorld(t, to, granted)
	c := w.dial()
	c.begin(startupPacket(protocol32, "user", "x", "database", databaseName))
	if len(c.key) != 4+longKey || c.set[settingSearchPath] != "pg_catalog, public" {
		t.Fatalf("the key has %d bytes, the settings are %v", len(c.key), c.set)
	}
	c.query("DISCARD ALL")
	for _, setting := range []string{settingSearchPath, settingStrings, settingEncoding} {
		if got := c.query("SHOW " + setting); !strings.HasSuffix(string(got[1].body), c.set[setting]) {
			t.Errorf("after DISCARD ALL %s is %v", setting, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		compare(t, w, to, politeScript(t), func(r *relay) {
			if !r.pipe.isIdle() {
				t.Errorf("the pairing of messages is behind: %v", describe(r.pipe))
			}
		})
	})
	r := rule("sleep", "verb:select", "function:pg_catalog.pg_sleep")
	w = newWorld(t, to, r)
	c = w.dial()
	c.begin(startupPacket(protocol32, "user", "x", "database", databaseName))
	c.send(encode(&pgproto3.Query{String: "SELECT pg_sleep(600)"}))
	eventually(t, "the statement runs", func() bool { return len(w.front.Sessions()) == 1 && w.front.Sessions()[0].Running == 1 })
	time.Sleep(10 * time.Millisecond) // a cancel before the statement runs at the server has no effect
	w.dial().send(append([]byte{0, 0, 0, byte(8 + len(c.key)), 4, 210, 22, 46}, c.key...))
	if got := c.until(msgReadyForQuery); got[len(got)-2].field('C') != "57014" {
		t.Fatalf("answered %v, want an error 57014", got)
	}
}

func TestDatabaseThatRestarts(t *testing.T) {
	db, to := startPostgres(t, false)
	w := newWorld(t, to, readOrders())
	c := w.open()
	c.query("SELECT 1")
	testenv.Must(t, db.Stop())
	c.expectFatal(stateAdminShutdown, "terminating connection due to administrator command")
	down := w.dial()
	down.send(startupPacket(protocol30, "user", "x", "database", databaseName))
	down.expectFatal(stateConnectionFailure, "refused")
	testenv.Must(t, db.Start(t.Context()))
	w.open().query("SELECT 1")
}

// A plugin that ends without a Terminate has the answers to what it has sent, however long they
// take, and then its session ends, also where the server hangs.
func TestPluginThatEndsWithoutTerminate(t *testing.T) {
	_, to := sharedServer(t)
	for _, tc := range []struct {
		name   string
		sent   []byte
		before byte // the last message that the plugin reads before its end, 0 for none
		hangs  bool // the server, since then
		after  byte
	}{
		{"idle", nil, 0, true, 0},
		{"an error without a Sync", encode(&pgproto3.Parse{Query: "SELECT 1/0"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Flush{}), msgErrorResponse, true, 0},
		{"a statement", encode(&pgproto3.Query{String: "SELECT pg_sleep(0.2)"}), 0, false, msgReadyForQuery},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, to, grantAll())
			w.server.relaying = func(r *relay) { r.patience = 20 * time.Millisecond }
			c := w.open()
			pid, err := strconv.Atoi(string(c.query("SELECT pg_backend_pid()")[1].body[6:]))
			testenv.Must(t, err)
			c.send(tc.sent)
			if tc.before != 0 {
				c.until(tc.before)
			}
			if tc.hangs {
				testenv.Must(t, syscall.Kill(pid, syscall.SIGSTOP))
				defer func() { testenv.Must(t, syscall.Kill(pid, syscall.SIGCONT)) }()
			}
			testenv.Must(t, session.CloseWriteOf(c.conn))
			if tc.after != 0 {
				c.until(tc.after)
			}
			eventually(t, "the session has ended", func() bool { return len(w.front.Sessions()) == 0 })
		})
	}
}

// Variables of libpq in the sidecar's environment change nothing at the login.
func TestEnvironmentHasNoPartInTheLogin(t *testing.T) {
	_, to := sharedServer(t)
	for _, name := range []string{
		"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGAPPNAME", "PGCONNECT_TIMEOUT", "PGSSLMODE", "PGSSLKEY", "PGSSLCERT",
		"PGSSLCERTMODE", "PGSSLSNI", "PGSSLROOTCERT", "PGSSLPASSWORD", "PGSSLNEGOTIATION", "PGTARGETSESSIONATTRS", "PGSERVICE", "PGSERVICEFILE", "PGTZ",
		"PGOPTIONS", "PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION", "PGCHANNELBINDING", "PGREQUIREAUTH",
	} {
		t.Setenv(name, "not-a-value")
	}
	service := filepath.Join(t.TempDir(), "services")
	testenv.Must(t, os.WriteFile(service, []byte("[not-a-value]\nuser=other\noptions=-csearch_path=evil\napplication_name=other\nsslmode=require\n"), 0o600))
	for _, file := range []string{"not-a-value", service} {
		t.Setenv("PGSERVICEFILE", file)
		c := newWorld(t, to, readOrders()).open()
		if got := c.query("SHOW application_name"); !strings.HasSuffix(string(got[1].body), "\x00\x00\x00\x00") {
			t.Errorf("the name is %v", got[1])
		}
		c.query("SELECT id FROM orders")
	}
}

// A password that was replaced since it was leased is renewed once.
func TestLoginWithAReplacedPassword(t *testing.T) {
	_, to := sharedServer(t)
	stale := to
	stale.password = "replaced-since"
	w := newWorld(t, stale, readOrders())
	c := w.dial()
	c.send(startupPacket(protocol30, "user", "x", "database", databaseName))
	c.expectFatal(stateInvalidAuth, "credential_unavailable")
	w.source.renewed = to.password
	w.open().query("SELECT 1")
}

func TestLeaseThatEndsCutsTheSession(t *testing.T) {
	db, to := sharedServer(t)
	w := newWorld(t, to, grantAll())
	c := w.open()
	c.send(encode(&pgproto3.Query{String: "SELECT pg_sleep(602)"}))
	eventually(t, "the statement is admitted", func() bool { return len(w.front.Sessions()) == 1 && w.front.Sessions()[0].Running == 1 })
	w.source.term.End("expired") // the server may not have begun with the statement
	c.expectFatal(stateAdminShutdown, "the lease of the credential expired")
	eventually(t, "the server has ended the statement", func() bool {
		rows, err := db.Query(t.Context(), "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(602)%' AND usename = 'v_crm'")
		testenv.Must(t, err)
		return len(rows) == 0
	})
}

// A denied COPY whose data is already on its way is one error, and the session goes on.
func TestRefusedCopyWithData(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	c := w.open()
	row := encode(&pgproto3.CopyData{Data: bytes.Repeat([]byte("1\ta\n"), 1000)})
	c.send(encode(&pgproto3.Query{String: "COPY secrets FROM STDIN"}))
	c.send(bytes.Repeat(row, 500))
	c.send(encode(&pgproto3.CopyDone{}, &pgproto3.Query{String: "SELECT 1"}))
	if got := c.until(msgReadyForQuery); len(got) != 2 || got[0].field('C') != statePrivilege {
		t.Fatalf("answered %v, want one refusal", got)
	}
	if got := c.until(msgReadyForQuery); len(got) != 4 || got[1].kind != msgDataRow {
		t.Fatalf("answered %v, want a row", got)
	}
}

// 200 denied Parses in one write are one error for each Sync.
func TestManyRefusalsInOneBatch(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	c := w.open()
	for _, syncs := range []int{1, 200} {
		var out []byte
		for i := range 200 {
			out = append(out, encode(&pgproto3.Parse{Query: "SELECT value FROM secrets"})...)
			if syncs > 1 || i == 199 {
				out = append(out, encode(&pgproto3.Sync{})...)
			}
		}
		c.send(out)
		for range syncs {
			if got := c.until(msgReadyForQuery); len(got) != 2 || !strings.Contains(got[0].field('M'), "public.secrets") {
				t.Fatalf("answered %v, want one refusal that names the table", got)
			}
		}
	}
	if n := len(w.refused()); n != 400 {
		t.Errorf("%d refusals are recorded, want 400", n)
	}
}

// A plugin that does not read holds the server back, and takes no memory.
func TestSlowReaderHoldsTheServerBack(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, rule("series", "verb:select", "function:safe"))
	c := w.open()
	before := heap()
	c.send(encode(&pgproto3.Query{String: "SELECT repeat('x', 100000) FROM generate_series(1, 2000)"}))
	moved := func() int64 { return w.front.Sessions()[0].Bytes }
	last := moved()
	eventually(t, "the answer stops", func() bool {
		time.Sleep(100 * time.Millisecond)
		now := moved()
		stopped := now > 0 && now == last
		last = now
		return stopped
	})
	if grown := int64(heap()) - int64(before); last > 100<<20 || grown > 4<<20 {
		t.Fatalf("%d bytes of 200 MB were relayed to a plugin that does not read, and the heap grew by %d", last, grown)
	}
	if got := c.until(msgReadyForQuery); len(got) != 2003 {
		t.Fatalf("%d messages, want 2003", len(got))
	}
}

// Keys that were not given, and many requests for one that was, reach the server at most
// one at a time.
func TestCancelsAreLimited(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	c := w.open()
	var busy *canceller
	for _, one := range w.server.cancels.of {
		busy = one
	}
	busy.busy.Store(true) // one is under way
	for i := range 50 {
		key := c.key
		if i%2 == 0 {
			key = fmt.Appendf(nil, "%08d", i)
		}
		request := w.dial()
		request.send(append([]byte{0, 0, 0, 16, 4, 210, 22, 46}, key...))
		if _, err := request.next(); err == nil {
			t.Fatal("a cancel was answered")
		}
	}
	busy.busy.Store(false)
	c.query("SELECT 1")
}

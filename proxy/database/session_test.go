package database_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// TestStatements has statements decided one by one, within and without TLS.
func TestStatements(t *testing.T) {
	for _, open := range []func(*world, string) *client{(*world).open, (*world).openTLS} {
		w := newWorld(t, rule("read", "shop", "select"), rule("write", "shop", "insert"))
		c := open(w, "shop")
		c.expect("select orders", "done select orders")
		c.expect("delete orders", "refused statement_not_granted")
		c.expect("insert orders", "done insert orders")
		c.expect("select \x00", "refused statement_unreadable")
		c.expect("select customers", "done select customers")
		_ = c.conn.Close()
		ends := testenv.Eventually(t, "the records of the ends", func() ([]authz.Record, bool) {
			ends := w.records.of(authz.KindEnd)
			return ends, len(ends) == 4
		})
		decisions := w.records.of(authz.KindDecision)
		if len(decisions) != 6 {
			t.Fatalf("%d decisions are recorded, want 6: %+v", len(decisions), decisions)
		}
		connect := decisions[0]
		if connect.Session != "" || connect.Lease != "lease/1" || !slices.Equal(connect.Facts, []string{"database:shop"}) {
			t.Errorf("the connection is recorded as %+v", connect)
		}
		for _, d := range decisions[1:] {
			if d.Session != connect.Decision || d.Lease != connect.Lease {
				t.Errorf("a statement is recorded as %+v, want session %s and its lease", d, connect.Decision)
			}
		}
		last := ends[len(ends)-1]
		if last.Decision != connect.Decision || last.SentBytes == 0 || last.Bytes == 0 || !strings.HasPrefix(last.Address, "127.0.0.1:") {
			t.Errorf("the end of the session is recorded as %+v", last)
		}
		if got := w.source.fetched.Load(); got != 1 {
			t.Errorf("the credential was fetched %d times, want once", got)
		}
		if got := w.server.statements(); slices.Contains(got, "delete orders") {
			t.Errorf("the server saw %q", got)
		}
		if want := []string{"read", "write", "read"}; !slices.Equal(w.rules, want) {
			t.Errorf("bytes were attributed to %q, want %q", w.rules, want)
		}
		if want := []string{"connect=granted", "select=granted", "delete=statement_not_granted", "insert=granted", "unreadable=statement_unreadable", "select=granted"}; !slices.Equal(w.verbs, want) {
			t.Errorf("statements were counted as %q, want %q", w.verbs, want)
		}
	}
}

// TestOpenRefused refuses connections that no rule grants, without a credential.
func TestOpenRefused(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	w.dial().expect("open other", "refused statement_not_granted")
	w.revoke("")
	w.dial().expect("open shop", "refused revoked")
	if got := w.source.fetched.Load(); got != 0 {
		t.Errorf("a credential was fetched %d times for refused connections", got)
	}
	if got := w.server.connections(); got != 0 {
		t.Errorf("the server has %d connections", got)
	}
	if got := len(w.refused()); got != 2 {
		t.Errorf("%d refusals were reported, want 2", got)
	}
}

// TestServerName refuses a TLS handshake for another name, before any certificate.
func TestServerName(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	c := w.dial()
	c.send("tls")
	if err := handshake(c.conn, w, "other.example"); err == nil {
		t.Error("the handshake succeeded for another name")
	}
	testenv.Eventually(t, "a refusal", func() (bool, bool) {
		all := w.refused()
		return true, len(all) == 1 && all[0].Reason == authz.DestinationMismatch
	})
}

// TestRevokeCutsInEachStage revokes while the session is in each of its stages: the plugin
// reads why, and then a reset, and the server's connection is gone.
func TestRevokeCutsInEachStage(t *testing.T) {
	t.Run("login", func(t *testing.T) {
		w := newWorld(t, rule("read", "shop", "select"))
		w.server.mu.Lock()
		w.server.hang = make(chan struct{})
		w.server.mu.Unlock()
		c := w.dial()
		c.send("open shop")
		testenv.Eventually(t, "the login", func() (int, bool) { return 0, w.server.connections() == 1 })
		if got := w.revoke("read"); got != 1 {
			t.Errorf("%d sessions were cut, want 1", got)
		}
		c.expectEnd("refused revoked")
		close(w.server.hang)
		testenv.Eventually(t, "the server's end", func() (int, bool) { return 0, w.server.connections() == 0 })
	})
	for name, open := range map[string]func(*world, string) *client{"idle": (*world).open, "idle in TLS": (*world).openTLS} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, rule("read", "shop", "select"))
			c := open(w, "shop")
			c.expect("select orders", "done select orders")
			w.awaitIdle()
			if got := w.revoke("read"); got != 1 {
				t.Errorf("%d sessions were cut, want 1", got)
			}
			c.expectEnd("cut revoked")
			testenv.Eventually(t, "the server's end", func() (int, bool) { return 0, w.server.connections() == 0 })
			testenv.Eventually(t, "the end of the session", func() (int, bool) { return 0, len(w.front.Sessions()) == 0 })
			ends := w.records.of(authz.KindEnd)
			if last := ends[len(ends)-1]; last.Allowed || last.Reason != "revoked" || !strings.HasPrefix(last.Detail, "cut: ") {
				t.Errorf("the end is recorded as %+v", last)
			}
		})
	}
	t.Run("statement", func(t *testing.T) {
		w := newWorld(t, rule("read", "shop", "select"), rule("sleep", "shop", "sleep"))
		c := w.open("shop")
		c.send("sleep orders")
		testenv.Eventually(t, "the statement", func() (int, bool) { return 0, len(w.server.statements()) == 1 })
		w.awaitIdle()
		if got := w.revoke("sleep"); got != 1 {
			t.Errorf("%d sessions were cut by the revocation of the statement's rule, want 1", got)
		}
		c.expectEnd("cut revoked")
		testenv.Eventually(t, "the request that ends the statement", func() (int, bool) {
			w.server.mu.Lock()
			defer w.server.mu.Unlock()
			return 0, w.server.cancels == 1
		})
		testenv.Eventually(t, "the records of the ends", func() (int, bool) { return 0, len(w.records.of(authz.KindEnd)) == 2 })
		for _, end := range w.records.of(authz.KindEnd) {
			if end.Allowed || end.Reason != "revoked" {
				t.Errorf("an end is recorded as %+v", end)
			}
		}
		w.dial().expect("open shop", "ready") // by the other rule
	})
}

// awaitIdle waits until every write to a plugin has returned: the plugin may have read it
// before, and a cut does not wait long for a writer, or not at all.
func (w *world) awaitIdle() {
	w.t.Helper()
	testenv.Eventually(w.t, "sessions without a writer", func() (int, bool) { return 0, w.writers.Load() == 0 })
}

// openByPipe opens a session of a plugin at the other end of a pipe.
func (w *world) openByPipe(t *testing.T) (s *database.Session, c *session.Conn, far net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	socket := &session.Socket{Raw: near, Proved: true, Memory: w.budget.Hold(), OutOfMemory: func() {}, Forget: func(s *session.Socket) { s.Memory.End() }}
	c = session.NewConn(socket)
	to, err := authz.NewDestination(authz.SchemePostgres, session.JoinHostPort(host, w.server.port), "")
	testenv.Must(t, err)
	facts, err := authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: "shop"})
	testenv.Must(t, err)
	s, refusal := w.front.Open(t.Context(), c, to, facts)
	if refusal != nil {
		t.Fatalf("refused: %+v", refusal)
	}
	return s, c, far
}

// TestStatementOfAnEndedSession has a statement come while its session ends, whose end is
// reported by itself.
func TestStatementOfAnEndedSession(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	s, c, far := w.openByPipe(t)
	defer far.Close()
	defer c.Close()
	s.End(authz.Outcome{})
	facts, err := authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: "shop"}, authz.Fact{Kind: authz.FactVerb, Name: "select"})
	testenv.Must(t, err)
	if _, refusal := s.Admit(t.Context(), facts); refusal == nil || refusal.Detail != "the session has ended" || len(w.refused()) != 0 {
		t.Errorf("got %+v, and %+v are reported, want one that the session has ended and no report", refusal, w.refused())
	}
}

// TestKeptStatementsAreBounded keeps statements of many facts, which count as the plugin's memory,
// up to a number. One that is kept already takes no more.
func TestKeptStatementsAreBounded(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "listen"))
	s, c, far := w.openByPipe(t)
	defer far.Close()
	defer c.Close()
	defer s.End(authz.Outcome{})
	before, _ := w.budget.Held(budget.Request)
	kept := 0
	for i := range 100 {
		names := []authz.Fact{{Kind: authz.FactDatabase, Name: "shop"}, {Kind: authz.FactVerb, Name: "listen"}}
		for n := range 50 {
			names = append(names, authz.Fact{Kind: authz.FactTable, Name: fmt.Sprint(i/2, ".", n, strings.Repeat("x", 100))})
		}
		facts, err := authz.NewFacts(authz.ProtocolPostgres, names...)
		testenv.Must(t, err)
		st, refusal := s.Admit(t.Context(), facts)
		if refusal != nil {
			t.Fatalf("refused: %+v", refusal)
		}
		if st.Keep() {
			kept++
		}
		st.End(authz.Outcome{})
	}
	if kept != 2*16 {
		t.Errorf("%d statements were kept, want 16, each twice", kept)
	}
	if held, _ := w.budget.Held(budget.Request); held-before < 16*50*100 || held-before > 16*50*150 {
		t.Errorf("%d bytes are held for what is kept, want the length of its facts and a little more", held-before)
	}
}

// TestCutSendsOnlyTheLastMessage has an answer of the server come to the plugin's side after
// the session was cut, and before the plugin's connection is reset.
func TestCutSendsOnlyTheLastMessage(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	s, c, far := w.openByPipe(t)
	defer far.Close()
	var late error
	s.Serve(func(error) { _, late = s.Write([]byte("late\n")) }, func() bool { return true })
	read := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(far) // a pipe has no reset
		read <- string(all)
	}()
	w.revoke("")
	s.End(authz.Outcome{})
	testenv.Must(t, c.Close())
	if got := <-read; got != "" || late == nil {
		t.Errorf("the plugin reads %q after the cut, and the writer %v, want an error", got, late)
	}
}

// TestRevokeOfAnotherRule leaves a session that other rules grant, and decides its next
// statement by them.
func TestRevokeOfAnotherRule(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"), rule("write", "shop", "insert"))
	c := w.open("shop")
	c.expect("insert orders", "done insert orders")
	for range 2 { // a second time it was revoked already
		if got := w.revoke("write"); got != 0 {
			t.Errorf("%d sessions were cut, want none", got)
		}
		c.expect("insert orders", "refused revoked")
		c.expect("select orders", "done select orders")
	}
}

// TestUnreadingPlugin cuts the session of a plugin that does not read its answers.
func TestUnreadingPlugin(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	c := w.openTLS("shop")
	line := "select " + strings.Repeat("x", 200) + "\n"
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for {
			if _, err := io.WriteString(c.conn, line); err != nil {
				return
			}
		}
	}()
	testenv.Eventually(t, "a session in which nothing moves", func() (int, bool) {
		all := w.front.Sessions()
		return 0, len(all) == 1 && all[0].Running > 0 && all[0].SentBytes > 1<<20 && stalled(w)
	})
	begun := time.Now()
	if got := w.revoke("read"); got != 1 {
		t.Errorf("%d sessions were cut, want 1", got)
	}
	if took := time.Since(begun); took > 100*time.Millisecond {
		t.Errorf("the cut waited %s for the plugin", took)
	}
	<-stuck
}

// stalled reports whether no byte moves for a moment.
func stalled(w *world) bool {
	before := w.front.Sessions()
	time.Sleep(20 * time.Millisecond)
	after := w.front.Sessions()
	return len(before) == 1 && len(after) == 1 && before[0].SentBytes == after[0].SentBytes && before[0].Bytes == after[0].Bytes
}

// TestLeaseEnds ends the credential's value while sessions carry it.
func TestLeaseEnds(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	all := []*client{w.open("shop"), w.open("shop"), w.openTLS("shop")}
	w.source.mu.Lock()
	control := w.source.control
	w.source.control, w.source.generation = authz.NewTerm(time.Time{}), 2
	w.source.mu.Unlock()
	later := w.open("shop")
	w.awaitIdle()
	control.End("was revoked")
	for _, c := range all {
		c.expectEnd("cut credential_unavailable")
	}
	later.expect("select orders", "done select orders")
	testenv.Eventually(t, "the ends", func() (int, bool) { return 0, len(w.front.Sessions()) == 1 })
}

// TestRetire ends idle sessions of a replaced value, and not the one that is busy.
func TestRetire(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select", "sleep"))
	idle, busy := w.openTLS("shop"), w.open("shop")
	busy.send("sleep orders")
	testenv.Eventually(t, "the statement", func() (int, bool) { return 0, len(w.server.statements()) == 1 })
	w.awaitIdle()
	now := time.Now()
	w.source.control.Extend(now.Add(time.Second))
	w.source.control.Retire(now)
	idle.expectEnd("cut credential_unavailable")
	testenv.Eventually(t, "the busy session alone", func() (int, bool) {
		got := w.front.Sessions()
		return 0, len(got) == 1 && got[0].Running == 1
	})
	w.source.control.End("expired")
	busy.expectEnd("cut credential_unavailable")
}

// TestRenew logs in with a newer credential after the server refused the first, and the
// session then lives as long as that one.
func TestRenew(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	w.server.mu.Lock()
	w.server.password = "secret2"
	w.server.mu.Unlock()
	first := w.source.control
	c := w.open("shop")
	w.server.mu.Lock()
	got := slices.Clone(w.server.logins)
	w.server.mu.Unlock()
	if !slices.Equal(got, []string{"v-crm secret1", "v-crm secret2"}) {
		t.Errorf("the logins were %q", got)
	}
	first.End("was revoked")
	c.expect("select orders", "done select orders")
	w.awaitIdle()
	w.source.control.End("was revoked")
	c.expectEnd("cut credential_unavailable")
	w.server.mu.Lock()
	w.server.password = "another"
	w.server.mu.Unlock()
	w.dial().expect("open shop", "refused credential_unavailable")
}

// TestTimeout asks the server to end a statement whose rule's timeout has expired, and cuts
// the session if the server does not.
func TestTimeout(t *testing.T) {
	limited := rule("read", "shop", "select", "sleep")
	limited.Timeout = authz.Duration(50 * time.Millisecond)
	w := newWorld(t, limited)
	c := w.open("shop")
	c.expect("sleep orders", "cancelled sleep orders")
	c.expect("select orders", "done select orders")
	w.server.mu.Lock()
	w.server.deaf = true
	w.server.mu.Unlock()
	c.send("sleep orders")
	c.expectEnd("cut upstream_timeout")
	testenv.Eventually(t, "requests that end statements: one for each timeout, one with the cut", func() (int, bool) {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		return 0, w.server.cancels == 3
	})
}

// TestMisplaced cuts a session in which the plugin sends the placeholder of a credential,
// whole or in two pieces.
func TestMisplaced(t *testing.T) {
	for _, pieces := range [][]string{{"select pw_0123456789abcdef"}, {"select pw_01234567", "89abcdef"}} {
		w := newWorld(t, rule("read", "shop", "select"))
		w.placed = []placeholder.Placeholder{{Grant: "crm", Credential: "login", Value: authz.NewSecret("pw_0123456789abcdef")}}
		c := w.open("shop")
		c.expect("select pw_0123", "done select pw_0123")
		for _, piece := range pieces {
			_, err := io.WriteString(c.conn, piece)
			testenv.Must(t, err)
		}
		c.send("")
		c.expectEnd("cut credential_misplaced")
		for _, line := range w.server.statements() {
			if strings.Contains(line, "pw_0123456789abcdef") {
				t.Errorf("the server saw %q", line)
			}
		}
	}
}

// TestUnrecordedIsRefused refuses what cannot be recorded.
func TestUnrecordedIsRefused(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	c := w.open("shop")
	w.records.mu.Lock()
	w.records.broken = errors.New("disk full")
	w.records.mu.Unlock()
	c.expect("select orders", "refused audit_unavailable")
	w.records.mu.Lock()
	w.records.broken = nil
	w.records.mu.Unlock()
	c.expect("select orders", "done select orders")
}

// TestRevokeRace revokes and restores while sessions open and statements begin: none runs
// under a policy that denies it.
func TestRevokeRace(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "sleep"))
	var opening sync.WaitGroup
	for range 20 {
		opening.Go(func() {
			conn, err := net.Dial("tcp", w.addr)
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "open shop\nsleep orders\n")
			_, err = io.Copy(io.Discard, conn)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a session ended with %v", err)
			}
		})
	}
	time.Sleep(2 * time.Millisecond) // some are open, and others opening
	w.revoke("")
	opening.Wait() // every one is refused or cut
}

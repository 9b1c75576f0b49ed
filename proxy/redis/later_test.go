package redis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// maxTogether is how many facts a decision of the package has at most.
const maxTogether = 60

// twoRules returns a world with a rule for app:* and one for rest:*.
func twoRules(t *testing.T) (*world, *client) {
	t.Helper()
	server := serve(t)
	rest := reader()
	rest.id, rest.keys = "a-rest", []string{"a-rest:*"} // it takes precedence for what both grant
	return newWorld(t, server, rest, reader()), direct(t, server)
}

// TestRevokedInATransaction revokes the rule of commands that the server has queued, and that
// EXEC would run.
func TestRevokedInATransaction(t *testing.T) {
	w, other := twoRules(t)
	c := w.dial()
	c.expect("+OK", "MULTI")
	c.expect("+QUEUED", "GET", "app:1")
	c.expect("+QUEUED", "SET", "app:2", "x")
	w.revoke("app")
	other.expect("+OK", "SET", "app:1", "later")
	c.expect("-ERR MULTI calls can not be nested", "MULTI")
	c.expect("-EXECABORT *", "EXEC")
	other.expect("$-1", "GET", "app:2")
	c.expect("+OK", "MULTI")
	c.expect("+QUEUED", "GET", "a-rest:1")
	w.revoke("none")
	c.expect("-EXECABORT *", "EXEC")
	c.expect("+OK", "MULTI")
	c.expect("+QUEUED", "GET", "a-rest:1")
	w.revoke("other")
	c.expect("+OK", "DISCARD")
	c.write(request("MULTI") + request("GET", "a-rest:1") + request("EXEC") + request("PING"))
	for _, want := range []string{"+OK", "+QUEUED", "*[$-1]", "+PONG"} {
		if got := c.read(); got != want {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
}

// limited returns a world as twoRules does, in which the rule for rest:*, which also grants what
// has no key, delays a connection and its commands beyond four in four seconds.
func limited(t *testing.T) (*world, *client) {
	t.Helper()
	server := serve(t)
	rest := reader()
	rest.id, rest.keys, rest.limits = "a-rest", []string{"a-rest:*"}, authz.Limits{
		Requests: authz.Limit{Count: 4, Period: 4 * time.Second}, OnExceeded: authz.OnExceededThrottle,
	}
	return newWorld(t, server, rest, reader()), direct(t, server)
}

// TestRevokedWhileExecWaits revokes the rule of commands in a transaction while EXEC waits for a
// limit.
func TestRevokedWhileExecWaits(t *testing.T) {
	w, other := limited(t)
	c := w.dial()
	for range 3 {
		c.expect("+PONG", "PING")
	}
	c.expect("+OK", "MULTI")
	c.expect("+QUEUED", "SET", "app:1", "x")
	c.write(request("GET", "app:2") + request("EXEC"))
	c.expectRecords(w, "command:get")
	w.revoke("app")
	for _, want := range []string{"+QUEUED", "-EXECABORT *"} {
		if got := c.read(); !like(got, want) {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
	other.expect("$-1", "GET", "app:1")
}

// TestAdmittedBeforeAWait has a command that is admitted not wait for the limit of the one behind
// it, within which its rule may be revoked.
func TestAdmittedBeforeAWait(t *testing.T) {
	long := strings.Split("MSET app:1 x"+strings.Repeat(" app:2 x", maxTogether), " ")
	for name, first := range map[string]string{
		"alone": request(long...), "one by one": request("SET", "app:1", "x"),
		"together": strings.Repeat(request("SET", "app:1", "x"), maxTogether),
	} {
		t.Run(name, func(t *testing.T) {
			w, other := limited(t)
			c := w.dial()
			c.t = t
			c.write(first + strings.Repeat(request("PING"), 300))
			testenv.Eventually(t, "the command is sent", func() (string, bool) {
				got := other.do("GET", "app:1")
				return got, got == "$x"
			})
			w.revoke("")
		})
	}
}

// TestIdleAfterAbort ends a connection whose transaction was aborted as one that is idle.
func TestIdleAfterAbort(t *testing.T) {
	w, _ := twoRules(t)
	c := w.dial()
	c.expect("+OK", "MULTI")
	w.revoke("app")
	c.expect("-EXECABORT *", "EXEC")
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	w.sessions.WaitEmpty(ctx)
	if n := w.sessions.Len(); n != 0 {
		t.Errorf("%d sessions are not idle", n)
	}
}

// TestRevokedBehindAWait revokes the rule of a command that the server has not read yet: one
// before it waits.
func TestRevokedBehindAWait(t *testing.T) {
	for _, subscribed := range []bool{false, true} {
		t.Run(fmt.Sprintf("subscribed=%t", subscribed), func(t *testing.T) {
			w, other := twoRules(t)
			c := w.dial()
			c.t = t
			if subscribed {
				c.do("HELLO", "3")
				c.expect(">[$subscribe *", "SUBSCRIBE", "app.x")
			}
			c.write(request("BLPOP", "a-rest:queue", "0") + request("AUTH", "x") + request("GET", "app:1"))
			c.expectRecords(w, "command:get")
			w.revoke("app")
			other.expect("+OK", "SET", "app:1", "later")
			other.expect(":1", "RPUSH", "a-rest:queue", "x")
			c.expectEndAfter("-NOPERM chaperone: revoked: *")
		})
	}
}

// TestBehindAWait has commands that come behind one which waits end with their answers.
func TestBehindAWait(t *testing.T) {
	w, other := twoRules(t)
	c := w.dial()
	c.write(request("BLPOP", "a-rest:queue", "0") + strings.Repeat(request("GET", "app:1"), 20) + request("AUTH", "x") + request("HELLO", "2"))
	c.expectRecords(w, "command:get")
	other.expect(":1", "RPUSH", "a-rest:queue", "x")
	for n := range 23 {
		got := c.read()
		if want := map[int]string{0: "*[$a-rest:queue $x]", 21: "+OK", 22: "*[*"}[n]; want != "" && !like(got, want) || want == "" && got != "$-1" {
			t.Errorf("answer %d is %q", n, got)
		}
	}
	testenv.Eventually(t, "the end of the commands", func() (int, bool) {
		n := w.front.Sessions()[0].Running
		return n, n == 0
	})
	c.expect("$-1", "GET", "app:1")
	w.revoke("app")
	c.expect("$-1", "GET", "a-rest:1")
}

// TestRevokedWithinAValue revokes the rule of a command whose value has not ended.
func TestRevokedWithinAValue(t *testing.T) {
	w, other := twoRules(t)
	c := w.dial()
	all := request("SET", "app:1", strings.Repeat("x", 100_000))
	c.write(all + all[:len(all)-10])
	c.expectRecords(w, "command:set")
	if got := c.read(); got != "+OK" {
		t.Errorf("answered %q", got)
	}
	other.expect(":1", "DEL", "app:1")
	testenv.Eventually(t, "the command", func() (int, bool) {
		n := w.front.Sessions()[0].Running
		return n, n == 1
	})
	w.revoke("app")
	c.expectEndAfter("-NOPERM chaperone: revoked: *")
	other.expect("$-1", "GET", "app:1")
}

// TestManyBehindAWait refuses what comes behind a command that waits and 1,023 others.
func TestManyBehindAWait(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	c.write(request("BLPOP", "app:q", "0") + strings.Repeat(request("GET", "app:1"), 1024))
	testenv.Eventually(t, "the commands behind it", func() (int, bool) {
		sessions := w.front.Sessions()
		return len(sessions), len(sessions) == 1 && sessions[0].Running == 1024
	})
	w.dial().expect(":1", "RPUSH", "app:q", "x")
	for n := range 1025 {
		if got := c.read(); n == 1024 && !like(got, "-ERR chaperone: statement_too_large: *") || n > 0 && n < 1024 && got != "$-1" {
			t.Fatalf("answer %d is %q", n, got)
		}
	}
}

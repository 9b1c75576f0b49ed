package redis_test

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestBytesThatAreNoRequests ends connections whose next request is not known.
func TestBytesThatAreNoRequests(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	tests := []struct{ name, raw, want string }{
		{"inline command", "GET app:1\r\n", "-ERR chaperone: malformed_request: *"},
		{"HTTP", "POST / HTTP/1.1\r\nHost: cache.example\r\n\r\n", "-ERR chaperone: malformed_request: *"},
		{"map of RESP3", "%1\r\n$1\r\na\r\n$1\r\nb\r\n", "-ERR chaperone: malformed_request: *"},
		{"inline command behind a request", request("PING") + "GET other:1\r\n", "+PONG"},
		{"length that is no number", "*1\r\n$+4\r\nPING\r\n", "-ERR Protocol error: chaperone: *"},
		{"length below the string's", "*2\r\n$3\r\nGET\r\n$3\r\napp:1\r\n*1\r\n", "-ERR Protocol error: chaperone: *"},
		{"negative length", "*2\r\n$3\r\nGET\r\n$-1\r\n", "-ERR Protocol error: chaperone: *"},
		{"string above 512 MiB", "*2\r\n$3\r\nGET\r\n$536870913\r\n", "-ERR Protocol error: chaperone: *"},
		{"too many arguments", "*1048577\r\n", "-ERR Protocol error: chaperone: *"},
		{"line feed alone", "*1\n$4\nPING\n", "-ERR Protocol error: chaperone: *"},
		{"endless length", "*" + strings.Repeat("1", 70), "-ERR Protocol error: chaperone: *"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := w.dial()
			c.t = t
			c.write(test.raw)
			if got := c.read(); !like(got, test.want) {
				t.Errorf("answered %q, want %q", got, test.want)
			}
			if test.want == "+PONG" {
				if got := c.read(); !like(got, "-ERR Protocol error: chaperone: *") {
					t.Errorf("answered %q", got)
				}
			}
			c.expectEnd()
		})
	}
	c := w.dial()
	c.write("*0\r\n*-1\r\n" + request("PING"))
	if got := c.read(); got != "+PONG" {
		t.Errorf("requests without arguments are answered: %q", got)
	}
	c.write("*1\r\n$4\r\nQUIT\r\n")
	if got := c.read(); got != "+OK" {
		t.Errorf("QUIT is answered %q", got)
	}
	c.expectEnd()
}

func like(got, want string) bool {
	if prefix, ok := strings.CutSuffix(want, "*"); ok {
		return strings.HasPrefix(got, prefix)
	}
	return got == want
}

// TestRefused refuses commands that a rule for app:* with every command does not grant.
func TestRefused(t *testing.T) {
	server := serve(t)
	w := newWorld(t, server, reader())
	direct(t, server).expect("+OK", "SET", "other:1", "secret")
	c := w.dial()
	for _, line := range []string{
		"GET other:1", "MGET app:1 other:1", "MSET app:1 x other:1 y", "COPY other:1 app:1", "RENAME other:1 app:1", "SORT app:l BY other:*",
		"SORT app:l GET other:*", "SORT app:l STORE other:1", "EVAL x 0", "EVAL x 1 app:1", "EVALSHA x 0", "FCALL f 0", "SCRIPT LOAD x",
		"FUNCTION LOAD x", "SUBSCRIBE other.x", "PSUBSCRIBE *", "PUBLISH other.x m", "SSUBSCRIBE other.x", "SCAN 0", "KEYS *", "RANDOMKEY",
		"FLUSHDB", "FLUSHALL", "SELECT 1", "MOVE app:1 1", "COPY app:1 app:2 DB 1", "XREAD STREAMS app:1 other:1 0 0", "BITOP AND app:1 other:1",
		"GEORADIUS app:g 1 1 1 km STORE other:1", "OBJECT ENCODING other:1", "CLIENT TRACKING ON BCAST", "CLIENT TRACKING ON REDIRECT 1",
		"CLIENT REPLY OFF", "CLIENT REPLY SKIP", "CLIENT KILL ID 1", "CLIENT PAUSE 1", "CLIENT NO-EVICT ON", "MONITOR", "SYNC", "PSYNC ? -1",
		"REPLICAOF h 1", "SLAVEOF h 1", "MIGRATE h 1 app:1 0 1", "FAILOVER", "MODULE LOAD x", "DEBUG SLEEP 1", "SHUTDOWN NOSAVE",
		"CONFIG SET dir /tmp", "CONFIG REWRITE", "ACL SETUSER x", "ACL LIST", "CLUSTER RESET", "SWAPDB 0 1", "SAVE", "BGSAVE", "RESET",
		"SCRIPT DEBUG YES", "FROB", "GET\x00 app:1", "CONFIG FROB", "JSON.GET app:1", "GET app:1 app:2", "RESTORE-ASKING app:1 0 x",
	} {
		c.expect("-NOPERM chaperone: *", strings.Split(line, " ")...)
		c.expect("+PONG", "PING")
	}
	for _, line := range []string{
		"ACL WHOAMI", "CLUSTER INFO", "CONFIG GET maxmemory", "CLIENT ID", "CLIENT TRACKING OFF", "COMMAND COUNT", "SCAN 0 MATCH app:*",
		"KEYS app:*", "SORT app:l BY app:* GET app:*", "PSUBSCRIBE app.*",
	} {
		if got := c.do(strings.Split(line, " ")...); strings.HasPrefix(got, "-NOPERM") {
			t.Errorf("%s: %s", line, got)
		}
	}
}

// TestErrorText has the reason, what is refused and the decision, on one line.
func TestErrorText(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	got := c.do("GET", "other:\r\n-x\x1b[31m")
	for _, want := range []string{"-NOPERM chaperone: statement_not_granted: ", "(decision "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q has no %q", got, want)
		}
	}
	if strings.ContainsFunc(got, func(c rune) bool { return c < ' ' }) {
		t.Errorf("%q has control bytes", got)
	}
	c.expect("+PONG", "PING")
}

// TestTransaction refuses a command of a transaction, which the server then aborts.
func TestTransaction(t *testing.T) {
	server := serve(t)
	w := newWorld(t, server, reader())
	c := w.dial()
	c.write(request("MULTI") + request("SET", "other:1", "x") + request("SET", "app:1", "x") + request("EXEC") + request("GET", "app:1"))
	for _, want := range []string{"+OK", "-NOPERM chaperone: *", "+QUEUED", "-EXECABORT *", "$-1"} {
		if got := c.read(); !like(got, want) {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
	c.expect("+OK", "MULTI")
	c.expect("-NOPERM chaperone: *", "SELECT", "0x")
	c.expect("-NOPERM chaperone: *", "AUTH", "x")
	c.expect("-EXECABORT *", "EXEC")
}

// TestDatabases follows SELECT, also where the server refuses it.
func TestDatabases(t *testing.T) {
	server := serve(t, "databases 2")
	rule := reader()
	rule.db = []string{"1", "7"}
	w := newWorld(t, server, rule)
	c := w.dial()
	c.expect("+PONG", "PING")
	c.expect("-NOPERM chaperone: *", "GET", "app:1") // of database 0
	c.expect("-NOPERM chaperone: *", "SELECT", "0")
	c.expect("-ERR DB index is out of range", "SELECT", "7")
	c.expect("-NOPERM chaperone: *", "GET", "app:1") // still of database 0
	c.write(request("SELECT", "1") + request("SET", "app:1", "x") + request("SELECT", "7") + request("GET", "app:1"))
	for _, want := range []string{"+OK", "+OK", "-ERR DB index *", "$x"} {
		if got := c.read(); !like(got, want) {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
	c.expect("+OK", "MULTI")
	c.expect("-NOPERM chaperone: *", "SELECT", "7")
	c.expect("-EXECABORT *", "EXEC")
}

// TestLogin answers AUTH and HELLO with AUTH, whatever they hold, and never shows the server them.
func TestLogin(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	c.expect("+OK", "AUTH", "wrong")
	c.expect("+OK", "AUTH", "x", "y")
	c.expect("*[*", "HELLO", "2", "AUTH", "x", "y")
	c.expect("%[*", "HELLO", "3", "SETNAME", "me", "AUTH", "x", "y")
	c.expect("-NOPROTO *", "HELLO", "9")
	c.expect("-NOPERM chaperone: *", "HELLO", "3", "FROB", "x")
	c.expect("$"+user, "ACL", "WHOAMI")
	for _, r := range w.records.all() {
		if slices.Contains(r.Facts, "key:wrong") || strings.Contains(r.Detail, "wrong") {
			t.Errorf("recorded %+v", r)
		}
	}
}

// TestPipeline refuses one of 10,000 commands, at its place.
func TestPipeline(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	var b strings.Builder
	for i := range 10_000 {
		key := "app:n"
		if i == 6_789 {
			key = "other:n"
		}
		b.WriteString(request("INCR", key))
	}
	go c.write(b.String())
	n := 0
	for i := range 10_000 {
		got := c.read()
		if i == 6_789 {
			if !strings.HasPrefix(got, "-NOPERM chaperone: ") {
				t.Fatalf("answer %d is %q", i, got)
			}
			continue
		}
		if n++; got != fmt.Sprint(":", n) {
			t.Fatalf("answer %d is %q, want :%d", i, got, n)
		}
	}
	if records := len(w.records.all()); records > 1_000 {
		t.Errorf("%d records of a pipeline", records)
	}
}

// TestRefusedPipeline refuses every command of a pipeline that is written whole before its
// answers are read, with more refusals than texts are kept.
func TestRefusedPipeline(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	const n = 6_000
	c.write(strings.Repeat(request("GET", "other:1"), n) + request("PING"))
	for i := range n {
		if got := c.read(); !strings.HasPrefix(got, "-NOPERM chaperone: statement_not_granted") || !strings.Contains(got, "(decision ") {
			t.Fatalf("answer %d is %q", i, got)
		}
	}
	if got := c.read(); got != "+PONG" {
		t.Errorf("answered %q", got)
	}
}

// TestManyKeys grants commands with more keys than a decision has facts, and refuses one
// of which a late key is not granted.
func TestManyKeys(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	args := []string{"MGET"}
	for i := range 500 {
		args = append(args, fmt.Sprint("app:", i))
	}
	if got := c.do(args...); !strings.HasPrefix(got, "*[$-1") {
		t.Errorf("answered %.80q", got)
	}
	c.expect("-NOPERM chaperone: *", append(args, "other:1")...)
	for _, r := range w.records.all() {
		if len(r.Facts) > authz.MaxFacts {
			t.Errorf("a record has %d facts", len(r.Facts))
		}
	}
	del := []string{"DEL"}
	for i := range 10_001 {
		del = append(del, fmt.Sprint("app:", i))
	}
	c.expect("-ERR chaperone: statement_too_large: *", del...)
	c.expect("+PONG", "PING")
}

// TestLargeRequests holds requests of which the keys come after values, and refuses those
// that are too large, without a loss of step.
func TestLargeRequests(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	value := strings.Repeat("v", 3<<20)
	c.expect("+OK", "MSET", "app:1", value, "app:2", value)
	c.expect("-NOPERM chaperone: *", "MSET", "app:1", value, "other:2", value)
	c.expect("-ERR chaperone: statement_too_large: *", "MSET", "app:1", value, "app:2", value, "app:3", value)
	const many = "-ERR chaperone: statement_too_large: a command whose keys are behind its values, or that has only keys, has more than 65*"
	if got := c.do(append([]string{"MSET"}, slices.Repeat([]string{"app:1"}, 1<<19)...)...); !like(got, many) {
		t.Errorf("a command with 524,289 arguments was answered %q", got)
	}
	if got := c.do(append([]string{"SADD", "app:set"}, slices.Repeat([]string{"m"}, 100_000)...)...); got != ":1" {
		t.Errorf("a command whose key is in front was answered %q", got)
	}
	c.expect("-NOPERM chaperone: *", "SET", "other:1", value)
	c.expect("-NOPERM chaperone: *", "FROB", value)
	c.expect("-NOPERM chaperone: *", value, value)
	c.expect("+OK", "SET", "app:1", value)
	c.expect(":3145728", "STRLEN", "app:1")
}

// TestValueOf512MiB streams the longest value in both directions with flat memory.
func TestValueOf512MiB(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	const size = 512 << 20
	peak := heapPeak(t, func() {
		c.write(fmt.Sprintf("*3\r\n$3\r\nSET\r\n$5\r\napp:1\r\n$%d\r\n", size))
		chunk := make([]byte, 1<<20)
		for range size / len(chunk) {
			_, err := c.conn.Write(chunk)
			testenv.Must(t, err)
		}
		c.write("\r\n")
		if got := c.read(); got != "+OK" {
			t.Fatalf("answered %q", got)
		}
		c.send("GET", "app:1")
		_, err := c.in.ReadString('\n')
		testenv.Must(t, err)
		_, err = io.CopyN(io.Discard, c.in, size+2)
		testenv.Must(t, err)
	})
	if const16 := uint64(16 << 20); peak > const16 {
		t.Errorf("the heap grew by %d bytes", peak)
	}
	c.expect("+PONG", "PING")
}

// heapPeak returns by how much the heap grows at most while f runs.
func heapPeak(t *testing.T, f func()) uint64 {
	t.Helper()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, peak := m.HeapInuse, uint64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var m runtime.MemStats
		for {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse-min(before, m.HeapInuse))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	<-done
	return peak
}

// TestSlowReader does not collect answers that the plugin does not read.
func TestSlowReader(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	c.expect("+OK", "SET", "app:1", strings.Repeat("v", 1<<20))
	peak := heapPeak(t, func() {
		c.write(strings.Repeat(request("GET", "app:1"), 64))
		time.Sleep(300 * time.Millisecond)
	})
	if peak > 8<<20 {
		t.Errorf("the heap grew by %d bytes", peak)
	}
	for range 64 {
		if got := c.read(); len(got) != 1<<20+1 {
			t.Fatalf("an answer has %d bytes", len(got))
		}
	}
}

// TestSubscriptions passes messages as RESP2 answers and RESP3 pushes.
func TestSubscriptions(t *testing.T) {
	for _, version := range []string{"2", "3"} {
		t.Run("RESP"+version, func(t *testing.T) {
			w := newWorld(t, serve(t), reader())
			kind := map[string]string{"2": "*", "3": ">"}[version]
			c, publisher := w.dial(), w.dial()
			c.do("HELLO", version)
			c.expect(kind+"[$subscribe $app.x :1]", "SUBSCRIBE", "app.x")
			c.expect("-NOPERM chaperone: *", "SUBSCRIBE", "other.x")
			publisher.expect(":1", "PUBLISH", "app.x", "hello")
			publisher.expect("-NOPERM chaperone: *", "PUBLISH", "other.x", "hello")
			if got := c.read(); got != kind+"[$message $app.x $hello]" {
				t.Errorf("the message is %q", got)
			}
			w.revoke("app")
			c.expectEndAfter("-NOPERM chaperone: revoked: *")
		})
	}
}

// TestKeysOfALongCommand decides on all keys of a command that is streamed because a part of
// it is long, and of which the last argument comes late.
func TestKeysOfALongCommand(t *testing.T) {
	server := serve(t)
	direct(t, server).expect(":1", "RPUSH", "other:1", "secret")
	w := newWorld(t, server, reader())
	c := w.dial()
	all := request("BLPOP", "app:"+strings.Repeat("x", 70_000), "other:1", "1")
	c.write(all[:len(all)-len("1\r\n")])
	c.expectRecords(w, "command:blpop")
	c.write("1\r\n")
	if got := c.read(); !like(got, "-NOPERM chaperone: statement_not_granted: *") {
		t.Errorf("answered %.100q", got)
	}
}

// TestUnsubscribedChannels revokes a command that waits behind an UNSUBSCRIBE, which has an
// answer for each channel in RESP2.
func TestUnsubscribedChannels(t *testing.T) {
	rest := reader()
	rest.id, rest.keys = "rest", []string{"rest:*"}
	w := newWorld(t, serve(t), rest, reader())
	c := w.dial()
	c.write(request("UNSUBSCRIBE", "app.1", "app.2", "app.3", "app.4") + request("BLPOP", "app:none", "0") + request("PING"))
	for range 4 {
		if got := c.read(); !like(got, "*[$unsubscribe *") {
			t.Fatalf("answered %q", got)
		}
	}
	c.expectRecords(w, "command:blpop")
	w.revoke("app")
	c.expectEndAfter("-NOPERM chaperone: revoked: *")
}

// TestUnsubscribedWithoutASubscription has a connection stay one whose answers count: a pool may
// send UNSUBSCRIBE before it uses the connection again.
func TestUnsubscribedWithoutASubscription(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	c.expect("*[$unsubscribe *", "UNSUBSCRIBE")
	c.expect("*[$punsubscribe *", "PUNSUBSCRIBE", "app.*")
	c.do("BLPOP", "app:none", "0.01")
	testenv.Eventually(t, "the end of the command", func() (int, bool) {
		n := w.front.Sessions()[0].Running
		return n, n == 0
	})
}

// TestTrackedPrefixes revokes the rule by which the server reports changes of keys.
func TestTrackedPrefixes(t *testing.T) {
	rest := reader()
	rest.id, rest.keys = "rest", []string{"rest:*"}
	w := newWorld(t, serve(t), rest, reader())
	c, writer := w.dial(), w.dial()
	c.do("HELLO", "3")
	c.expect("+OK", "CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "app:")
	writer.expect("+OK", "SET", "app:1", "x")
	if got := c.read(); !like(got, ">[$invalidate *") {
		t.Fatalf("the push is %q", got)
	}
	w.revoke("app")
	c.expectEndAfter("-NOPERM chaperone: revoked: *")
}

// TestOpaque allows scripts where the rule does.
func TestOpaque(t *testing.T) {
	rule := reader()
	rule.opaque = true
	w := newWorld(t, serve(t), rule)
	c := w.dial()
	c.expect(":7", "EVAL", "return 7", "0")
	c.expect("-NOPERM chaperone: *", "EVAL", "return 7", "1", "other:1")
	c.expect("-NOPERM chaperone: *", "CONFIG", "SET", "dir", "/tmp")
}

// TestRules decides by the rule that grants a command: two commands of one read may have
// two rules.
func TestRules(t *testing.T) {
	a, b := reader(), reader()
	a.commands, a.keys = []string{"@read"}, []string{"app:*"}
	b.id, b.commands, b.keys = "jobs", []string{"@list"}, []string{"jobs:*"}
	w := newWorld(t, serve(t), a, b)
	c := w.dial()
	c.write(request("GET", "app:1") + request("LPUSH", "jobs:1", "x") + request("SET", "app:1", "x") + request("RENAME", "jobs:1", "app:1"))
	for _, want := range []string{"$-1", ":1", "-NOPERM chaperone: *", "-NOPERM chaperone: *"} {
		if got := c.read(); !like(got, want) {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
	w.revoke("jobs")
	c.expect("-NOPERM chaperone: revoked: *", "LPUSH", "jobs:1", "x")
	c.expect("$-1", "GET", "app:1")
}

// TestPasswordReplaced logs in once more after the server refused the password.
func TestPasswordReplaced(t *testing.T) {
	server := serve(t)
	w := newWorld(t, server, reader())
	w.source.password, w.source.renewed = "an older password", password
	w.dial().expect("+PONG", "PING")
	w.source.mu.Lock()
	w.source.password, w.source.renewed = "wrong", "wrong too"
	w.source.mu.Unlock()
	c := w.dial()
	if got := c.do("PING"); !strings.HasPrefix(got, "-ERR chaperone: credential_unavailable: ") {
		t.Errorf("answered %q", got)
	}
	c.expectEnd()
}

// TestServers that are not there, or do not speak Redis, or lie.
func TestServers(t *testing.T) {
	server := serve(t)
	t.Run("another authority", func(t *testing.T) {
		other, err := testenv.NewCA("other")
		testenv.Must(t, err)
		w := newWorldAt(t, server.TLSAddr.Port(), string(other.PEM()), nil, reader())
		if got := w.dial().do("PING"); !strings.HasPrefix(got, "-ERR chaperone: upstream_unreachable: ") {
			t.Errorf("answered %q", got)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		w := newWorld(t, server, reader())
		c := w.dial()
		c.expect("+PONG", "PING")
		testenv.Must(t, server.Kill())
		c.expectEnd()
		if got := w.dial().do("PING"); !strings.HasPrefix(got, "-ERR chaperone: upstream_unreachable: ") {
			t.Errorf("answered %q", got)
		}
	})
}

// TestRevokeMany cuts connections that wait.
func TestRevokeMany(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	clients := make([]*client, 50)
	for i := range clients {
		clients[i] = w.dial()
		clients[i].expect("+PONG", "PING")
		clients[i].send("BLPOP", fmt.Sprint("app:", i), "0")
	}
	for i, c := range clients {
		c.expectRecords(w, fmt.Sprint("key:app:", i))
	}
	w.revoke("app")
	for _, c := range clients {
		c.expectEndAfter("-NOPERM chaperone: revoked: *")
	}
}

// TestHostileServers answer the login or a command as no Redis does. The password reaches
// none that is not verified.
func TestHostileServers(t *testing.T) {
	tests := []struct{ name, login, answers, want string }{
		{"no TLS", "", "-ERR unknown command\r\n", "-ERR chaperone: upstream_unreachable: *"},
		{"no credential wanted", "-ERR Client sent AUTH, but no password is set\r\n", "", "-ERR chaperone: credential_unavailable: *"},
		{"more than an answer", "+OK\r\n+PONG\r\n", "", "-ERR chaperone: upstream_unreachable: *"},
		{"another protocol", "HTTP/1.1 400 Bad Request\r\n", "", "-ERR chaperone: upstream_unreachable: *"},
		{"an endless line", strings.Repeat("+", 1<<16), "", "-ERR chaperone: upstream_unreachable: *"},
		{"an answer of no type", "+OK\r\n", "hello\r\n", ""},
		{"a length that is too large", "+OK\r\n", "$99999999999999999\r\n", ""},
		{"endless nesting", "+OK\r\n", strings.Repeat("*1\r\n", 5000), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHostile(t, test.login, test.answers)
			w := newWorldAt(t, h.port, string(h.ca.PEM()), nil, reader())
			c := w.dial()
			c.t = t
			c.send("PING")
			got, err := c.tryRead()
			for err == nil && test.want == "" {
				got, err = c.tryRead()
			}
			if test.want != "" && !like(got, test.want) {
				t.Errorf("answered %q, %v, want %q", got, err, test.want)
			}
			if seen := h.seen(); test.login == "" && strings.Contains(seen, password) {
				t.Errorf("a server that is not verified has read %q", seen)
			}
		})
	}
}

package redis_test

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestRedirections hides the addresses of other nodes, which the plugin cannot reach, also
// within the answer of a transaction and behind attributes of RESP3. A value that looks
// like a redirection passes.
func TestRedirections(t *testing.T) {
	const hidden = "-ERR chaperone: the server is a node of a cluster *"
	const value = "$-MOVED 1 10.0.0.7:6381"
	for _, test := range []struct{ name, answers, want string }{
		{"moved", "-MOVED 3999 10.0.0.7:6381\r\n", hidden},
		{"ask", "-ASK 3999 10.0.0.7:6381\r\n", hidden},
		{"behind attributes", "|1\r\n+ttl\r\n*2\r\n%1\r\n+a\r\n:1\r\n:2\r\n-MOVED 1 10.0.0.7:6381\r\n", "|[+ttl *[%[+a :1] :2]]\n" + hidden},
		{"an error of another name", "-MOVEDX 3999\r\n", "-MOVEDX 3999"},
		{"a value", "$22\r\n" + value[1:] + "\r\n", value},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHostile(t, "+OK\r\n", test.answers)
			c := newWorldAt(t, h.port, string(h.ca.PEM()), nil, reader()).dial()
			c.t = t
			c.send("GET", "app:1")
			var all []string
			for got, err := c.tryRead(); err == nil; got, err = c.tryRead() {
				all = append(all, got)
			}
			if got := strings.Join(all, "\n"); !like(got, test.want) {
				t.Errorf("answered %q, want %q", got, test.want)
			}
		})
	}
	t.Run("in a transaction", func(t *testing.T) {
		h := newHostile(t, "+OK\r\n", "+OK\r\n+QUEUED\r\n*2\r\n:1\r\n-MOVED 3999 10.0.0.7:6381\r\n")
		c := newWorldAt(t, h.port, string(h.ca.PEM()), nil, reader()).dial()
		c.t = t
		c.write(request("MULTI") + request("GET", "app:1") + request("EXEC"))
		for _, want := range []string{"+OK", "+QUEUED", "*[:1 -ERR chaperone: the server is a node of a cluster *"} {
			if got := c.read(); !like(got, want) {
				t.Errorf("answered %q, want %q", got, want)
			}
		}
	})
}

// TestSelectUnread revokes a session that waits for the answer of SELECT, while the plugin
// does not read the answers before it.
func TestSelectUnread(t *testing.T) {
	rule := reader()
	rule.db = []string{"0", "1"}
	w := newWorld(t, serve(t), rule)
	c := w.dial()
	c.expect("+OK", "SET", "app:1", strings.Repeat("v", 1<<20))
	c.write(strings.Repeat(request("GET", "app:1"), 32) + request("SELECT", "1") + request("GET", "app:after"))
	c.expectRecords(w, "database:1")
	for _, r := range w.records.all() {
		if strings.Contains(strings.Join(r.Facts, " "), "app:after") {
			t.Error("a command behind SELECT is decided before its answer")
		}
	}
	w.revoke("app")
	c.expectEndOfUnread()
	for _, r := range w.records.all() {
		if r.Kind == authz.KindDecision && r.Allowed && strings.Contains(strings.Join(r.Facts, " "), "app:after") {
			t.Error("a command behind SELECT is admitted after the revocation")
		}
	}
}

// expectEndOfUnread reads what is left, up to the end of the connection.
func (c *client) expectEndOfUnread() {
	c.t.Helper()
	for n := 0; ; n++ {
		if _, err := c.tryRead(); err != nil {
			return
		}
		if n > 32 {
			c.t.Fatal("the connection goes on after the revocation")
		}
	}
}

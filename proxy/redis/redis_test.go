package redis_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

func sha(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func TestCommands(t *testing.T) {
	server := serve(t)
	w := newWorld(t, server, reader())
	for name, c := range map[string]*client{"plain": w.dial(), "TLS": w.dial().overTLS(w)} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			c.expect("+PONG", "PING")
			c.expect("+OK", "SET", "app:1", "one")
			c.expect("$one", "GET", "app:1")
			c.expect("-NOPERM chaperone: statement_not_granted: *", "GET", "other:1")
			c.expect("$one", "GET", "app:1")
			c.expect("+OK", "AUTH", "anything")
			c.expect("%[*", "HELLO", "3", "AUTH", "x", "y", "SETNAME", "me")
			c.expect("$me", "CLIENT", "GETNAME")
			c.expect("-NOPERM chaperone: *", "RESET")
			c.expect("+OK", "QUIT")
			c.expectEnd()
		})
	}
	direct(t, server).expect("$one", "GET", "app:1")
}

// TestRevokedRule cuts a connection whose rule is revoked while it waits.
func TestRevokedRule(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	c := w.dial()
	c.expect("+PONG", "PING")
	c.send("BLPOP", "app:queue", "0")
	c.expectRecords(w, "command:blpop")
	w.revoke("app")
	c.expectEndAfter("-NOPERM chaperone: revoked: *")
}

package redis_test

import (
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Other versions of Redis than the one whose commands are read serve what they have in common,
// in either protocol; a command that only they have is refused by its name, and one that they
// do not have yet is answered by themselves. `make test-long` runs all tests with them.
func TestOtherVersions(t *testing.T) {
	testenv.Require(t, testenv.RedisServer(), testenv.OtherRedis())
	for version, own := range map[string]func(c *client){
		testenv.OldRedis: func(c *client) {
			c.expect("-ERR Unknown subcommand *", "CLIENT", "SETINFO", "LIB-NAME", "x") // later than 6.2
			c.expect("-ERR unknown command *", "EXPIRETIME", "app:1")
		},
		testenv.NewestRedis: func(c *client) {
			c.expect("+OK", "CLIENT", "SETINFO", "LIB-NAME", "x")
			c.expect(`-NOPERM chaperone: statement_unreadable: command "HGETEX" is not one of Redis 7*`, "HGETEX", "app:h", "FIELDS", "1", "f")
			c.expect(`-NOPERM chaperone: statement_unreadable: command "VADD" is not one of Redis 7*`, "VADD", "app:v", "VALUES", "1", "1", "e")
			c.expect(":-2", "EXPIRETIME", "app:none")
			c.expect(":0", "SPUBLISH", "app.x", "one")
		},
	} {
		t.Run(version, func(t *testing.T) {
			server := testenv.MustRedis(t, testenv.RedisConfig{
				Names: []string{host}, Version: version,
				Users: []string{`user ` + user + ` on "#` + sha(password) + `" ~* &* +@all`},
			})
			w := newWorld(t, server, reader())
			for _, protocol := range []string{"2", "3"} {
				c := w.dial()
				c.t = t
				c.send("HELLO", protocol, "AUTH", "x", "y", "SETNAME", "me")
				_ = c.read()
				c.expect("+OK", "SET", "app:1", "one")
				c.expect("-NOPERM chaperone: statement_not_granted: *", "GET", "other:1")
				c.expect("+OK", "MULTI")
				c.expect("+QUEUED", "INCR", "app:n")
				c.expect("-NOPERM chaperone: *", "SET", "other:1", "x")
				c.expect("-EXECABORT *", "EXEC")
				c.expect("-NOPERM chaperone: *", "CONFIG", "SET", "dir", "/")
				c.expect("$one", "GET", "app:1")
				own(c)
			}
			c := w.dial()
			c.t = t
			c.send("BLPOP", "app:queue", "0")
			c.expectRecords(w, "command:blpop")
			w.revoke("app")
			c.expectEndAfter("-NOPERM chaperone: revoked: *")
		})
	}
}

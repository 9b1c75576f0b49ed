package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Clients may break the protocol around COPY FROM STDIN, where the server ignores a Sync
// that it would otherwise answer. A name stands for what the server executes also then.
func TestNamesAfterABrokenCopy(t *testing.T) {
	const copyTwice = copyIn + "; " + copyIn
	reparse := &pgproto3.Parse{Name: "s", Query: "SELECT id FROM sink"} // fails: s exists
	sync, done, bad := &pgproto3.Sync{}, &pgproto3.CopyDone{}, &pgproto3.CopyData{Data: []byte("no number\n")}
	for _, tc := range []struct {
		name    string
		between func(c *wire)
	}{
		{"a Sync within the second COPY of a Query", func(c *wire) {
			c.send(encode(&pgproto3.Query{String: copyTwice}))
			c.until(msgCopyInResponse)
			c.send(encode(done))
			c.until(msgCopyInResponse)
			c.send(encode(sync, done))
			c.until(msgReadyForQuery)
			c.send(encode(reparse, sync))
			c.until(msgReadyForQuery)
			c.query("SELECT 1")
		}},
		{"a Sync after data that fail", func(c *wire) {
			c.send(encode(&pgproto3.Query{String: copyIn}))
			c.until(msgCopyInResponse)
			c.send(encode(bad, reparse, sync))
		}},
		{"a Sync before the COPY begins, after data that fail", func(c *wire) {
			c.send(encode(&pgproto3.Query{String: copyIn}, bad, sync, sync, sync, &pgproto3.Query{String: "SELECT 1"}, reparse, sync))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, to := sharedServer(t)
			w := newWorld(t, to, rule("a-rest", "verb:select", "verb:copy-in", "verb:insert", "table:public.sink"), rule("orders", "verb:select", "table:public.orders"))
			c := w.open()
			c.send(encode(&pgproto3.Parse{Name: "s", Query: "SELECT name FROM orders WHERE id = 7"}, &pgproto3.Sync{}))
			c.until(msgReadyForQuery)
			w.awaitEnds()
			w.revoke("orders")
			tc.between(c)
			c.send(encode(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, sync, &pgproto3.Query{String: "SELECT 'end'"}))
			for {
				f, err := c.next()
				if err != nil {
					t.Logf("the session has ended: %v", err)
					return
				}
				if f.kind == msgDataRow && len(f.body) > 6 {
					if got := string(f.body[6:]); got == "order 7" {
						t.Fatal("the row of a revoked rule was read")
					} else if got == "end" {
						return
					}
				}
			}
		})
	}
}

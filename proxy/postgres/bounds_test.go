package postgres

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// A plugin that never ends a batch has the relay keep what is open, and not what has ended.
func TestBatchWithoutEndIsBounded(t *testing.T) {
	const many = 20_000
	for name, script := range map[string][]byte{
		"executed":     encode(&pgproto3.Parse{Query: "SELECT id FROM orders"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Flush{}),
		"parsed":       encode(&pgproto3.Parse{Query: "SELECT id FROM orders"}, &pgproto3.Parse{Query: "SELECT name FROM orders"}),
		"no statement": encode(&pgproto3.Parse{Query: ""}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Flush{}),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelayed(&allowing{})
			down := reply(&pgproto3.ParseComplete{}, &pgproto3.BindComplete{}, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
			for range many {
				testenv.Must(t, r.toServer(bytes.NewReader(script), discarded))
				testenv.Must(t, r.toPlugin(bytes.NewReader(down), discarded))
			}
			if n := len(r.pipe.open.running); n > 2*maxOpen {
				t.Errorf("%d statements are kept", n)
			}
			if unnamed := r.up.statements.of[""]; unnamed == nil {
				t.Error("the unnamed statement is not known")
			} else if c := union(unnamed.candidates); len(c.facts) > 8 || len(c.names) > 8 {
				t.Errorf("%d facts and %d names are kept", len(c.facts), len(c.names))
			}
		})
	}
}

// A plugin that does not read has the relay wait for the server, whatever it sends.
func TestUnansweredMessagesAreBounded(t *testing.T) {
	for name, script := range map[string][]byte{
		"batches":       encode(&pgproto3.Sync{}),
		"empty queries": encode(&pgproto3.Query{String: ";"}),
		"empty portals": encode(&pgproto3.Execute{Portal: "empty"}),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelayed(&allowing{})
			testenv.Must(t, r.toServer(bytes.NewReader(encode(&pgproto3.Parse{Name: "empty"},
				&pgproto3.Bind{PreparedStatement: "empty", DestinationPortal: "empty"})), discarded))
			src := &repeated{b: script, left: 4 * maxOpen}
			ended := make(chan error, 1)
			go func() { ended <- r.toServer(src, discarded) }()
			testenv.Eventually(t, "the relay waits", func() (struct{}, bool) { return struct{}{}, r.pipe.full() != nil })
			answers := reply(&pgproto3.EmptyQueryResponse{}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
			for {
				testenv.Must(t, r.toPlugin(bytes.NewReader(bytes.Repeat(answers, 64)), discarded))
				select {
				case err := <-ended:
					testenv.Must(t, err)
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
}

// repeated has the same bytes a number of times.
type repeated struct {
	b    []byte
	left int
}

func (r *repeated) Read(b []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	r.left--
	return copy(b, r.b), nil
}

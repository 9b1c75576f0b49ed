package ebpf

import (
	"fmt"
	"io"
	"testing"
)

func TestRedirect(t *testing.T) {
	r := newRig(t, nil)
	for _, network := range []string{"tcp4"} {
		t.Run(network, func(t *testing.T) {
			peers := make(chan Peer, 1)
			go func() {
				conn, err := r.proxy4.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				peer, ok := r.Identify(conn)
				if !ok {
					t.Error("not identified")
				}
				text, _ := io.ReadAll(conn)
				fmt.Fprintf(conn, "got %s", text)
				peers <- peer
			}()
			out := r.ok(r.run("get", "tcp", "240.0.0.9:443"))
			t.Log(out, <-peers)
			u, err := r.Usage()
			t.Logf("%+v %v", u, err)
		})
	}
	t.Log(r.seen())
}

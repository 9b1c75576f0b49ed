package proxy_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestCutWhileNobodyReadsHints revokes an access whose upstream sends informational
// answers without end that the plugin does not read.
func TestCutWhileNobodyReadsHints(t *testing.T) {
	hints := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Header().Set("Link", strings.Repeat("l", 4000))
			w.WriteHeader(http.StatusEarlyHints)
		}
	}
	for _, version := range []string{"1", "2"} {
		t.Run(version, func(t *testing.T) {
			api := newAPI(t, hints)
			w := newWorld(t, setup{input: granted(ruleFor(api))})
			authority := strings.TrimPrefix(urlOf(api, ""), "https://")
			var c net.Conn
			if version == "1" {
				raw := w.tunnel(authority).tls("example.com")
				_, err := io.WriteString(raw.Conn, "GET /x HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
				testenv.Must(t, err)
				c = raw.Conn
			} else {
				client := w.h2Client(authority)
				client.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", authority, ":path", "/x")
				c = client.Conn
			}
			defer c.Close()
			time.Sleep(1500 * time.Millisecond)
			if n := w.proxy.Open(); n != 1 {
				t.Fatalf("%d accesses are open", n)
			}
			w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Level: authz.LevelQuarantine})
			for late := testDeadline(); w.proxy.Open() > 0; time.Sleep(10 * time.Millisecond) {
				if late() {
					t.Fatalf("%d accesses are open", w.proxy.Open())
				}
			}
			if n := len(w.records.of(authz.KindEnd)); n != 1 {
				t.Errorf("%d ends are recorded", n)
			}
		})
	}
}

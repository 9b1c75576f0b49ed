package proxy_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// serverFirst is a database's protocol whose server sends first: it opens a session, greets
// with the name of its database, and echoes a line.
func serverFirst(ctx context.Context, f *database.Front, c *session.Conn, to authz.Destination) {
	facts, err := authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: "shop"})
	if err != nil {
		return
	}
	s, refusal := f.Open(ctx, c, to, facts)
	if refusal != nil {
		_, _ = fmt.Fprintf(c, "refused %s\n", refusal.Reason)
		return
	}
	defer s.End(authz.Outcome{})
	s.Serve(func(error) { s.Last([]byte("cut " + s.Cause().Reason.String() + "\n")) }, func() bool { return true })
	_, _ = fmt.Fprintf(s, "hello from %s\n", to.HostPort())
	buf := make([]byte, 64)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return
		}
	}
}

func databaseRule(port uint16) authz.Rule {
	return authz.Rule{
		ID: "shop", Reason: "a test",
		To:         authz.To{Scheme: authz.SchemePostgres, Hosts: []string{"api.weather.example"}, Ports: []uint16{port}},
		Content:    authz.Content{Databases: []authz.DatabaseName{"shop"}},
		Matcher:    &authz.Matcher{Protocol: authz.ProtocolPostgres, Facts: []authz.Fact{{Kind: authz.FactDatabase, Name: "shop"}}},
		Credential: "key",
	}
}

// TestDatabaseConnections hands connections to a host and port of a database's rule to its
// protocol, redirected ones and those of a CONNECT, before a byte of the plugin arrives.
func TestDatabaseConnections(t *testing.T) {
	var original atomicAddr
	for name, explicit := range map[string]bool{"redirected": false, "CONNECT": true} {
		t.Run(name, func(t *testing.T) {
			input := granted(databaseRule(5432))
			input.Grants[0].Credentials[0].Inject = authz.Inject{Database: &authz.DatabaseLogin{}}
			w := newWorld(t, setup{input: input, config: func(c *proxy.Config) {
				c.Databases.Serve = map[authz.Scheme]database.Serve{authz.SchemePostgres: serverFirst}
				if !explicit {
					redirect(original.load)(c)
				}
			}})
			connect := func() *rawConn {
				if explicit {
					return w.tunnel("api.weather.example:5432")
				}
				virtual, ok := w.resolver.Address("api.weather.example")
				if !ok {
					t.Fatal("the name has no virtual address")
				}
				original.store(netip.AddrPortFrom(virtual, 5432))
				return w.raw()
			}
			c := connect()
			begun := time.Now()
			for _, want := range []string{"hello from api.weather.example:5432\n", "ping\n"} {
				if line, err := c.in.ReadString('\n'); err != nil || line != want {
					t.Fatalf("read %q, %v, want %q", line, err, want)
				}
				c.write("ping\n")
			}
			if took := time.Since(begun); took > 250*time.Millisecond {
				t.Errorf("the greeting took %s: the proxy waited for the plugin", took)
			}
			if got := w.proxy.Databases().Sessions(); len(got) != 1 || got[0].Database != "shop" || got[0].Rule != "shop" {
				t.Errorf("the sessions are %+v", got)
			}
			w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Level: authz.LevelQuarantine, Reason: "a test", At: time.Now()})
			if got := w.proxy.Revalidate(); got != 1 {
				t.Errorf("%d sessions were cut, want 1", got)
			}
			testenv.Eventually(t, "the end", func() (int, bool) { return 0, len(w.proxy.Databases().Sessions()) == 0 })
			if line, err := connect().in.ReadString('\n'); err != nil || line != "refused revoked\n" {
				t.Errorf("a new connection read %q, %v", line, err)
			}
		})
	}
}

package upstream

import (
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// TestResolverLeavesSilentServers gives a resolver a name server that never answers
// beside one that does. The first look-up may wait for it; the others do not.
func TestResolverLeavesSilentServers(t *testing.T) {
	silent := listenUDP(t)
	answering := listenUDP(t)
	server := &dns.Server{PacketConn: answering, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 1)})
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })

	r := NewResolver([]netip.AddrPort{addrOf(silent), addrOf(answering)})
	const name = "api.weather.example."
	for i := range 4 {
		begun := time.Now()
		got, err := r.LookupNetIP(t.Context(), "ip", name)
		if want := netip.MustParseAddr("192.0.2.1"); err != nil || len(got) != 1 || got[0].Unmap() != want {
			t.Fatalf("look-up %d: got %v, %v, want %v", i, got, err, want)
		}
		// An attempt waits for 5 s (resolv.conf(5), timeout).
		if took := time.Since(begun); i > 0 && took > 4*time.Second {
			t.Errorf("look-up %d: got an answer after %v, want no wait for the silent server", i, took)
		}
	}
}

// TestServerTurns checks which server is asked next.
func TestServerTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := &serverTurns{servers: make([]netip.AddrPort, 3), silentUntil: make([]time.Time, 3)}
		want := func(servers ...int) {
			t.Helper()
			for _, n := range servers {
				if got := turns.choose(time.Now()); got != n {
					t.Errorf("got server %d, want %d", got, n)
				}
			}
		}
		want(0, 1, 2, 0)
		turns.markSilent(2)
		want(1, 0, 1)
		time.Sleep(time.Second)
		turns.markSilent(0)
		turns.markSilent(1)
		want(2) // silent for longest
		time.Sleep(serverPause)
		want(0, 1, 2)
	})
}

func listenUDP(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func addrOf(c net.PacketConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

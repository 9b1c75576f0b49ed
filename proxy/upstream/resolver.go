package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// serverPause is how long a name server is not asked after it did not answer, if
// another one is there.
const serverPause = 30 * time.Second

// NewResolver returns a resolver that asks name servers in turn, or those of the host
// without any. All names of a sidecar are resolved by one of these: those of
// upstreams, of token endpoints, and of what doctor checks.
func NewResolver(servers []netip.AddrPort) *net.Resolver {
	r := &net.Resolver{PreferGo: true}
	if len(servers) > 0 {
		turns := &serverTurns{servers: servers, silentUntil: make([]time.Time, len(servers))}
		r.Dial = turns.dial
	}
	return r
}

// serverTurns selects the name server of each attempt. A net.Resolver dials once for
// every attempt, and asks for the IPv4 and the IPv6 addresses of a name at once: turns
// alone could give every attempt of one of the two questions to the same silent server.
type serverTurns struct {
	servers []netip.AddrPort

	mu          sync.Mutex
	next        int
	silentUntil []time.Time // by server; the past for one that answers
}

// dial connects to the server whose turn it is. It is [net.Resolver.Dial]; the address
// that the resolver read from resolv.conf(5) is ignored.
func (t *serverTurns) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	n := t.choose(time.Now())
	c, err := new(net.Dialer).DialContext(ctx, network, t.servers[n].String())
	if err != nil {
		t.markSilent(n)
		return nil, err
	}
	if udp, ok := c.(*net.UDPConn); ok {
		return &questionUDP{UDPConn: udp, failed: func() { t.markSilent(n) }}, nil
	}
	return &questionTCP{Conn: c, failed: func() { t.markSilent(n) }}, nil
}

// choose returns the next server in turn that answered last time. If no server did, it
// returns the one that has been silent for longest.
func (t *serverTurns) choose(now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	chosen := t.next
	for i := range t.servers {
		n := (t.next + i) % len(t.servers)
		if !now.Before(t.silentUntil[n]) {
			chosen = n
			break
		}
		if t.silentUntil[n].Before(t.silentUntil[chosen]) {
			chosen = n
		}
	}
	t.next = (chosen + 1) % len(t.servers)
	return chosen
}

func (t *serverTurns) markSilent(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.silentUntil[n] = time.Now().Add(serverPause)
}

// questionUDP is the socket of one question. It stays a net.PacketConn, by which the
// resolver recognises datagrams.
type questionUDP struct {
	*net.UDPConn
	failed func()
}

func (q *questionUDP) Read(b []byte) (int, error) {
	n, err := q.UDPConn.Read(b)
	reportSilence(err, q.failed)
	return n, err
}

// questionTCP is the connection of one question.
type questionTCP struct {
	net.Conn
	failed func()
}

func (q *questionTCP) Read(b []byte) (int, error) {
	n, err := q.Conn.Read(b)
	reportSilence(err, q.failed)
	return n, err
}

// reportSilence calls failed after any error but a closed socket, which means that the
// question was given up.
func reportSilence(err error, failed func()) {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		failed()
	}
}

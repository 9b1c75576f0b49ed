package ebpf

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// TestPluginAddresses looks names up in each family as C libraries do, serves on
// the addresses that the plugin finds on its loopback, and binds a port that
// takes a privilege elsewhere.
func TestPluginAddresses(t *testing.T) {
	r := newHarness(t, nil)
	got := r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import socket
for family, text in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (0, "localhost"):
    socket.getaddrinfo(text, 80, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
for family, address in (socket.AF_INET, "192.0.0.1"), (socket.AF_INET6, "fd63:6861:7065::1"):
    for bound in address, "127.0.0.1" if family == socket.AF_INET else "::1":
        server = socket.socket(family)
        server.bind((bound, 80))
        server.listen()
        client = socket.create_connection((bound, 80), 5)
        taken, peer = server.accept()
        client.sendall(b"x")
        assert taken.recv(1) == b"x" and peer[0] == bound, peer
        datagram = socket.socket(family, socket.SOCK_DGRAM)
        datagram.bind((bound, 81))
        datagram.sendto(b"y", (bound, 81))
        assert datagram.recv(1) == b"y"
        for s in server, client, taken, datagram: s.close()
print("served")`}}))
	if got != "served" {
		t.Errorf("the plugin printed %q", got)
	}
	for _, d := range r.seen() {
		if d.Family != "unix" { // the C library asks nscd
			t.Errorf("refused: %+v", d)
		}
	}
}

// TestAllowConnects refuses connects to destinations without a rule, as a closed port
// does, and no others.
func TestAllowConnects(t *testing.T) {
	r := newHarness(t, nil)
	try := func() string {
		return r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import errno, socket
for address, port in ("240.0.0.1", 443), ("240.0.0.1", 80), ("240.0.0.2", 443), ("240.0.0.9", 8443), ("192.0.2.7", 443), \
        ("192.0.2.7", 22), ("192.0.2.9", 22), ("2001:20::f000:1", 443), ("2001:20::f000:1", 22), ("::ffff:240.0.0.1", 443), \
        ("2001:db8::1", 22), ("2001:db8::2", 443), ("2001:20::1.2.3.4", 8443):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(5)
    e = s.connect_ex((address, port))
    print("o" if e == 0 else errno.errorcode[e][5], end="")`}}))
	}
	if got := try(); got != "ooooooooooooo" {
		t.Errorf("before any policy: %s", got)
	}
	if err := r.AllowConnects(Destinations{
		Exact:     []netip.AddrPort{netip.MustParseAddrPort("240.0.0.1:443"), netip.MustParseAddrPort("192.0.2.7:22"), netip.MustParseAddrPort("[2001:db8::1]:22")},
		Ports:     []uint16{443},
		NamePorts: []uint16{8443},
	}); err != nil {
		t.Fatal(err)
	}
	const refused = "R" // the sixth letter of ECONNREFUSED
	if got := try(); got != "o"+refused+refused+"ooo"+refused+"o"+refused+"ooo"+refused {
		t.Errorf("with a policy: %s", got)
	}
	seen := r.seenNow()
	for _, d := range seen {
		if d.Cause != sandbox.CauseUngranted || d.Hook != sandbox.HookConnect || d.Protocol != "tcp" {
			t.Errorf("reported %+v", d)
		}
	}
	if !slices.ContainsFunc(seen, func(d sandbox.Denial) bool { return d.Address == netip.MustParseAddrPort("192.0.2.9:22") }) {
		t.Errorf("the address that was refused is not reported: %+v", seen)
	}
	many := Destinations{Ports: make([]uint16, MaxDestinations+1)}
	if err := r.AllowConnects(many); err == nil {
		t.Error("too many destinations are no error")
	}
	if got := try(); got != "ooooooooooooo" {
		t.Errorf("with too many destinations: %s", got)
	}
	if u, err := r.Usage(); err != nil || u.Refused == 0 {
		t.Errorf("counted %+v, %v", u, err)
	}
}

// TestServing reports a served port while the plugin waits in listen(2), and
// lists it as long as the plugin listens.
func TestServing(t *testing.T) {
	const wait = 200 * time.Millisecond
	told := make(chan uint16, 16)
	r := newHarness(t, func(c *Config) {
		c.Serve = []uint16{8081, 80}
		c.Listen.TCP = func(port uint16) { told <- port; time.Sleep(wait) }
	})
	got := r.ok(r.command(sandbox.Command{Args: []string{"python3", "-c", `
import socket, time
def listen(family, address):
    s = socket.socket(family)
    s.bind(address)
    begun = time.monotonic()
    s.listen()
    return s, time.monotonic() - begun
s, four = listen(socket.AF_INET, ("0.0.0.0", 8081))
_, other = listen(socket.AF_INET, ("127.0.0.1", 8082))
_, six = listen(socket.AF_INET6, ("::1", 80))
print(four > 0.15, six > 0.15, other < 0.15)`}}))
	if got != "True True True" {
		t.Errorf("the plugin waited: %s", got)
	}
	var ports []uint16
	for len(told) > 0 {
		ports = append(ports, <-told)
	}
	if want := []uint16{8081, 80}; !slices.Equal(ports, want) {
		t.Errorf("reported ports: got %v, want %v", ports, want)
	}
	listening, err := r.Listening()
	if err != nil || listening[8081] || !listening[tcpPort(r.proxy4).Port()] {
		t.Errorf("after its end %v is listened on: %v", listening, err)
	}
}

package ebpf

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// resolver answers A with a virtual address and AAAA with one that is mapped
// from it, for one name; NXDOMAIN for all others.
func resolver(p net.PacketConn, name string, virtual netip.Addr) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := p.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		q := m.Questions[0]
		header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
		switch {
		case q.Name.String() != name:
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: virtual.As4()}}}
		case q.Type == dnsmessage.TypeAAAA:
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: virtual.As16()}}}
		}
		if packed, err := m.Pack(); err == nil {
			_, _ = p.WriteTo(packed, from)
		}
	}
}

// Unmodified programs, with their own resolvers and address probes, arrive at
// the proxy by name, and nothing that they do by themselves is reported.
func TestPrograms(t *testing.T) {
	r := newHarness(t, nil)
	virtual := netip.MustParseAddr("240.0.0.9")
	go resolver(r.dns4, "api.weather.example.", virtual)
	go resolver(r.dns6, "api.weather.example.", virtual)
	serve := func(l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			peer, ok := r.Identify(conn)
			if request, err := http.ReadRequest(bufio.NewReader(conn)); ok && err == nil {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s for %s", peer.Original, request.Host)
			}
			_ = conn.Close()
		}
	}
	go serve(r.proxy4)
	go serve(r.proxy6)
	const want = "240.0.0.9:80 for api.weather.example"
	fetch := `import urllib.request; print(urllib.request.urlopen("http://api.weather.example/", timeout=10).read().decode())`
	for name, args := range map[string][]string{
		"curl":    {"curl", "-sS", "-m", "10", "http://api.weather.example/"},
		"curl -4": {"curl", "-4sS", "-m", "10", "http://api.weather.example/"},
		"curl -6": {"curl", "-6sS", "-m", "10", "http://api.weather.example/"},
		"Python":  {"python3", "-c", fetch},
		"shell":   {"bash", "-c", `exec 3<>/dev/tcp/api.weather.example/80; printf 'GET / HTTP/1.1\r\nHost: api.weather.example\r\n\r\n' >&3; tail -n1 <&3`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.ok(r.command(sandbox.Command{Args: args})); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	got := r.command(sandbox.Command{Args: []string{"curl", "-sS", "-m", "10", "http://not-granted.example/"}})
	if got.status != 6 { // curl: could not resolve host
		t.Errorf("a name that is not granted: %d %s", got.status, got.stderr)
	}
	for _, d := range r.seen() {
		if d.Path != "/var/run/nscd/socket" { // glibc's cache of names, asked before anything else
			t.Errorf("refused %+v", d)
		}
	}
}

// Every one of many connections at once is identified, as itself.
func TestManyConnections(t *testing.T) {
	r := newHarness(t, nil)
	const n, at = 3000, 100
	identified := make(chan Peer, n)
	go func() {
		for {
			conn, err := r.proxy4.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				peer, ok := r.Identify(conn)
				if !ok {
					t.Error("one has no identity")
				}
				fmt.Fprintf(conn, "%d", peer.Original.Port())
				identified <- peer
			}()
		}
	}()
	r.ok(r.run("many", strconv.Itoa(n), strconv.Itoa(at)))
	ports := make(map[uint16]int)
	for range n {
		peer := <-identified
		ports[peer.Original.Port()]++
	}
	for port, times := range ports {
		if times != 1 {
			t.Errorf("port %d was seen %d times", port, times)
		}
	}
	if entries := r.entries(); entries != 0 {
		t.Errorf("%d entries are left", entries)
	}
	if u, err := r.Usage(); u.Connections != n || err != nil {
		t.Errorf("counted %d connections, %v", u.Connections, err)
	}
}

// Without hooks for Unix sockets there do not exist but pairs, and those lead
// nowhere else.
func TestWithoutUnixHooks(t *testing.T) {
	needKernel(t)
	c, err := New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if c.programs.unix != nil {
		c.programs.unix.Close()
		c.programs.unix = nil // as on a kernel before 6.7
	}
	r := &harness{Confinement: c, t: t}
	t.Cleanup(r.close)
	if err := c.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	if c.Info().UnixHooks {
		t.Error("says it has them")
	}
	ask, end := r.dialogue("/proc/self/exe", pluginName, "tries")
	for attempt, want := range map[string]string{
		"unix /run/docker.sock": "EPERM", "unix-dgram /dev/log": "EPERM", "unix-send /dev/log": "EPERM",
		"unix-pair /dev/log": "EPERM", "unix @own": "EPERM", "pair-stream": "ok",
	} {
		if got := ask(attempt); got != want {
			t.Errorf("%s ended with %s, want %s", attempt, got, want)
		}
	}
	if status := end(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// A report of the kernel holds bytes that the plugin chose; none of them may upset
// the reader.
func FuzzDecode(f *testing.F) {
	f.Add(uint8(1), uint8(2), uint8(6), uint8(0), uint8(1), uint32(0), []byte("path"), []byte("comm"))
	f.Add(uint8(7), uint8(1), uint8(0), uint8(0), uint8(9), uint32(4000), []byte("\x00abstract"), []byte("\xff\n"))
	f.Fuzz(func(t *testing.T, hook, family, low, high, why uint8, length uint32, path, comm []byte) {
		e := hooksEvent{Hook: hook, Family: family, ProtocolLow: low, ProtocolHigh: high, Why: why, PathLength: length}
		copy(e.Path[:], path)
		copy(e.Comm[:], comm)
		d := decode(&e)
		if d.Count != 1 || len(d.Path) > len(e.Path)+1 || len(d.Comm) > len(e.Comm) {
			t.Errorf("decoded %+v", d)
		}
	})
}

package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// BenchmarkExits creates the egress sockets of a thousand routes, replaces one of them,
// and reports the cost of each: memory, stacks included, and descriptors.
func BenchmarkExits(b *testing.B) {
	const routes = 1000
	w := newWorld(b, setup{})
	all := make([]authz.Route, routes+1)
	for i := range all {
		all[i] = authz.Route{Grant: "weather", Rule: fmt.Sprint("rule-", i), Scheme: authz.SchemeHTTPS, Host: fmt.Sprintf("host-%d.example", i), Port: 443}
	}
	exits := func(routes []authz.Route) {
		_, err := w.proxy.EgressSockets(w.exitDir(), "", routes)
		testenv.Must(b, err)
	}
	b.Run("all", func(b *testing.B) {
		var held, files int64
		for b.Loop() {
			b.StopTimer()
			exits(nil)
			before, open := inUse(), descriptors(b)
			b.StartTimer()
			exits(all[:routes])
			b.StopTimer()
			held, files = inUse()-before, descriptors(b)-open
			b.StartTimer()
		}
		b.ReportMetric(float64(held)/routes, "B/exit")
		b.ReportMetric(float64(files)/routes, "files/exit")
	})
	b.Run("one more and one less", func(b *testing.B) {
		exits(all[:routes])
		for i := 0; b.Loop(); i++ {
			exits(all[i%2 : routes+i%2])
		}
	})
	exits(nil)
}

func descriptors(b *testing.B) int64 {
	b.Helper()
	open, err := filepath.Glob("/proc/self/fd/*")
	testenv.Must(b, err)
	return int64(len(open))
}

// BenchmarkWayOut measures the cost of relay and egress socket between two ends: to
// connect and receive a greeting, and to send 64 KiB and receive them again. The CPU time
// is of the whole process, both ends included; direct is the cost of the ends alone.
func BenchmarkWayOut(b *testing.B) {
	const size = 64 << 10
	echo := func(c net.Conn) { _, _ = io.Copy(c, c) }
	server := tcpServer(b, echo)
	exit := newWorld(b, setup{input: granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"))})
	path := exit.exits()["tcp 127.0.0.1"]
	relay := newWorld(b, setup{config: relayed(
		relayTo(b, func(_ preamble, c net.Conn) { echo(c) }), func() (netip.AddrPort, bool) { return netip.AddrPort{}, true },
	)})
	for _, row := range []struct{ name, network, address string }{
		{"direct", "tcp", server.String()}, {"exit", "unix", path}, {"relay", "tcp", relay.addr.String()},
	} {
		b.Run(row.name+"/connect", func(b *testing.B) {
			cpu(b, func() {
				for b.Loop() {
					c, err := net.Dial(row.network, row.address)
					testenv.Must(b, err)
					exchange(b, c, make([]byte, 1))
					testenv.Must(b, c.Close())
				}
			})
		})
		b.Run(row.name+"/move", func(b *testing.B) {
			c, err := net.Dial(row.network, row.address)
			testenv.Must(b, err)
			defer c.Close()
			b.SetBytes(2 * size)
			cpu(b, func() {
				for buf := make([]byte, size); b.Loop(); {
					exchange(b, c, buf)
				}
			})
		})
	}
	exit.settled()
}

func exchange(b *testing.B, c net.Conn, buf []byte) {
	b.Helper()
	_, err := c.Write(buf)
	testenv.Must(b, err)
	_, err = io.ReadFull(c, buf)
	testenv.Must(b, err)
}

// cpu reports the CPU time of the process for each iteration.
func cpu(b *testing.B, f func()) {
	b.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		testenv.Must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	runtime.GC()
	before := used()
	f()
	b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
}

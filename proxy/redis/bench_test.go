package redis_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const (
	benchConns    = 8
	benchPipeline = 16
	benchKeys     = 10_000
)

// BenchmarkPipeline reads keys in pipelines of 16 by 8 connections: through the sidecar
// with its audit log, through a relay that copies bytes between TCP and TLS, and through
// one that copies them between TCP and TCP. An operation is one command.
func BenchmarkPipeline(b *testing.B) {
	server := serve(b)
	log, err := audit.Open(audit.Config{StateDir: b.TempDir()})
	testenv.Must(b, err)
	b.Cleanup(func() { _ = log.Close() })
	w := newWorldAt(b, server.TLSAddr.Port(), string(server.CA.PEM()), log, reader())
	fill := direct(b, server)
	for i := range benchKeys {
		fill.expect("+OK", "SET", fmt.Sprintf("app:%05d", i), "0123456789")
	}
	overTLS := copyRelay(b, func() (net.Conn, error) {
		return tls.Dial("tcp", server.TLSAddr.String(), &tls.Config{RootCAs: server.CA.Pool(), ServerName: host, MinVersion: tls.VersionTLS12})
	})
	overTCP := copyRelay(b, func() (net.Conn, error) { return net.Dial("tcp", server.Addr.String()) })
	for range 3 { // one after the other, so that noise of the machine is in all
		b.Run("sidecar", func(b *testing.B) { pipelines(b, w.addr, false) })
		b.Run("relay to TLS", func(b *testing.B) { pipelines(b, overTLS, true) })
		b.Run("relay to TCP", func(b *testing.B) { pipelines(b, overTCP, true) })
	}
}

// copyRelay starts a relay that only copies.
func copyRelay(b *testing.B, dial func() (net.Conn, error)) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(b, err)
	var copies sync.WaitGroup
	copies.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			to, err := dial()
			if err != nil {
				b.Error(err)
				return
			}
			copies.Go(func() { _, _ = io.Copy(to, from); _ = to.Close() })
			copies.Go(func() { _, _ = io.Copy(from, to); _ = from.Close() })
		}
	})
	b.Cleanup(func() { _ = listener.Close(); copies.Wait() })
	return listener.Addr().String()
}

func pipelines(b *testing.B, addr string, login bool) {
	conns := make([]net.Conn, benchConns)
	for i := range conns {
		c := dialTo(b, addr)
		if login {
			c.expect("+OK", "AUTH", user, password)
		}
		c.expect("+PONG", "PING")
		conns[i] = c.conn
	}
	b.ResetTimer()
	start, used := time.Now(), processorTime(b)
	var clients sync.WaitGroup
	for _, conn := range conns {
		clients.Go(func() {
			defer conn.Close()
			pipeline(b, conn, b.N/benchConns/benchPipeline)
		})
	}
	clients.Wait()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "commands/s")
	b.ReportMetric(float64(processorTime(b)-used)/float64(b.N), "cpu-ns/op")
}

// processorTime returns what this process, without the server, has used. It depends less
// on what else the machine does than the time that passes.
func processorTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	testenv.Must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func pipeline(b *testing.B, conn net.Conn, rounds int) {
	_ = conn.SetDeadline(time.Now().Add(testenv.Patience))
	answers := make([]byte, benchPipeline*len("$10\r\n0123456789\r\n"))
	for range rounds {
		var batch strings.Builder
		for range benchPipeline {
			batch.WriteString("*2\r\n$3\r\nGET\r\n$9\r\n")
			fmt.Fprintf(&batch, "app:%05d\r\n", rand.IntN(benchKeys))
		}
		if _, err := io.WriteString(conn, batch.String()); err != nil {
			b.Error(err)
			return
		}
		if _, err := io.ReadFull(conn, answers); err != nil {
			b.Error(err)
			return
		}
	}
}

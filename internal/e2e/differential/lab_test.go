package differential

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// domain ends the name of each origin.
const domain = ".pair.test"

// lab is the origins, each with an address of its own and the ports that its
// protocol has, in a network that holds nothing else.
type lab struct {
	t     *testing.T
	dir   string
	ca    *testenv.CA
	pair  tls.Certificate
	hosts map[string]netip.Addr
	next  netip.Addr
	rules []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), hosts: map[string]netip.Addr{}, next: netip.MustParseAddr("127.77.0.1")}
	testenv.Must(t, os.Chmod(filepath.Dir(l.dir), 0o755)) // clients of another user read below it
	testenv.Must(t, os.Chmod(l.dir, 0o755))
	l.ca = testenv.MustGet(testenv.NewCA("differential origins"))(t)
	l.pair = testenv.MustGet(l.ca.Issue("*" + domain))(t)
	testenv.Must(t, l.ca.WriteFile(l.file("origin-ca.pem")))
	testenv.Must(t, testenv.WritePair(l.pair, l.file("origin.pem"), l.file("origin.key")))
	return l
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) write(name, content string) {
	l.t.Helper()
	testenv.Must(l.t, os.WriteFile(l.file(name), []byte(content), 0o644))
}

// address returns the address of an origin, and grants the plugin the scheme at
// the port. The rule's further fields are in more.
func (l *lab) address(name, scheme string, port int, more ...string) string {
	host := name + domain
	if _, found := l.hosts[host]; !found {
		l.hosts[host] = l.next
		l.next = l.next.Next()
	}
	to := fmt.Sprintf("scheme: %s, hosts: [%s], ports: [%d], addresses: [127.77.0.0/16]", scheme, host, port)
	fields := []string{fmt.Sprintf("id: %s-%d", name, port), "reason: Tests"}
	switch scheme {
	case "https":
		to += ", tls: {caFile: origin-ca.pem}"
		fallthrough
	case "http":
		fields = append(fields, `methods: ["*"]`, `paths: ["/**"]`)
	}
	l.rules = append(l.rules, fmt.Sprintf("  - {%s}\n", strings.Join(append(fields, append(more, "to: {"+to+"}")...), ", ")))
	return netip.AddrPortFrom(l.hosts[host], uint16(port)).String()
}

// listen opens a listener of an origin that is closed when the test ends.
func (l *lab) listen(address string) net.Listener {
	l.t.Helper()
	listener := testenv.MustGet(new(net.ListenConfig).Listen(l.t.Context(), "tcp", address))(l.t)
	l.t.Cleanup(func() { listener.Close() })
	return listener
}

// web serves a handler over https, with HTTP/2 and HTTP/1.1, and over plain http.
func (l *lab) web(name string, handler http.Handler, more ...string) {
	l.t.Helper()
	for scheme, port := range map[string]int{"https": 443, "http": 80} {
		listener := l.listen(l.address(name, scheme, port, more...))
		server := &http.Server{Handler: handler, ConnContext: withConnection, ErrorLog: discardLog(), ReadHeaderTimeout: time.Minute}
		server.Protocols = new(http.Protocols)
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetHTTP2(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		if name == "git" {
			// libcurl 7.88 now and then stops to read its connection while an upload waits for
			// a window, without a sidecar, too (curl pull request 11342). So it has not to wait.
			server.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 4 << 20}
		}
		if scheme == "https" {
			server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{l.pair}, NextProtos: []string{"h2", "http/1.1"}}
			go func() { _ = server.ServeTLS(listener, "", "") }() // until the listener is closed
		} else {
			go func() { _ = server.Serve(listener) }() // as above
		}
		l.t.Cleanup(func() { server.Close() })
	}
}

// script serves each connection by a function, over TLS with the protocols of
// alpn, and over plain TCP without alpn.
func (l *lab) script(address string, serve func(net.Conn), alpn ...string) {
	l.t.Helper()
	listener := l.listen(address)
	config := &tls.Config{Certificates: []tls.Certificate{l.pair}, NextProtos: alpn}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // it was closed
			}
			go func() {
				defer conn.Close()
				if len(alpn) == 0 {
					serve(conn)
					return
				}
				secured := tls.Server(conn, config)
				if secured.Handshake() == nil {
					serve(secured)
				}
			}()
		}
	}()
}

// relay leads connections to another address, each byte and each end of file after
// a delay, as over a long way.
func (l *lab) relay(address, to string, delay time.Duration) {
	l.t.Helper()
	l.script(address, func(in net.Conn) {
		out, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer out.Close()
		var both sync.WaitGroup
		both.Go(func() { carry(out, in, delay) })
		both.Go(func() { carry(in, out, delay) })
		both.Wait()
	})
}

// carry copies with a delay. A failure ends both directions.
func carry(to, from net.Conn, delay time.Duration) {
	type piece struct {
		data []byte
		due  time.Time
		err  error
	}
	pieces := make(chan piece, 4096)
	go func() {
		defer close(pieces)
		for {
			buffer := make([]byte, 64<<10)
			n, err := from.Read(buffer)
			pieces <- piece{buffer[:n], time.Now().Add(delay), err}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			abort(from)
		}
		switch {
		case errors.Is(p.err, io.EOF):
			_ = to.(*net.TCPConn).CloseWrite() // it may be gone
		case p.err != nil:
			abort(to)
		}
	}
}

// abort resets a connection.
func abort(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	if plain, ok := conn.(*net.TCPConn); ok {
		_ = plain.SetLinger(0) // it may be gone
	}
	conn.Close()
}

// grant is the file that grants the plugin all origins.
func (l *lab) grant() string {
	return fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: pairs}
spec:
  plugin: pairs
  notAfter: %s
  rules:
%s`, time.Now().Add(90*24*time.Hour).UTC().Format(time.RFC3339), strings.Join(l.rules, ""))
}

// names lists the origins' names, each with its address, in a form.
func (l *lab) names(form string) string {
	var lines []string
	for name, address := range l.hosts {
		lines = append(lines, fmt.Sprintf(form, name, address))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// program starts a server that runs until the test ends, and waits until it takes
// connections.
func (l *lab) program(address string, args ...string) {
	l.t.Helper()
	cmd := command(l.t.Context(), args...)
	var log scenario.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = 5 * time.Second // a worker that outlives it keeps the pipe open
	testenv.Must(l.t, cmd.Start())
	l.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with its workers; it may have ended
		_ = cmd.Wait()                                      // killed
		if l.t.Failed() {
			l.t.Logf("%s: %s", args[0], tail(log.String(), 3000))
		}
	})
	eventually(l.t, strings.Join(args, " ")+" takes connections", func() error {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

package ebpf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// harness is a confinement with its sidecar: listeners, a resolver that answers one
// byte string, and what was reported.
type harness struct {
	*Confinement
	t       *testing.T
	proxy4  net.Listener
	proxy6  net.Listener
	dns4    net.PacketConn
	dns6    net.PacketConn
	dnsTCP  net.Listener
	stop    func()
	stopped chan error

	mu      sync.Mutex
	denials []sandbox.Denial
}

// newHarness makes a confinement with listeners on both families and attaches it.
func newHarness(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	needKernel(t)
	r := &harness{t: t}
	config := Config{
		Plugin: "test", StateDir: t.TempDir(), Interval: 20 * time.Millisecond,
		Denied: func(d sandbox.Denial) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.denials = append(r.denials, d)
		},
	}
	if change != nil {
		change(&config)
	}
	confinement, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	r.Confinement = confinement
	t.Cleanup(r.close)
	listen := func(address string) net.Listener {
		l, err := confinement.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	packet := func(address string) net.PacketConn {
		p, err := confinement.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	r.proxy4, r.proxy6 = listen("127.0.0.1:0"), listen("[::1]:0")
	r.dns6 = packet("[::1]:0")
	r.listenDNS()
	if err := confinement.Attach(r.endpoints()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop, r.stopped = cancel, make(chan error, 1)
	go func() { r.stopped <- confinement.Run(ctx) }()
	return r
}

// listenDNS listens for questions over UDP and over TCP at one port. Another program
// may have the port of the one for the other, so that several are tried.
func (r *harness) listenDNS() {
	r.t.Helper()
	for tries := 1; ; tries++ {
		udp, err := r.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			r.t.Fatal(err)
		}
		tcp, err := r.Listen("tcp", udp.LocalAddr().String())
		if err == nil {
			r.t.Cleanup(func() { _, _ = udp.Close(), tcp.Close() })
			r.dns4, r.dnsTCP = udp, tcp
			return
		}
		_ = udp.Close()
		if tries == 20 {
			r.t.Fatal(err)
		}
	}
}

func (r *harness) endpoints() Endpoints {
	return Endpoints{
		Proxy4: tcpPort(r.proxy4), Proxy6: tcpPort(r.proxy6),
		Resolver4: udpPort(r.dns4), Resolver6: udpPort(r.dns6),
	}
}

func tcpPort(l net.Listener) netip.AddrPort   { return l.Addr().(*net.TCPAddr).AddrPort() }
func udpPort(p net.PacketConn) netip.AddrPort { return p.LocalAddr().(*net.UDPAddr).AddrPort() }

func (r *harness) close() {
	if r.stop != nil {
		r.stop()
		if err := <-r.stopped; err != nil {
			r.t.Errorf("run: %v", err)
		}
		r.stop = nil
	}
	if err := r.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
	if r.config.CgroupPath != "" { // the programs stay as long as it does
		if err := Detach(r.config.StateDir, true); err != nil {
			r.t.Errorf("detach: %v", err)
		}
	}
}

// seen ends the reporting and returns what was reported.
func (r *harness) seen() []sandbox.Denial {
	r.t.Helper()
	r.stop()
	if err := <-r.stopped; err != nil {
		r.t.Errorf("run: %v", err)
	}
	r.stop = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.denials
}

// seenNow is what was reported so far; it waits for what is under way.
func (r *harness) seenNow() []sandbox.Denial {
	time.Sleep(3 * r.config.Interval)
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.denials)
}

// result is what a plugin did.
type result struct {
	status         int
	stdout, stderr string
}

// run runs the test binary as the plugin, to its end.
func (r *harness) run(args ...string) result {
	r.t.Helper()
	return r.command(sandbox.Command{Path: "/proc/self/exe", Args: append([]string{pluginName}, args...)})
}

func (r *harness) command(command sandbox.Command) result {
	r.t.Helper()
	done := r.start(&command)
	return done()
}

// pluginEnv has a HOME, or Python asks the name service for one.
func pluginEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "GORACE=atexit_sleep_ms=0"}
}

// start starts a program and returns what waits for it.
func (r *harness) start(command *sandbox.Command) func() result {
	r.t.Helper()
	if command.Env == nil {
		command.Env = pluginEnv()
	}
	stdout, readOut := capture(r.t)
	stderr, readErr := capture(r.t)
	command.Stdout, command.Stderr = stdout, stderr
	p, err := r.Start(*command)
	_, _ = stdout.Close(), stderr.Close()
	if err != nil {
		var exec *sandbox.ExecError
		if !errors.As(err, &exec) {
			r.t.Fatalf("start: %v", err)
		}
		readOut()
		readErr()
		return func() result { return result{status: exec.Status, stderr: exec.Error()} }
	}
	return func() result {
		r.t.Helper()
		status, err := p.Wait()
		if err != nil {
			r.t.Errorf("wait: %v", err)
		}
		return result{status, readOut(), readErr()}
	}
}

func capture(t *testing.T) (*os.File, func() string) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, read)
		_ = read.Close()
		text <- b.String()
	}()
	return write, sync.OnceValue(func() string { return <-text })
}

// ok fails the test unless the plugin ended well.
func (r *harness) ok(got result) string {
	r.t.Helper()
	if got.status != 0 {
		r.t.Fatalf("plugin ended with %d\n%s%s", got.status, got.stdout, got.stderr)
	}
	return strings.TrimSpace(got.stdout)
}

// hostPlaces are where confinements are kept on this host, of no confinement in particular.
var hostPlaces = sandbox.Paths{Dir: runtimedir.Default}

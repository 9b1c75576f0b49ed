package inbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	maxConns        = 4096                   // connections at once, over all ports; what is more is refused
	maxDials        = 32                     // on their way to the plugin at once: each takes a thread
	dialTimeout     = 5 * time.Second        // for the plugin to take a connection
	expectedFor     = 2 * time.Second        // for a plugin that has bound a port to listen on it
	defaultInterval = 200 * time.Millisecond // between looks at what the plugin listens on
	dialAgain       = 10 * time.Millisecond  // between attempts to reach one that is about to listen
)

// Loopbacks are where the host is listened on and where the plugin is looked
// for, in this order.
var Loopbacks = [...]string{"127.0.0.1", "::1"} //nolint:gochecknoglobals // an array of constants

// Why an inbound connection is refused or cut.
var (
	ErrRevoked  = errors.New("access was revoked")
	errStopping = errors.New("the sidecar is stopping")
	errFull     = fmt.Errorf("%d connections are open", maxConns)
)

// Service is where a plugin serves: a TCP port or Unix sockets.
type Service struct {
	Port uint16 // 0: Unix sockets
	// Socket is an absolute path, whose last part may hold one * for any bytes
	// but a slash.
	Socket string
}

// String returns the port, or "unix:" and the path.
func (s Service) String() string {
	if s.Port != 0 {
		return strconv.Itoa(int(s.Port))
	}
	return "unix:" + s.Socket
}

// Config is what a Forwarder is made of. Plugin, Dial, Record and Log are required.
type Config struct {
	Plugin authz.Principal
	// Dial connects to an address in the plugin's network namespace.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Addresses are those of the plugin's network namespace beside its loopback.
	Addresses []netip.Addr
	// Record writes a record to the audit log. An error refuses the connection.
	Record func(*authz.Record) error
	// Connected counts a connection of a service by its result: accepted, refused or
	// unreachable. Nil: not counted.
	Connected func(service Service, result string)
	// Passed counts bytes by direction: received by the plugin, or sent. Nil: not counted.
	Passed func(service Service, direction string, bytes uint64)
	// Listening returns the ports that the plugin listens on. An error means that
	// it is not known: the host is listened on then, as for a plugin that listens. Nil: it
	// is never known.
	Listening func() (map[uint16]bool, error)
	// Interval is the time between two calls of Listening. 0: 200 ms.
	Interval time.Duration
	// Exist returns which of the plugin's Unix sockets exist, by inode number. Nil:
	// no Unix socket is forwarded.
	Exist func([]uint64) (map[uint64]bool, error)
	// SaveSockets writes down the paths of the sockets on the host, so that
	// [removeDeadSockets] can remove them after the sidecar was killed. Nil: they are not
	// written down.
	SaveSockets func(paths []string) error
	// Drain is how long open connections may go on after Run's context has ended.
	Drain time.Duration
	// Log is for the operator, and has to bound its lines: the plugin and its clients
	// cause some.
	Log *zap.Logger
}

// Forwarder forwards ports of the host's loopback into the plugin's own network
// namespace, and Unix sockets of the host into the plugin's own view
// (process.listen), so that a host that speaks to its plugin over either reaches
// it. It is the one way in, as the proxy is the one way out.
type Forwarder struct {
	Config

	following sync.Mutex
	expected  map[uint16]time.Time // ports that the plugin is about to listen on, until when
	start     func(*hostPort)      // listens on a port; nil: not running

	ports   []*hostPort
	dialing chan struct{} // bounds how many dial at once

	arrivals chan *hostSocket // Unix sockets of the plugin's that are to be forwarded
	done     chan struct{}    // closed when none is taken any more

	host socketList // the leftovers of a killed sidecar

	mu      sync.Mutex
	sockets []*hostSocket
	closed  bool  // no more Unix sockets are forwarded
	blocked error // why nobody is let in; nil while everybody is
	live    map[*connection]struct{}
}

// New returns a forwarder. It listens nowhere yet.
func New(cfg Config) *Forwarder {
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Listening == nil {
		cfg.Listening = func() (map[uint16]bool, error) { return nil, errors.ErrUnsupported }
	}
	if cfg.Connected == nil {
		cfg.Connected = func(Service, string) {}
	}
	if cfg.Passed == nil {
		cfg.Passed = func(Service, string, uint64) {}
	}
	return &Forwarder{
		Config: cfg, dialing: make(chan struct{}, maxDials), live: map[*connection]struct{}{},
		expected: map[uint16]time.Time{}, arrivals: make(chan *hostSocket), done: make(chan struct{}),
		host: socketList{keep: cfg.SaveSockets},
	}
}

// ForwardsSockets reports whether Unix sockets are forwarded.
func (in *Forwarder) ForwardsSockets() bool { return in.Exist != nil }

// Ports returns the addresses on the host that are forwarded.
func (in *Forwarder) Ports() []net.Addr {
	addrs := make([]net.Addr, len(in.ports))
	for i, d := range in.ports {
		addrs[i] = d.Addr()
	}
	return addrs
}

// Listen binds the ports on the host's loopback; run listens on them while the
// plugin does. taken are the ports that the sidecar itself has in the plugin's
// namespace: one of those would reach the sidecar's proxy and not the plugin.
func (in *Forwarder) Listen(ports, taken []uint16) error {
	for _, port := range ports {
		if slices.Contains(taken, port) {
			return fmt.Errorf("listen for the plugin: process.listen: %d is the sidecar's own port in the plugin's network; name another", port)
		}
		for _, host := range Loopbacks {
			d, err := bindPort(host, port)
			if err != nil {
				in.Close()
				return err
			}
			if d != nil {
				in.ports = append(in.ports, d)
			}
		}
	}
	return nil
}

// Run admits connections until ctx ends; then it waits for those that are open
// for as long as the drain is, and cuts the rest.
func (in *Forwarder) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, in.Close)
	defer stop()
	var passing sync.WaitGroup
	g := &errgroup.Group{}
	g.Go(func() error { in.followPlugin(ctx, g, &passing); return nil })
	if in.Exist != nil {
		g.Go(func() error { in.followSockets(ctx, g, &passing); return nil })
	}
	err := g.Wait()
	late := time.AfterFunc(in.Drain, func() { in.block(errStopping, true) })
	defer late.Stop()
	passing.Wait()
	return err
}

// Close closes the ports and the Unix sockets.
func (in *Forwarder) Close() {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	for _, d := range in.forwarded() {
		in.remove(d)
	}
	in.host.settle()
	for _, d := range in.ports {
		d.close()
	}
}

// Serving opens a port on the host when the plugin is about to listen on it, and
// has listened there when it returns: the plugin may report at once that it serves.
func (in *Forwarder) Serving(port uint16) {
	in.following.Lock()
	defer in.following.Unlock()
	in.expected[port] = time.Now().Add(expectedFor)
	if in.start == nil {
		return
	}
	for _, d := range in.ports {
		if d.port == port {
			in.start(d)
		}
	}
}

// followPlugin listens on the host while the plugin listens, so that a connection
// is refused as long as nobody would take it. A port that is about to be listened
// on counts as listened on for a moment.
func (in *Forwarder) followPlugin(ctx context.Context, g *errgroup.Group, passing *sync.WaitGroup) {
	in.following.Lock()
	in.start = func(d *hostPort) { in.openPort(ctx, d, g, passing) }
	in.following.Unlock()
	defer func() {
		in.following.Lock()
		defer in.following.Unlock()
		in.start = nil
	}()
	look := time.NewTicker(in.Interval)
	defer look.Stop()
	for {
		in.update()
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// update brings the ports of the host in line with what the plugin listens on.
func (in *Forwarder) update() {
	in.following.Lock()
	defer in.following.Unlock()
	ports, err := in.Listening()
	now := time.Now()
	for _, d := range in.ports {
		if err != nil || ports[d.port] || now.Before(in.expected[d.port]) {
			in.start(d)
		} else {
			d.stopListening()
		}
	}
}

// openPort listens on a port, unless that is so already.
func (in *Forwarder) openPort(ctx context.Context, d *hostPort, g *errgroup.Group, passing *sync.WaitGroup) {
	listener, err := d.open()
	switch {
	case err != nil:
		if !d.failing { // once, until it succeeds
			in.Log.Warn("listening for the plugin failed", zap.String("host", d.host), zap.Uint16("port", d.port), zap.Error(err))
		}
		d.failing = true
	case listener != nil:
		d.failing = false
		g.Go(func() error { return in.accept(ctx, Service{Port: d.port}, nil, listener, passing) })
	}
}

// accept admits the connections of a listener. The door is that of a Unix socket,
// or nil.
func (in *Forwarder) accept(ctx context.Context, service Service, door *hostSocket, l net.Listener, passing *sync.WaitGroup) error {
	defer func() { _ = l.Close() }()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			passing.Go(func() { in.admit(context.WithoutCancel(ctx), service, door, conn) })
		case errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EINVAL): // no longer listened on
			return nil
		case errors.Is(err, syscall.ECONNABORTED):
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			in.Log.Warn("inbound connection delayed", zap.Stringer("service", service), zap.Error(err))
			time.Sleep(50 * time.Millisecond)
		default:
			return fmt.Errorf("accept for the plugin on %s: %w", service, err)
		}
	}
}

// Enforce brings what comes in in line with what is revoked, and returns how
// many connections it cut: a pause spares those that are open.
func (in *Forwarder) Enforce(level authz.Level) (cut int) {
	switch level {
	case authz.LevelPause:
		return in.block(ErrRevoked, false)
	case authz.LevelQuarantine, authz.LevelHalt:
		return in.block(ErrRevoked, true)
	}
	return in.block(nil, false)
}

// block refuses what comes from now on for a cause, or nothing for nil, and cuts
// what is open if that is asked for. Once the sidecar stops, it stays so.
func (in *Forwarder) block(cause error, cut bool) (n int) {
	in.mu.Lock()
	if !errors.Is(in.blocked, errStopping) {
		in.blocked = cause
	}
	var open []*connection
	for p := range in.live {
		open = append(open, p)
	}
	in.mu.Unlock()
	if !cut {
		return 0
	}
	for _, p := range open {
		if p.cut(cause) {
			n++
		}
	}
	return n
}

// enter registers a connection, under the lock that bar lists them under: one
// that comes with a revocation is refused, or is cut.
func (in *Forwarder) enter(p *connection) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.blocked != nil:
		return in.blocked
	case len(in.live) >= maxConns:
		return errFull
	}
	in.live[p] = struct{}{}
	return nil
}

func (in *Forwarder) leave(p *connection) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.live, p)
}

// Open returns how many connections of a service are open.
func (in *Forwarder) Open(service Service) (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for p := range in.live {
		if p.service == service {
			n++
		}
	}
	return n
}

// isOpen reports whether the host is listened on for a port.
func (in *Forwarder) isOpen(port uint16) bool {
	return slices.ContainsFunc(in.ports, func(d *hostPort) bool { return d.port == port && d.isOpen() })
}

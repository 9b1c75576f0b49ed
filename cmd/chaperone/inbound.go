package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

const (
	maxInbound      = 4096            // connections at once, over all ports; what is more is refused
	maxInboundDials = 32              // on their way to the plugin at once: each takes a thread
	inboundPatience = 5 * time.Second // for the plugin to take a connection
)

// loopbacks are where the host is listened on and where the plugin is looked
// for, in this order.
var loopbacks = [...]string{"127.0.0.1", "::1"} //nolint:gochecknoglobals // an array of constants

// Why an inbound connection is refused or cut.
var (
	errInboundRevoked  = errors.New("access was taken away")
	errInboundStopping = errors.New("the sidecar is stopping")
	errInboundFull     = fmt.Errorf("%d connections are open", maxInbound)
)

// inbound leads ports of the host's loopback into the plugin's own network
// namespace (process.listen), so that a host that speaks to its plugin over
// TCP reaches it. It is the one way in, as the proxy is the one way out.
type inbound struct {
	plugin  authz.Principal
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	record  func(*authz.Record) error // one that fails refuses the connection
	metrics *metrics
	log     *zap.Logger
	drain   time.Duration

	doors   []inboundDoor
	dialing chan struct{} // bounds how many dial at once

	mu     sync.Mutex
	barred error // why nobody is let in; nil while everybody is
	live   map[*passage]struct{}
}

// inboundDoor is one listener on the host.
type inboundDoor struct {
	net.Listener

	port uint16
}

// newInbound makes a way in that dials the plugin with dial.
func newInbound(dial func(context.Context, string, string) (net.Conn, error)) *inbound {
	return &inbound{dial: dial, dialing: make(chan struct{}, maxInboundDials), live: map[*passage]struct{}{}}
}

// makeInbound makes the way in for a plugin with a network of its own. Beside
// one that shares the sidecar's, the plugin listens on the host itself, and the
// kernel lets it.
func (s *sidecar) makeInbound(spec *configs.Sidecar) error {
	if len(spec.Process.Listen) == 0 || s.hostNetwork() {
		return nil
	}
	if s.cage != nil {
		s.inbound = newInbound(s.cage.DialContext)
	} else {
		s.inbound = newInbound(s.fence.DialContext)
	}
	s.inbound.plugin, s.inbound.record, s.inbound.metrics = s.plugin, s.recorder.Record, s.metrics
	s.inbound.log, s.inbound.drain = s.opts.log.Named("inbound"), time.Duration(spec.Drain)
	return nil
}

// listen binds the ports on the host's loopback. taken are the ports that the
// sidecar itself has in the plugin's namespace: one of those would lead to the
// sidecar's proxy and not to the plugin.
func (in *inbound) listen(ctx context.Context, ports, taken []uint16) error {
	for _, port := range ports {
		if slices.Contains(taken, port) {
			return fmt.Errorf("listen for the plugin: process.listen: %d is the sidecar's own port in the plugin's network; name another", port)
		}
		for _, host := range loopbacks {
			l, err := listenLoopback(ctx, host, port)
			if err != nil {
				in.close()
				return err
			}
			if l != nil {
				in.doors = append(in.doors, inboundDoor{l, port})
			}
		}
	}
	return nil
}

// listenLoopback binds one port. A host without IPv6 has no ::1 to listen on,
// which is no error and no listener.
func listenLoopback(ctx context.Context, host string, port uint16) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for the plugin: process.listen: port %[2]d of %[1]s is taken; end what has it (ss -ltnp 'sport = :%[2]d'), or name another", host, port)
	case host != loopbacks[0] && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
		return nil, nil //nolint:nilnil // as documented
	}
	return nil, fmt.Errorf("listen for the plugin: process.listen: port %d: %w", port, err)
}

// run lets connections in until ctx ends; then it waits for those that are open
// for as long as the drain is, and cuts the rest.
func (in *inbound) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, in.close)
	defer stop()
	var passing sync.WaitGroup
	g := &errgroup.Group{}
	for _, d := range in.doors {
		g.Go(func() error { return in.accept(ctx, d, &passing) })
	}
	err := g.Wait()
	late := time.AfterFunc(in.drain, func() { in.bar(errInboundStopping, true) })
	defer late.Stop()
	passing.Wait()
	return err
}

// close stops listening.
func (in *inbound) close() {
	for _, d := range in.doors {
		_ = d.Close() // it may be closed already
	}
}

func (in *inbound) accept(ctx context.Context, d inboundDoor, passing *sync.WaitGroup) error {
	for {
		conn, err := d.Accept()
		switch {
		case err == nil:
			passing.Go(func() { in.admit(context.WithoutCancel(ctx), d.port, conn) })
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.ECONNABORTED):
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			in.log.Warn("a connection for the plugin has to wait", zap.Uint16("port", d.port), zap.Error(err))
			time.Sleep(50 * time.Millisecond)
		default:
			return fmt.Errorf("accept for the plugin on port %d: %w", d.port, err)
		}
	}
}

// enforce brings what comes in in line with what is revoked, and returns how
// many connections it cut: a pause spares those that are open.
func (in *inbound) enforce(level authz.Level) (cut int) {
	switch level {
	case authz.LevelPause:
		return in.bar(errInboundRevoked, false)
	case authz.LevelQuarantine, authz.LevelHalt:
		return in.bar(errInboundRevoked, true)
	}
	return in.bar(nil, false)
}

// bar refuses what comes from now on for a cause, or nothing for nil, and cuts
// what is open if that is asked for. Once the sidecar stops, it stays so.
func (in *inbound) bar(cause error, cut bool) (n int) {
	in.mu.Lock()
	if !errors.Is(in.barred, errInboundStopping) {
		in.barred = cause
	}
	var open []*passage
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
func (in *inbound) enter(p *passage) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.barred != nil:
		return in.barred
	case len(in.live) >= maxInbound:
		return errInboundFull
	}
	in.live[p] = struct{}{}
	return nil
}

func (in *inbound) leave(p *passage) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.live, p)
}

// open returns how many connections of a port are open.
func (in *inbound) open(port uint16) (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for p := range in.live {
		if p.port == port {
			n++
		}
	}
	return n
}

package sidecar

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Confinement holds a plugin where it is: in the kernel half, in a rootless sandbox, or
// not at all. Where a confinement lacks an ability, its methods do nothing, and readings
// return [errNotMetered].
type Confinement interface {
	Network
	Meter

	// Kernel reports whether the kernel half holds the plugin: it mediates,
	// identifies and meters.
	Kernel() bool
	// Info describes the kernel half; zero without it.
	Info() ebpf.Info
	// Description is for the record of a start; "" for the kernel half.
	Description() string
	// UID is the user id of the plugin.
	UID() int
	// Account is the account that the plugin runs as; false without confinement.
	Account() (sandbox.Account, bool)
	// Start starts the plugin. Background reports that it is in the background of its
	// terminal.
	Start(command sandbox.Command) (p process, background bool, err error)
	// Kill ends the plugin and what it started.
	Kill() error
	// Block has the kernel refuse all that the plugin sends, or no longer.
	Block(on bool) error
	// Check returns what is wrong with the confinement.
	Check() error
	// Run serves the confinement until ctx ends.
	Run(ctx context.Context) error
	// Flush reports what is known of a plugin that has ended.
	Flush(ctx context.Context)
	// Close releases the plugin. It is called once.
	Close() error
}

// Network is the network that a plugin is confined to.
type Network interface {
	// OfHost reports whether the plugin has the network of the sidecar.
	OfHost() bool
	// Bind binds the proxy and the resolver where the plugin reaches them, and has the
	// kernel redirect to them.
	Bind(ctx context.Context, proxy string) (endpoints, error)
	// DialContext connects to the plugin in its network or view.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// Listening returns the TCP ports that the plugin listens on.
	Listening() (map[uint16]bool, error)
	// Bound reports which Unix sockets exist, by inode number.
	Bound(sockets []uint64) (map[uint64]bool, error)
	// CutDirect ends connections that processes of the host made to Unix sockets of
	// the plugin, and returns how many there were.
	CutDirect() (int, error)
	// AllowConnects limits where the plugin may connect to.
	AllowConnects(to ebpf.Destinations) error
	// AllowSockets limits which Unix sockets of the host the plugin may connect to.
	AllowSockets(paths []string) error
	// Identify returns the process behind a connection to the proxy.
	Identify(conn net.Conn) (session.Peer, bool)
	// IdentifyQuery returns the process that asked the resolver from an address.
	IdentifyQuery(from net.Addr) (session.Peer, bool)
}

// Meter counts and limits what a plugin uses.
type Meter interface {
	// Usage reads the counters of the plugin.
	Usage() (ebpf.Usage, error)
	// Traffic reads the bytes that were counted for rules.
	Traffic() ([]ebpf.Traffic, error)
	// Attribute has the bytes of a connection counted for a rule.
	Attribute(cookie uint64, rule uint32)
	// Limit replaces the limits that the kernel enforces.
	Limit(limits []ebpf.Limit) error
	// UsedBefore returns how much of a limit was used when a killed sidecar's plugin
	// ended.
	UsedBefore(limit ebpf.Limit) (ebpf.LimitUsage, bool)
	// Unmediated returns connections that the proxy has not accepted.
	Unmediated() ([]ebpf.UnmediatedConn, error)
}

// process is the running plugin.
type process interface {
	Signal(sig os.Signal) error
	Wait() (status int, err error)
	PID() int
	Terminal() *os.File // the master of its pseudoterminal; nil: it has none
}

// endpoints are where a plugin reaches the sidecar.
type endpoints struct {
	proxy     []net.Listener // the first is the one that is announced
	resolvers []resolverEnds
}

// resolverEnds are where the resolver listens on one address.
type resolverEnds struct {
	udp net.PacketConn
	tcp net.Listener
}

// all returns the addresses of the endpoints.
func (e *endpoints) all() []net.Addr {
	var out []net.Addr
	for _, l := range e.proxy {
		out = append(out, l.Addr())
	}
	for _, r := range e.resolvers {
		out = append(out, r.tcp.Addr())
	}
	return out
}

// ports returns the TCP ports of the endpoints.
func (e *endpoints) ports() []uint16 {
	var out []uint16
	for _, addr := range e.all() {
		out = append(out, addrPort(addr).Port())
	}
	return out
}

// errNotMetered is returned by readings of a confinement that counts nothing.
var errNotMetered = errors.New("usage is not metered without the kernel half")

// unmetered is the part of a confinement without the kernel half.
type unmetered struct{}

func (unmetered) Kernel() bool                        { return false }
func (unmetered) Info() ebpf.Info                     { return ebpf.Info{} }
func (unmetered) UID() int                            { return os.Getuid() }
func (unmetered) Check() error                        { return errors.New("not attached") }
func (unmetered) Run(ctx context.Context) error       { <-ctx.Done(); return nil }
func (unmetered) Flush(context.Context)               {}
func (unmetered) Block(bool) error                    { return nil }
func (unmetered) Listening() (map[uint16]bool, error) { return nil, errors.ErrUnsupported }

func (unmetered) Bound([]uint64) (map[uint64]bool, error) { return nil, errors.ErrUnsupported }
func (unmetered) CutDirect() (int, error)                 { return 0, nil }
func (unmetered) AllowConnects(ebpf.Destinations) error   { return nil }
func (unmetered) AllowSockets([]string) error             { return nil }
func (unmetered) Identify(net.Conn) (session.Peer, bool)  { return session.Peer{}, false }

func (unmetered) IdentifyQuery(net.Addr) (session.Peer, bool) { return session.Peer{}, false }

func (unmetered) Usage() (ebpf.Usage, error) { return ebpf.Usage{}, errNotMetered }

func (unmetered) Traffic() ([]ebpf.Traffic, error)                      { return nil, errNotMetered }
func (unmetered) Attribute(uint64, uint32)                              {}
func (unmetered) Limit([]ebpf.Limit) error                              { return nil }
func (unmetered) UsedBefore(ebpf.Limit) (s ebpf.LimitUsage, found bool) { return s, false }
func (unmetered) Unmediated() ([]ebpf.UnmediatedConn, error)            { return nil, errNotMetered }

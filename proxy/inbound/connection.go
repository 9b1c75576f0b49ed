package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// connection is one connection from the host into the plugin.
type connection struct {
	id      string
	service Service     // the entry of process.listen
	socket  *hostSocket // of a Unix socket; nil: of a port
	began   time.Time
	host    net.Conn
	peer    unixPeer // the process and user at the other end of a Unix socket

	received, sent atomic.Uint64 // bytes, as the plugin sees them

	mu     sync.Mutex
	plugin net.Conn // nil until it is reached
	cause  error    // why it was cut
}

// admit leads one connection to the plugin and back: entered, recorded,
// dialled, copied, recorded again.
func (in *Forwarder) admit(ctx context.Context, service Service, door *hostSocket, host net.Conn) {
	p := &connection{service: service, socket: door, began: time.Now(), host: host, peer: peerOf(host)}
	result, err := "refused", in.enter(p)
	if err == nil {
		defer in.leave(p)
		if err = in.begin(p); err == nil {
			result, err = "unreachable", in.reach(ctx, p)
		}
	}
	if err != nil {
		resetConn(host)
		in.Connected(service, result)
		in.Log.Info("inbound connection not forwarded", zap.Stringer("service", service), zap.Error(err))
		in.end(p, fmt.Sprintf("%s: %v", result, err))
		return
	}
	in.Connected(service, "accepted")
	in.copy(p)
	detail := "ended"
	if cause := p.cutCause(); cause != nil {
		detail = "cut: " + cause.Error()
	}
	in.end(p, detail)
}

// begin records the connection before anything of it reaches the plugin.
func (in *Forwarder) begin(p *connection) error {
	p.id = authz.NewID(time.Now())
	if err := in.Record(in.entry(p, "began")); err != nil {
		return fmt.Errorf("record the connection: %w", err)
	}
	return nil
}

// end records what became of the connection. One that never began has nothing
// to end: the log would be the host's to fill.
func (in *Forwarder) end(p *connection, detail string) {
	if p.id == "" {
		return
	}
	r := in.entry(p, detail)
	r.Time, r.Latency = time.Now(), time.Since(p.began)
	r.SentBytes, r.Bytes = int64(p.sent.Load()), int64(p.received.Load())
	if err := in.Record(r); err != nil {
		in.Log.Error("inbound connection end not recorded", zap.Error(err))
	}
}

// entry describes a connection: TCP names an address of the host and no process,
// a Unix socket names the process and its user.
func (in *Forwarder) entry(p *connection, detail string) *authz.Record {
	r := &authz.Record{
		Time: p.began, Kind: authz.KindInbound, Plugin: string(in.Plugin), Decision: p.id, UID: -1, Detail: detail,
	}
	if p.socket != nil {
		r.Scheme, r.Path = "unix", p.socket.path
		r.PID, r.UID, r.Exe = p.peer.pid, p.peer.uid, p.peer.exe
		return r
	}
	r.Scheme, r.Port, r.Address = string(authz.SchemeTCP), p.service.Port, p.host.RemoteAddr().String()
	return r
}

// reach dials the plugin, which may listen on either loopback address or on
// those that its network has beside them. One that does not listen may be about
// to: then it is tried again, for as long as the port is open on the host.
func (in *Forwarder) reach(ctx context.Context, p *connection) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for {
		err := in.tryReach(ctx, p)
		if !errors.Is(err, syscall.ECONNREFUSED) || !in.admits(p) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(dialAgain):
		}
	}
}

func (in *Forwarder) tryReach(ctx context.Context, p *connection) error {
	select {
	case in.dialing <- struct{}{}:
		defer func() { <-in.dialing }()
	case <-ctx.Done():
		return errors.New("the plugin accepts no more connections")
	}
	if p.socket != nil {
		conn, err := p.socket.dial(ctx)
		if err != nil {
			return err
		}
		return p.join(conn)
	}
	hosts := slices.Clone(Loopbacks[:])
	for _, addr := range in.Addresses {
		hosts = append(hosts, addr.String())
	}
	var errs []error
	for _, host := range hosts {
		conn, err := in.Dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(p.service.Port))))
		if err == nil {
			return p.join(conn)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// admits reports whether the host is still listened on for a connection.
func (in *Forwarder) admits(p *connection) bool {
	if p.socket != nil {
		return slices.Contains(in.forwarded(), p.socket)
	}
	return in.isOpen(p.service.Port)
}

// join takes in the plugin's side, unless the connection has been cut.
func (p *connection) join(plugin net.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause != nil {
		resetConn(plugin)
		return p.cause
	}
	p.plugin = plugin
	return nil
}

// cut ends both sides at once and reports whether it was the first to.
func (p *connection) cut(cause error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause != nil {
		return false
	}
	p.cause = cause
	resetConn(p.host)
	if p.plugin != nil {
		resetConn(p.plugin)
	}
	return true
}

func (p *connection) cutCause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cause
}

// resetConn closes a connection by a reset: nothing that is on its way arrives, and
// the other end learns that this was no orderly end.
func resetConn(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // only fails where Close does
	}
	_ = conn.Close() // there is nothing more to do about it
}

// copy carries bytes both ways until both sides have ended.
func (in *Forwarder) copy(p *connection) {
	passed := func(direction string) func(uint64) {
		return func(bytes uint64) { in.Passed(p.service, direction, bytes) }
	}
	var both sync.WaitGroup
	both.Go(func() { p.copyOneWay(p.plugin, p.host, &p.received, passed("received")) })
	both.Go(func() { p.copyOneWay(p.host, p.plugin, &p.sent, passed("sent")) })
	both.Wait()
	_ = p.host.Close()   // both have ended
	_ = p.plugin.Close() // likewise
}

// copyOneWay copies one direction and passes its end on, so that a side that
// half-closed still gets the answer. A reset of one side ends both.
func (p *connection) copyOneWay(dst, src net.Conn, own *atomic.Uint64, passed func(bytes uint64)) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := src.Read(buffer)
		if n > 0 {
			if _, err := dst.Write(buffer[:n]); err != nil {
				return // the other direction meets the end of dst, too
			}
			own.Add(uint64(n))
			passed(uint64(n))
		}
		switch {
		case errors.Is(err, io.EOF):
			if half, ok := dst.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // dst may have ended
			}
			return
		case err != nil:
			p.cut(err)
			return
		}
	}
}

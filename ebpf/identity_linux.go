package ebpf

import (
	"bytes"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// Identify returns who opened a connection that the sidecar accepted, from what the
// programs wrote down before its first packet left. The entry is taken: asked
// again, about the same connection or one that gets the same ports later, the
// answer is no. False means that the plugin did not open it, and it is to be
// refused. The connection has to be the accepted one, not a wrapper that hides
// its addresses.
func (c *Confinement) Identify(conn net.Conn) (Peer, bool) {
	key, ok := c.peerKey(conn)
	if !ok {
		return Peer{}, false
	}
	c.closing.RLock()
	defer c.closing.RUnlock()
	c.mu.Lock()
	closed := c.closed || !c.attached
	c.mu.Unlock()
	if closed {
		return Peer{}, false
	}
	var entry hooksPeer
	if err := c.programs.peers.LookupAndDelete(key, &entry); err != nil {
		return Peer{}, false
	}
	atomic.AddUint64(&c.programs.shared.tally.Identified, 1)
	original := userAddress(entry.Original.W, entry.OriginalPort)
	local := userAddress(key.Target.W, key.TargetPort)
	return Peer{
		PID: entry.Pid, UID: entry.Uid, Comm: cString(entry.Comm[:]), Exe: sandbox.Executable(entry.Pid),
		Original: original, Explicit: original == local, Cookie: entry.Cookie,
	}, true
}

// peerKey is the connection's entry as the connecting side wrote it: our remote
// address is its source.
func (c *Confinement) peerKey(conn net.Conn) (hooksPeerKey, bool) {
	if conn == nil {
		return hooksPeerKey{}, false
	}
	remote, ok := tcpAddress(conn.RemoteAddr())
	if !ok {
		return hooksPeerKey{}, false
	}
	local, ok := tcpAddress(conn.LocalAddr())
	if !ok {
		return hooksPeerKey{}, false
	}
	cookie, ok := networkOf(conn)
	if !ok || cookie != c.network.Cookie {
		return hooksPeerKey{}, false
	}
	var key hooksPeerKey
	key.Netns = cookie
	key.Source.W, _ = kernelAddress(remote)
	key.SourcePort = remote.Port()
	key.Target.W, key.TargetPort = kernelAddress(local)
	return key, true
}

func tcpAddress(a net.Addr) (netip.AddrPort, bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	address := tcp.AddrPort()
	return netip.AddrPortFrom(address.Addr().WithZone(""), address.Port()), address.IsValid()
}

// networkOf is the cookie of the namespace that the socket itself is in.
func networkOf(conn net.Conn) (uint64, bool) {
	system, ok := conn.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := system.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cookie uint64
	var failed error
	err = raw.Control(func(fd uintptr) {
		cookie, failed = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	return cookie, err == nil && failed == nil
}

// cString cuts a C string from its padding.
func cString(b []byte) string {
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}

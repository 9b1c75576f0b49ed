package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
)

// Free ports are taken below the range of which the kernel takes ports for connections
// and for port 0 (ip_local_port_range, 32768 to 60999 by default), so that neither can
// take one before the program that it is for listens on it.
const (
	firstFreePort = 20_000
	freePorts     = 12_000
)

// FreePort returns a TCP port on which no process listens. It belongs to this process
// until that ends: other test processes of the machine are not given it.
func FreePort(t testing.TB) uint16 {
	t.Helper()
	return MustGet(freePort())(t)
}

// FreeAddress returns an address of the loopback with a port of [FreePort].
func FreeAddress(t testing.TB) string {
	t.Helper()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), FreePort(t)).String()
}

// reserved keeps the sockets that reserve ports: one that is garbage is closed.
var reserved struct {
	mu      sync.Mutex
	sockets []*net.UnixConn
}

func freePort() (uint16, error) {
	var last error
	for range 200 {
		port := uint16(firstFreePort + rand.IntN(freePorts))
		if last = reservePort(port); last == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port from %d: %w", firstFreePort, last)
}

// reservePort binds an abstract Unix socket that is named for the port, which the
// kernel unbinds when the process ends, and sees whether the port is free.
func reservePort(port uint16) error {
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: "@chaperone-test-port-" + strconv.Itoa(int(port))})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(int(port))) // of every address
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	reserved.mu.Lock()
	defer reserved.mu.Unlock()
	reserved.sockets = append(reserved.sockets, socket)
	return listener.Close()
}

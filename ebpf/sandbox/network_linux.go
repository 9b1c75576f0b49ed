package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Network is a network namespace, held open.
type Network struct {
	File   *os.File
	Cookie uint64 // the kernel's number for it, never used twice
}

const threadNetwork = "/proc/thread-self/ns/net"

// OnThread runs f on a thread of its own. A thread that f could not put back
// into the state it found it in is ended instead of being used again. It is
// never the process's first thread, which cannot be ended, and whose namespaces
// are what /proc/PID/ns shows to others as the process's.
func OnThread(f func() (clean bool, err error)) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := OnThread(f) // on another one, since this one stays taken
			runtime.UnlockOSThread()
			result <- err
			return
		}
		clean, err := f()
		if clean {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// NewNetwork makes a namespace with nothing in it but a loopback that is up. If a
// port to serve is below 1024, it is an error that such a port cannot be bound.
func NewNetwork(serve []uint16) (*Network, error) {
	var n *Network
	err := OnThread(func() (bool, error) {
		home, err := os.Open(threadNetwork)
		if err != nil {
			return true, fmt.Errorf("open network namespace: %w", err)
		}
		defer func() { _ = home.Close() }()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("make network namespace: %w (needs CAP_SYS_ADMIN)", err)
		}
		n, err = prepareNetwork(serve)
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			return false, errors.Join(err, fmt.Errorf("return to network namespace: %w", back))
		}
		return true, err
	})
	if err != nil {
		if n != nil {
			err = errors.Join(err, n.Close())
		}
		return nil, err
	}
	return n, nil
}

// prepareNetwork sets up the namespace that the thread is in.
func prepareNetwork(serve []uint16) (*Network, error) {
	if err := prepareLoopback(); err != nil {
		return nil, err
	}
	if err := openLowPorts(); err != nil && hasLowPort(serve) {
		return nil, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			return nil, fmt.Errorf("use network namespace: interface %s is up in it", i.Name)
		}
	}
	return CurrentNetwork()
}

func setLoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	return nil
}

// CurrentNetwork is the namespace that the calling thread is in.
func CurrentNetwork() (*Network, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("identify network namespace: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("identify network namespace: %w", err)
	}
	file, err := os.Open(threadNetwork)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &Network{File: file, Cookie: cookie}, nil
}

// OpenNetwork opens the namespace that a file such as /proc/PID/ns/net names.
func OpenNetwork(path string) (*Network, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	n := &Network{File: file}
	err = n.Do(func() error {
		inside, err := CurrentNetwork()
		if err != nil {
			return err
		}
		n.Cookie = inside.Cookie
		return inside.Close()
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Do runs f on a thread inside the namespace.
func (n *Network) Do(f func() error) error {
	return OnThread(func() (bool, error) {
		home, err := os.Open(threadNetwork)
		if err != nil {
			return true, fmt.Errorf("open network namespace: %w", err)
		}
		defer func() { _ = home.Close() }()
		if err := unix.Setns(int(n.File.Fd()), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter network namespace: %w", err)
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			return false, errors.Join(err, fmt.Errorf("return to network namespace: %w", back))
		}
		return true, err
	})
}

// Close closes the namespace, which ends with its last process and socket.
func (n *Network) Close() error {
	if err := n.File.Close(); err != nil {
		return fmt.Errorf("close network namespace: %w", err)
	}
	return nil
}

// literal refuses host names: they would be looked up in the namespace, or on
// another thread outside it.
func literal(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("parse address: %w", err)
	}
	if net.ParseIP(host) == nil {
		return fmt.Errorf("parse address: %q is not an IP address", host)
	}
	return nil
}

// onLoopback reports whether an address is one of the loopback of a plugin's own
// network.
func onLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.Unmap().IsLoopback() || slices.Contains(PluginAddresses(), addr.Unmap()))
}

// Listen opens a TCP listener in the namespace. The address is an IP address and a
// port; port 0 picks one.
func (n *Network) Listen(Network, address string) (net.Listener, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var listener net.Listener
	err := n.Do(func() error {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		var err error
		listener, err = config.Listen(context.Background(), Network, address) //nolint:forbidigo // binding an IP address does not wait
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen beside the plugin: %w", err)
	}
	return listener, nil
}

// ListenPacket opens a UDP socket in the namespace.
func (n *Network) ListenPacket(Network, address string) (net.PacketConn, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var conn net.PacketConn
	err := n.Do(func() error {
		var config net.ListenConfig
		var err error
		conn, err = config.ListenPacket(context.Background(), Network, address) //nolint:forbidigo // as above
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen beside the plugin: %w", err)
	}
	return conn, nil
}

// DialContext connects to an address of the loopback inside the namespace: an IP
// address and a port.
func (n *Network) DialContext(ctx context.Context, Network, address string) (net.Conn, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	if host, _, err := net.SplitHostPort(address); err != nil || !onLoopback(host) {
		return nil, fmt.Errorf("dial the plugin: %s is not on its loopback", address)
	}
	var conn net.Conn
	err := n.Do(func() error {
		var dialer net.Dialer
		dialer.SetMultipathTCP(false)
		var err error
		conn, err = dialer.DialContext(ctx, Network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial the plugin: %w", err)
	}
	return conn, nil
}

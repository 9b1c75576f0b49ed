package testenv

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// UpstreamConfig is the API to serve; its zero value serves HTTPS for localhost
// and requires a generated bearer token.
type UpstreamConfig struct {
	// Names are the DNS names and IP addresses of its certificate, besides
	// localhost and 127.0.0.1.
	Names []string
	// Listen is a loopback address and port. Empty: 127.0.0.1 and a free port.
	Listen string
	// Token is the bearer token that requests must carry. Empty: a random one.
	Token string
	// Authorize replaces the check of the bearer token.
	Authorize func(*http.Request) bool
	// Plain serves http without TLS.
	Plain bool
	// HTTP1 offers no HTTP/2.
	HTTP1 bool
	// ClientCA makes it want a client certificate of this authority.
	ClientCA *CA
	// TLS may change the server's TLS settings before it starts.
	TLS func(*tls.Config)
}

// Upstream is an API on loopback that wants a bearer token and remembers what
// it was sent. HTTP/1.1 and HTTP/2 share its port; so does gRPC, see [Echo].
//
//	/echo               any method: what arrived, as JSON ([Received])
//	/headers?k=v        answers with header k: v, for each pair
//	/status?code=418    answers with that status
//	/redirect?to=URL    302
//	/slow?wait=2s       answers after that long
//	/download?bytes=N   N bytes, with a content length
//	/stream             bytes without end, until the client leaves
//	/sse?every=10ms     server-sent events without end; &count=N ends them
//	/trailers           a body, then the trailer X-Digest
//	/ws                 a WebSocket that echoes
//	/open               as /echo, but wants no token
//	any other           as /echo
type Upstream struct {
	// Addr is where it listens.
	Addr netip.AddrPort
	// CA signed its certificate.
	CA *CA

	cfg    UpstreamConfig
	server *http.Server
	grpc   *grpc.Server
	served chan error
	cancel context.CancelFunc // ends connections that net/http no longer tracks: WebSockets

	mu       sync.Mutex
	token    string
	received []Received
	total    int
	streams  int
	changed  chan struct{} // closed and replaced when streams changes
}

// Received is one request as it arrived.
type Received struct {
	Time     time.Time   `json:"time"`
	Proto    string      `json:"proto"`
	Method   string      `json:"method"`
	Host     string      `json:"host"`
	Target   string      `json:"target"` // the request target, byte for byte
	Header   http.Header `json:"header"`
	Body     string      `json:"body,omitempty"` // of /echo and /open only, at most 1 MiB
	Remote   string      `json:"remote"`
	Client   string      `json:"client,omitempty"` // subject of the client certificate
	SNI      string      `json:"sni,omitempty"`
	Accepted bool        `json:"accepted"` // it carried the token
}

// maxReceived bounds how many requests an Upstream remembers; benchmarks send
// more, and only the first ones are kept.
const maxReceived = 10_000

// MustUpstream starts an API for the length of a test.
func MustUpstream(t testing.TB, cfg UpstreamConfig) *Upstream {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*Upstream, error) { return StartUpstream(ctx, cfg) })
}

// StartUpstream starts an API and returns when it listens.
func StartUpstream(ctx context.Context, cfg UpstreamConfig) (*Upstream, error) {
	ca, err := NewCA("chaperone test upstream")
	if err != nil {
		return nil, err
	}
	u := &Upstream{CA: ca, cfg: cfg, token: cfg.Token, served: make(chan error, 1), changed: make(chan struct{})}
	if u.token == "" {
		u.token = "upstream-" + rand.Text()
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	u.cancel = cancel
	u.grpc = newEchoServer()
	u.server = &http.Server{
		Handler:           u.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         new(http.Protocols),
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	u.server.Protocols.SetHTTP1(true)
	u.server.Protocols.SetHTTP2(!cfg.HTTP1 && !cfg.Plain)
	u.server.Protocols.SetUnencryptedHTTP2(!cfg.HTTP1 && cfg.Plain)
	if err := u.listen(ctx); err != nil {
		cancel()
		return nil, fmt.Errorf("start upstream: %w", err)
	}
	return u, nil
}

func (u *Upstream) listen(ctx context.Context) error {
	address := u.cfg.Listen
	if address == "" {
		address = "127.0.0.1:0"
	}
	pair, err := u.CA.Issue(append([]string{"localhost", "127.0.0.1"}, u.cfg.Names...)...)
	if err != nil {
		return err
	}
	u.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if u.cfg.ClientCA != nil {
		u.server.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert
		u.server.TLSConfig.ClientCAs = u.cfg.ClientCA.Pool()
	}
	if u.cfg.TLS != nil {
		u.cfg.TLS(u.server.TLSConfig)
	}
	u.server.ErrorLog = discardLog()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	u.Addr = netip.MustParseAddrPort(listener.Addr().String())
	go func() {
		if u.cfg.Plain {
			u.served <- u.server.Serve(listener)
			return
		}
		u.served <- u.server.ServeTLS(listener, "", "")
	}()
	return nil
}

// Close closes every connection and ends the server.
func (u *Upstream) Close() error {
	u.grpc.Stop()
	u.cancel()
	err := u.server.Close()
	if served := <-u.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	// Handlers end by themselves when their connection is closed.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, u.WaitStreams(ctx, 0))
}

// URL returns the address of path under the given name; an empty name is
// localhost.
func (u *Upstream) URL(name, path string) string {
	if name == "" {
		name = "localhost"
	}
	scheme := "https"
	if u.cfg.Plain {
		scheme = "http"
	}
	return scheme + "://" + net.JoinHostPort(name, strconv.Itoa(int(u.Addr.Port()))) + path
}

// Pool returns the roots that a client of this API needs.
func (u *Upstream) Pool() *x509.CertPool { return u.CA.Pool() }

// Token returns the bearer token that is wanted now.
func (u *Upstream) Token() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.token
}

// SetToken changes the bearer token; requests with the old one get 401.
func (u *Upstream) SetToken(token string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.token = token
}

// Requests returns a copy of what arrived so far, the oldest first, at most
// the first 10,000.
func (u *Upstream) Requests() []Received {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]Received(nil), u.received...)
}

// Total returns how many requests arrived so far.
func (u *Upstream) Total() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total
}

// Forget drops what was remembered.
func (u *Upstream) Forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.received, u.total = nil, 0
}

// Streams returns how many requests of /stream, /sse, /ws and /slow, and gRPC
// calls, are being served.
func (u *Upstream) Streams() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.streams
}

// WaitStreams returns when exactly n streams are being served.
func (u *Upstream) WaitStreams(ctx context.Context, n int) error {
	for {
		u.mu.Lock()
		now, changed := u.streams, u.changed
		u.mu.Unlock()
		if now == n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d streams, %d are open: %w", n, now, ctx.Err())
		}
	}
}

func (u *Upstream) addStreams(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams += n
	close(u.changed)
	u.changed = make(chan struct{})
}

// handler finds the route of a request by its exact path. A ServeMux would
// redirect a path that is not clean, and an API that is probed for that must
// see it as it came.
func (u *Upstream) handler() http.Handler {
	routes := map[string]http.HandlerFunc{
		"/headers":  serveHeaders,
		"/status":   serveStatus,
		"/redirect": serveRedirect,
		"/download": serveDownload,
		"/trailers": serveTrailers,
		"/slow":     u.stream(serveSlow),
		"/stream":   u.stream(serveBytes),
		"/sse":      u.stream(serveEvents),
		"/ws":       u.stream(serveWebSocket),
	}
	calls := u.stream(u.grpc.ServeHTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve, found := routes[r.URL.Path]
		if !found {
			serve = serveEcho
		}
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			serve = calls
		}
		if got := u.record(r); !got.Accepted && r.URL.Path != "/open" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="upstream"`)
			http.Error(w, `{"error":"this API wants a bearer token"}`, http.StatusUnauthorized)
			return
		}
		serve(w, r)
	})
}

func (u *Upstream) record(r *http.Request) Received {
	got := Received{
		Time: time.Now(), Proto: r.Proto, Method: r.Method, Host: r.Host, Target: r.RequestURI,
		Header: r.Header.Clone(), Remote: r.RemoteAddr,
	}
	if r.TLS != nil {
		got.SNI = r.TLS.ServerName
		if len(r.TLS.PeerCertificates) > 0 {
			got.Client = r.TLS.PeerCertificates[0].Subject.String()
		}
	}
	want := "Bearer " + u.Token()
	if u.cfg.Authorize != nil {
		got.Accepted = u.cfg.Authorize(r)
	} else {
		sent := r.Header.Values("Authorization") // a second one beside the right one is a fault too
		got.Accepted = len(sent) == 1 && subtle.ConstantTimeCompare([]byte(sent[0]), []byte(want)) == 1
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total++
	if len(u.received) < maxReceived {
		u.received = append(u.received, got)
	}
	return got
}

func (u *Upstream) stream(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		u.addStreams(1)
		defer u.addStreams(-1)
		serve(w, r)
	}
}

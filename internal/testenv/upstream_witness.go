package testenv

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// WitnessConfig is where a [Witness] listens and how it answers.
type WitnessConfig struct {
	// CA signs its certificate. Nil: it serves http without TLS.
	CA *CA
	// Names are those of its certificate.
	Names []string
	// Listen is an address and port. Empty: 127.0.0.1 and a free port.
	Listen string
	// Handler answers. Nil: with everything that was sent.
	Handler http.Handler
}

// Witness is an upstream that keeps every byte that reaches it, also of
// connections that never become a request: what came on the wire, what was in
// its TLS, and who the client said it was. It asks every client for a
// certificate. HTTP/1.1 and HTTP/2 share its port.
type Witness struct {
	// Addr is where it listens.
	Addr netip.AddrPort

	cfg    WitnessConfig
	server *http.Server
	served chan error

	mu       sync.Mutex
	sessions []*session
}

// Witnessed is one connection.
type Witnessed struct {
	// Wire is what came on it, with TLS encrypted but for the handshake's
	// beginning.
	Wire []byte
	// Plain is what was inside its TLS, or Wire without.
	Plain []byte
	// SNI and Early are of its ClientHello: the server name, and whether it
	// announced early data (RFC 8446, section 4.2.10).
	SNI   string
	Early bool
	// Certificates are what the client showed, each in DER.
	Certificates [][]byte
	// Requests are those on it, the oldest first.
	Requests []WitnessedRequest
}

// WitnessedRequest is one request as it arrived. Its body ends where it was cut.
type WitnessedRequest struct {
	Time                        time.Time
	Proto, Method, Host, Target string
	Header, Trailer             http.Header
	Body                        []byte
}

// Text returns all bytes of a connection, for a search.
func (w Witnessed) Text() []byte {
	var b bytes.Buffer
	for _, part := range append([][]byte{w.Wire, w.Plain, []byte(w.SNI)}, w.Certificates...) {
		b.Write(part)
		b.WriteByte('\n')
	}
	for _, r := range w.Requests {
		fmt.Fprintln(&b, r.Method, r.Host, r.Target)
		for name, values := range r.Header {
			fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(values, "\n"))
		}
		for name, values := range r.Trailer {
			fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(values, "\n"))
		}
		b.Write(r.Body)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// session is a connection while it is kept.
type session struct {
	net.Conn
	mu   sync.Mutex
	kept Witnessed
}

func (s *session) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.Wire = append(s.kept.Wire, p[:n]...)
	return n, err
}

// inside is what is in a session's TLS, which net/http is not to know of: it
// would want to end it itself.
type inside struct {
	net.Conn
	session *session
}

func (i *inside) Read(p []byte) (int, error) {
	n, err := i.Conn.Read(p)
	i.session.mu.Lock()
	defer i.session.mu.Unlock()
	i.session.kept.Plain = append(i.session.kept.Plain, p[:n]...)
	return n, err
}

type sessionKey struct{}

// MustWitness starts a witness for the length of a test.
func MustWitness(t testing.TB, cfg WitnessConfig) *Witness {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*Witness, error) { return StartWitness(ctx, cfg) })
}

// StartWitness starts a witness and returns when it listens.
func StartWitness(ctx context.Context, cfg WitnessConfig) (*Witness, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Handler == nil {
		cfg.Handler = http.HandlerFunc(answerAll)
	}
	w := &Witness{cfg: cfg, served: make(chan error, 1)}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("start witness: %w", err)
	}
	w.Addr = netip.MustParseAddrPort(listener.Addr().String())
	w.server = &http.Server{
		Handler:           http.HandlerFunc(w.serve),
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          discardLog(),
		Protocols:         new(http.Protocols),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, sessionKey{}, sessionOf(c))
		},
	}
	w.server.Protocols.SetHTTP1(true)
	w.server.Protocols.SetUnencryptedHTTP2(true) // also inside TLS, which is ended before
	accepted := &witnessListener{Listener: listener, witness: w, ready: make(chan net.Conn), closed: make(chan struct{})}
	if cfg.CA != nil {
		pair, err := cfg.CA.Issue(cfg.Names...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start witness: %w", err), listener.Close())
		}
		accepted.tls = &tls.Config{
			Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
			ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
		}
	}
	go accepted.run()
	go func() { w.served <- w.server.Serve(accepted) }()
	return w, nil
}

// Close ends it and every connection.
func (w *Witness) Close() error {
	err := w.server.Close()
	if served := <-w.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Connections returns what was kept so far, the oldest first.
func (w *Witness) Connections() []Witnessed {
	w.mu.Lock()
	sessions := slices.Clone(w.sessions)
	w.mu.Unlock()
	var out []Witnessed
	for _, s := range sessions {
		s.mu.Lock()
		kept := s.kept
		kept.Requests = slices.Clone(kept.Requests)
		s.mu.Unlock()
		if w.cfg.CA == nil {
			kept.Plain = kept.Wire
		}
		out = append(out, kept)
	}
	return out
}

// serve keeps a request and has it answered.
func (w *Witness) serve(rw http.ResponseWriter, r *http.Request) {
	s, ok := r.Context().Value(sessionKey{}).(*session)
	if !ok {
		panic(http.ErrAbortHandler) // not a connection of ours
	}
	body := &keptBody{ReadCloser: r.Body}
	r.Body = body
	kept := WitnessedRequest{Time: time.Now(), Proto: r.Proto, Method: r.Method, Host: r.Host, Target: r.RequestURI, Header: r.Header.Clone()}
	s.mu.Lock()
	at := len(s.kept.Requests)
	s.kept.Requests = append(s.kept.Requests, kept) // also if it never ends
	s.mu.Unlock()
	defer func() {
		_, _ = io.Copy(io.Discard, body) // an incomplete body is kept too
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kept.Requests[at].Body, s.kept.Requests[at].Trailer = body.text(), r.Trailer.Clone()
	}()
	w.cfg.Handler.ServeHTTP(rw, r)
}

// keptBody keeps what is read of a body.
type keptBody struct {
	io.ReadCloser
	mu   sync.Mutex
	kept []byte
}

func (b *keptBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = append(b.kept, p[:n]...)
	return n, err
}

func (b *keptBody) text() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept
}

// answerAll gives back everything that was sent, as an accomplice would.
func answerAll(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // of what is cut short, as much as came
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprintf(w, "%s %s %s %v %v %s\n", r.Method, r.Host, r.RequestURI, r.Header, r.Trailer, body)
}

// PeerCertificates returns what the client of a request to a [Witness] showed,
// each in DER.
func PeerCertificates(r *http.Request) [][]byte {
	s, ok := r.Context().Value(sessionKey{}).(*session)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept.Certificates
}

func sessionOf(c net.Conn) *session {
	switch c := c.(type) {
	case *inside:
		return c.session
	case *session:
		return c
	}
	return nil
}

// witnessListener hands out connections once their TLS is up. Those of which it
// never is are kept too.
type witnessListener struct {
	net.Listener
	witness *Witness
	tls     *tls.Config
	ready   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *witnessListener) run() {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			l.end()
			return
		}
		s := &session{Conn: raw}
		l.witness.mu.Lock()
		l.witness.sessions = append(l.witness.sessions, s)
		l.witness.mu.Unlock()
		go l.admit(s)
	}
}

// admit ends a connection's TLS.
func (l *witnessListener) admit(s *session) {
	conn := net.Conn(s)
	if l.tls != nil {
		cfg := l.tls.Clone()
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			const earlyData = 42 // RFC 8446, section 4.2
			s.mu.Lock()
			defer s.mu.Unlock()
			s.kept.SNI, s.kept.Early = hello.ServerName, slices.Contains(hello.Extensions, earlyData)
			return nil, nil
		}
		secure := tls.Server(s, cfg)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if secure.HandshakeContext(ctx) != nil {
			_ = s.Close() // the client's doing
			return
		}
		s.mu.Lock()
		for _, certificate := range secure.ConnectionState().PeerCertificates {
			s.kept.Certificates = append(s.kept.Certificates, certificate.Raw)
		}
		s.mu.Unlock()
		conn = &inside{secure, s}
	}
	select {
	case l.ready <- conn:
	case <-l.closed:
		_ = conn.Close() // no server accepts it
	}
}

// Accept implements [net.Listener].
func (l *witnessListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *witnessListener) Close() error {
	l.end()
	return l.Listener.Close()
}

func (l *witnessListener) end() { l.once.Do(func() { close(l.closed) }) }

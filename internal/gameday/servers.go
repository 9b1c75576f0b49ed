package gameday

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The names of the exercise, of a domain that does not exist (RFC 6761).
const (
	ordersHost = "orders.gameday.test"
	nameHost   = "collector.gameday.test"
	tunnelHost = "t.gameday.test"
)

// maxReads bounds the reads of leaks that are kept.
const maxReads = 1 << 20

// read is a part of a leak that a server received.
type read struct {
	at    time.Time
	bytes int
}

// servers are what a plugin may reach, and what it must not.
type servers struct {
	authority []byte // PEM, of orders
	orders    net.Listener
	collector net.Listener
	bypass    net.Listener
	packets   net.PacketConn // of bypass, with the same port
	dns       net.PacketConn

	reached atomic.Int64 // connections and packets that arrived beside orders
	http    *http.Server

	mu    sync.Mutex
	reads []read
	full  bool
}

// listen starts the servers.
func listen(ctx context.Context) (s *servers, err error) {
	s = &servers{}
	defer func() {
		if err != nil {
			s.close()
			err = fmt.Errorf("start the servers of the exercise: %w", err)
		}
	}()
	certificate, err := s.certificate()
	if err != nil {
		return s, err
	}
	var l net.ListenConfig
	if s.orders, err = l.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return s, err
	}
	if s.collector, err = l.Listen(ctx, "tcp", "127.0.0.2:0"); err != nil {
		return s, err
	}
	if s.bypass, err = l.Listen(ctx, "tcp", "127.0.0.3:0"); err != nil {
		return s, err
	}
	if s.packets, err = l.ListenPacket(ctx, "udp", s.bypass.Addr().String()); err != nil {
		return s, err
	}
	if s.dns, err = l.ListenPacket(ctx, "udp", "127.0.0.4:0"); err != nil {
		return s, err
	}
	s.serve(certificate)
	return s, nil
}

func (s *servers) serve(certificate tls.Certificate) {
	const headers = 10 * time.Second
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: headers, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
	}
	go func() { _ = s.http.ServeTLS(s.orders, "", "") }() // it ends by close
	for _, l := range []net.Listener{s.collector, s.bypass} {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				s.reached.Add(1)
				_ = conn.Close()
			}
		}()
	}
	for _, p := range []net.PacketConn{s.packets, s.dns} {
		go func() {
			for buffer := make([]byte, pieceBytes); ; {
				if _, _, err := p.ReadFrom(buffer); err != nil {
					return
				}
				s.reached.Add(1)
			}
		}()
	}
}

// ServeHTTP answers orders, and takes what is posted piece by piece.
func (s *servers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	buffer := make([]byte, maxPlan)
	for {
		n, err := r.Body.Read(buffer)
		if n > 0 {
			s.leaked(n)
		}
		if err != nil {
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"orders":[{"id":4711,"state":"shipped"}]}`+"\n") // the client may be gone
}

func (s *servers) leaked(n int) {
	at := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reads) >= maxReads {
		s.full = true
		return
	}
	s.reads = append(s.reads, read{at, n})
}

// prove sends to each listener from this process, outside of the sandbox, and waits until it
// has counted that.
func (s *servers) prove(ctx context.Context) error {
	const wait, pause = 5 * time.Second, 5 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for _, to := range []net.Addr{s.collector.Addr(), s.bypass.Addr(), s.packets.LocalAddr(), s.dns.LocalAddr()} {
		before := s.reached.Load()
		dialAndSend(ctx, to.Network(), to.String())
		for s.reached.Load() == before {
			if ctx.Err() != nil {
				return fmt.Errorf("the listener on %s %s does not count what reaches it", to.Network(), to)
			}
			time.Sleep(pause)
		}
	}
	s.reached.Store(0)
	return nil
}

// leaks splits what was received at a time, and returns when the last byte was.
func (s *servers) leaks(at time.Time) (before, after int64, last time.Time, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reads {
		if r.at.After(at) {
			after += int64(r.bytes)
		} else {
			before += int64(r.bytes)
		}
		if r.at.After(last) {
			last = r.at
		}
	}
	return before, after, last, !s.full
}

func (s *servers) close() {
	if s.http != nil {
		_ = s.http.Close()
	}
	for _, c := range []io.Closer{s.orders, s.collector, s.bypass, s.packets, s.dns} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// certificate makes the certificate of orders, which is its own authority for a day.
func (s *servers) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), DNSNames: []string{ordersHost}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	if s.authority = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}); s.authority == nil {
		return tls.Certificate{}, errors.New("encode certificate")
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// hostPort is a name with the port of a listener.
func hostPort(name string, l net.Listener) string {
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return name // a TCP listener has a port
	}
	return net.JoinHostPort(name, port)
}

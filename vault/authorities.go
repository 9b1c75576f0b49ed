package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// authorities are what Vault's certificate is checked against. Their file is read
// for each connection, so that an authority can be rotated: first both are in the
// file, then Vault changes, then the old one goes.
type authorities struct {
	file    string // "" for none
	always  []byte // PEM besides what the file holds
	timeout time.Duration
	log     *zap.Logger

	mu      sync.Mutex
	text    []byte         // of the file, when it was good last
	pool    *x509.CertPool // nil for the system's
	refused string         // why the file is not taken; "" when it is
}

func newAuthorities(cfg *Config) (*authorities, error) {
	a := &authorities{file: cfg.CAFile, always: cfg.CA, timeout: cfg.Timeout, log: cfg.Logger}
	var text []byte
	if a.file != "" {
		var err error
		if text, err = os.ReadFile(a.file); err != nil {
			return nil, fmt.Errorf("read authorities of Vault: %w", err)
		}
	}
	if a.text = text; len(text)+len(a.always) == 0 && a.file == "" {
		return a, nil // the system's
	}
	a.pool = x509.NewCertPool()
	if !a.pool.AppendCertsFromPEM(append(append(bytes.Clone(a.always), '\n'), text...)) {
		return nil, errors.New("read authorities of Vault: no PEM certificate in them")
	}
	return a, nil
}

// current returns the authorities as the file has them. One that is gone, empty or
// half-written leaves the former ones in force.
func (a *authorities) current() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == "" {
		return a.pool
	}
	text, err := os.ReadFile(a.file)
	if err == nil && bytes.Equal(text, a.text) {
		a.refused = ""
		return a.pool
	}
	pool := x509.NewCertPool()
	if err == nil && !appendAll(pool, text) {
		err = fmt.Errorf("%s does not hold whole PEM certificates and nothing else", a.file)
	}
	if err != nil {
		if a.refused != err.Error() {
			a.refused = err.Error()
			a.log.Warn("vault authorities not replaced", zap.Error(err))
		}
		return a.pool
	}
	pool.AppendCertsFromPEM(a.always)
	a.text, a.pool, a.refused = text, pool, ""
	a.log.Info("vault authorities replaced", zap.String("file", a.file))
	return pool
}

// appendAll adds the certificates of PEM text, and reports whether each block of it
// is one. A file that is cut off has a block that does not end.
func appendAll(pool *x509.CertPool, text []byte) bool {
	added := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return false
		}
		pool.AddCert(certificate)
		added++
	}
	return added > 0 && added == bytes.Count(text, []byte("-----BEGIN "))
}

// dial connects and verifies the peer against the authorities in force.
func (a *authorities) dial(ctx context.Context, dialer *net.Dialer, network, address string, cfg *tls.Config) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	raw, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	cfg.ServerName, cfg.RootCAs = host, a.current()
	conn := tls.Client(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

package sidecar

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/configs"
)

// extAuthzTLS is the mutual TLS of the ext_authz listener. Its files are read again
// at each reload, so that a certificate is renewed without a restart.
type extAuthzTLS struct {
	files   *configs.ListenTLS
	current atomic.Pointer[tls.Config]
}

func newExtAuthzTLS(files *configs.ListenTLS) (*extAuthzTLS, error) {
	d := &extAuthzTLS{files: files}
	return d, d.reload()
}

// config returns what the listener is made with: each handshake takes the files
// as they were read last. Connections that are open keep theirs.
func (d *extAuthzTLS) config() *tls.Config {
	out := d.current.Load().Clone()
	out.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return d.current.Load(), nil }
	return out
}

// reload reads the files. Those that cannot be used change nothing.
func (d *extAuthzTLS) reload() error {
	pair, err := tls.LoadX509KeyPair(d.files.CertFile, d.files.KeyFile)
	if err != nil {
		return fmt.Errorf("read certificate of ext_authz: %w", err)
	}
	pem, err := os.ReadFile(d.files.ClientCAFile)
	if err != nil {
		return fmt.Errorf("read client authorities of ext_authz: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("read client authorities of ext_authz: %s holds no certificate", d.files.ClientCAFile)
	}
	d.current.Store(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, // gRPC needs it (RFC 7540, section 3.3)
	})
	return nil
}

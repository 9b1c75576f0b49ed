package sidecar

import (
	"net"
	"strconv"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// failedHandshake records that a program of the plugin's gave up a TLS handshake
// with the sidecar, and prints it with the remedy: such a program reports an error
// of the server's certificate, and nothing that leads here.
func (s *Sidecar) failedHandshake(r *authz.Record) {
	s.journal.record(r)
	if s.cfg.Event == nil {
		s.cfg.Log.Warn("tls handshake failed", zap.String("host", r.Host), zap.Uint16("port", r.Port), zap.String("exe", r.Exe), zap.String("detail", r.Detail))
		return
	}
	what := "TLS handshake for " + net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))) + " failed"
	if r.Exe != "" {
		what += " (" + r.Exe + ")"
	}
	s.cfg.Event(what+": "+r.Detail,
		"have the program trust "+s.plugin.trust.pemFile()+", which SSL_CERT_FILE and other variables of its environment name (docs/plugin-environment.md#certificates)")
}

// proxyEvent records what the proxy reports beside its decisions.
func (s *Sidecar) proxyEvent(r *authz.Record) {
	if r.Kind == authz.KindHandshake {
		s.failedHandshake(r)
		return
	}
	s.journal.record(r)
}

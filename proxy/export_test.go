package proxy

import "crypto/x509"

// TrustUpstreamProxy replaces the system's authorities for the upstream proxy.
func (p *Proxy) TrustUpstreamProxy(roots *x509.CertPool) { p.dialer.via.roots = roots }

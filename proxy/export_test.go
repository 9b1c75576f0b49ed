package proxy

import (
	"crypto/x509"
	"strconv"
)

// TrustUpstreamProxy replaces the system's authorities for the upstream proxy.
func (p *Proxy) TrustUpstreamProxy(roots *x509.CertPool) { p.dialer.via.roots = roots }

// FillHostSet adds n hosts to a set and returns how many it holds.
func FillHostSet(n int) int {
	var s hostSet
	for i := range n {
		s.add(strconv.Itoa(i))
		s.add("0")
	}
	if !s.has("0") || s.has("none") {
		return -1
	}
	return len(s.hosts)
}

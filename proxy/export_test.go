package proxy

import (
	"crypto/x509"
	"strconv"

	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// TrustUpstreamProxy replaces the system's authorities for the upstream proxy.
func (p *Proxy) TrustUpstreamProxy(roots *x509.CertPool) { p.dialer.Proxy.Roots = roots }

// FillHostSet adds n hosts to a set and returns how many it holds.
func FillHostSet(n int) int {
	var s upstream.HostSet
	for i := range n {
		s.Add(strconv.Itoa(i))
		s.Add("0")
	}
	if !s.Has("0") || s.Has("none") {
		return -1
	}
	return len(s.Hosts)
}

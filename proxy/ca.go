package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Lifetimes of certificates. The authority ends with the process anyway; some
// clients refuse leaves of more than 398 days.
const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 30 * 24 * time.Hour
	leafRenewal       = leafLifetime / 3
	clockSkew         = time.Hour // clients' clocks may be behind
)

// maxLeaves bounds the cache of leaves; beyond it they are made each time.
const maxLeaves = 4096

// nothingGranted is a name that does not exist (RFC 2606, section 2). An authority
// without any permitted name would be valid for all names.
const nothingGranted = "chaperone.invalid"

// authority is the plugin's certificate authority. Its key lives in memory
// only and stays the same while the process lives; when the granted hosts
// change only its certificate is renewed, so that a plugin that has read the
// earlier one continues.
type authority struct {
	plugin  authz.Principal
	engine  *authz.Engine
	now     func() time.Time
	changed func([]byte)

	key     *ecdsa.PrivateKey
	keyID   []byte
	leafKey *ecdsa.PrivateKey

	renewing sync.Mutex // held while a certificate is made and reported; never taken under mu

	mu          sync.RWMutex
	generation  uint64
	observing   bool
	hosts       []string // granted, sorted
	certificate *x509.Certificate
	encoded     []byte // certificate in PEM
	leaves      map[string]*tls.Certificate
}

func newAuthority(cfg Config) (*authority, error) {
	a := &authority{
		plugin: cfg.Plugin, engine: cfg.Engine, now: cfg.Now, changed: cfg.CAChanged,
		leaves: make(map[string]*tls.Certificate),
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if a.leafKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if a.keyID, err = keyID(&a.key.PublicKey); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if err := a.renew(cfg.Engine.Current()); err != nil {
		return nil, err
	}
	return a, nil
}

// keyID identifies a key as RFC 7093, section 2, method 1, does.
func keyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}

// pem returns the authority's certificate.
func (a *authority) pem() []byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.Clone(a.encoded)
}

// follow renews the certificate if a snapshot names other hosts. An
// error leaves the earlier certificate in force: it covers less, never more
// than was granted.
func (a *authority) follow(s *authz.Snapshot) {
	a.mu.RLock()
	known := s.Generation() <= a.generation
	a.mu.RUnlock()
	if !known {
		_ = a.renew(s) // only a broken source of randomness fails
	}
}

// renew makes the certificate that a snapshot asks for, unless it is the one
// in use.
func (a *authority) renew(s *authz.Snapshot) error {
	a.renewing.Lock()
	defer a.renewing.Unlock()
	now := a.now()
	hosts, observing := s.HostPatterns(a.plugin), s.Observing(a.plugin, now)
	if a.current(s.Generation(), hosts, observing) {
		return nil
	}
	template := a.template(hosts, observing, now)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		return fmt.Errorf("make certificate authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("make certificate authority: %w", err)
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.mu.Lock()
	a.generation, a.observing, a.hosts = s.Generation(), observing, hosts
	a.certificate, a.encoded = certificate, encoded
	a.mu.Unlock()
	if a.changed != nil {
		a.changed(slices.Clone(encoded))
	}
	return nil
}

// current notes the generation and reports whether the certificate in use is
// right for it, or for a later one.
func (a *authority) current(generation uint64, hosts []string, observing bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.certificate == nil {
		return false
	}
	if generation < a.generation {
		return true
	}
	if observing != a.observing || !slices.Equal(hosts, a.hosts) {
		return false
	}
	a.generation = generation
	return true
}

// template is the authority's certificate, critically constrained to the granted hosts
// (RFC 5280, section 4.2.1.10). IP addresses are excluded explicitly, because constraints
// on names alone allow leaves for addresses.
func (a *authority) template(hosts []string, observing bool, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber:                big.NewInt(now.UnixNano()),
		Subject:                     pkix.Name{CommonName: "Chaperone for plugin " + clip(string(a.plugin), 32)},
		NotBefore:                   now.Add(-clockSkew),
		NotAfter:                    now.Add(authorityLifetime),
		IsCA:                        true,
		MaxPathLenZero:              true,
		BasicConstraintsValid:       true,
		KeyUsage:                    x509.KeyUsageCertSign,
		SubjectKeyId:                a.keyID,
		AuthorityKeyId:              a.keyID,
		PermittedDNSDomainsCritical: true,
	}
	for _, host := range hosts {
		if addr, err := netip.ParseAddr(host); err == nil {
			t.PermittedIPRanges = append(t.PermittedIPRanges, exactly(addr))
		} else {
			t.PermittedDNSDomains = append(t.PermittedDNSDomains, strings.TrimLeft(host, "*."))
		}
	}
	if len(t.PermittedIPRanges) == 0 {
		t.ExcludedIPRanges = []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		}
	}
	switch {
	case observing:
		t.PermittedDNSDomains = nil // all names
	case len(t.PermittedDNSDomains) == 0:
		t.PermittedDNSDomains = []string{nothingGranted}
	default:
		slices.Sort(t.PermittedDNSDomains)
		t.PermittedDNSDomains = slices.Compact(t.PermittedDNSDomains)
	}
	return t
}

func exactly(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

// covers reports whether clients that trust the authority accept a leaf for
// host, so that a refusal inside TLS can be read.
func (a *authority) covers(host string) bool {
	a.follow(a.engine.Current())
	a.mu.RLock()
	defer a.mu.RUnlock()
	addr, err := netip.ParseAddr(host)
	if err == nil {
		return slices.ContainsFunc(a.certificate.PermittedIPRanges, func(n *net.IPNet) bool { return n.Contains(addr.AsSlice()) })
	}
	if a.observing {
		return true
	}
	return slices.ContainsFunc(a.certificate.PermittedDNSDomains, func(domain string) bool {
		return host == domain || strings.HasSuffix(host, "."+domain)
	})
}

// leaf returns the certificate of exactly one host.
func (a *authority) leaf(host string) (*tls.Certificate, error) {
	now := a.now()
	a.mu.RLock()
	found, parent := a.leaves[host], a.certificate
	a.mu.RUnlock()
	if found != nil && now.Before(found.Leaf.NotAfter.Add(-leafRenewal)) {
		return found, nil
	}
	made, err := a.issue(host, parent, now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", host, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if found != nil || len(a.leaves) < maxLeaves {
		a.leaves[host] = made
	}
	return made, nil
}

// Leaf returns a certificate and its key, both in PEM, of a TLS server that the plugin
// reaches as host. An Envoy that terminates the plugin's TLS in place of the proxy needs
// them. host is canonical: a name, *.NAME, which is for one label below NAME (RFC 9525,
// section 6.3), or an address. The certificate is valid for 30 days, and a call within
// the last ten replaces it. A host that is not granted is an error.
func (p *Proxy) Leaf(host string) (certPEM, keyPEM []byte, err error) {
	name, _ := strings.CutPrefix(host, "*.")
	known, err := authz.NewDestination(authz.SchemeTLS, session.JoinHostPort(name, 443), "")
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("issue certificate for %s: %w", session.Quote(host), err)
	case known.Host() != name || name != host && known.Address().IsValid():
		return nil, nil, fmt.Errorf("issue certificate for %s: not a host in canonical form", session.Quote(host))
	case !p.authority.covers(host):
		return nil, nil, fmt.Errorf("issue certificate for %s: it is not granted", host)
	}
	leaf, err := p.authority.leaf(host)
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), nil
}

func (a *authority) issue(host string, parent *x509.Certificate, now time.Time) (*tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		// No common name: OpenSSL checks it against the constraints on names, even if the
		// certificate is for an address.
		Subject:               pkix.Name{Organization: []string{"Chaperone"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(leafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = []net.IP{addr.AsSlice()}
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &a.leafKey.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// The authority itself is not sent: clients have it in their trust store.
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leafKey, Leaf: leaf}, nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

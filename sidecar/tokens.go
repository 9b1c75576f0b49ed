package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
	"github.com/chaperone-proxy/chaperone/vault"
	"github.com/chaperone-proxy/chaperone/vault/tokens"
)

// makeTokens makes what exchanges leased credentials for tokens.
func (s *Sidecar) makeTokens(spec *configs.Sidecar) (err error) {
	if s.credentials.broker == nil {
		return nil
	}
	dialer := &tokenDialer{hosts: spec.DNS.Hosts, resolver: upstream.NewResolver(spec.DNS.Servers), forbidden: s.listening.self.dial, never: s.policy.never}
	cfg := tokens.Config{
		Source: s.credentials.broker, Recorder: s.journal.recorder, Logger: s.cfg.Log.Named("tokens"),
		Sign: s.credentials.broker.SignJWT,
		Dial: dialer.dial,
	}
	if p := spec.UpstreamProxy; p != nil {
		if u, err := url.Parse(p.URL); err == nil {
			dialer.proxy = u.Host
		}
		through := (&httpproxy.Config{HTTPSProxy: p.URL, NoProxy: strings.Join(p.NoProxy, ",")}).ProxyFunc()
		cfg.Proxy = func(endpoint *url.URL) (*url.URL, error) {
			if s.policy.never(endpoint.Hostname(), netip.Addr{}) {
				return nil, errNever // the proxy would look the name up, and not we
			}
			return through(endpoint)
		}
	}
	if s.credentials.tokens, err = tokens.New(cfg); err != nil {
		return fmt.Errorf("make token source: %w", err)
	}
	return nil
}

// never reports whether the policy in force forbids to go to a host or an
// address on the plugin's behalf.
func (c *PolicyControl) never(host string, addr netip.Addr) bool {
	return c.engine.Current().Forbids(c.cfg.Plugin, host, addr)
}

// credentialRefused has what an upstream did not accept looked into, by who made it.
func (v *credentials) credentialRefused(grant, credential string, generation uint64, status int) {
	if v.broker != nil && !v.tokens.Refused(grant, credential, generation) {
		v.broker.Refused(grant, credential, generation, status)
	}
}

// retain lets go of every token and then of every lease but those of refs. A
// token is not ours to revoke; without it nothing is left that may be sent.
func (v *credentials) retain(ctx context.Context, refs []authz.CredentialRef) vault.Report {
	v.tokens.Retain(refs)
	return v.broker.Retain(ctx, refs)
}

// closeTokens forgets the tokens when ctx ends.
func (v *credentials) closeTokens(ctx context.Context) error {
	<-ctx.Done()
	return v.tokens.Close()
}

// upstreamProxy returns the proxy that upstreams are reached through, nil for
// none, and what is reached without it.
func upstreamProxy(spec *configs.Sidecar) (*url.URL, []string, error) {
	if spec.UpstreamProxy == nil {
		return nil, nil, nil
	}
	u, err := url.Parse(spec.UpstreamProxy.URL)
	if err != nil {
		return nil, nil, errors.New("spec.upstreamProxy.url: is not a URL") // refused when the file was loaded
	}
	return u, spec.UpstreamProxy.NoProxy, nil
}

// tokenDialer connects to token endpoints: by the names in the sidecar's
// configuration, and never to the sidecar itself, its Vault, or what a
// guardrail forbids: a grant's author chose the endpoint.
type tokenDialer struct {
	hosts     map[string][]netip.Addr
	resolver  *net.Resolver // over dns.servers; nil: the default
	forbidden func(netip.AddrPort) bool
	never     func(host string, addr netip.Addr) bool
	proxy     string // host and port; the operator's own choice, which no guardrail is about
}

var (
	errOwnAddress = errors.New("the address is the sidecar's own, or its Vault's")
	errNever      = errors.New("a guardrail forbids the host or its address, or it is nobody's")
)

func (d *tokenDialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second, Resolver: d.resolver, ControlContext: d.control}
	if address == d.proxy {
		dialer.ControlContext = nil
		return dialer.DialContext(ctx, network, address)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if d.never(host, netip.Addr{}) {
		return nil, errNever
	}
	known := d.hosts[strings.ToLower(strings.TrimSuffix(host, "."))]
	if len(known) == 0 {
		return dialer.DialContext(ctx, network, address)
	}
	var last error
	for _, addr := range known {
		conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
		if err == nil {
			return conn, nil
		}
		last = err
	}
	return nil, last
}

// control looks at the address that is about to be dialled, whatever its
// name was.
func (d *tokenDialer) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if d.forbidden(to) {
		return errOwnAddress
	}
	if d.never("", to.Addr()) {
		return errNever
	}
	return nil
}

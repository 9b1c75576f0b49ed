package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// laterEnd returns how a grant lasts longer.
func laterEnd(cfg *configs.Config) string {
	if cfg.Trust != nil {
		return "have it approved and issued again"
	}
	return "write a later notAfter"
}

// checkExpiry finds grants that have ended or end soon.
func checkExpiry(cfg *configs.Config, now time.Time) []Finding {
	var out []Finding
	for _, g := range cfg.Grants {
		f := Finding{Name: "grant " + g.Name + " until " + g.NotAfter.UTC().Format(time.RFC3339), Category: "grants", Code: "grants.expiry", OK: true}
		switch left := g.NotAfter.Sub(now); {
		case left <= 0:
			f.OK, f.Problem, f.Lost = false, "it has ended", "its accesses are refused"
			f.Remedy = laterEnd(cfg) + ", or remove the grant"
		case left <= configs.ExpiryNotice:
			f.OK, f.Problem, f.Remedy = false, "it ends in "+configs.Until(now, g.NotAfter), laterEnd(cfg)+" if it is still needed"
		}
		out = append(out, f)
	}
	return out
}

// checkNames resolves the exact names that are granted, as the sidecar would, and
// finds addresses that no rule allows.
func checkNames(ctx context.Context, cfg *configs.Config) []Finding {
	engine := &authz.Engine{}
	engine.Install(cfg.Policy)
	var out []Finding
	for _, host := range configs.ExactHosts(cfg.Grants) {
		f := Finding{Name: "name " + host, Category: "names", Code: "names.resolve", OK: true}
		addresses, static := cfg.Sidecar.DNS.Hosts[host]
		if !static {
			var err error
			if addresses, err = lookUp(ctx, host, cfg.Sidecar.DNS.Servers); err != nil {
				f.OK, f.Problem = false, err.Error()
				f.Lost, f.Remedy = "requests to it answer upstream_unreachable", "check the name; a local one takes dns.hosts, or dns.servers that resolve it"
			}
		}
		if refused := refusedAddress(engine.Current(), cfg, host, addresses); f.OK && refused != "" {
			f.OK, f.Problem, f.Code = false, refused, "names.address"
			f.Lost, f.Remedy = "requests that resolve there answer address_not_allowed", "state to.addresses on the rule, if the name is meant to resolve there"
		}
		out = append(out, f)
	}
	return out
}

// lookUp resolves a name by each of the servers, or by the host's, without the
// host's search list. Its error names the server that was asked.
func lookUp(ctx context.Context, host string, servers []netip.AddrPort) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if len(servers) == 0 {
		found, err := upstream.NewResolver(nil).LookupNetIP(ctx, "ip", host+".")
		return found, lookUpError(err, "the host's name servers")
	}
	var all []netip.Addr
	var failed error
	for _, server := range servers {
		found, err := upstream.NewResolver([]netip.AddrPort{server}).LookupNetIP(ctx, "ip", host+".")
		all = append(all, found...)
		failed = errors.Join(failed, lookUpError(err, server.String()))
	}
	return all, failed
}

// lookUpError describes the failure of a look-up. The error of package net
// names the server of resolv.conf, whichever was asked.
func lookUpError(err error, asked string) error {
	if err == nil {
		return nil
	}
	if failed, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case failed.IsNotFound:
			return fmt.Errorf("%s: no such name", asked)
		case failed.IsTimeout:
			return fmt.Errorf("%s: no answer in time", asked)
		}
		return fmt.Errorf("%s: %s", asked, failed.Err)
	}
	return fmt.Errorf("%s: %w", asked, err)
}

// refusedAddress returns which address of a host no rule for it allows; "" for none.
func refusedAddress(s *authz.Snapshot, cfg *configs.Config, host string, addresses []netip.Addr) string {
	for _, g := range cfg.Grants {
		for _, r := range g.Rules {
			req, ok := sampleRequest(authz.Principal(cfg.Sidecar.Plugin), r, host)
			if !ok {
				continue
			}
			d := s.Decide(req, authz.Usage{}, time.Now())
			if !d.Allowed() {
				continue
			}
			for _, addr := range addresses {
				if d.CheckAddress(addr) == authz.AddressNotAllowed {
					return fmt.Sprintf("resolves to %s, which rule %s/%s does not allow", addr.Unmap(), d.Grant, d.Rule)
				}
			}
		}
	}
	return ""
}

// sampleRequest returns a request that a rule grants at one of its hosts.
func sampleRequest(p authz.Principal, r authz.Rule, host string) (authz.Request, bool) {
	scheme := r.To.Scheme
	if scheme == "" {
		scheme = authz.SchemeHTTPS
	}
	authority := host
	if len(r.To.Ports) > 0 {
		authority = fmt.Sprintf("%s:%d", host, r.To.Ports[0])
	}
	req := authz.Request{Principal: p}
	path := ""
	if scheme.HTTP() {
		if len(r.Methods) == 0 || len(r.Paths) == 0 {
			return req, false
		}
		req.Action.Method = strings.Replace(r.Methods[0], "*", "GET", 1)
		path = strings.ReplaceAll(r.Paths[0], "*", "x")
	}
	var err error
	req.Destination, err = authz.NewDestination(scheme, authority, path)
	return req, err == nil && slices.Contains(r.To.Hosts, host)
}

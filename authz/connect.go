package authz

import (
	"net"
	"slices"
	"strconv"
	"time"
)

// HostAttempt is an access to a host that is refused before its request is known:
// a CONNECT, a TLS handshake, a DNS query.
type HostAttempt struct {
	Principal Principal
	Host      string // canonical
	Port      uint16
	Connect   bool   // a CONNECT
	HostOnly  bool   // a DNS query; Port is the one that the plugin would most likely use
	Detail    string // one line of text: what is wrong
}

// RefuseHost refuses an access to a host at the time now and records it. Reason,
// nearest rule and remedy are those of the smallest access to the host: an http
// request on http's port, an https request on any other. The remedy so does not
// suggest an uninspected tunnel to a host that speaks HTTP, unless rules for this
// host grant tunnels and no requests. The error is for the operator's log.
func (g *Gate) RefuseHost(s *Snapshot, a HostAttempt, now time.Time, src Source) (Refusal, error) {
	scheme := s.likelyScheme(a.Principal, a.Host, a.Port)
	authority := net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
	attempt := Attempt{
		Principal: a.Principal, URL: string(scheme) + "://" + authority, Host: a.Host, HostOnly: a.HostOnly, Connect: a.Connect, Detail: a.Detail,
	}
	target := ""
	if scheme.HTTP() {
		target = "/"
	}
	destination, err := NewDestination(scheme, authority, target)
	if err != nil {
		return g.Refuse(MalformedRequest, attempt, src)
	}
	e := s.ExplainHost(a.Principal, destination, now)
	reason := e.Decision.Reason
	if reason.Allowed() {
		reason = DestinationNotGranted // it was granted in between
	}
	refusal, err := g.Refuse(reason, attempt, src)
	refusal.Nearest = e.Nearest
	if e.Remedy != "" {
		refusal.Remedy = e.Remedy
	}
	return refusal, err
}

// RefuseConnect refuses a CONNECT if no rule grants a tunnel to its destination,
// with the text of [Gate.RefuseHost], and reports whether it did. [Gate.Admit]
// decides any other. The error is for the operator's log.
func (g *Gate) RefuseConnect(p Principal, to Destination, src Source) (refusal Refusal, refused bool, err error) {
	s, now := g.cfg.Engine.Current(), g.cfg.Now()
	switch d := s.Decide(Request{Principal: p, Destination: to}, g.cfg.Ledger.Usage(), now); d.Reason {
	case DestinationNotGranted, NoGrant:
	default:
		return Refusal{}, false, nil
	}
	detail := string(p) + " may not connect to " + to.HostPort()
	if schemes := s.Schemes(p, to.host, to.port, now); slices.ContainsFunc(schemes, Scheme.HTTP) {
		url := string(schemes[0]) + "://" + to.HostPort()
		refusal, err = g.Refuse(DestinationNotGranted, Attempt{Principal: p, URL: url, Connect: true, Detail: detail + " by a tunnel"}, src)
		refusal.Remedy = "send the request itself instead of CONNECT: rules grant requests to this host, and a tunnel's content is not inspected here"
		return refusal, true, err
	}
	refusal, err = g.RefuseHost(s, HostAttempt{Principal: p, Host: to.host, Port: to.port, Connect: true, Detail: detail}, now, src)
	return refusal, true, err
}

// ExplainConnection is [Snapshot.ExplainHost] for a connection to a host and port, by the
// scheme that the plugin most likely uses there. Its error reports a host that is not valid.
func (s *Snapshot) ExplainConnection(p Principal, host string, port uint16, now time.Time) (Explanation, error) {
	scheme, target := s.likelyScheme(p, host, port), ""
	if scheme.HTTP() {
		target = "/"
	}
	destination, err := NewDestination(scheme, net.JoinHostPort(host, strconv.Itoa(int(port))), target)
	if err != nil {
		return Explanation{}, err
	}
	return s.ExplainHost(p, destination, now), nil
}

// likelyScheme returns the scheme that a plugin most likely uses with a host and port.
func (s *Snapshot) likelyScheme(p Principal, host string, port uint16) Scheme {
	switch port {
	case SchemeHTTP.DefaultPort():
		return SchemeHTTP
	case SchemeHTTPS.DefaultPort():
		return SchemeHTTPS
	}
	var named []Scheme
	if pol := s.pluginPolicy(p); pol != nil {
		for e := range pol.candidates(host) {
			named = append(named, e.rule.scheme)
		}
	}
	switch {
	case len(named) == 0, slices.ContainsFunc(named, Scheme.HTTP):
		return SchemeHTTPS
	case slices.Contains(named, SchemeTCP):
		return SchemeTCP
	}
	return named[0]
}

package extauthz

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
)

// access is the access that one CheckRequest asks for.
type access struct {
	request authz.Request
	source  authz.Source
	headers []header // names in lower case

	connection bool   // a check of the network filter, without headers
	connect    bool   // a CONNECT that opens a tunnel
	grpc       bool   // the plugin speaks gRPC and wants a gRPC status
	rewritable bool   // the caller accepts new values for :path, :authority, :scheme and the query
	lossy      bool   // the caller may have replaced bytes that are not UTF-8 by !
	authority  string // as sent
	target     string // as sent: path and query
	cookie     []string
	hop        []string // values of Connection
	remove     []string // headers of this request that must be removed
}

// rejection is the reason why a CheckRequest is not an access.
type rejection struct {
	reason  authz.Reason
	attempt authz.Attempt
	remedy  string // "" for the reason's default
}

// read turns a CheckRequest into an access of principal. The attempt of a rejection
// holds the fields that were known by then.
//
// The fields that Envoy, agentgateway and gRPC set are described in
// envoy/service/auth/v3/attribute_context.proto, Envoy's
// source/extensions/filters/common/ext_authz/check_request_utils.cc,
// agentgateway's crates/agentgateway/src/http/ext_authz.rs and gRFC A92.
func (s *Server) read(c *check, principal authz.Principal) (*access, *rejection) {
	a := &access{source: authz.Source{Door: authz.DoorExtAuthz, UID: -1}}
	a.request.Principal = principal
	var f *rejection
	switch {
	case !c.attributes:
		f = requestLine{}.malformed("the check has no attributes")
	case !c.http:
		f = s.readConnection(a, c)
	default:
		f = s.readHTTP(a, c)
	}
	if f != nil {
		f.attempt.Principal = principal
		return nil, f
	}
	return a, nil
}

// readConnection reads a check of the network filter, which has no request. Envoy
// states the server name in destination.service and, with include_tls_session, in
// tls_session as well. A virtual address that the plugin dialled also identifies the
// host.
func (s *Server) readConnection(a *access, c *check) *rejection {
	a.connection = true
	to, sni := c.dialled, cmp.Or(c.sni, c.service)
	port := strconv.FormatUint(uint64(to.port), 10)
	l := requestLine{scheme: string(authz.SchemeTLS), authority: sni + ":" + port}
	switch {
	case to.port == 0 || to.udp:
		return l.malformed("the connection's destination is not a TCP address with a port")
	case !strings.EqualFold(sni, cmp.Or(c.service, c.sni)):
		return l.mismatch("the connection is for " + quote(c.sni) + " and for " + quote(c.service))
	}
	if name, ok := s.virtualName(to.address); ok {
		return s.readNamed(a, name+":"+port, l, sni)
	}
	if sni == "" {
		addr, err := netip.ParseAddr(to.address)
		if err != nil {
			return l.malformed("the connection has no server name, and its destination " + quote(to.address) + " is not an address")
		}
		l.scheme, l.authority = string(authz.SchemeTCP), net.JoinHostPort(addr.String(), port)
	}
	return a.readDestination(l)
}

// readNamed reads a connection to a virtual address, whose name must equal the server
// name if there is one. If the host is granted by scheme tcp, the connection is a tcp
// tunnel whatever it carries, as in the sidecar's own proxy; otherwise a connection
// with a server name is TLS.
func (s *Server) readNamed(a *access, authority string, l requestLine, sni string) *rejection {
	named := requestLine{scheme: string(authz.SchemeTCP), authority: authority}
	if f := a.readDestination(named); f != nil {
		return f
	}
	to := a.request.Destination
	switch {
	case sni == "":
		return nil
	case !to.AgreesName(sni):
		return l.mismatch("the server name is " + quote(sni) + ", the connection is for " + to.HostPort())
	case slices.Contains(s.cfg.Gate.Schemes(a.request.Principal, to), authz.SchemeTCP):
		return nil
	}
	return a.readDestination(l)
}

// virtualName returns the name of a virtual address.
func (s *Server) virtualName(address string) (string, bool) {
	if s.cfg.Name == nil {
		return "", false
	}
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return "", false
	}
	return s.cfg.Name(addr.Unmap())
}

// readHTTP reads a request. Callers state an attribute, a pseudo header, or both;
// both must then agree.
func (s *Server) readHTTP(a *access, c *check) *rejection {
	a.headers = c.headers()
	// gRPC's filter accepts no change of a pseudo header or the query; it is
	// recognised by the fields that only it leaves out and sets (gRFC A92).
	a.rewritable = c.size != -1 || c.scheme != "" || c.id != ""
	a.lossy = c.raw == nil
	h, detail := a.scan()
	l := requestLine{
		method:    cmp.Or(c.method, h.method),
		scheme:    lower(cmp.Or(c.scheme, h.scheme, string(authz.SchemeHTTPS))),
		authority: cmp.Or(c.authority, h.authority, h.host),
		target:    cmp.Or(c.path, h.path),
	}
	if detail == "" {
		detail = l.reconcile(c, &h)
	}
	if detail != "" {
		return l.malformed(detail)
	}
	if a.rewritable && !h.shown {
		return l.headersHidden()
	}
	a.grpc = httpclean.IsGRPC(h.contentType) || !a.rewritable
	a.source.Trace(h.traceparent)
	sni := c.sni
	var f *rejection
	switch {
	case l.method != "CONNECT":
		f = a.readAction(l, h.upgrade)
	case h.protocol != "":
		l.method = "GET" // an upgrade by another name (RFC 8441, section 5)
		f = a.readAction(l, h.protocol)
	case l.target != "" && l.target != "/":
		f = l.malformed("CONNECT has a path")
	default: // its target is an authority with a port (RFC 9110, section 9.3.6)
		l.scheme, l.target = string(authz.SchemeTCP), ""
		a.connect = true
		sni = "" // the name of the proxy that received the CONNECT
		f = a.readDestination(l)
	}
	if f == nil {
		f = s.resolveVirtual(a, l, c.dialled)
	}
	if f != nil {
		return f
	}
	return a.checkAgreement(l, sni, h.authority, h.host)
}

// resolveVirtual replaces virtual addresses by their names: in the request's host,
// and in the address that the plugin dialled, with which the request must agree. For
// a CONNECT the dialled address is the proxy's.
func (s *Server) resolveVirtual(a *access, l requestLine, dialled socket) *rejection {
	if s.cfg.Name == nil {
		return nil
	}
	to := a.request.Destination
	if name, ok := s.virtualName(to.Host()); ok {
		sent := a.authority
		named := l
		named.authority = name + ":" + strconv.Itoa(int(to.Port()))
		if f := a.readDestination(named); f != nil {
			return f
		}
		a.authority, to = sent, a.request.Destination
	}
	if name, ok := s.virtualName(dialled.address); ok && to.Scheme().HTTP() && (!to.AgreesName(name) || uint32(to.Port()) != dialled.port) {
		return l.mismatch("the request is for " + to.HostPort() + " on a connection to " + name + ":" + strconv.FormatUint(uint64(dialled.port), 10))
	}
	return nil
}

// requestLine is a request's first line, as sent.
type requestLine struct{ method, scheme, authority, target string }

func (l requestLine) url() string {
	if l == (requestLine{}) {
		return ""
	}
	path, _, _ := strings.Cut(l.target, "?")
	return l.scheme + "://" + l.authority + path
}

func (l requestLine) malformed(detail string) *rejection {
	return &rejection{reason: authz.MalformedRequest, attempt: authz.Attempt{Method: l.method, URL: l.url(), Detail: detail}}
}

// headersHidden refuses a request of which only some headers are shown: the plugin's
// cookies and a credential's placeholder could be in the others, and headers that must
// be removed would be missed. Envoy and agentgateway show :method among the headers,
// unless allowed_headers leaves it out; gRPC's own filter shows no pseudo headers.
func (l requestLine) headersHidden() *rejection {
	return &rejection{
		reason: authz.NotEnforceableHere, remedy: "ask the operator to show every header: remove allowed_headers from the ext_authz filter",
		attempt: authz.Attempt{Method: l.method, URL: l.url(), Detail: "the caller shows only some of the request's headers"},
	}
}

// reconcile adds the query if the caller states it separately, which Envoy does not,
// and returns the fault of attributes that contradict each other.
func (l *requestLine) reconcile(c *check, s *pseudoHeaders) string {
	differ := func(attribute, header string) bool {
		return attribute != "" && header != "" && attribute != header
	}
	switch {
	case differ(c.method, s.method):
		return "the attribute method and the header :method differ"
	case differ(c.path, s.path):
		return "the attribute path and the header :path differ"
	case differ(lower(c.scheme), lower(s.scheme)):
		return "the attribute scheme and the header :scheme differ"
	}
	if _, in, has := strings.Cut(l.target, "?"); has && c.query != "" && in != c.query {
		return "the attributes path and query differ"
	} else if !has && c.query != "" {
		l.target += "?" + c.query
	}
	return ""
}

// readAction reads a request to an http or https destination.
func (a *access) readAction(l requestLine, upgrade string) *rejection {
	action, err := authz.NewAction(l.method, upgrade)
	switch {
	case err != nil:
		return l.malformed(err.Error())
	case l.scheme != string(authz.SchemeHTTPS) && l.scheme != string(authz.SchemeHTTP):
		return l.malformed("scheme " + quote(l.scheme) + " is not http or https")
	case l.target == "":
		return l.malformed("path is missing")
	}
	a.request.Action = action
	return a.readDestination(l)
}

func (a *access) readDestination(l requestLine) *rejection {
	to, err := authz.NewDestination(authz.Scheme(l.scheme), l.authority, l.target)
	if err != nil {
		return l.malformed(err.Error())
	}
	a.request.Destination, a.authority, a.target = to, l.authority, l.target
	return nil
}

// checkAgreement refuses a request that names different hosts.
func (a *access) checkAgreement(l requestLine, sni string, authorities ...string) *rejection {
	to := a.request.Destination
	for _, authority := range authorities {
		if authority != "" && authority != l.authority && !to.Agrees(authority) {
			return l.mismatch("the request is for " + quote(l.authority) + " and for " + quote(authority))
		}
	}
	if sni != "" && !to.AgreesName(sni) {
		return l.mismatch("the request is for " + to.Host() + " on a connection for " + quote(sni))
	}
	return nil
}

func (l requestLine) mismatch(detail string) *rejection {
	return &rejection{reason: authz.DestinationMismatch, attempt: authz.Attempt{Method: l.method, URL: l.url(), Detail: detail}}
}

// pseudoHeaders are the headers that read uses, pseudo headers and others.
type pseudoHeaders struct {
	method, authority, scheme, path, protocol string
	host, upgrade, contentType, traceparent   string

	shown bool   // the request shows pseudo headers
	twice string // a header that is repeated but must be unique
}

// scan reads the headers in one pass: it collects the ones that read uses and those
// that must be removed, and returns the fault of an invalid request, "" without one.
func (a *access) scan() (s pseudoHeaders, detail string) {
	for _, h := range a.headers {
		if detail = checkHeader(h.name, h.value); detail != "" {
			break
		}
		if !s.set(h.name, h.value) {
			a.collectRemovals(h.name, h.value)
		}
		if s.twice != "" {
			return s, "the header " + quote(s.twice) + " is there twice"
		}
	}
	return s, detail
}

// set keeps the value of a header that read uses and reports whether it is one.
func (s *pseudoHeaders) set(name, value string) bool {
	var to *string
	switch name {
	case ":method":
		to, s.shown = &s.method, true
	case ":authority":
		to = &s.authority
	case ":scheme":
		to = &s.scheme
	case ":path":
		to = &s.path
	case ":protocol":
		to = &s.protocol
	case "host":
		to = &s.host
	case "upgrade":
		to = &s.upgrade
	case "content-type":
		s.contentType = cmp.Or(s.contentType, value)
		return true
	case "traceparent":
		s.traceparent = cmp.Or(s.traceparent, value)
		return true
	default:
		return false
	}
	if *to != "" {
		s.twice = name
	}
	*to = value
	return true
}

// collectRemovals keeps cookies, the values of Connection, and the names of
// headers that must not reach an upstream. Headers that the caller consumes itself
// stay: removing them would break upgrades, gRPC and the framing of bodies.
func (a *access) collectRemovals(name, value string) {
	switch {
	case name == "cookie":
		a.cookie = append(a.cookie, value)
	case name == "connection":
		a.hop = append(a.hop, value)
	case httpclean.Classify(name) != httpclean.ClassNone && !httpclean.ConsumedByHTTP(name):
		a.remove = append(a.remove, name)
	}
}

// headers returns the request's headers, in the form that the caller chose, with
// lower-case names.
func (c *check) headers() []header {
	list := c.raw
	if list == nil {
		list = c.folded
	}
	for i := range list {
		list[i].name = lower(list[i].name)
	}
	return list
}

// checkHeader returns the fault of a header, "" without one. A value may hold bytes
// outside UTF-8, but not line endings.
func checkHeader(name, value string) string {
	if !httpclean.IsToken(strings.TrimPrefix(name, ":")) {
		return "the header name " + quote(name) + " is not a token"
	}
	if strings.IndexByte(value, 0) >= 0 || strings.IndexByte(value, '\r') >= 0 || strings.IndexByte(value, '\n') >= 0 {
		return "the header " + quote(name) + " holds NUL, CR or LF"
	}
	return ""
}

// lower returns name in lower case, without a copy if it already is.
func lower(name string) string {
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			return strings.ToLower(name)
		}
	}
	return name
}

// quote returns s quoted for display, truncated to fit a line.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

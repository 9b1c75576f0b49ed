package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// ServeHTTP handles one request of the plugin: one on a kept-alive connection, one HTTP/2
// stream, or one CONNECT. Each is decided.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.inflight.Enter()
	defer p.inflight.Leave()
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		panic(http.ErrAbortHandler) // not a connection of ours
	}
	if c.ended.Load() {
		panic(http.ErrAbortHandler) // net/http's read-ahead is not a request
	}
	c.answering.Store(true)
	first := r.ProtoMajor == 2 && !c.isHTTP2.Swap(true)
	c.HeadRead()
	held := p.budget.Hold()
	defer held.End()
	c.requests.Add(1)
	unread := "" // why its head is malformed
	if c.frames != nil && r.ProtoMajor == 2 {
		unread = c.frames.BeginRequest(r)
		defer c.frames.EndRequest(r)
	}
	defer p.deny(r, c)
	if c.http1.scanner != nil && r.ProtoMajor == 1 {
		c.http1.host, c.http1.unclear = c.http1.scanner.Take(r) // of every request, also of a refused one
	}
	switch f := p.admissible(r, c); {
	case !c.makeRoom(r, first, held):
		p.refuseHeld(w, r, c)
	case f != nil:
		p.refuse(w, r, c, f)
	case unread != "":
		p.refuse(w, r, c, session.Malformed(unread))
	case r.Method == http.MethodConnect:
		p.connect(w, r, c, held)
	default:
		p.request(w, r, c, held)
	}
}

// makeRoom reserves memory for a request, and with the first one over HTTP/2 the
// additional memory of its connection.
func (c *conn) makeRoom(r *http.Request, first bool, held *budget.Holding) bool {
	request, connection := requestSize(r, first)
	if c.Memory.Take(budget.Connection, connection) != nil {
		c.isHTTP2.Store(false) // the next is the first
		return false
	}
	return held.Take(budget.Request, request) == nil
}

// refuseHeld refuses a request for lack of memory.
func (p *Proxy) refuseHeld(w http.ResponseWriter, r *http.Request, c *conn) {
	e := session.ErrOutOfMemory()
	refusal := p.report(p.cfg.Gate.Refuse(e.Reason, p.attempt(r, c, e.Detail), c.Source))
	refusal.Remedy, refusal.RetryAfter = e.Remedy, e.RetryAfter
	p.answer(w, r, refusal)
}

// deny turns a panic into the end of the connection: an unexpected failure is refused.
func (p *Proxy) deny(r *http.Request, c *conn) {
	cause := recover()
	if cause == nil {
		return
	}
	if err, ok := cause.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		// The value may hold anything; the stack holds no arguments' contents.
		p.cfg.Log.Error("request handler panicked", zap.ByteString("stack", debug.Stack()))
		p.report(p.cfg.Gate.Refuse(authz.NotReady, p.attempt(r, c, "internal error"), c.Source))
	}
	if r.Method == http.MethodConnect {
		_ = c.Cut() // net/http may not own it any more
	}
	panic(http.ErrAbortHandler) // a partly written answer stays incomplete
}

// admissible refuses connections whose caller is not proved, that the Envoy does not
// accept, or whose names disagree.
func (p *Proxy) admissible(r *http.Request, c *conn) *session.RefusalError {
	switch {
	case p.cfg.Identify != nil && !c.Proved:
		return &session.RefusalError{Reason: authz.IdentityUnknown, Detail: "the kernel does not attribute the connection to a plugin"}
	case p.cfg.Identify == nil && c.mode == explicit && !p.authentic(r.Header):
		return &session.RefusalError{Reason: authz.IdentityUnknown, Detail: "the proxy token is missing or wrong"}
	case c.refusal != nil:
		return c.refusal
	case c.mismatch != "":
		return session.Mismatch(c.mismatch)
	}
	return nil
}

// authentic reports whether a request carries the proxy token. Digests are
// compared so that the time does not reveal the length either.
func (p *Proxy) authentic(h http.Header) bool {
	if p.cfg.Token.Empty() {
		return false
	}
	values := h["Proxy-Authorization"]
	if len(values) != 1 {
		return false
	}
	scheme, encoded, _ := strings.Cut(values[0], " ")
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil || !strings.EqualFold(scheme, "Basic") {
		return false
	}
	got := sha256.Sum256(decoded)
	want := sha256.Sum256([]byte("chaperone:" + p.cfg.Token.Reveal()))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// request admits an HTTP request and carries it out.
func (p *Proxy) request(w http.ResponseWriter, r *http.Request, c *conn, held *budget.Holding) {
	req, f := p.convert(r, c)
	if f != nil {
		p.refuse(w, r, c, f)
		return
	}
	source := c.Source
	if v := r.Header["Traceparent"]; len(v) == 1 {
		source.Trace(v[0])
	}
	admission, err := p.cfg.Gate.Admit(r.Context(), req, source)
	if err != nil {
		p.cfg.Log.Warn("request admission failed", zap.String("decision", admission.ID), zap.Error(err))
	}
	if admission.Refusal != nil {
		c.Attribution.Refused()
		p.answer(w, r, p.report(*admission.Refusal, nil))
		return
	}
	p.exchange(w, r, c, admission, held)
}

// convert returns the canonical form of an HTTP request. All names of the destination in
// it must agree.
func (p *Proxy) convert(r *http.Request, c *conn) (authz.Request, *session.RefusalError) {
	scheme, authority, target, f := destinationOf(r, c)
	if f != nil {
		return authz.Request{}, f
	}
	destination, err := authz.NewDestination(scheme, authority, target)
	if err != nil {
		return authz.Request{}, session.Malformed(err.Error())
	}
	if f := agree(r, c, destination); f != nil {
		return authz.Request{}, f
	}
	action, err := authz.NewAction(r.Method, "")
	if err != nil {
		return authz.Request{}, session.Malformed(err.Error())
	}
	request := authz.Request{Principal: p.cfg.Plugin, Action: action, Destination: destination}
	if err := p.chooseUpgrade(&request, upgradesOf(r)); err != nil {
		return authz.Request{}, session.Malformed(err.Error())
	}
	return request, nil
}

// chooseUpgrade adds the first granted protocol that a request asks to change to to its
// action. If none of them is granted, the request is served without a change (RFC 9110,
// section 7.8), unless WebSocket is among them: its client cannot use an ordinary answer.
func (p *Proxy) chooseUpgrade(request *authz.Request, asked []string) error {
	for _, protocol := range asked {
		action, err := authz.NewAction(request.Action.Method, protocol)
		if err != nil {
			return err
		}
		candidate := *request
		candidate.Action = action
		if len(asked) == 1 || p.cfg.Engine.Current().Decide(candidate, authz.Usage{}, p.cfg.Now()).Allowed() {
			*request = candidate
			return nil
		}
	}
	if httpclean.HasToken(asked, "websocket") {
		request.Action.Upgrade = "websocket"
	}
	return nil
}

// destinationOf returns the destination that a request names.
func destinationOf(r *http.Request, c *conn) (scheme authz.Scheme, authority, target string, f *session.RefusalError) {
	absolute, hasAbsolute := "", r.URL.Scheme != "" && r.URL.Opaque == ""
	if hasAbsolute {
		_, absolute, hasAbsolute = strings.Cut(r.RequestURI, "://")
	}
	switch {
	case r.ProtoMajor == 2 && c.mode == explicit:
		return authz.SchemeHTTP, r.Host, r.RequestURI, nil // h2c with prior knowledge
	case c.mode == explicit && !hasAbsolute:
		return "", "", "", session.Malformed("the request to the proxy has no absolute URI; write GET http://host/path (RFC 9112, section 3.2.2)")
	case c.mode == explicit:
		scheme, authority, target = splitAbsolute(r.URL.Scheme, absolute)
		if !scheme.HTTP() {
			return "", "", "", session.Malformed("the scheme of the request to the proxy is " + session.Quote(string(scheme)) + "; use http or https")
		}
		return scheme, authority, target, nil
	case hasAbsolute:
		// The URI may name another destination than the connection, and net/http discards
		// the Host field beside it.
		if _, authority, _ = splitAbsolute(r.URL.Scheme, absolute); c.host != "" && !strings.EqualFold(authority, c.host) {
			return "", "", "", session.Mismatch("the request names " + session.Quote(authority) + ", its connection is for " + session.JoinHostPort(c.host, c.port))
		}
		return "", "", "", session.Malformed("the request has an absolute URI; to a server, write GET /path and Host")
	case c.host != "":
		return c.scheme, session.JoinHostPort(c.host, c.port), r.RequestURI, nil
	case r.Host != "": // redirected by address, without SNI: Host decides
		return c.scheme, session.WithPort(r.Host, c.port), r.RequestURI, nil
	}
	return c.scheme, session.JoinHostPort(c.Original.Addr().Unmap().String(), c.port), r.RequestURI, nil
}

// splitAbsolute splits what follows scheme:// into authority and origin-form.
func splitAbsolute(scheme, rest string) (s authz.Scheme, authority, target string) {
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		return authz.Scheme(strings.ToLower(scheme)), rest, "/"
	}
	authority, target = rest[:end], rest[end:]
	if target[0] != '/' {
		target = "/" + target
	}
	return authz.Scheme(strings.ToLower(scheme)), authority, target
}

// agree refuses a request whose names disagree: the absolute URI, Host and
// :authority, and the connection's own name.
func agree(r *http.Request, c *conn, d authz.Destination) *session.RefusalError {
	if r.Host != "" && !d.Agrees(r.Host) {
		return session.Mismatch("the request names " + session.Quote(r.Host) + ", its connection is for " + d.HostPort())
	}
	for _, host := range r.Header["Host"] { // HTTP/2: beside :authority
		if !d.Agrees(host) {
			return session.Mismatch("Host is " + session.Quote(host) + ", the request is for " + d.HostPort())
		}
	}
	if c.http1.scanner != nil && r.ProtoMajor == 1 {
		return c.agreeWire(d)
	}
	return nil
}

// agreeWire refuses a request whose Host, as it was on the wire beside an
// absolute URI or in a CONNECT, disagrees with its destination.
func (c *conn) agreeWire(d authz.Destination) *session.RefusalError {
	switch {
	case c.http1.unclear:
		return session.Malformed("the framing of the request is ambiguous")
	case c.http1.host != "" && !d.Agrees(c.http1.host):
		return session.Mismatch("Host is " + session.Quote(c.http1.host) + ", the request is for " + d.HostPort())
	}
	return nil
}

// upgradesOf returns the protocols that a request asks to change to. HTTP/1.0 has no
// Upgrade, and without the option of Connection it was for another hop (RFC 9110, section
// 7.8).
func upgradesOf(r *http.Request) []string {
	if r.ProtoMajor != 1 || r.ProtoMinor == 0 || !httpclean.HasToken(r.Header["Connection"], "upgrade") {
		return nil
	}
	return authz.UpgradesAsked(r.Header["Upgrade"])
}

// refuse refuses a request that was not converted.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, c *conn, f *session.RefusalError) {
	c.Attribution.Refused()
	r.Close = r.Close || f == c.refusal // the next connection may be served
	p.answer(w, r, p.report(p.cfg.Gate.Refuse(f.Reason, p.attempt(r, c, f.Detail), c.Source)))
}

// attempt describes a request that was not converted.
func (p *Proxy) attempt(r *http.Request, c *conn, detail string) authz.Attempt {
	return authz.Attempt{Principal: p.cfg.Plugin, Method: r.Method, URL: describe(r), Scheme: c.scheme, Host: c.host, Detail: detail}
}

// describe returns a request's URL without its query, which may hold anything.
func describe(r *http.Request) string {
	uri, _, _ := strings.Cut(r.RequestURI, "?")
	if strings.HasPrefix(uri, "/") && r.Host != "" {
		return "//" + r.Host + uri
	}
	return uri
}

// answer writes a refusal, the same at every enforcement point. It does not wait for a
// body: a connection on which one is still arriving ends with the answer.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, refusal authz.Refusal) {
	if refusal.Reason == authz.IdentityUnknown && p.cfg.Identify != nil {
		r.Close = true // no request on it can be attributed
	}
	if c, ok := r.Context().Value(connKey{}).(*conn); ok && r.ProtoMajor == 1 && (c.ended.Load() || !finishBody(r, maxFinished, bodyPatience)) {
		_ = http.NewResponseController(w).EnableFullDuplex() // net/http would read the body first
		r.Close = true
		defer c.endReading()
	}
	h := w.Header()
	clear(h)
	h[authz.HeaderReason] = []string{refusal.Reason.String()} // in lower case on the wire too
	h[authz.HeaderDecision] = []string{refusal.Decision}
	if retry := refusal.RetrySeconds(); retry != "" {
		h["Retry-After"] = []string{retry}
	}
	if isGRPC(r.Header) {
		h["Content-Type"] = []string{"application/grpc"}
		h["Grpc-Status"] = []string{strconv.Itoa(httpclean.GRPCStatus(refusal.Status()))}
		h["Grpc-Message"] = []string{httpclean.GRPCMessage(refusal.Line())}
		w.WriteHeader(http.StatusOK)
		return
	}
	status := refusal.Status()
	if refusal.Reason == authz.IdentityUnknown && p.cfg.Identify == nil && len(r.Header["Proxy-Authorization"]) == 0 {
		// Clients that hold the token send it when they are challenged.
		status = http.StatusProxyAuthRequired
		h["Proxy-Authenticate"] = []string{`Basic realm="chaperone"`}
	}
	body := refusal.Body()
	h["Content-Type"] = []string{authz.RefusalContentType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if r.Close && r.ProtoMajor == 1 {
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // the body is JSON with its type; an error means that the plugin has disconnected
}

// isGRPC reports whether a request expects a gRPC status.
func isGRPC(h http.Header) bool {
	return len(h["Content-Type"]) == 1 && httpclean.IsGRPC(h["Content-Type"][0])
}

package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/sigv4"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// outbound creates the request that is sent. It reuses the plugin's header map, which
// net/http no longer needs. The slot is emptied, the rest is searched for placeholders,
// and only then is the credential injected.
func (x *exchange) outbound(ctx context.Context) (*http.Request, error) {
	destination, slot, h := x.admission.Request.Destination, x.admission.Injection, x.r.Header
	if e := x.sendsInClear(); e != nil {
		return nil, e
	}
	upgrade := x.askedUpgrade(h)
	stripRequest(h, slot)
	query := emptySlot(h, destination, slot)
	if x.placeholders = x.proxy.placeholders.Matcher(); x.placeholders != nil {
		if e := x.placeholders.InRequest(x.admission.Request, query, h); e != nil {
			return nil, e
		}
	}
	x.askUpgrade(h, upgrade)
	if x.scrub != nil {
		x.scrub.ask(x.r.Method, h)
	}
	target := inject(h, destination, query, slot)
	out := &http.Request{
		Method: x.r.Method,
		// Opaque is sent unchanged: the canonical bytes that were decided.
		URL:           &url.URL{Scheme: string(destination.Scheme()), Host: destination.HostPort(), Opaque: target},
		Host:          destination.Authority(),
		Header:        h,
		ContentLength: x.r.ContentLength,
		Proto:         "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if x.r.ContentLength != 0 && x.r.Body != nil && x.r.Body != http.NoBody {
		x.body(out)
	}
	if slot.Kind == authz.InjectSigV4 {
		if err := x.sign(ctx, out, query); err != nil {
			return nil, err
		}
	}
	return out.WithContext(httptrace.WithClientTrace(upstream.WithAccess(ctx, x.admission, &x.upstream.attempts), &httptrace.ClientTrace{
		GotConn: x.gotConn, WroteHeaders: x.wroteHeaders, Got1xxResponse: x.passInformational,
		GotFirstResponseByte: func() { x.upstream.answered.Store(true) },
	})), nil
}

// sendsInClear refuses to send a credential where a third party could read it.
func (x *exchange) sendsInClear() *session.RefusalError {
	destination, slot := x.admission.Request.Destination, x.admission.Injection
	switch plain := destination.Scheme() != authz.SchemeHTTPS; {
	case slot.Kind == authz.InjectNone || !plain:
		return nil
	case slot.Kind == authz.InjectCertificate:
		return &session.RefusalError{Reason: authz.NotEnforceableHere, Detail: "a client certificate requires https"}
	case x.proxy.dialer.ViaProxy(destination):
		return &session.RefusalError{
			Reason: authz.NotEnforceableHere, Detail: "the credential would pass the upstream proxy unencrypted",
			Remedy: "use https, or list " + destination.Host() + " in upstreamProxy.noProxy",
		}
	}
	return nil
}

// askedUpgrade returns the protocol of the decided upgrade, in the plugin's spelling, or
// "".
func (x *exchange) askedUpgrade(h http.Header) string {
	for _, protocol := range authz.UpgradesAsked(h["Upgrade"]) {
		if strings.EqualFold(protocol, x.admission.Request.Action.Upgrade) {
			return protocol
		}
	}
	return ""
}

// askUpgrade requests the upgrade that was decided. Data that is searched must not be
// compressed, so that a WebSocket then has no extensions.
func (x *exchange) askUpgrade(h http.Header, upgrade string) {
	if upgrade == "" {
		return
	}
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{upgrade}
	if x.scrub == nil && x.placeholders == nil {
		return
	}
	x.extensionsDropped = true
	for name := range h {
		if httpclean.SameHeader(name, "Sec-Websocket-Extensions") {
			delete(h, name)
		}
	}
}

// sign signs the request. Its caller must not change it afterwards.
func (x *exchange) sign(ctx context.Context, out *http.Request, query string) error {
	slot, destination := x.admission.Injection, x.admission.Request.Destination
	r := &sigv4.Request{
		Method: out.Method, Scheme: string(destination.Scheme()), Host: out.Host, Path: destination.Path(), Query: query,
		Header: out.Header, Length: out.ContentLength,
	}
	if out.Body != nil {
		r.Body = &reservedReader{out.Body, x.reservation} // its bytes count only if Sign reads them
	}
	body, err := sigv4.Sign(ctx, r, sigv4.Scope{Service: slot.Service, Region: slot.Region},
		sigv4.Key{ID: slot.KeyID, Secret: slot.Value, Session: slot.Session}, x.proxy.cfg.Now())
	switch {
	case errors.Is(err, sigv4.ErrChunks):
		return unsignable(err, "have the SDK send the body unsigned or whole; over https most do")
	case errors.Is(err, sigv4.ErrBody):
		return unsignable(err, "send the body in parts of at most 16 MiB")
	case errors.Is(err, sigv4.ErrExceedsRule):
		return &session.RefusalError{
			Reason: authz.NotEnforceableHere, Detail: err.Error(),
			Remedy: "remove it: read and write the object instead of copying it, and let the bucket's owner set who may read it",
		}
	case errors.Is(err, sigv4.ErrQuery):
		return unsignable(err, "escape + and ; in the query")
	case err != nil:
		return err
	}
	if read := body != r.Body; read {
		out.Body, out.ContentLength, out.Trailer = readBody{body, out.Body}, r.Length, nil
	}
	return nil
}

// readBody is a body that was read to be signed.
type readBody struct {
	io.Reader
	io.Closer
}

// unsignable refuses a request that no signature can be made for.
func unsignable(err error, remedy string) *session.RefusalError {
	return &session.RefusalError{Reason: authz.MalformedRequest, Detail: "the request cannot be signed: " + err.Error(), Remedy: remedy}
}

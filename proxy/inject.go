package proxy

import (
	"net/http"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/proxy/sigv4"
)

// canonicalHeader returns the one canonical name of a header: servers that make
// variables of header names (CGI, WSGI, PHP) read X_Api_Key as X-Api-Key.
func canonicalHeader(name string) string {
	return http.CanonicalHeaderKey(httpclean.FoldName(name))
}

// inSlot reports whether a header is the slot of the credential or, with SigV4, part of
// the plugin's own signature.
func inSlot(name string, slot authz.Injection) bool {
	return slot.Kind == authz.InjectHeader && httpclean.SameHeader(name, slot.Name) ||
		slot.Kind == authz.InjectSigV4 && sigv4.Replaces(canonicalHeader(name))
}

// stripRequest removes headers that must not reach the upstream, and a header that the
// plugin put into the slot of the credential. Both come before the injection: a header
// that the plugin lists in Connection would otherwise remove the credential again.
func stripRequest(h http.Header, slot authz.Injection) {
	listed := connectionOptions(h)
	trailers := httpclean.HasToken(h["Te"], "trailers")
	for name := range h {
		if httpclean.Classify(name) != httpclean.ClassNone || inSlot(name, slot) || isListed(listed, name) {
			delete(h, name)
		}
	}
	if trailers {
		h["Te"] = []string{"trailers"} // gRPC requires it, and trailers are forwarded
	}
	if _, sent := h["User-Agent"]; !sent {
		h["User-Agent"] = nil // net/http would add its own
	}
}

// stripAnswer removes headers that must not reach the plugin: those of the connection to
// the upstream, Chaperone's own, and Alt-Svc, which would make the plugin bypass the
// proxy (RFC 7838).
func stripAnswer(h http.Header) {
	listed := connectionOptions(h)
	for name := range h {
		if !passesBack(name) || isListed(listed, name) {
			delete(h, name)
		}
	}
}

// passesBack reports whether a header or trailer of an answer may reach the plugin.
func passesBack(name string) bool {
	class := httpclean.Classify(name)
	return class != httpclean.ClassHop && class != httpclean.ClassOwn && !httpclean.SameHeader(name, "Alt-Svc")
}

// connectionOptions returns the folded names of the headers that Connection lists, nil
// for none.
func connectionOptions(h http.Header) map[string]bool {
	var listed map[string]bool
	for option := range httpclean.ConnectionOptions(h["Connection"]) {
		if listed == nil {
			listed = make(map[string]bool)
		}
		listed[option] = true
	}
	return listed
}

// isListed reports whether connectionOptions returned a header. Most messages list no
// header, and the folded name would be made for nothing.
func isListed(listed map[string]bool, name string) bool {
	return len(listed) > 0 && listed[httpclean.FoldName(name)]
}

// emptySlot removes a cookie, a query parameter or a signature that the plugin put into
// the slot of the credential, and returns the remaining query.
func emptySlot(h http.Header, d authz.Destination, slot authz.Injection) (query string) {
	switch slot.Kind {
	case authz.InjectCookie:
		if kept := httpclean.WithoutCookie(h["Cookie"], slot.Name); kept != "" {
			h["Cookie"] = []string{kept}
		} else {
			delete(h, "Cookie")
		}
	case authz.InjectQuery:
		return httpclean.WithoutParameter(d.Query(), slot.Name)
	case authz.InjectSigV4:
		return sigv4.StripQuery(d.Query())
	case authz.InjectNone, authz.InjectHeader, authz.InjectCertificate, authz.InjectDatabase:
	}
	return d.Query()
}

// inject puts the credential into its slot, which is empty, and returns the
// request's target. A certificate belongs to the connection, and a signature is made
// last.
func inject(h http.Header, d authz.Destination, query string, slot authz.Injection) (target string) {
	switch slot.Kind {
	case authz.InjectHeader:
		h[http.CanonicalHeaderKey(slot.Name)] = []string{slot.Value.Reveal()}
	case authz.InjectCookie:
		h["Cookie"] = []string{httpclean.AddCookie(h.Get("Cookie"), slot.Name, slot.Value.Reveal())}
	case authz.InjectQuery:
		return d.Path() + "?" + httpclean.AddParameter(query, slot.Name, slot.Value.Reveal())
	case authz.InjectSigV4:
		if query == "" {
			return d.Path()
		}
		return d.Path() + "?" + query
	case authz.InjectNone, authz.InjectCertificate, authz.InjectDatabase:
	}
	return d.Target()
}

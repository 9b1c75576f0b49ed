package proxy

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/sigv4"
)

// spelled returns the one spelling of a canonical header name: servers that
// make variables of header names (CGI, WSGI, PHP) read X_Api_Key as X-Api-Key.
func spelled(name string) string {
	if !strings.Contains(name, "_") {
		return name
	}
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// hopByHop reports whether a header is about one connection only (RFC 9110,
// section 7.6.1) or is ours, and so never passes in either direction.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Proxy-Authentication-Info", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return strings.HasPrefix(name, "X-Chaperone-")
}

// misleading reports whether a header makes a server see another request, or
// another caller, than the one that was decided. Host is what the destination says.
func misleading(name string) bool {
	switch name {
	case "X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url",
		"Forwarded", "Host":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-")
}

// misframing reports whether a header is one that a server which takes an
// underscore for a dash could read as the length of the body, which net/http
// writes itself. spelt is name as such a server reads it.
func misframing(name, spelt string) bool { return spelt == "Content-Length" && name != spelt }

// stripRequest removes what never passes, and what the plugin put into the
// slot of the credential. Both come before the injection: a header that the
// plugin lists in Connection would else take the credential away again.
func stripRequest(h http.Header, slot authz.Injection) {
	listed := connectionOptions(h)
	trailers := hasToken(h["Te"], "trailers")
	var slotName string
	if slot.Kind == authz.InjectHeader {
		slotName = spelled(http.CanonicalHeaderKey(slot.Name))
	}
	for name := range h {
		s := spelled(name)
		if hopByHop(s) || misleading(s) || misframing(name, s) || s == slotName || listed[s] || slot.Kind == authz.InjectSigV4 && sigv4.Replaces(s) {
			delete(h, name)
		}
	}
	if trailers {
		h["Te"] = []string{"trailers"} // gRPC asks for it, and trailers do pass
	}
	if _, sent := h["User-Agent"]; !sent {
		h["User-Agent"] = nil // none is added either
	}
}

// stripAnswer removes what never passes back, and what would lead the plugin
// past the proxy (RFC 7838).
func stripAnswer(h http.Header) {
	listed := connectionOptions(h)
	for name := range h {
		if s := spelled(name); hopByHop(s) || s == "Alt-Svc" || listed[s] {
			delete(h, name)
		}
	}
}

// connectionOptions returns the headers that Connection lists, nil for none.
func connectionOptions(h http.Header) map[string]bool {
	var listed map[string]bool
	for _, v := range h["Connection"] {
		for option := range strings.SplitSeq(v, ",") {
			option = spelled(http.CanonicalHeaderKey(strings.TrimSpace(option)))
			if option == "" || option == "Close" || option == "Keep-Alive" || option == "Upgrade" {
				continue
			}
			if listed == nil {
				listed = make(map[string]bool)
			}
			listed[option] = true
		}
	}
	return listed
}

// emptySlot removes what the plugin put into the slot of the credential, where
// that is not a header of its own, and returns the query that is left.
func emptySlot(h http.Header, d authz.Destination, slot authz.Injection) (query string) {
	switch slot.Kind {
	case authz.InjectCookie:
		if kept := withoutCookie(h["Cookie"], slot.Name); kept != "" {
			h["Cookie"] = []string{kept}
		} else {
			delete(h, "Cookie")
		}
	case authz.InjectQuery:
		return withoutParameter(d.Query(), slot.Name)
	case authz.InjectSigV4:
		return sigv4.StripQuery(d.Query())
	case authz.InjectNone, authz.InjectHeader, authz.InjectCertificate:
	}
	return d.Query()
}

// inject puts the credential into its slot, which is empty, and returns the
// request's target. A certificate is the connection's, and a signature is made
// last.
func inject(h http.Header, d authz.Destination, query string, slot authz.Injection) (target string) {
	switch slot.Kind {
	case authz.InjectHeader:
		h[http.CanonicalHeaderKey(slot.Name)] = []string{slot.Value.Reveal()}
	case authz.InjectCookie:
		cookie := slot.Name + "=" + slot.Value.Reveal()
		if sent := h["Cookie"]; len(sent) > 0 {
			cookie = sent[0] + "; " + cookie
		}
		h["Cookie"] = []string{cookie}
	case authz.InjectQuery:
		if query != "" {
			query += "&"
		}
		return d.Path() + "?" + query + url.QueryEscape(slot.Name) + "=" + url.QueryEscape(slot.Value.Reveal())
	case authz.InjectSigV4:
		if query == "" {
			return d.Path()
		}
		return d.Path() + "?" + query
	case authz.InjectNone, authz.InjectCertificate:
	}
	return d.Target()
}

// withoutCookie returns the Cookie header without one cookie
// (RFC 6265, section 4.2.1).
func withoutCookie(sent []string, without string) string {
	var kept []string
	for _, line := range sent {
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.TrimSpace(pair)
			name, _, _ := strings.Cut(pair, "=")
			if pair != "" && !strings.EqualFold(strings.TrimSpace(name), without) {
				kept = append(kept, pair)
			}
		}
	}
	return strings.Join(kept, "; ")
}

// withoutParameter removes a parameter from a query, however its name is
// escaped or capitalised, and also where a server splits at semicolons.
func withoutParameter(query, name string) string {
	if query == "" {
		return ""
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		if pair = withoutPart(pair, name); pair != "" {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

func withoutPart(pair, name string) string {
	parts := strings.Split(pair, ";")
	kept := parts[:0]
	for _, part := range parts {
		key, _, _ := strings.Cut(part, "=")
		plain, err := url.QueryUnescape(key)
		if err != nil {
			plain = key
		}
		if !strings.EqualFold(strings.TrimSpace(plain), name) {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ";")
}

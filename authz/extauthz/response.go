package extauthz

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/chaperone-proxy/chaperone/authz"
)

// neverPassing returns the request headers that never reach an upstream. They
// are named in every answer and not only when seen, since the caller may be
// configured to show only some headers (allowed_headers). What else belongs to
// the families x-forwarded-* and x-chaperone-* is added when it is seen.
func neverPassing() [16]string {
	return [...]string{
		"forwarded",
		"keep-alive",
		"proxy-authorization",
		"proxy-connection",
		"x-chaperone-decision",
		"x-chaperone-reason",
		"x-forwarded-for",
		"x-forwarded-host",
		"x-forwarded-port",
		"x-forwarded-prefix",
		"x-forwarded-proto",
		"x-http-method",
		"x-http-method-override",
		"x-method-override",
		"x-original-url",
		"x-rewrite-url",
	}
}

// allow returns the answer that lets an admitted access through, or why it
// cannot be let through as it was decided. It is the only place that makes such
// an answer.
func (s *Server) allow(a *access, admission *authz.Admission) (answer, string) {
	if s.cfg.RouteHeader && admission.Decision.Rule == "" {
		return answer{}, "the sidecar observes, and the caller has routes for rules alone"
	}
	out := answer{verdict: allowed, metadata: metadataOf(a, admission)}
	if a.connection {
		return out, ""
	}
	var detail string
	if out.headers, detail = a.changes(admission.Request.Destination, admission.Injection); detail != "" {
		return answer{}, detail
	}
	if s.cfg.RouteHeader {
		out.headers = append(out.headers, header{HeaderRoute, admission.Decision.Grant + "/" + admission.Decision.Rule})
	}
	out.remove = a.removals(out.headers, admission.Injection)
	return out, ""
}

// maxChanges is how many headers an answer sets at most.
const maxChanges = 6

// changes returns the headers to be set: the canonical bytes where others were
// sent, and the credential. It returns why that cannot be done.
func (a *access) changes(to authz.Destination, slot authz.Injection) (headers []header, detail string) {
	headers = make([]header, 0, maxChanges)
	target := to.Target()
	if slot.Kind == authz.InjectQuery {
		target = injectQuery(to, slot)
	}
	if target != a.target || a.lossy && strings.Contains(target, "!") {
		headers = append(headers, header{":path", target})
	}
	// gRPC's own authority states the port even where it is the default.
	if a.authority != to.Authority() && (a.rewritable || a.authority != to.HostPort()) {
		headers = append(headers, header{":authority", to.Authority()})
	}
	if to.Scheme() != a.request.Destination.Scheme() {
		headers = append(headers, header{":scheme", string(to.Scheme())})
	}
	if len(headers) > 0 && !a.rewritable {
		if slot.Kind == authz.InjectQuery {
			return nil, "the caller changes no query at an answer's word, and the rule's credential goes there"
		}
		return nil, "the caller forwards what was sent, and the canonical spelling would be " + quote(to.URL())
	}
	if a.rewritable {
		// It is not removed, as its family is: Envoy finds no route without it
		// once the route cache is cleared (VirtualHostImpl::getRouteFromEntries).
		headers = append(headers, header{"x-forwarded-proto", forwardedProto(to.Scheme())})
	}
	switch slot.Kind {
	case authz.InjectHeader:
		headers = append(headers, header{slot.Name, slot.Value.Reveal()})
	case authz.InjectCookie:
		headers = append(headers, header{"cookie", injectCookie(a.cookie, slot)})
	case authz.InjectNone, authz.InjectQuery:
	case authz.InjectCertificate, authz.InjectSigV4:
		return nil, "the rule's credential is not one that an answer can carry"
	}
	for _, h := range headers {
		// A string field must be UTF-8, and Envoy 1.40 takes no raw_value here:
		// it would send an empty header.
		if !utf8.ValidString(h.value) {
			return nil, "the header " + h.name + " would hold bytes that are not UTF-8, which the answer cannot carry"
		}
	}
	return headers, ""
}

// forwardedProto returns the x-forwarded-proto of an access. A tunnel's is that
// of the request which opens it.
func forwardedProto(scheme authz.Scheme) string {
	if scheme.HTTP() {
		return string(scheme)
	}
	return string(authz.SchemeHTTP)
}

// injectQuery returns the target with the credential in its query, and without
// what the plugin put into its slot.
//
// The whole of :path is set and not query_parameters_to_set: Envoy 1.40 writes
// those as they are, refuses them with a % in them under validate_mutations and
// sorts the query; agentgateway escapes them.
func injectQuery(to authz.Destination, slot authz.Injection) string {
	query := withoutParameter(to.Query(), slot.Name)
	if query != "" {
		query += "&"
	}
	return to.Path() + "?" + query + url.QueryEscape(slot.Name) + "=" + url.QueryEscape(slot.Value.Reveal())
}

// withoutParameter returns a query without what the plugin put into the slot.
func withoutParameter(query, without string) string {
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		// Some servers split at semicolons as well.
		parts := slices.DeleteFunc(strings.Split(pair, ";"), func(part string) bool {
			name, _, _ := strings.Cut(part, "=")
			if plain, err := url.QueryUnescape(name); err == nil {
				name = plain
			}
			return strings.EqualFold(strings.TrimSpace(name), without)
		})
		if pair = strings.Join(parts, ";"); pair != "" {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

// removals returns the headers to be removed, sorted: those that never pass,
// those that depend on the request, and other spellings of the credential's
// header, which a server that makes variables of header names cannot tell from
// it. One that is set is never among them: older Envoys remove after setting.
func (a *access) removals(changed []header, slot authz.Injection) []string {
	fixed := neverPassing()
	names := make([]string, 0, len(fixed)+len(a.remove)+1)
	add := func(name string) {
		if !slices.ContainsFunc(changed, func(h header) bool { return h.name == name }) {
			names = append(names, name)
		}
	}
	for _, name := range fixed {
		add(name)
	}
	for _, name := range a.remove {
		add(name)
	}
	if slot.Kind == authz.InjectHeader {
		want := strings.ReplaceAll(slot.Name, "_", "-")
		for _, sent := range a.headers {
			if strings.ReplaceAll(sent.name, "_", "-") == want {
				add(sent.name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// injectCookie returns a Cookie header with the credential's cookie and what
// the plugin sent besides. Envoy joins several Cookie headers with a comma
// where it shows them as a map, so that a comma may begin a cookie as well.
func injectCookie(sent []string, slot authz.Injection) string {
	var kept []string
	for _, header := range sent {
		for pair := range strings.SplitSeq(header, ";") {
			pieces := slices.DeleteFunc(strings.Split(pair, ","), func(piece string) bool {
				name, _, _ := strings.Cut(piece, "=")
				return strings.EqualFold(strings.TrimSpace(name), slot.Name)
			})
			if pair = strings.TrimSpace(strings.Join(pieces, ",")); pair != "" {
				kept = append(kept, pair)
			}
		}
	}
	return strings.Join(append(kept, slot.Name+"="+slot.Value.Reveal()), "; ")
}

// deny returns the answer that refuses. decision is the zero Decision when none
// was taken.
func (s *Server) deny(refusal authz.Refusal, decision authz.Decision, wantsGRPC bool) answer {
	out := answer{
		code: grpcCode(refusal.Reason), message: refusal.Line(), status: refusal.Status(),
		headers: []header{
			{"content-type", authz.RefusalContentType},
			{authz.HeaderReason, refusal.Reason.String()},
		},
		metadata: dynamicMetadata{
			decision: refusal.Decision, plugin: refusal.Plugin, reason: refusal.Reason.String(),
			grant: decision.Grant, rule: decision.Rule, generation: decision.Generation,
		},
	}
	if refusal.Decision != "" {
		out.headers = append(out.headers, header{authz.HeaderDecision, refusal.Decision})
	}
	if retry := refusal.RetrySeconds(); retry != "" {
		out.headers = append(out.headers, header{"retry-after", retry})
	}
	if wantsGRPC {
		// Envoy turns this into a response of headers only, with status 200,
		// and keeps a grpc-status that it finds; a caller that does not, passes
		// on what clients of gRPC read.
		out.headers[0].value = "application/grpc"
		out.headers = append(out.headers,
			header{"grpc-status", strconv.Itoa(int(out.code))}, header{"grpc-message", escapeMessage(refusal.Line())})
	} else {
		out.body = string(refusal.Body())
	}
	if s.cfg.ErrorResponse && isInternalFailure(refusal.Reason) {
		out.verdict = failed
	}
	return out
}

// isInternalFailure reports whether a refusal is for what went wrong inside the
// sidecar, and not for what the policy says.
func isInternalFailure(reason authz.Reason) bool {
	switch reason {
	case authz.NotReady, authz.UsageUnknown, authz.CredentialUnavailable, authz.AuditUnavailable:
		return true
	default:
		return false
	}
}

// grpcCode returns the gRPC status of a refusal. It is never OK, whatever the
// reason.
func grpcCode(reason authz.Reason) codes.Code {
	switch reason.Status() {
	case 400, 421:
		return codes.InvalidArgument
	case 429:
		return codes.ResourceExhausted
	case 502, 503:
		return codes.Unavailable
	case 504:
		return codes.DeadlineExceeded
	}
	return codes.PermissionDenied
}

// escapeMessage percent-encodes a grpc-message (gRPC over HTTP/2, "Responses":
// Percent-Encoded).
func escapeMessage(s string) string {
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			out = append(out, '%', digits[c>>4], digits[c&0xf])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}

func metadataOf(a *access, admission *authz.Admission) dynamicMetadata {
	d := admission.Decision
	f := dynamicMetadata{
		decision: admission.ID, plugin: string(admission.Request.Principal), reason: d.Reason.String(),
		grant: d.Grant, rule: d.Rule, generation: d.Generation,
	}
	if to := admission.Request.Destination.Scheme(); to != a.request.Destination.Scheme() {
		f.scheme = string(to)
	}
	return f
}

package extauthz

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
)

// neverPassing returns the request headers that never reach an upstream. They
// are named in every answer and not only when seen, since the caller may be
// configured to show only some headers (allowed_headers). What else belongs to
// the families x-forwarded-* and x-chaperone-* is added when it is seen.
func neverPassing() []string {
	return []string{
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
// cannot be let through as it was decided. A CheckResponse without a status is
// an allowing one, so that this is the only place that makes such a thing.
func (s *Server) allow(a *access, admission *authz.Admission) (*authv3.CheckResponse, string) {
	if s.cfg.RouteHeader && admission.Decision.Rule == "" {
		return nil, "the sidecar observes, and the caller has routes for rules alone"
	}
	ok := &authv3.OkHttpResponse{}
	if !a.connection {
		headers, detail := a.changes(admission.Request.Destination, admission.Injection)
		if detail != "" {
			return nil, detail
		}
		if s.cfg.RouteHeader {
			headers = append(headers, set(HeaderRoute, admission.Decision.Grant+"/"+admission.Decision.Rule))
		}
		ok.Headers = headers
		ok.HeadersToRemove = a.removals(headers, admission.Injection)
	}
	return &authv3.CheckResponse{
		Status:          &statuspb.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: metadataOf(a, admission),
	}, ""
}

// changes returns the headers to be set: the canonical bytes where others were
// sent, and the credential. It returns why that cannot be done.
func (a *access) changes(to authz.Destination, slot authz.Injection) (headers []*corev3.HeaderValueOption, detail string) {
	target := to.Target()
	if slot.Kind == authz.InjectQuery {
		target = injectQuery(to, slot)
	}
	if target != a.target || a.sanitised && strings.Contains(target, "!") {
		headers = append(headers, set(":path", target))
	}
	// gRPC's own authority states the port even where it is the default.
	if a.authority != to.Authority() && (a.rewritable || a.authority != to.HostPort()) {
		headers = append(headers, set(":authority", to.Authority()))
	}
	if to.Scheme() != a.request.Destination.Scheme() {
		headers = append(headers, set(":scheme", string(to.Scheme())))
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
		headers = append(headers, set("x-forwarded-proto", forwardedProto(to.Scheme())))
	}
	switch slot.Kind {
	case authz.InjectHeader:
		headers = append(headers, set(slot.Name, slot.Value.Reveal()))
	case authz.InjectCookie:
		headers = append(headers, set("cookie", injectCookie(a.cookie, slot)))
	case authz.InjectNone, authz.InjectQuery:
	case authz.InjectCertificate, authz.InjectSigV4:
		return nil, "the rule's credential is not one that an answer can carry"
	}
	for _, header := range headers {
		// A string field must be UTF-8, and Envoy 1.40 takes no raw_value here:
		// it would send an empty header.
		if !utf8.ValidString(header.GetHeader().GetValue()) {
			return nil, "the header " + header.GetHeader().GetKey() + " would hold bytes that are not UTF-8, which the answer cannot carry"
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

// removals returns the headers to be removed: those that never pass, those that
// depend on the request, and other spellings of the credential's header, which
// a server that makes variables of header names cannot tell from it. One that
// is set is never among them: older Envoys remove after setting.
func (a *access) removals(changed []*corev3.HeaderValueOption, slot authz.Injection) []string {
	names := append(neverPassing(), a.remove...)
	if slot.Kind == authz.InjectHeader {
		want := strings.ReplaceAll(slot.Name, "_", "-")
		a.headers.each(func(sent, _ string) bool {
			if strings.ReplaceAll(sent, "_", "-") == want {
				names = append(names, sent)
			}
			return true
		})
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(changed, func(h *corev3.HeaderValueOption) bool { return h.GetHeader().GetKey() == name })
	})
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

// deny returns the answer that refuses. Its status is never 0, which would
// allow. decision is the zero Decision when none was taken.
func (s *Server) deny(refusal authz.Refusal, decision authz.Decision, wantsGRPC bool) *authv3.CheckResponse {
	code := grpcCode(refusal.Reason)
	denied := &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(refusal.Status())},
		Headers: []*corev3.HeaderValueOption{
			set("content-type", authz.RefusalContentType),
			set(authz.HeaderReason, refusal.Reason.String()),
		},
	}
	if refusal.Decision != "" {
		denied.Headers = append(denied.Headers, set(authz.HeaderDecision, refusal.Decision))
	}
	if retry := refusal.RetrySeconds(); retry != "" {
		denied.Headers = append(denied.Headers, set("retry-after", retry))
	}
	if wantsGRPC {
		// Envoy turns this into a response of headers only, with status 200,
		// and keeps a grpc-status that it finds; a caller that does not, passes
		// on what clients of gRPC read.
		denied.Headers[0] = set("content-type", "application/grpc")
		denied.Headers = append(denied.Headers,
			set("grpc-status", strconv.Itoa(int(code))), set("grpc-message", escapeMessage(refusal.Line())))
	} else {
		denied.Body = strings.ToValidUTF8(string(refusal.Body()), "\uFFFD")
	}
	out := &authv3.CheckResponse{
		Status:       &statuspb.Status{Code: int32(code), Message: strings.ToValidUTF8(refusal.Line(), "\uFFFD")},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied},
		DynamicMetadata: dynamicMetadata(map[string]string{
			"decision": refusal.Decision, "plugin": refusal.Plugin, "reason": refusal.Reason.String(),
			"grant": decision.Grant, "rule": decision.Rule,
		}, decision.Generation),
	}
	if s.cfg.ErrorResponse && failed(refusal.Reason) {
		out.HttpResponse = &authv3.CheckResponse_ErrorResponse{ErrorResponse: denied}
	}
	return out
}

// failed reports whether a refusal is for what went wrong inside the sidecar,
// and not for what the policy says.
func failed(reason authz.Reason) bool {
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

// set returns a header that takes the place of any that is there. Both ways of
// saying so are there: an older Envoy reads append alone, and a newer one that
// finds append unset reads append_action, whose zero value appends, and would
// put a second header beside the plugin's own.
func set(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		Append:       wrapperspb.Bool(false), //nolint:staticcheck // deprecated, and what older Envoys read
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

func metadataOf(a *access, admission *authz.Admission) *structpb.Struct {
	d := admission.Decision
	fields := map[string]string{
		"decision": admission.ID, "plugin": string(admission.Request.Principal), "reason": d.Reason.String(),
		"grant": d.Grant, "rule": d.Rule,
	}
	if to := admission.Request.Destination.Scheme(); to != a.request.Destination.Scheme() {
		fields["scheme"] = string(to)
	}
	return dynamicMetadata(fields, d.Generation)
}

// dynamicMetadata returns what goes under envoy.filters.http.ext_authz, for access
// logs and route matching. Empty fields are left out.
func dynamicMetadata(fields map[string]string, generation uint64) *structpb.Struct {
	values := make(map[string]*structpb.Value, len(fields)+1)
	for name, value := range fields {
		if value != "" {
			values[name] = structpb.NewStringValue(strings.ToValidUTF8(value, "\uFFFD"))
		}
	}
	if generation != 0 {
		values["generation"] = structpb.NewNumberValue(float64(generation))
	}
	return &structpb.Struct{Fields: values}
}

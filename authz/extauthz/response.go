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

// removed are the request headers that never reach an upstream. They are
// named in every answer and not only when seen, since the caller may be
// configured to show only some headers (allowed_headers). What else belongs to
// the families x-forwarded-* and x-chaperone-* is added when it is seen.
var removed = []string{
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

// allow returns the answer that lets an admitted access through, or why it
// cannot be let through as it was decided. A CheckResponse without a status is
// an allowing one, so that this is the only place that makes such a thing.
func allow(a *access, admission *authz.Admission) (*authv3.CheckResponse, string) {
	ok := &authv3.OkHttpResponse{}
	if !a.tunnel {
		if detail := a.rewrite(ok, admission.Request.Destination); detail != "" {
			return nil, detail
		}
		if detail := a.inject(ok, admission.Injection); detail != "" {
			return nil, detail
		}
		ok.HeadersToRemove = a.removals(ok)
	}
	return &authv3.CheckResponse{
		Status:          &statuspb.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: allowedMetadata(a, admission),
	}, ""
}

// rewrite makes the caller forward the canonical bytes, and returns why it
// cannot.
func (a *access) rewrite(ok *authv3.OkHttpResponse, to authz.Destination) string {
	var changes []*corev3.HeaderValueOption
	if target := to.Target(); target != a.target || a.sanitised && strings.Contains(target, "!") {
		changes = append(changes, set(":path", target))
	}
	// gRPC's own authority states the port even where it is the default.
	if a.authority != to.Authority() && (a.rewritable || a.authority != to.HostPort()) {
		changes = append(changes, set(":authority", to.Authority()))
	}
	if to.Scheme() != a.request.Destination.Scheme() {
		changes = append(changes, set(":scheme", string(to.Scheme())))
	}
	if len(changes) > 0 && !a.rewritable {
		return "the caller forwards what was sent, and it is not spelled canonically: " + quote(to.URL()) + " would be"
	}
	ok.Headers = append(ok.Headers, changes...)
	return ""
}

// inject puts the credential into its slot, which it empties first of what the
// plugin put there, and returns why it cannot.
func (a *access) inject(ok *authv3.OkHttpResponse, injection authz.Injection) string {
	switch injection.Kind {
	case authz.InjectNone:
	case authz.InjectHeader:
		ok.Headers = append(ok.Headers, set(injection.Name, injection.Value.Reveal()))
		ok.HeadersToRemove = a.spellings(injection.Name)
	case authz.InjectCookie:
		ok.Headers = append(ok.Headers, set("cookie", mergeCookie(a.cookie, injection.Name, injection.Value.Reveal())))
	case authz.InjectQuery:
		return a.injectQuery(ok, injection)
	default:
		return "the credential goes where this door cannot put it"
	}
	return ""
}

// injectQuery sets a query parameter. Envoy replaces every parameter whose
// name has the same bytes, without decoding, and writes name and value as they
// are given.
func (a *access) injectQuery(ok *authv3.OkHttpResponse, injection authz.Injection) string {
	if !a.rewritable {
		return "the caller takes no query parameter from an answer, and the rule's credential is one"
	}
	name := escapeQuery(injection.Name)
	for parameter := range strings.SplitSeq(a.request.Destination.Query(), "&") {
		for i, piece := range strings.Split(parameter, ";") {
			raw, _, _ := strings.Cut(piece, "=")
			decoded, err := url.QueryUnescape(raw)
			switch {
			case err != nil, decoded != injection.Name:
			case i > 0:
				return "the query hides the credential's parameter behind a semicolon"
			case raw != name:
				ok.QueryParametersToRemove = append(ok.QueryParametersToRemove, raw)
			}
		}
	}
	ok.QueryParametersToSet = []*corev3.QueryParameter{{Key: name, Value: escapeQuery(injection.Value.Reveal())}}
	return ""
}

// escapeQuery escapes a query name or value so that every server decodes the
// same: a space is %20, which + is not everywhere.
func escapeQuery(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// spellings returns the names under which the plugin sent the header name in
// another spelling: a server that reads CGI-style variables cannot tell them
// apart.
func (a *access) spellings(name string) []string {
	var found []string
	want := strings.ReplaceAll(name, "_", "-")
	a.headers.each(func(sent, _ string) bool {
		if sent != name && strings.ReplaceAll(sent, "_", "-") == want && !slices.Contains(found, sent) {
			found = append(found, sent)
		}
		return true
	})
	return found
}

// removals returns the headers to be removed. One that is set is never among
// them: older Envoys remove after setting.
func (a *access) removals(ok *authv3.OkHttpResponse) []string {
	names := make([]string, 0, len(removed)+len(a.remove)+len(ok.HeadersToRemove))
	names = append(append(append(names, removed...), a.remove...), ok.HeadersToRemove...)
	names = slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(ok.Headers, func(h *corev3.HeaderValueOption) bool { return h.Header.Key == name })
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// mergeCookie returns a Cookie header in which name has the given value and
// every other cookie the plugin sent is kept. Envoy joins several Cookie
// headers with a comma where it shows them as a map, so that a comma may begin
// a cookie as well.
func mergeCookie(sent []string, name, value string) string {
	var kept []string
	for _, header := range sent {
		for pair := range strings.SplitSeq(header, ";") {
			pieces := slices.DeleteFunc(strings.Split(pair, ","), func(piece string) bool {
				key, _, _ := strings.Cut(piece, "=")
				return strings.Trim(key, " \t") == name
			})
			if pair = strings.Trim(strings.Join(pieces, ","), " \t"); pair != "" {
				kept = append(kept, pair)
			}
		}
	}
	return strings.Join(append(kept, name+"="+value), "; ")
}

// deny returns the answer that refuses. Its status is never 0, which would
// allow. decision is the zero Decision when none was taken.
func deny(refusal authz.Refusal, decision authz.Decision, wantsGRPC bool) *authv3.CheckResponse {
	code := grpcCode(refusal.Reason)
	denied := &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(refusal.Status())}, //nolint:gosec // an HTTP status, three digits
		Headers: []*corev3.HeaderValueOption{
			set("content-type", authz.RefusalContentType),
			set(authz.HeaderReason, refusal.Reason.String()),
			set(authz.HeaderDecision, refusal.Decision),
		},
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
	return &authv3.CheckResponse{
		Status:       &statuspb.Status{Code: int32(code), Message: strings.ToValidUTF8(refusal.Line(), "\uFFFD")}, //nolint:gosec // 1 to 16
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied},
		DynamicMetadata: metadata(map[string]string{
			"decision": refusal.Decision, "plugin": refusal.Plugin, "reason": refusal.Reason.String(),
			"grant": decision.Grant, "rule": decision.Rule,
		}, decision.Generation),
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
	header := &corev3.HeaderValue{Key: name, Value: value}
	if !utf8.ValidString(value) { // a string field must be UTF-8, or the whole answer is an error
		header.Value, header.RawValue = "", []byte(value)
	}
	return &corev3.HeaderValueOption{
		Header:       header,
		Append:       wrapperspb.Bool(false),
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

func allowedMetadata(a *access, admission *authz.Admission) *structpb.Struct {
	d := admission.Decision
	fields := map[string]string{
		"decision": admission.ID, "plugin": string(admission.Request.Principal), "reason": d.Reason.String(),
		"grant": d.Grant, "rule": d.Rule,
	}
	if to := admission.Request.Destination.Scheme(); to != a.request.Destination.Scheme() {
		fields["scheme"] = string(to)
	}
	return metadata(fields, d.Generation)
}

// metadata returns what goes under envoy.filters.http.ext_authz, for access
// logs and route matching. Empty fields are left out.
func metadata(fields map[string]string, generation uint64) *structpb.Struct {
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

package extauthz

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
)

// allow returns the answer that allows an admitted access, or the reason why the
// caller cannot make it as decided. It is the only function that makes such an answer.
func (s *Server) allow(a *access, admission *authz.Admission) (answer, string) {
	if s.cfg.RouteHeader && admission.Decision.Rule == "" {
		return answer{}, "the sidecar observes, and the caller has routes for rules only"
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

// maxChanges bounds the headers that an answer sets.
const maxChanges = 6

// changes returns the headers to set: the canonical text if other text was sent, and
// the credential. It returns the reason if the caller cannot set them.
func (a *access) changes(to authz.Destination, slot authz.Injection) (headers []header, detail string) {
	headers = make([]header, 0, maxChanges)
	target := to.Target()
	if slot.Kind == authz.InjectQuery {
		target = injectQuery(to, slot)
	}
	if target != a.target || a.lossy && strings.Contains(target, "!") {
		headers = append(headers, header{":path", target})
	}
	// gRPC's own authority includes the default port.
	if a.authority != to.Authority() && (a.rewritable || a.authority != to.HostPort()) {
		headers = append(headers, header{":authority", to.Authority()})
	}
	if to.Scheme() != a.request.Destination.Scheme() {
		headers = append(headers, header{":scheme", string(to.Scheme())})
	}
	if len(headers) > 0 && !a.rewritable {
		if slot.Kind == authz.InjectQuery {
			return nil, "the caller cannot change the query, which would carry the rule's credential"
		}
		return nil, "the caller forwards the request unchanged, and its canonical form is " + quote(to.URL())
	}
	if a.rewritable {
		// It is set and not removed like its family: Envoy finds no route without it
		// once the route cache is cleared (VirtualHostImpl::getRouteFromEntries).
		headers = append(headers, header{"x-forwarded-proto", forwardedProto(to.Scheme())})
	}
	switch slot.Kind {
	case authz.InjectHeader:
		headers = append(headers, header{slot.Name, slot.Value.Reveal()})
	case authz.InjectCookie:
		headers = append(headers, header{"cookie", httpclean.AddCookie(httpclean.WithoutCookie(a.cookies(), slot.Name), slot.Name, slot.Value.Reveal())})
	case authz.InjectNone, authz.InjectQuery:
	case authz.InjectCertificate, authz.InjectSigV4, authz.InjectDatabase:
		return nil, "an answer cannot carry the rule's kind of credential"
	}
	for _, h := range headers {
		// A string field must be UTF-8, and Envoy 1.40 ignores raw_value here and
		// would send an empty header.
		if !utf8.ValidString(h.value) {
			return nil, "the header " + h.name + " would hold bytes that are not UTF-8, which an answer cannot carry"
		}
	}
	return headers, ""
}

// forwardedProto returns the x-forwarded-proto of an access. For a tunnel it is the
// scheme of the CONNECT.
func forwardedProto(scheme authz.Scheme) string {
	if scheme.HTTP() {
		return string(scheme)
	}
	return string(authz.SchemeHTTP)
}

// injectQuery returns the target with the credential in its query, replacing the
// plugin's own parameters of that name.
//
// The answer sets :path and not query_parameters_to_set: Envoy 1.40 writes those
// unescaped, refuses them with a % in them under validate_mutations and sorts the
// query; agentgateway escapes them.
func injectQuery(to authz.Destination, slot authz.Injection) string {
	query := httpclean.WithoutParameter(to.Query(), slot.Name)
	return to.Path() + "?" + httpclean.AddParameter(query, slot.Name, slot.Value.Reveal())
}

// removals returns the headers to be removed, sorted: those that never reach an
// upstream, whether or not they were shown; those that the request's Connection
// header nominates; and other spellings of the credential's header. A header that
// the answer sets is not among them: older Envoys remove after setting.
func (a *access) removals(changed []header, slot authz.Injection) []string {
	fixed := httpclean.RemovedHeaders()
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
	nominated := a.nominated()
	for name := range nominated {
		add(name)
	}
	for _, sent := range a.headers {
		if slot.Kind == authz.InjectHeader && httpclean.SameHeader(sent.name, slot.Name) ||
			nominated != nil && nominated[httpclean.FoldName(sent.name)] {
			add(sent.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// cookies returns the values of Cookie that may reach the upstream: none if Connection
// nominates the header, which the answer would otherwise set instead of removing.
func (a *access) cookies() []string {
	if a.nominated()["cookie"] {
		return nil
	}
	return a.cookie
}

// nominated returns the folded names of the headers that the request's Connection
// headers nominate, nil without any.
func (a *access) nominated() map[string]bool {
	var out map[string]bool
	for name := range httpclean.ConnectionOptions(a.hop) {
		if out == nil {
			out = map[string]bool{}
		}
		out[name] = true
	}
	return out
}

// deny returns the answer that refuses. decision is the zero Decision if there was no
// decision.
func (s *Server) deny(refusal authz.Refusal, decision authz.Decision, wantsGRPC bool) answer {
	out := answer{
		code: codes.Code(httpclean.GRPCStatus(refusal.Status())), message: refusal.Line(), status: refusal.Status(),
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
		// Envoy turns this into a Trailers-Only response with status 200, and keeps
		// an existing grpc-status; other callers pass these headers on to the gRPC
		// client.
		out.headers[0].value = "application/grpc"
		out.headers = append(out.headers,
			header{"grpc-status", strconv.Itoa(int(out.code))}, header{"grpc-message", httpclean.GRPCMessage(refusal.Line())})
	} else {
		out.body = string(refusal.Body())
	}
	if s.cfg.ErrorResponse && isInternalFailure(refusal.Reason) {
		out.verdict = failed
	}
	return out
}

// isInternalFailure reports whether the cause of a refusal is an error inside the
// sidecar and not the policy.
func isInternalFailure(reason authz.Reason) bool {
	switch reason {
	case authz.NotReady, authz.UsageUnknown, authz.CredentialUnavailable, authz.AuditUnavailable:
		return true
	default:
		return false
	}
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

package xds

import (
	"strconv"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	envoymatcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Envoy answers some requests by itself: what it cannot read, what the sidecar was
// not there to be asked about, what an upstream did not answer. These answers have
// the body, the header and the status that the sidecar's own proxy gives for the
// same, and the sidecar is told of them for the audit log.

// reply is an answer of Envoy's own.
type reply struct {
	flags   []string // of which one is set (%RESPONSE_FLAGS%)
	from    uint32   // or the least status, 0 for none
	to      uint32   // and the largest
	header  string   // and a header of the request, "" for any
	status  uint32   // that it gets, 0 for the one that it has
	reason  authz.Reason
	decided bool // it has a decision
	remedy  string
}

// replies returns the answers of Envoy's own, of which the first that fits counts.
func replies() []reply {
	const later, canonical = "try again later", "send the request in its canonical form"
	return []reply{
		{flags: []string{"UT", "SI", "DT", "UMSDR"}, status: 504, reason: authz.UpstreamTimeout, decided: true, remedy: later},
		{flags: []string{"UF", "UC", "UR", "LR", "UPE", "URX"}, status: 502, reason: authz.UpstreamUnreachable, decided: true, remedy: later},
		{from: 504, to: 504, reason: authz.UpstreamTimeout, decided: true, remedy: later},
		// Envoy refuses by itself what no rule at all may upgrade to, and https in the
		// target of a request that does not come over TLS.
		{from: 403, to: 403, header: "upgrade", reason: authz.MethodNotGranted, remedy: "send the request without Upgrade, or ask for upgrades on a rule"},
		{from: 403, to: 403, reason: authz.NotEnforceableHere, remedy: "send https in a CONNECT"},
		// A target that begins with no slash, and a coding of the body, that it does not know.
		{from: 404, to: 404, status: 400, reason: authz.MalformedRequest, remedy: canonical},
		{from: 501, to: 501, status: 400, reason: authz.MalformedRequest, remedy: canonical},
		{from: 400, to: 499, reason: authz.MalformedRequest, remedy: canonical},
		{from: 500, to: 599, reason: authz.NotReady, remedy: later},
	}
}

// localReplies says how Envoy's own answers look.
func (b *builder) localReplies() *hcmv3.LocalReplyConfig {
	// The sidecar's refusals are answers of Envoy's own too, and are left as they are.
	out := &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{Filter: all(flagFilter("UAEX"), hasDecision())}}}
	for _, r := range replies() {
		which := flagFilter(r.flags...)
		if r.from > 0 {
			which = all(statusFilter(accesslogv3.ComparisonFilter_GE, r.from), statusFilter(accesslogv3.ComparisonFilter_LE, r.to))
		}
		if r.header != "" {
			which = all(which, hasHeader(r.header))
		}
		out.Mappers = append(out.Mappers,
			b.mapper(r, all(which, grpcFilter()), &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: r.reason.String() + ": " + envoyDetail},
				}},
			}),
			b.mapper(r, which, b.problem(r)))
	}
	return out
}

// envoyDetail is the detail of an answer of Envoy's own.
const envoyDetail = "Envoy answered by itself: %RESPONSE_CODE_DETAILS%"

// decisionFormat prints the decision's id.
const decisionFormat = "%DYNAMIC_METADATA(" + filterHTTPAuthz + ":decision)%"

func (*builder) mapper(r reply, which *accesslogv3.AccessLogFilter, body *corev3.SubstitutionFormatString) *hcmv3.ResponseMapper {
	m := &hcmv3.ResponseMapper{Filter: which, BodyFormatOverride: body, HeadersToAdd: []*corev3.HeaderValueOption{added(authz.HeaderReason, r.reason.String())}}
	if r.decided {
		m.HeadersToAdd = append(m.HeadersToAdd, added(authz.HeaderDecision, decisionFormat))
	}
	if r.status != 0 {
		m.StatusCode = wrapperspb.UInt32(r.status)
	}
	return m
}

func added(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// problem is the body of a refusal (RFC 9457), as [authz.Refusal.Body] makes it.
func (b *builder) problem(r reply) *corev3.SubstitutionFormatString {
	fields := map[string]*structpb.Value{}
	for name, value := range map[string]string{
		"type": "https://chaperone.dev/reasons/" + r.reason.String(), "title": r.reason.Title(), "status": "%RESPONSE_CODE%",
		"detail": envoyDetail, "plugin": string(b.cfg.Plugin), "decision": decisionFormat, "remedy": r.remedy,
	} {
		fields[name] = structpb.NewStringValue(value)
	}
	if r.status != 0 { // the format sees the status of before
		fields["status"] = structpb.NewNumberValue(float64(r.status))
	}
	return &corev3.SubstitutionFormatString{
		Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}},
		ContentType:     authz.RefusalContentType,
		OmitEmptyValues: true,
	}
}

// sidecarLog is the logger that tells the sidecar of Envoy's own answers, and of
// streams of HTTP/2 that Envoy reset. It is asked for whatever the operator's access
// log is, and holds nothing that the sidecar is not asked about otherwise.
func (b *builder) sidecarLog() *accesslogv3.AccessLog {
	service := checkService()
	service.Timeout = nil // it is one stream
	return &accesslogv3.AccessLog{
		Name:   "envoy.access_loggers.http_grpc",
		Filter: anyOf(statusFilter(accesslogv3.ComparisonFilter_GE, 400), flagFilter("DPE")),
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.packed(&grpclogv3.HttpGrpcAccessLogConfig{
			CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
				LogName: "answers", GrpcService: service, TransportApiVersion: corev3.ApiVersion_V3,
				BufferFlushInterval: durationpb.New(answersInterval),
			},
		})},
	}
}

// The rest says in Envoy's words: which answers.

func all(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: filters}}}
}

func anyOf(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: filters}}}
}

func flagFilter(flags ...string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: flags},
	}}
}

func statusFilter(op accesslogv3.ComparisonFilter_Op, code uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{
		// A key of the runtime is demanded, and this one is nowhere.
		Comparison: &accesslogv3.ComparisonFilter{Op: op, Value: &corev3.RuntimeUInt32{DefaultValue: code, RuntimeKey: "chaperone.status_" + strconv.Itoa(int(code))}},
	}}}
}

// hasDecision is of what the sidecar has answered.
func hasDecision() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_MetadataFilter{MetadataFilter: &accesslogv3.MetadataFilter{
		MatchIfKeyNotFound: wrapperspb.Bool(false),
		Matcher: &envoymatcherv3.MetadataMatcher{
			Filter: filterHTTPAuthz,
			Path:   []*envoymatcherv3.MetadataMatcher_PathSegment{{Segment: &envoymatcherv3.MetadataMatcher_PathSegment_Key{Key: "decision"}}},
			Value:  &envoymatcherv3.ValueMatcher{MatchPattern: &envoymatcherv3.ValueMatcher_PresentMatch{PresentMatch: true}},
		},
	}}}
}

func grpcFilter() *accesslogv3.AccessLogFilter {
	prefix := &envoymatcherv3.StringMatcher{MatchPattern: &envoymatcherv3.StringMatcher_Prefix{Prefix: "application/grpc"}, IgnoreCase: true}
	return headerFilter(&routev3.HeaderMatcher{Name: "content-type", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: prefix}})
}

func hasHeader(header string) *accesslogv3.AccessLogFilter {
	return headerFilter(&routev3.HeaderMatcher{Name: header, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}})
}

func headerFilter(header *routev3.HeaderMatcher) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{HeaderFilter: &accesslogv3.HeaderFilter{Header: header}}}
}

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

// Envoy answers some requests by itself: a request that it cannot parse, one for which
// the sidecar was not available, one that the upstream did not answer. These answers
// have the body, the header and the status that the sidecar's own proxy gives in the
// same case, and the sidecar receives them for the audit log.

// reply is an answer that Envoy makes by itself.
type reply struct {
	flags   []string // one of which is set (%RESPONSE_FLAGS%)
	from    uint32   // or the lowest status, 0 without one
	to      uint32   // and the highest
	header  string   // and a header of the request, "" for any
	status  uint32   // that it gets, 0 for the one that it has
	reason  authz.Reason
	decided bool // it has a decision
	remedy  string
}

// replies returns the answers that Envoy makes by itself. The first match applies.
func replies() []reply {
	const later, canonical = "try again later", "send the request in its canonical form"
	return []reply{
		{flags: []string{"UT", "SI", "DT", "UMSDR"}, status: 504, reason: authz.UpstreamTimeout, decided: true, remedy: later},
		{flags: []string{"UF", "UC", "UR", "LR", "UPE", "URX"}, status: 502, reason: authz.UpstreamUnreachable, decided: true, remedy: later},
		{from: 504, to: 504, reason: authz.UpstreamTimeout, decided: true, remedy: later},
		// Envoy itself refuses upgrades that no rule grants, and https in the target of
		// a request that does not arrive over TLS.
		{from: 403, to: 403, header: "upgrade", reason: authz.MethodNotGranted, remedy: "send the request without Upgrade, or ask for upgrades on a rule"},
		{from: 403, to: 403, reason: authz.NotEnforceableHere, remedy: "send https in a CONNECT"},
		// A target without a leading slash, and an unknown transfer coding.
		{from: 404, to: 404, status: 400, reason: authz.MalformedRequest, remedy: canonical},
		{from: 501, to: 501, status: 400, reason: authz.MalformedRequest, remedy: canonical},
		{from: 400, to: 499, reason: authz.MalformedRequest, remedy: canonical},
		{from: 500, to: 599, reason: authz.NotReady, remedy: later},
	}
}

// localReplies formats the answers that Envoy makes by itself.
func (b *builder) localReplies() *hcmv3.LocalReplyConfig {
	// The sidecar's refusals are local replies of Envoy too, and are not changed.
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

// envoyDetail is the detail of an answer that Envoy made by itself.
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
	if r.status != 0 { // the format sees the original status
		fields["status"] = structpb.NewNumberValue(float64(r.status))
	}
	return &corev3.SubstitutionFormatString{
		Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}},
		ContentType:     authz.RefusalContentType,
		OmitEmptyValues: true,
	}
}

// sidecarLog is the logger that sends Envoy's own answers, and HTTP/2 streams that
// Envoy reset, to the sidecar. It does not depend on the operator's access log, and
// contains only data that the sidecar also gets in checks.
func (b *builder) sidecarLog() *accesslogv3.AccessLog {
	service := checkService()
	service.Timeout = nil // one stream, without an end
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

// Constructors of access log filters follow.

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
		// A runtime key is required; this one is not set.
		Comparison: &accesslogv3.ComparisonFilter{Op: op, Value: &corev3.RuntimeUInt32{DefaultValue: code, RuntimeKey: "chaperone.status_" + strconv.Itoa(int(code))}},
	}}}
}

// hasDecision matches requests that the sidecar has answered.
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

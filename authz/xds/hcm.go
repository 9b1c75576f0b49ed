package xds

import (
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Limits of requests, as in the sidecar's own proxy.
const (
	maxRequestHeadKiB = 68
	maxHeaders        = 10000
	// noHost is the host of an HTTP/1.0 request that names none of its own. No grant
	// can name it, and the sidecar refuses it as malformed.
	noHost = "*"
)

func checkService() *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: checkCluster}},
		Timeout:         durationpb.New(checkTimeout),
	}
}

// hcm returns the HttpConnectionManager filter. table is nil if the routes are served
// over xDS.
func (b *builder) hcm(name string, table *routev3.RouteConfiguration, early []*mutationv3.HeaderMutation) *listenerv3.Filter {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: routeTable, ConfigSource: ads(),
		}},
		// The plugin's statements about itself are ignored, and Envoy adds nothing.
		UseRemoteAddress:           wrapperspb.Bool(true),
		SkipXffAppend:              true,
		GenerateRequestId:          wrapperspb.Bool(false),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{
			b.extension("envoy.http.early_header_mutation.header_mutation", &earlyv3.HeaderMutation{Mutations: early}),
		},
		// Paths arrive as sent: the sidecar refuses ambiguous ones and answers with the
		// canonical path, which is forwarded.
		NormalizePath:                wrapperspb.Bool(false),
		MergeSlashes:                 false,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			// The sidecar removes those that a server could confuse with another header.
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_ALLOW,
			MaxHeadersCount:              wrapperspb.UInt32(maxHeaders), // the answer's own count too
			IdleTimeout:                  seconds(300),                  // between requests
			MaxStreamDuration:            durationpb.New(b.cfg.MaxStreamDuration),
		},
		MaxRequestHeadersKb: wrapperspb.UInt32(maxRequestHeadKiB),
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{
			// Python's http.client sends CONNECT in HTTP/1.0 up to 3.11, and so do openssl and nc.
			AcceptHttp_10: true, DefaultHostForHttp_10: noHost,
			EnableTrailers: true,
			// Offers of TLS or another version of HTTP may be ignored (RFC 9110, section
			// 7.8); see [authz.UpgradesAsked].
			IgnoreHttp_11Upgrade: []*matcherv3.StringMatcher{{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
				SafeRegex: &matcherv3.RegexMatcher{Regex: `(?i)(h2c?|http|tls)(/.*)?`},
			}}},
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			AllowConnect: true,
			// An invalid request ends its stream only.
			OverrideStreamErrorOnInvalidHttpMessage: wrapperspb.Bool(true),
			MaxConcurrentStreams:                    wrapperspb.UInt32(100),
			InitialStreamWindowSize:                 wrapperspb.UInt32(256 << 10),
			InitialConnectionWindowSize:             wrapperspb.UInt32(1 << 20),
		},
		RequestHeadersTimeout: seconds(10),
		// A stream may be idle until it ends: the sidecar controls both ends.
		StreamIdleTimeout: seconds(0),
		// The upstream answers Expect: 100-continue, after the check.
		Proxy_100Continue: true,
		// The time that the plugin has to close an HTTP/1 connection whose upgrade
		// was cut, before Envoy closes it; the default is a second.
		DelayedCloseTimeout: &durationpb.Duration{Nanos: 100e6},
		UpgradeConfigs:      b.upgrades(),
		AccessLog:           append(b.accessLog(requestLog()), b.sidecarLog()),
		LocalReplyConfig:    b.localReplies(),
		HttpFilters:         []*hcmv3.HttpFilter{b.extAuthz(), b.router()},
	}
	if table != nil {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: table}
	}
	return b.filter("envoy.filters.network.http_connection_manager", m)
}

// removeUntrustedHeaders removes the plugin's headers that would control Envoy:
// retries and timeouts (x-envoy-*) and the selection of the route.
func removeUntrustedHeaders() []*mutationv3.HeaderMutation {
	var out []*mutationv3.HeaderMutation
	for _, prefix := range []string{"x-chaperone-", "x-envoy-"} {
		out = append(out, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
			RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}, IgnoreCase: true,
			}},
		}})
	}
	return out
}

// markInternal marks requests inside a CONNECT.
func markInternal() *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: headerInternal, Value: "1"},
	}}}
}

// upgrades returns the protocols that any rule allows upgrades to. The check decides
// whether a request may; Envoy itself refuses other protocols.
func (b *builder) upgrades() []*hcmv3.HttpConnectionManager_UpgradeConfig {
	var names []string
	for i := range b.targets {
		for name := range strings.SplitSeq(b.targets[i].Upgrades, ",") {
			// Envoy rejects duplicate names, regardless of case.
			if name != "" && name != "connect" {
				names = append(names, name)
			}
		}
	}
	names = append(names, "CONNECT", "websocket")
	slices.Sort(names)
	var out []*hcmv3.HttpConnectionManager_UpgradeConfig
	for _, name := range slices.Compact(names) {
		out = append(out, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: name})
	}
	return out
}

// extAuthz is the filter that calls the sidecar. A failed call is a refusal.
func (b *builder) extAuthz() *hcmv3.HttpFilter {
	return b.httpFilter(filterHTTPAuthz, &authzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		Services:            &authzv3.ExtAuthz_GrpcService{GrpcService: checkService()},
		StatusOnError:       &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		EncodeRawHeaders:    true, // repeated ones apart, bytes untouched
		ValidateMutations:   true,
		ClearRouteCache:     true, // the route is that of the answer
		IncludeTlsSession:   true,
	})
}

func (b *builder) router() *hcmv3.HttpFilter {
	return b.httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true})
}

func (b *builder) httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.packed(m)}}
}

// requestLog returns the log fields of a request. It has no path, because a credential
// in the query is part of it. The decision identifies the audit record, which has the
// path.
func requestLog() map[string]string {
	return map[string]string{
		"time":        "%START_TIME%",
		"listener":    "%FILTER_CHAIN_NAME%",
		"decision":    "%DYNAMIC_METADATA(" + filterHTTPAuthz + ":decision)%",
		"reason":      "%DYNAMIC_METADATA(" + filterHTTPAuthz + ":reason)%",
		"grant":       "%DYNAMIC_METADATA(" + filterHTTPAuthz + ":grant)%",
		"rule":        "%DYNAMIC_METADATA(" + filterHTTPAuthz + ":rule)%",
		"method":      "%REQ(:METHOD)%",
		"authority":   "%REQ(:AUTHORITY)%",
		"status":      "%RESPONSE_CODE%",
		"details":     "%RESPONSE_CODE_DETAILS%",
		"flags":       "%RESPONSE_FLAGS%",
		"sent":        "%BYTES_RECEIVED%",
		"received":    "%BYTES_SENT%",
		"duration_ms": "%DURATION%",
	}
}

// connectionLog returns the log fields of a connection that is checked as a whole.
func connectionLog() map[string]string {
	return map[string]string{
		"time":        "%START_TIME%",
		"listener":    "%FILTER_CHAIN_NAME%",
		"decision":    "%DYNAMIC_METADATA(" + filterNetAuthz + ":decision)%",
		"reason":      "%DYNAMIC_METADATA(" + filterNetAuthz + ":reason)%",
		"grant":       "%DYNAMIC_METADATA(" + filterNetAuthz + ":grant)%",
		"rule":        "%DYNAMIC_METADATA(" + filterNetAuthz + ":rule)%",
		"authority":   "%REQUESTED_SERVER_NAME%",
		"destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
		"details":     "%CONNECTION_TERMINATION_DETAILS%",
		"flags":       "%RESPONSE_FLAGS%",
		"sent":        "%BYTES_RECEIVED%",
		"received":    "%BYTES_SENT%",
		"duration_ms": "%DURATION%",
	}
}

// accessLog returns the loggers that write fields to the operator's access log.
func (b *builder) accessLog(fields map[string]string) []*accesslogv3.AccessLog {
	values := make(map[string]*structpb.Value, len(fields))
	for name, format := range fields {
		values[name] = structpb.NewStringValue(format)
	}
	format := &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: values}}}
	name, m := "envoy.access_loggers.stdout", proto.Message(&streamv3.StdoutAccessLog{
		AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: format},
	})
	switch b.cfg.AccessLog {
	case "off":
		return nil
	case "", "stdout":
	default:
		name, m = "envoy.access_loggers.file", &filev3.FileAccessLog{
			Path: b.cfg.AccessLog, AccessLogFormat: &filev3.FileAccessLog_LogFormat{LogFormat: format},
		}
	}
	return []*accesslogv3.AccessLog{{Name: name, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.packed(m)}}}
}

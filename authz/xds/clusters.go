package xds

import (
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	// maxStreams is what Envoy lets be in flight in one cluster; its own default
	// of 1024 is no limit of any grant's.
	maxStreams = 4096
	// unhealthyInterval is how often a sidecar that is not ready is asked again.
	unhealthyInterval = 100 * time.Millisecond
)

// clusters returns where Envoy may go: to the sidecar, and nowhere else.
func (b *builder) clusters() []*clusterv3.Cluster {
	out := []*clusterv3.Cluster{b.check(), {
		Name:                 blackholeCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
	}}
	for i := range b.targets {
		p := &b.targets[i]
		out = append(out, b.upstream(p, p.cluster))
		if p.upgrades() {
			out = append(out, b.upstream(p, p.cluster+upgradeSuffix))
		}
	}
	for _, way := range b.internalAddresses() {
		out = append(out, b.internalCluster(way))
	}
	return out
}

func static(name string, to *corev3.Address) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: to}},
			}}}},
		},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(maxStreams), MaxPendingRequests: wrapperspb.UInt32(maxStreams),
			MaxRequests: wrapperspb.UInt32(maxStreams), MaxRetries: wrapperspb.UInt32(maxStreams),
		}}},
	}
}

func (b *builder) httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpOptions: b.packed(o)}
}

func overHTTP2() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		},
	}}
}

func overHTTP1() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: http1Options(),
			},
		},
	}}
}

// http1Options and toUpstream2 are how Envoy speaks to upstreams. A header of an
// answer may be as long as an HTTP/1.1 one may.
func http1Options() *corev3.Http1ProtocolOptions {
	return &corev3.Http1ProtocolOptions{EnableTrailers: true}
}

func http2Options() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{MaxHeaderFieldSizeKb: wrapperspb.UInt32(maxResponseHeadKiB)}
}

// check is the cluster of the ext_authz socket. A sidecar that is not ready or
// that drains gives no answers, and without the threshold of 0 Envoy would go
// on asking an endpoint that is known to be unhealthy.
func (b *builder) check() *clusterv3.Cluster {
	c := static(checkCluster, pipe(b.cfg.Check))
	c.ConnectTimeout = seconds(1)
	c.TypedExtensionProtocolOptions = b.httpOptions(overHTTP2())
	c.HealthChecks = []*corev3.HealthCheck{{
		// A sidecar that has just become ready is not to be waited for.
		Timeout: seconds(1), Interval: seconds(5), UnhealthyInterval: durationpb.New(unhealthyInterval),
		NoTrafficInterval: durationpb.New(unhealthyInterval), NoTrafficHealthyInterval: seconds(1),
		UnhealthyThreshold: wrapperspb.UInt32(2), HealthyThreshold: wrapperspb.UInt32(1),
		HealthChecker: &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{
			ServiceName: "envoy.service.auth.v3.Authorization",
		}},
	}}
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}}
	return c
}

// upstream is the cluster of one place: the sidecar's exit to it.
func (b *builder) upstream(p *routeTarget, name string) *clusterv3.Cluster {
	c := static(name, pipe(p.egress))
	c.PerConnectionBufferLimitBytes = wrapperspb.UInt32(bufferLimit)
	switch p.Scheme {
	case authz.SchemeHTTPS:
		b.setTLS(c, p)
	case authz.SchemeHTTP:
		o := &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: http1Options(), Http2ProtocolOptions: http2Options(),
			},
		}}
		o.CommonHttpProtocolOptions = commonOptions()
		if !p.Exact() {
			// The exit learns the host from the first request of a connection.
			o.CommonHttpProtocolOptions.MaxRequestsPerConnection = wrapperspb.UInt32(1)
		}
		c.TypedExtensionProtocolOptions = b.httpOptions(o)
	case authz.SchemeTLS, authz.SchemeTCP:
	}
	return c
}

// upstreamIdle is how long a connection to an upstream is kept for requests to
// come. Many servers end an idle one after five seconds (Node, Apache, uvicorn),
// and a request that is sent just then is lost; each also holds descriptors of the
// sidecar's at the exit.
const upstreamIdle = 4 * time.Second

// What Envoy takes of an answer, as the sidecar's own proxy does.
const maxResponseHeadKiB = 256

// commonOptions returns what holds for all connections to upstreams.
func commonOptions() *corev3.HttpProtocolOptions {
	return &corev3.HttpProtocolOptions{
		IdleTimeout:          durationpb.New(upstreamIdle),
		MaxHeadersCount:      wrapperspb.UInt32(maxHeaders),
		MaxResponseHeadersKb: wrapperspb.UInt32(maxResponseHeadKiB),
	}
}

// setTLS has a cluster speak TLS on the rule's terms, to the granted host only.
func (b *builder) setTLS(c *clusterv3.Cluster, p *routeTarget) {
	o := &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_AutoConfig{
		AutoConfig: &httpv3.HttpProtocolOptions_AutoHttpConfig{
			HttpProtocolOptions: http1Options(), Http2ProtocolOptions: http2Options(),
		},
	}}
	if c.GetName() != p.cluster {
		o = overHTTP1()
	}
	o.CommonHttpProtocolOptions = commonOptions()
	valid := &tlsv3.CertificateValidationContext{}
	tls := &tlsv3.UpstreamTlsContext{}
	addr, isAddr := p.literal()
	switch {
	case !p.Exact():
		o.UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: true}
	case isAddr:
		valid.MatchTypedSubjectAltNames = subjectAltName(tlsv3.SubjectAltNameMatcher_IP_ADDRESS, addr.String())
	default:
		tls.Sni = p.Host
		valid.MatchTypedSubjectAltNames = subjectAltName(tlsv3.SubjectAltNameMatcher_DNS, p.Host)
	}
	secret := &tlsv3.SdsSecretConfig{Name: secretOf(p.Terms.CA)}
	if !b.static {
		secret.SdsConfig = ads()
	}
	tls.CommonTlsContext = &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsMin(p.Terms.TLSMin), TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: valid, ValidationContextSdsSecretConfig: secret,
			},
		},
	}
	c.TypedExtensionProtocolOptions = b.httpOptions(o)
	c.TransportSocket = &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.packed(tls)},
	}
}

func tlsMin(version string) tlsv3.TlsParameters_TlsProtocol {
	if version == "1.3" {
		return tlsv3.TlsParameters_TLSv1_3
	}
	return tlsv3.TlsParameters_TLSv1_2
}

func subjectAltName(kind tlsv3.SubjectAltNameMatcher_SanType, name string) []*tlsv3.SubjectAltNameMatcher {
	return []*tlsv3.SubjectAltNameMatcher{{
		SanType: kind,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
	}}
}

// originalDst is where the listener filter of that name finds, on a connection
// to an internal listener, the address that it is to be taken as one to.
const originalDst = "envoy.filters.listener.original_dst"

// internalCluster is the cluster that leads into the internal listener, as a connection
// to the given address.
func (b *builder) internalCluster(to netip.AddrPort) *clusterv3.Cluster {
	c := static(internalName(to), &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{
		EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
			AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: internalListener},
			EndpointId:           to.String(),
		},
	}})
	c.ConnectTimeout = durationpb.New(time.Second)
	c.LoadAssignment.Endpoints[0].LbEndpoints[0].Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		originalDst: {Fields: map[string]*structpb.Value{"local": structpb.NewStringValue(to.String())}},
	}}
	c.TransportSocket = &corev3.TransportSocket{
		Name: "envoy.transport_sockets.internal_upstream",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.packed(&internalv3.InternalUpstreamTransport{
			PassthroughMetadata: []*internalv3.InternalUpstreamTransport_MetadataValueSource{{
				Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Host_{Host: &metadatav3.MetadataKind_Host{}}},
				Name: originalDst,
			}},
			TransportSocket: &corev3.TransportSocket{
				Name:       "envoy.transport_sockets.raw_buffer",
				ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.packed(&rawv3.RawBuffer{})},
			},
		})},
	}
	return c
}

func internalName(to netip.AddrPort) string { return internalListener + "/" + to.String() }

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
	// maxStreams bounds the requests in flight in one cluster; Envoy's default of
	// 1024 is below what grants allow.
	maxStreams = 4096
	// unhealthyInterval is the interval of health checks of a sidecar that is not ready.
	unhealthyInterval = 100 * time.Millisecond
)

// clusters returns Envoy's clusters, all of which are sockets of the sidecar.
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

// http1Options and http2Options are the options for connections to upstreams. A header
// of an answer may be as long over HTTP/2 as over HTTP/1.1.
func http1Options() *corev3.Http1ProtocolOptions {
	return &corev3.Http1ProtocolOptions{EnableTrailers: true}
}

func http2Options() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{MaxHeaderFieldSizeKb: wrapperspb.UInt32(maxResponseHeadKiB)}
}

// check is the cluster of the ext_authz socket. A sidecar that is not ready or drains
// does not answer; without a panic threshold of 0 Envoy would keep calling an unhealthy
// endpoint.
func (b *builder) check() *clusterv3.Cluster {
	c := static(checkCluster, pipe(b.cfg.Check))
	c.ConnectTimeout = seconds(1)
	c.TypedExtensionProtocolOptions = b.httpOptions(overHTTP2())
	c.HealthChecks = []*corev3.HealthCheck{{
		// The short unhealthy interval notices a ready sidecar quickly.
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

// upstream is the cluster of one target: the sidecar's egress socket for it.
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
			// The egress learns the host from the first request of a connection.
			o.CommonHttpProtocolOptions.MaxRequestsPerConnection = wrapperspb.UInt32(1)
		}
		c.TypedExtensionProtocolOptions = b.httpOptions(o)
	case authz.SchemeTLS, authz.SchemeTCP:
	case authz.SchemePostgres, authz.SchemeRedis: // never a route
	}
	return c
}

// upstreamIdle bounds how long an idle connection to an upstream is kept. Many servers
// close one after five seconds (Node, Apache, uvicorn), and a request that is sent at
// that moment is lost; each connection also uses descriptors of the sidecar.
const upstreamIdle = 4 * time.Second

// maxResponseHeadKiB bounds the head of an answer, as in the sidecar's own proxy.
const maxResponseHeadKiB = 256

// commonOptions returns the options of all connections to upstreams.
func commonOptions() *corev3.HttpProtocolOptions {
	return &corev3.HttpProtocolOptions{
		IdleTimeout:          durationpb.New(upstreamIdle),
		MaxHeadersCount:      wrapperspb.UInt32(maxHeaders),
		MaxResponseHeadersKb: wrapperspb.UInt32(maxResponseHeadKiB),
	}
}

// setTLS configures TLS of a cluster on the rule's terms, to the granted host only.
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

// originalDst is the metadata key in which the listener filter of that name finds the
// destination address of a connection to an internal listener.
const originalDst = "envoy.filters.listener.original_dst"

// internalCluster is the cluster of the internal listener for connections to the given
// address.
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

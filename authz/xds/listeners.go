package xds

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	netauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
)

// typedExtension configures an input or action of a matcher.
type typedExtension = xdscorev3.TypedExtensionConfig

// Names of Envoy's filters, for their configuration on routes and for their dynamic
// metadata.
const (
	filterHTTPAuthz = "envoy.filters.http.ext_authz"
	filterNetAuthz  = "envoy.filters.network.ext_authz"
)

// bufferLimit bounds Envoy's buffers of one connection, in bytes.
const bufferLimit = 1 << 20

// maxHello bounds the plugin's first bytes that are buffered while a tunnel is being
// opened.
const maxHello = 64 << 10

// Names of filter chains.
const (
	httpChain    = "http"    // connections without TLS
	refusedChain = "refused" // TLS to names that are not granted
)

// listeners returns the listeners for the plugin's connections. The destination of a
// connection is known from a PROXY header, from the kernel, or from a CONNECT; the rest
// is the same for all.
func (b *builder) listeners(table *routev3.RouteConfiguration) []*listenerv3.Listener {
	inspector := b.listenerFilter("envoy.filters.listener.tls_inspector", &inspectorv3.TlsInspector{})
	destination := b.listenerFilter(originalDst, &dstv3.OriginalDst{})
	outside := b.hcm("egress", nil, removeUntrustedHeaders())
	var out []*listenerv3.Listener
	if b.cfg.Listener != "" {
		header := b.listenerFilter("envoy.filters.listener.proxy_protocol", &proxyv3.ProxyProtocol{
			DisallowedVersions: []corev3.ProxyProtocolConfig_Version{corev3.ProxyProtocolConfig_V1},
		})
		l := b.listener("plugin", outside, header, inspector)
		l.Address = pipe(b.cfg.Listener)
		l.Address.GetPipe().Mode = b.mode()
		out = append(out, l)
	}
	if b.cfg.Explicit.IsValid() {
		l := b.listener("explicit", outside, inspector)
		l.Address = socket(b.cfg.Explicit)
		out = append(out, l)
	}
	if b.cfg.Transparent.IsValid() {
		l := b.listener("transparent", outside, destination, inspector)
		l.Address = socket(b.cfg.Transparent)
		out = append(out, l)
	}
	// It is configured regardless of grants, because Envoy drains a removed listener
	// with all its chains for minutes.
	within := b.hcm(internalListener, nil, append(removeUntrustedHeaders(), markInternal()))
	l := b.listener(internalListener, within, destination, inspector)
	l.ListenerSpecifier = &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}}
	out = append(out, l)
	if b.static { // the routes once, where they are easy to read
		out[0].FilterChains[0].Filters = []*listenerv3.Filter{b.hcm("egress", table, removeUntrustedHeaders())}
	}
	return out
}

// mode returns the mode of sockets that Envoy makes.
func (b *builder) mode() uint32 {
	if b.cfg.Group != "" {
		return 0o660
	}
	return 0o600
}

func socket(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

func (b *builder) listenerFilter(name string, m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.packed(m)}}
}

func (b *builder) filter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.packed(m)}}
}

// listener returns a listener without an address. manager is the filter of HTTP
// connections.
func (b *builder) listener(name string, manager *listenerv3.Filter, filters ...*listenerv3.ListenerFilter) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, StatPrefix: name, TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		ListenerFilters:               filters,
		ListenerFiltersTimeout:        seconds(10),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		FilterChains: []*listenerv3.FilterChain{
			{Name: httpChain, Filters: []*listenerv3.Filter{manager}},
			b.tunnel(refusedChain, blackholeCluster, durationpb.New(b.cfg.MaxStreamDuration)),
		},
	}
	hosts := map[string][]string{}
	for i := range b.targets {
		p := &b.targets[i]
		switch p.Scheme {
		case authz.SchemeHTTPS:
			if name := chainOf(p); b.cfg.Leaf != nil && !slices.Contains(hosts[name], p.Host) {
				hosts[name] = append(hosts[name], p.Host)
			}
		case authz.SchemeTLS, authz.SchemeTCP:
			l.FilterChains = append(l.FilterChains, b.tunnel(p.cluster, p.cluster, b.maxDuration(p)))
		case authz.SchemeHTTP:
		case authz.SchemePostgres, authz.SchemeRedis: // never a route
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		l.FilterChains = append(l.FilterChains, b.terminated(name, hosts[name], manager))
	}
	l.FilterChainMatcher = b.chainMatcher()
	return l
}

// tunnel is the chain of connections that are checked as a whole, which happens when the
// plugin's first bytes arrive. Envoy dials only afterwards: otherwise data that the
// upstream sends first would pass before the decision.
func (b *builder) tunnel(name, cluster string, longest *durationpb.Duration) *listenerv3.FilterChain {
	proxy := &tcpv3.TcpProxy{
		StatPrefix:                      "connection",
		ClusterSpecifier:                &tcpv3.TcpProxy_Cluster{Cluster: cluster},
		MaxDownstreamConnectionDuration: longest,
		IdleTimeout:                     seconds(0), // it may be idle until it ends
		AccessLog:                       b.accessLog(connectionLog()),
		UpstreamConnectMode:             tcpv3.UpstreamConnectMode_ON_DOWNSTREAM_DATA,
		MaxEarlyDataBytes:               wrapperspb.UInt32(maxHello),
	}
	return &listenerv3.FilterChain{Name: name, Filters: []*listenerv3.Filter{
		b.filter(filterNetAuthz, &netauthzv3.ExtAuthz{
			StatPrefix: "connection", TransportApiVersion: corev3.ApiVersion_V3, GrpcService: checkService(),
			IncludeTlsSession: true,
		}),
		b.filter("envoy.filters.network.tcp_proxy", proxy),
	}}
}

// terminated is the chain of TLS connections that are intercepted. Envoy selects the
// certificate by the server name.
func (b *builder) terminated(name string, hosts []string, manager *listenerv3.Filter) *listenerv3.FilterChain {
	tls := &tlsv3.CommonTlsContext{
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		AlpnProtocols: []string{"h2", "http/1.1"},
	}
	slices.Sort(hosts)
	for _, host := range hosts {
		certificate, key, err := b.cfg.Leaf(strings.Replace(host, "**.", "*.", 1))
		if err != nil && b.err == nil {
			b.err = fmt.Errorf("make certificate of %s: %w", host, err)
		}
		tls.TlsCertificates = append(tls.TlsCertificates, &tlsv3.TlsCertificate{
			CertificateChain: inline(string(certificate)), PrivateKey: inline(string(key)),
		})
	}
	return &listenerv3.FilterChain{
		Name: name, Filters: []*listenerv3.Filter{manager},
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.packed(&tlsv3.DownstreamTlsContext{CommonTlsContext: tls})},
		},
	}
}

// terminatedChains is the number of chains that all intercepted hosts share. One chain
// for each host would cost Envoy some 10 ms and a copy of the whole manager for every
// host and listener. One chain for all would be replaced, and its connections drained,
// whenever a host changes; so a host's chain depends on its name alone.
const terminatedChains = 64

// chainMatcher selects the filter chain of a connection: by its address, if that is
// granted by tcp; then by the server name of its TLS, or by its address if it has no
// server name; connections without TLS are HTTP.
func (b *builder) chainMatcher() *matcherv3.Matcher {
	http := chain(b, httpChain)
	refused := chain(b, refusedChain)
	tls := b.byAddress(refused, b.tlsTargets(func(p *routeTarget) bool { _, ok := p.literal(); return ok }))
	tls = b.byName(tls, b.tlsTargets(func(p *routeTarget) bool { _, ok := p.literal(); return !ok }))
	rest := nested(&matcherv3.Matcher{
		MatcherType: b.exactMap(&inputsv3.TransportProtocolInput{}, map[string]*matcherv3.Matcher_OnMatch{"tls": tls}),
		OnNoMatch:   http,
	})
	if m := b.byAddress(rest, b.tcpTargets()).GetMatcher(); m != nil {
		return m
	}
	return rest.GetMatcher()
}

func chain(b *builder, name string) *matcherv3.Matcher_OnMatch {
	return b.action(name, wrapperspb.String(name))
}

// tlsTargets returns the targets of TLS connections that wanted accepts: a connection
// is intercepted if any rule grants requests.
func (b *builder) tlsTargets(wanted func(*routeTarget) bool) []*routeTarget {
	var out []*routeTarget
	if b.cfg.Leaf != nil {
		out = b.targetsOf(authz.SchemeHTTPS)
	}
	out = append(out, b.targetsOf(authz.SchemeTLS)...)
	return slices.DeleteFunc(out, func(p *routeTarget) bool { return !wanted(p) })
}

// chainOf returns the name of a target's filter chain.
func chainOf(p *routeTarget) string {
	if p.Scheme != authz.SchemeHTTPS {
		return p.cluster
	}
	if _, ok := p.literal(); ok {
		return "https/" + p.Host // it has no server name to select by
	}
	sum := fnv.New32a()
	sum.Write([]byte(p.Host))
	return "https/" + strconv.Itoa(int(sum.Sum32()%terminatedChains))
}

// byAddress selects the chain by the address and port of a connection.
func (b *builder) byAddress(otherwise *matcherv3.Matcher_OnMatch, targets []*routeTarget) *matcherv3.Matcher_OnMatch {
	list := &matcherv3.Matcher_MatcherList{}
	seen := map[netip.AddrPort]bool{}
	for _, p := range targets {
		addr, ok := b.address(p)
		to := netip.AddrPortFrom(addr, p.Port)
		if !ok || seen[to] {
			continue
		}
		seen[to] = true
		list.Matchers = append(list.Matchers, &matcherv3.Matcher_MatcherList_FieldMatcher{
			Predicate: &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_AndMatcher{
				AndMatcher: &matcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: []*predicate{
					b.fieldMatcher(&inputsv3.DestinationPortInput{}, exactMatch(portText(to.Port()))),
					b.fieldMatcher(&inputsv3.DestinationIPInput{}, exactMatch(to.Addr().String())),
				}},
			}},
			OnMatch: chain(b, chainOf(p)),
		})
	}
	if len(seen) == 0 {
		return otherwise
	}
	return nested(&matcherv3.Matcher{MatcherType: &matcherv3.Matcher_MatcherList_{MatcherList: list}, OnNoMatch: otherwise})
}

// address returns the address that identifies connections to a target.
func (b *builder) address(p *routeTarget) (netip.Addr, bool) {
	if addr, ok := p.literal(); ok || b.cfg.Address == nil {
		return addr, ok
	}
	return b.cfg.Address(p.Host)
}

// byName selects the chain by the server name, exact before wildcard, and then by the
// port. A nested matcher without a match ends the search, so each name has the ports of
// every pattern that covers it.
func (b *builder) byName(otherwise *matcherv3.Matcher_OnMatch, targets []*routeTarget) *matcherv3.Matcher_OnMatch {
	slices.SortStableFunc(targets, func(x, y *routeTarget) int { return compareSpecificity(x.Host, y.Host) })
	var wild []*routeTarget
	names := map[string]bool{}
	for _, p := range targets {
		names[p.Host] = true
		if !p.Exact() {
			wild = append(wild, p)
		}
	}
	ports := map[string]map[string]*matcherv3.Matcher_OnMatch{}
	for _, p := range targets {
		if ports[p.Host] == nil {
			ports[p.Host] = map[string]*matcherv3.Matcher_OnMatch{}
		}
		setFirst(ports[p.Host], portText(p.Port), chain(b, chainOf(p)))
	}
	for name := range names {
		for _, p := range wild {
			if covers(p.Host, name) {
				setFirst(ports[name], portText(p.Port), chain(b, chainOf(p)))
			}
		}
	}
	tree := map[string]*matcherv3.Matcher_OnMatch{}
	list := &matcherv3.Matcher_MatcherList{}
	for _, host := range slices.SortedFunc(maps.Keys(names), compareSpecificity) {
		then := nested(&matcherv3.Matcher{MatcherType: b.exactMap(&inputsv3.DestinationPortInput{}, ports[host]), OnNoMatch: otherwise})
		if strings.HasPrefix(host, "*") {
			list.Matchers = append(list.Matchers, &matcherv3.Matcher_MatcherList_FieldMatcher{
				Predicate: b.fieldMatcher(&inputsv3.ServerNameInput{}, regexMatch(pattern(host))), OnMatch: then,
			})
		} else {
			tree[host] = then
		}
	}
	if len(list.GetMatchers()) > 0 {
		otherwise = nested(&matcherv3.Matcher{MatcherType: &matcherv3.Matcher_MatcherList_{MatcherList: list}, OnNoMatch: otherwise})
	}
	if len(tree) == 0 {
		return otherwise
	}
	return nested(&matcherv3.Matcher{MatcherType: b.exactMap(&inputsv3.ServerNameInput{}, tree), OnNoMatch: otherwise})
}

func setFirst(to map[string]*matcherv3.Matcher_OnMatch, key string, value *matcherv3.Matcher_OnMatch) {
	if to[key] == nil {
		to[key] = value
	}
}

// covers reports whether a wildcard matches every name that another host of a rule
// matches.
func covers(wildcard, host string) bool {
	if !strings.HasPrefix(host, "*") {
		return authz.Route{Host: wildcard}.Matches(host)
	}
	base, deep := strings.CutPrefix(wildcard, "**")
	if !deep {
		return host == wildcard
	}
	return strings.HasSuffix(host, base)
}

package xds

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	envoymatcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
)

// predicate is a condition of a matcher.
type predicate = matcherv3.Matcher_MatcherList_Predicate

// headerRoute is the request header in which an allowing answer names the rule that
// allowed the request. A header of this name from the plugin is removed before it
// is used.
const headerRoute = "x-chaperone-route"

// headerInternal is the request header with which Envoy marks requests inside a
// CONNECT. They cannot open another CONNECT: nested streams would not be counted.
const headerInternal = "x-chaperone-inside"

// routeConfiguration returns the routes. Before the sidecar has answered, every
// request matches a route that refuses it, so that every request is checked. The
// answer then names a rule, and only that rule's routes forward, and only to its hosts.
func (b *builder) routeConfiguration() *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{Name: routeTable}
	for _, way := range b.internalAddresses() {
		out.VirtualHosts = append(out.VirtualHosts, b.internalVirtualHost(way))
	}
	everywhere := virtualHost("everywhere", "*")
	everywhere.Matcher = b.byRule(b.targets, b.refuse())
	out.VirtualHosts = append(out.VirtualHosts, everywhere)
	return out
}

func virtualHost(name string, domains ...string) *routev3.VirtualHost {
	return &routev3.VirtualHost{
		Name: name, Domains: domains,
		ResponseHeadersToRemove: []string{"x-chaperone-decision", "x-chaperone-reason", "alt-svc"},
	}
}

// internalAddresses returns the destination addresses of connections inside a CONNECT:
// for names the unspecified network with the port, which no rule for an address can
// match, and for literals the address itself.
func (b *builder) internalAddresses() []netip.AddrPort {
	var out []netip.AddrPort
	for i := range b.targets {
		p := &b.targets[i]
		for _, port := range b.internalPorts(p) {
			out = append(out, internalAddress(p, port))
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

func internalAddress(p *routeTarget, port uint16) netip.AddrPort {
	addr, ok := p.literal()
	if !ok {
		addr = netip.AddrFrom4([4]byte{0, 0, 0, 1})
	}
	return netip.AddrPortFrom(addr, port)
}

// internalPorts returns the ports of the target's host for which the content of a
// CONNECT is inspected: TLS that is intercepted or whose server name decides, and
// plain http, which Node's fetch, npm and curl -p send this way. Ports that are granted
// by tcp are left out and checked as tunnels.
func (b *builder) internalPorts(p *routeTarget) []uint16 {
	ports := []uint16{p.Port}
	switch {
	case p.Scheme == authz.SchemeTCP, p.Scheme == authz.SchemeHTTPS && b.cfg.Leaf == nil:
		return nil
	case p.Originate && p.Port != authz.SchemeHTTP.DefaultPort():
		ports = append(ports, authz.SchemeHTTP.DefaultPort())
	}
	return slices.DeleteFunc(ports, func(port uint16) bool { return b.tunnels[net.JoinHostPort(p.Host, portText(port))] })
}

func (b *builder) tcpTargets() []*routeTarget { return b.targetsOf(authz.SchemeTCP) }

func (b *builder) targetsOf(scheme authz.Scheme) []*routeTarget {
	var out []*routeTarget
	for i := range b.targets {
		if b.targets[i].Scheme == scheme {
			out = append(out, &b.targets[i])
		}
	}
	return out
}

// internalVirtualHost is the virtual host of CONNECT to hosts whose content is
// inspected.
func (b *builder) internalVirtualHost(way netip.AddrPort) *routev3.VirtualHost {
	var domains []string
	for i := range b.targets {
		p := &b.targets[i]
		if !slices.Contains(b.internalPorts(p), way.Port()) || internalAddress(p, way.Port()) != way {
			continue
		}
		host, port := strings.Replace(p.Host, "**.", "*.", 1), portText(way.Port())
		domains = append(domains, net.JoinHostPort(host, port))
		if _, isAddr := p.literal(); !isAddr {
			domains = append(domains, host+".:"+port) // a fully qualified name (RFC 1034, section 3.1)
		}
	}
	slices.Sort(domains)
	into := &routev3.Route{
		Name: internalListener,
		Match: &routev3.RouteMatch{
			PathSpecifier: connectMatch(),
			Headers: []*routev3.HeaderMatcher{{
				Name: headerInternal, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: false},
			}},
		},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: internalName(way)},
			Timeout:          seconds(0),
			UpgradeConfigs:   []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "CONNECT", ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{}}},
		}},
		TypedPerFilterConfig: map[string]*anypb.Any{
			filterHTTPAuthz: b.packed(&authzv3.ExtAuthzPerRoute{Override: &authzv3.ExtAuthzPerRoute_Disabled{Disabled: true}}),
		},
	}
	host := virtualHost(internalName(way), slices.Compact(domains)...)
	// Requests to hosts with this port match this virtual host as well; with a
	// default port only before they are checked.
	var here []routeTarget
	for _, p := range b.targets {
		if p.Port == way.Port() && p.Port != p.Scheme.DefaultPort() {
			here = append(here, p)
		}
	}
	host.Matcher = b.byRule(here, append([]*routev3.Route{into}, b.refuse()...))
	return host
}

// refuse returns the routes of requests that no answer allowed, and of allowed requests
// whose rule is not configured yet.
func (*builder) refuse() []*routev3.Route {
	refusal := &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 503,
		Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "no rule routes this request\n"}},
	}}
	return []*routev3.Route{
		{Name: "refused", Match: &routev3.RouteMatch{PathSpecifier: connectMatch()}, Action: refusal},
		{Name: "refused", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}}, Action: refusal},
	}
}

// byRule selects the route by the rule that the answer named, and then by the host.
// The cost does not grow with the number of rules.
func (b *builder) byRule(targets []routeTarget, otherwise []*routev3.Route) *matcherv3.Matcher {
	rules := map[string][]*routeTarget{}
	for i := range targets {
		if targets[i].Scheme == authz.SchemeTLS {
			continue // selected by server name
		}
		id := RouteID(targets[i].Route)
		rules[id] = append(rules[id], &targets[i])
	}
	onNoMatch := b.action("routes", &routev3.RouteList{Routes: otherwise})
	// A matcher needs at least one entry. No answer names this one.
	tree := map[string]*matcherv3.Matcher_OnMatch{"/": onNoMatch}
	for id, of := range rules {
		tree[id] = b.byHost(of)
	}
	return &matcherv3.Matcher{MatcherType: b.exactMap(header(headerRoute), tree), OnNoMatch: onNoMatch}
}

// byHost selects the route of one rule: of the exact host, otherwise of a wildcard.
// Without a match the request is not routed.
func (b *builder) byHost(targets []*routeTarget) *matcherv3.Matcher_OnMatch {
	exact := map[string]*matcherv3.Matcher_OnMatch{}
	var wild []*routeTarget
	for _, p := range targets {
		if p.Exact() {
			exact[p.authority()] = b.routesTo(p)
		} else {
			wild = append(wild, p)
		}
	}
	if len(wild) == 0 {
		return nested(&matcherv3.Matcher{MatcherType: b.exactMap(header(":authority"), exact)})
	}
	otherwise := nested(&matcherv3.Matcher{MatcherType: b.wildcards(wild)})
	if len(exact) == 0 {
		return otherwise
	}
	return nested(&matcherv3.Matcher{MatcherType: b.exactMap(header(":authority"), exact), OnNoMatch: otherwise})
}

// wildcards selects the most specific pattern that matches the host.
func (b *builder) wildcards(targets []*routeTarget) *matcherv3.Matcher_MatcherList_ {
	by := map[string]*routeTarget{}
	for _, p := range targets {
		by[p.authority()] = p
	}
	list := &matcherv3.Matcher_MatcherList{}
	for _, authority := range slices.SortedFunc(maps.Keys(by), compareSpecificity) {
		list.Matchers = append(list.Matchers, &matcherv3.Matcher_MatcherList_FieldMatcher{
			Predicate: b.fieldMatcher(header(":authority"), regexMatch(pattern(authority))), OnMatch: b.routesTo(by[authority]),
		})
	}
	return &matcherv3.Matcher_MatcherList_{MatcherList: list}
}

// compareSpecificity orders wildcards so that the first match is the most specific:
// the longest name first, and one label before several.
func compareSpecificity(x, y string) int {
	return cmp.Or(
		cmp.Compare(len(strings.TrimLeft(y, "*")), len(strings.TrimLeft(x, "*"))),
		cmp.Compare(len(x), len(y)), strings.Compare(x, y),
	)
}

// pattern returns a regular expression for a wildcard: one label, or one or more.
func pattern(wildcard string) string {
	label, name := `[^.:]+`, strings.TrimPrefix(wildcard, "*")
	if strings.HasPrefix(name, "*") {
		label, name = `[^:]+`, name[1:]
	}
	return label + regexp.QuoteMeta(name)
}

// routesTo returns the routes to a target: through a cluster of its own for upgrades,
// since few servers support upgrades over HTTP/2 (RFC 8441), and through a route with
// retries for requests that may be sent twice.
func (b *builder) routesTo(p *routeTarget) *matcherv3.Matcher_OnMatch {
	if !p.Scheme.HTTP() {
		return b.action("route", b.route(p))
	}
	var routes []*routev3.Route
	if p.upgrades() {
		upgrade := b.route(p)
		upgrade.Name = p.cluster + upgradeSuffix
		upgrade.GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: upgrade.Name}
		upgrade.Match.Headers = []*routev3.HeaderMatcher{{
			Name: "upgrade", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}}
		routes = append(routes, upgrade)
	}
	return b.action("routes", &routev3.RouteList{Routes: append(routes, b.retriableRoute(p), b.route(p))})
}

// retriableRoute routes requests that are sent once more if the upstream closed the
// connection before it answered: safe methods (RFC 9110, section 9.2.1) without a body,
// which an upstream that was closing an idle connection has not processed. Envoy
// resends the request as decided: the ext_authz filter comes before the router, so
// nothing is decided, spent or recorded twice, and the egress checks whether the rule
// is still in force.
func (b *builder) retriableRoute(p *routeTarget) *routev3.Route {
	r := b.route(p)
	r.Name = p.cluster + retriableSuffix
	absent := func(name string) *routev3.HeaderMatcher {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}}
	}
	method := &envoymatcherv3.StringMatcher{MatchPattern: &envoymatcherv3.StringMatcher_SafeRegex{
		SafeRegex: &envoymatcherv3.RegexMatcher{Regex: "GET|HEAD|OPTIONS"},
	}}
	r.Match.Headers = []*routev3.HeaderMatcher{
		{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: method}},
		absent("upgrade"), absent("transfer-encoding"), absent("content-length"),
	}
	// An HTTP/2 body that no header announces is not buffered, and so not resent.
	r.RequestBodyBufferLimit = wrapperspb.UInt64(0)
	r.GetRoute().RetryPolicy = &routev3.RetryPolicy{
		RetryOn: "reset", NumRetries: wrapperspb.UInt32(1), // reset includes connect-failure and reset-before-request
	}
	return r
}

// retriableSuffix ends the name of the route of requests that may be sent twice.
const retriableSuffix = "/repeatable"

// route returns the route to a target.
func (b *builder) route(p *routeTarget) *routev3.Route {
	action := &routev3.RouteAction{
		ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: p.cluster},
		Timeout:           seconds(0), // it does not count while the request is being sent
		MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: b.maxDuration(p)},
	}
	match := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}}
	if p.Scheme == authz.SchemeTCP {
		match.PathSpecifier = connectMatch()
		action.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{
			UpgradeType: "CONNECT", ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{},
		}}
	}
	return &routev3.Route{
		Name: p.cluster, Match: match, Action: &routev3.Route_Route{Route: action},
		RequestHeadersToRemove: []string{headerRoute, headerInternal, "x-forwarded-proto", "x-forwarded-for", "x-request-id", "x-envoy-internal", "x-envoy-external-address"},
	}
}

// Constructors of matchers follow.

func header(name string) *envoymatcherv3.HttpRequestHeaderMatchInput {
	return &envoymatcherv3.HttpRequestHeaderMatchInput{HeaderName: name}
}

func (b *builder) input(m proto.Message) *typedExtension {
	return &typedExtension{Name: string(m.ProtoReflect().Descriptor().Name()), TypedConfig: b.packed(m)}
}

func (b *builder) exactMap(input proto.Message, to map[string]*matcherv3.Matcher_OnMatch) *matcherv3.Matcher_MatcherTree_ {
	return &matcherv3.Matcher_MatcherTree_{MatcherTree: &matcherv3.Matcher_MatcherTree{
		Input:    b.input(input),
		TreeType: &matcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &matcherv3.Matcher_MatcherTree_MatchMap{Map: to}},
	}}
}

func (b *builder) fieldMatcher(input proto.Message, what *matcherv3.StringMatcher) *predicate {
	return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input:   b.input(input),
			Matcher: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: what},
		},
	}}
}

func exactMatch(text string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: text}}
}

func regexMatch(regex string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{
		EngineType: &matcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &matcherv3.RegexMatcher_GoogleRE2{}}, Regex: regex,
	}}}
}

func (b *builder) action(name string, m proto.Message) *matcherv3.Matcher_OnMatch {
	return &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Action{Action: &typedExtension{Name: name, TypedConfig: b.packed(m)}}}
}

func nested(m *matcherv3.Matcher) *matcherv3.Matcher_OnMatch {
	return &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Matcher{Matcher: m}}
}

func connectMatch() *routev3.RouteMatch_ConnectMatcher_ {
	return &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }

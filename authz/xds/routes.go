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

// predicate is a condition of a matcher's.
type predicate = matcherv3.Matcher_MatcherList_Predicate

// headerRoute is the request header by which an allowing answer names the rule
// that let the request through. What the plugin sends under that name is
// removed before anything looks at it.
const headerRoute = "x-chaperone-route"

// headerInternal is the request header that Envoy marks requests with that came
// in a CONNECT. They cannot open another one: streams in streams in streams
// would be counted by nobody.
const headerInternal = "x-chaperone-inside"

// routeConfiguration returns the routes. Before the sidecar has answered, every request is
// on a route that leads nowhere, so that every request is asked about; the
// answer then names its rule, and only that leads on, and only to the rule's own
// hosts.
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

// internalAddresses returns the addresses that connections in a CONNECT are taken as
// going to: of the unspecified network with the port for names, so that no rule
// for an address can mean them, and the address itself for literals.
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

// internalPorts returns the ports of the place's host for which what is sent in a
// CONNECT is looked into: TLS that is terminated or whose server name decides, and
// plain http, which Node's fetch, npm and curl -p send so. What may be any tcp is
// not, and is asked about as such.
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

// internalVirtualHost is the virtual host of CONNECT to hosts of which it is asked what
// is inside.
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
			domains = append(domains, host+".:"+port) // a name that is written in full (RFC 1034, section 3.1)
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
	// Requests whose host has this port as well come here; of a default port only
	// before they are asked about.
	var here []routeTarget
	for _, p := range b.targets {
		if p.Port == way.Port() && p.Port != p.Scheme.DefaultPort() {
			here = append(here, p)
		}
	}
	host.Matcher = b.byRule(here, append([]*routev3.Route{into}, b.refuse()...))
	return host
}

// refuse returns the routes of what no answer let through, and of what one did
// whose rule is not configured yet.
func (*builder) refuse() []*routev3.Route {
	refusal := &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 503,
		Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "no rule leads there\n"}},
	}}
	return []*routev3.Route{
		{Name: "refused", Match: &routev3.RouteMatch{PathSpecifier: connectMatch()}, Action: refusal},
		{Name: "refused", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}}, Action: refusal},
	}
}

// byRule finds the route by the rule that the answer named, and then by the
// host. The cost does not grow with the number of rules.
func (b *builder) byRule(places []routeTarget, otherwise []*routev3.Route) *matcherv3.Matcher {
	rules := map[string][]*routeTarget{}
	for i := range places {
		if places[i].Scheme == authz.SchemeTLS {
			continue // known by its server name
		}
		id := RouteID(places[i].Route)
		rules[id] = append(rules[id], &places[i])
	}
	onNoMatch := b.action("routes", &routev3.RouteList{Routes: otherwise})
	// A matcher needs something to look for. No answer names this.
	tree := map[string]*matcherv3.Matcher_OnMatch{"/": onNoMatch}
	for id, of := range rules {
		tree[id] = b.byHost(of)
	}
	return &matcherv3.Matcher{MatcherType: b.exactMap(header(headerRoute), tree), OnNoMatch: onNoMatch}
}

// byHost finds the route of one rule: of the exact host, else of a wildcard.
// Where there is none nothing leads on.
func (b *builder) byHost(places []*routeTarget) *matcherv3.Matcher_OnMatch {
	exact := map[string]*matcherv3.Matcher_OnMatch{}
	var wild []*routeTarget
	for _, p := range places {
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

// wildcards finds the pattern that matches the host most closely.
func (b *builder) wildcards(places []*routeTarget) *matcherv3.Matcher_MatcherList_ {
	by := map[string]*routeTarget{}
	for _, p := range places {
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

// compareSpecificity orders wildcards so that the first one that matches is the closest: of
// the longest name, and of one label before any number.
func compareSpecificity(x, y string) int {
	return cmp.Or(
		cmp.Compare(len(strings.TrimLeft(y, "*")), len(strings.TrimLeft(x, "*"))),
		cmp.Compare(len(x), len(y)), strings.Compare(x, y),
	)
}

// pattern returns a regular expression for what a wildcard matches: one label,
// or one and more.
func pattern(wildcard string) string {
	label, name := `[^.:]+`, strings.TrimPrefix(wildcard, "*")
	if strings.HasPrefix(name, "*") {
		label, name = `[^:]+`, name[1:]
	}
	return label + regexp.QuoteMeta(name)
}

// routesTo leads to a place: by way of a cluster of its own for what upgrades, since
// hardly any server takes upgrades of HTTP/2 (RFC 8441); and for what may be sent
// twice by way of a route that does.
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

// retriableRoute leads to a place what is sent once more when the upstream ended the
// connection before it answered: requests of safe methods (RFC 9110, section
// 9.2.1) without a body, which an upstream that closes an idle connection just
// then has not looked at. Envoy sends what was decided: the filter that asks comes
// before the router, so that nothing is decided, spent or recorded twice, and the
// exit sees whether the rule still stands.
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
	// A body of HTTP/2 that nothing announces is not kept, and so not sent again.
	r.RequestBodyBufferLimit = wrapperspb.UInt64(0)
	r.GetRoute().RetryPolicy = &routev3.RetryPolicy{
		RetryOn: "reset", NumRetries: wrapperspb.UInt32(1), // which takes connect-failure and reset-before-request in
	}
	return r
}

// retriableSuffix ends the name of the route of what may be sent twice.
const retriableSuffix = "/repeatable"

// route leads to a place.
func (b *builder) route(p *routeTarget) *routev3.Route {
	action := &routev3.RouteAction{
		ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: p.cluster},
		Timeout:           seconds(0), // it would not count while the request is still being sent
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

// The rest says in Envoy's words: find, then.

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

package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Names of the resources that every configuration has.
const (
	checkCluster     = "chaperone" // the sidecar's ext_authz socket
	blackholeCluster = "blackhole" // has no endpoint
	routeTable       = "egress"
	rootsSecret      = "roots"
	internalListener = "internal" // accepts the connections inside a CONNECT
)

// resources are a complete Envoy configuration.
type resources struct {
	clusters  []*clusterv3.Cluster
	listeners []*listenerv3.Listener
	routes    []*routev3.RouteConfiguration
	secrets   []*tlsv3.Secret
}

// routeTarget is a route with its egress socket and cluster.
type routeTarget struct {
	authz.Route

	egress  string // the path of a Unix socket
	cluster string // also the name of the filter chain, for tls and tcp
}

// authority returns the target's host as a canonical :authority, which has no default
// port; for a wildcard the pattern.
func (p *routeTarget) authority() string {
	if p.Port == p.Scheme.DefaultPort() {
		return bracketed(p.Host)
	}
	return p.hostPort()
}

func (p *routeTarget) hostPort() string { return net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))) }

// literal returns the target's address if its host is an IP literal.
func (p *routeTarget) literal() (netip.Addr, bool) {
	addr, err := netip.ParseAddr(p.Host)
	return addr, err == nil
}

// upgradeSuffix ends the name of a target's cluster for requests that upgrade.
const upgradeSuffix = "/upgrade"

// upgrades reports whether requests to the target may upgrade and would otherwise use
// HTTP/2.
func (p *routeTarget) upgrades() bool { return p.Upgrades != "" && p.Scheme == authz.SchemeHTTPS }

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// builder makes one generation of a configuration.
type builder struct {
	cfg     *Config
	static  bool // without xDS: the file itself contains secrets and routes
	targets []routeTarget
	// tunnels are the hosts with ports that are granted by tcp.
	tunnels map[string]bool
	err     error
}

// build makes the configuration that allows the routes.
func build(cfg *Config, routes []authz.Route, static bool) (*resources, error) {
	b := &builder{cfg: cfg, static: static, tunnels: map[string]bool{}}
	routes = slices.DeleteFunc(slices.Clone(routes), func(r authz.Route) bool { return !routable(r) })
	sockets, err := cfg.EgressSockets(routes)
	if err != nil {
		return nil, fmt.Errorf("make egress sockets: %w", err)
	}
	if len(sockets) != len(routes) {
		return nil, fmt.Errorf("make egress sockets: got %d for %d routes", len(sockets), len(routes))
	}
	for i, r := range routes {
		p := routeTarget{Route: r, egress: sockets[i]}
		p.cluster = RouteID(r) + "/" + p.hostPort()
		b.targets = append(b.targets, p)
		if p.Scheme == authz.SchemeTCP {
			b.tunnels[p.hostPort()] = true
		}
	}
	// The winner among rules for the same target is the first, as in a decision.
	slices.SortStableFunc(b.targets, func(x, y routeTarget) int {
		return cmp.Or(strings.Compare(x.Grant, y.Grant), strings.Compare(x.Rule, y.Rule))
	})
	out := &resources{secrets: b.secrets(), clusters: b.clusters()}
	out.routes = []*routev3.RouteConfiguration{b.routeConfiguration()}
	out.listeners = b.listeners(out.routes[0])
	return out, b.err
}

// routable reports whether a route can be configured: a tcp rule for a wildcard has no
// address that would identify its connections.
func routable(r authz.Route) bool { return r.Scheme != authz.SchemeTCP || r.Exact() }

// RouteID returns the value of the header x-chaperone-route for a route's rule.
func RouteID(r authz.Route) string { return r.Grant + "/" + r.Rule }

// packed returns m as Envoy's typed_config. Equal messages have equal bytes.
func (b *builder) packed(m proto.Message) *anypb.Any {
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil && b.err == nil {
		b.err = fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return out
}

// extension returns a configured extension.
func (b *builder) extension(name string, m proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.packed(m)}
}

// ads returns the config source of resources that are served on the same stream as
// the resource that refers to them.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func pipe(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
}

func seconds(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }

// maxDuration returns how long a stream or connection to a target may last.
func (b *builder) maxDuration(p *routeTarget) *durationpb.Duration {
	longest := b.cfg.MaxStreamDuration
	if p.Terms.Timeout > 0 {
		longest = min(longest, p.Terms.Timeout)
	}
	return durationpb.New(longest)
}

// secretOf returns the name of the secret with the authorities that verify a target's
// certificate.
func secretOf(ca string) string {
	if ca == "" {
		return rootsSecret
	}
	sum := sha256.Sum256([]byte(ca))
	return "ca/" + hex.EncodeToString(sum[:12])
}

// secrets returns the authorities of upstreams, each set once, since a set can have
// hundreds of kilobytes.
func (b *builder) secrets() []*tlsv3.Secret {
	var out []*tlsv3.Secret
	seen := map[string]bool{}
	for i := range b.targets {
		p := &b.targets[i]
		name := secretOf(p.Terms.CA)
		if p.Scheme != authz.SchemeHTTPS || seen[name] {
			continue
		}
		seen[name] = true
		text := p.Terms.CA
		if text == "" {
			text = b.cfg.Roots
		}
		out = append(out, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(text)},
		}})
	}
	return out
}

func inline(text string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(text)}}
}

const (
	connectTimeout = 10 * time.Second // to an upstream, including the sidecar's dial and TLS
	checkTimeout   = 10 * time.Second // a credential may have to be fetched
	// answersInterval is the delay until Envoy's own answers reach the sidecar.
	answersInterval = 100 * time.Millisecond
)

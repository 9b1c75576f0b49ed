package xds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	xdsCluster     = "xds"
	maxConnections = 4096 // of the plugin at one time
)

// Params are the parameters of an Envoy's bootstrap.
type Params struct {
	Plugin authz.Principal // the node's id
	Socket string          // the path of the xDS server's unix socket
	Admin  string          // the path of the unix socket of Envoy's admin interface
	Group  string          // if set, its members may use the admin socket too
}

// Bootstrap returns the configuration, in YAML, with which an Envoy is started: the
// address of the Server, which serves the rest.
func Bootstrap(p Params) ([]byte, error) {
	b := &builder{cfg: &Config{Group: p.Group}}
	text, err := b.json(b.bootstrap(p))
	if err != nil {
		return nil, err
	}
	if text, err = yaml.JSONToYAML(text); err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	return text, nil
}

// Static returns the configuration that a Server with cfg serves now as one JSON file,
// for reading and for envoy --mode validate. The routes are in the first listener
// that uses them.
func Static(cfg Config, p Params) ([]byte, error) {
	if cfg.Engine == nil || cfg.Now == nil {
		return nil, errors.New("make static configuration: engine and clock are required")
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("make static configuration: %w", err)
	}
	r, err := build(&cfg, cfg.Engine.Current().Routes(cfg.Plugin, cfg.Now()), true)
	if err != nil {
		return nil, fmt.Errorf("make static configuration: %w", err)
	}
	return staticFile(&cfg, p, r)
}

func staticFile(cfg *Config, p Params, r *resources) ([]byte, error) {
	b := &builder{cfg: cfg}
	m := b.bootstrap(p)
	m.StaticResources.Clusters = append(m.StaticResources.Clusters, r.clusters...)
	m.StaticResources.Listeners = r.listeners
	m.StaticResources.Secrets = r.secrets
	m.DynamicResources.CdsConfig, m.DynamicResources.LdsConfig = nil, nil
	return b.json(m)
}

// json returns m as indented JSON, deterministically.
func (b *builder) json(m *bootstrapv3.Bootstrap) ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", " "); err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func (b *builder) bootstrap(p Params) *bootstrapv3.Bootstrap {
	admin := pipe(p.Admin)
	admin.GetPipe().Mode = b.mode()
	server := static(xdsCluster, pipe(p.Socket))
	server.ConnectTimeout = seconds(1)
	options := overHTTP2()
	options.GetExplicitHttpConfig().GetHttp2ProtocolOptions().ConnectionKeepalive = &corev3.KeepaliveSettings{
		Interval: seconds(30), Timeout: seconds(5),
	}
	server.TypedExtensionProtocolOptions = b.httpOptions(options)
	return &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: string(p.Plugin), Cluster: string(p.Plugin)},
		// Not a port: a client of the admin interface can change and end this Envoy.
		Admin:           &bootstrapv3.Admin{Address: admin},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{server}},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			CdsConfig: ads(), LdsConfig: ads(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: xdsCluster, RetryPolicy: &corev3.RetryPolicy{
						RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: &durationpb.Duration{Nanos: 100e6}, MaxInterval: seconds(1),
						},
					}},
				}}},
			},
		},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{
			b.extension("envoy.bootstrap.internal_listener", &internalv3.InternalListener{}),
		},
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		OverloadManager: &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name: "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: b.packed(&connectionsv3.DownstreamConnectionsConfig{
				MaxActiveDownstreamConnections: maxConnections,
			})},
		}}},
	}
}

package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// envoyHosts is how many of the granted hosts the GETs go to, spread over all.
const envoyHosts = 10

// newHosts returns n rules for a host each, and requests to some of them.
func newHosts(n int) *site {
	s := newSite(n)
	s.Requests = nil
	for i := range 64 * envoyHosts {
		rule := (2*(i%envoyHosts) + 1) * n / (2 * envoyHosts)
		s.Requests = append(s.Requests, siteRequest{
			Principal: pluginID, Method: "GET", Host: exactHost(rule), Path: pathPrefix(rule) + fmt.Sprintf("items/%06d/details", i), Allowed: true,
		})
	}
	return s
}

func exactHost(rule int) string { return "api." + below(rule) }

// hostGrant grants the hosts of newHosts. to is the rest of each destination.
func (s *site) hostGrant(to authz.To) authz.Grant {
	grant := s.grant()
	for i := range grant.Rules {
		grant.Rules[i].To = to
		grant.Rules[i].To.Hosts = []string{exactHost(i)}
	}
	return grant
}

// plane is what the scene of Envoy has running.
type plane struct {
	cpu, loaderCPU int
	loader         *loader
	origin, hop    *process
	port           uint16 // the origin's
	envoys         []*testenv.Envoy
	group          *testenv.Cgroup // of the load that is a plugin
	plugin         *loader         // the load in it
	detach         func() error    // removes its kernel programs
	sidecars       []*sidecar
	site           *site
	file           string
	parties        []*party
}

// Close ends everything.
func (p *plane) Close() error {
	var errs []error
	for _, e := range p.envoys {
		errs = append(errs, e.Close())
	}
	for _, s := range p.sidecars {
		s.Close()
	}
	for _, process := range []*process{p.origin, p.hop} {
		if process != nil {
			process.Close()
		}
	}
	for _, l := range []*loader{p.loader, p.plugin} {
		if l != nil {
			l.Close()
		}
	}
	if p.detach != nil {
		errs = append(errs, p.detach())
	}
	if p.group != nil {
		errs = append(errs, p.group.Close())
	}
	return errors.Join(errs...)
}

// envoyScene measures requests through a real Envoy that asks Chaperone, beside
// what else could stand there.
func envoyScene(ctx context.Context, w *env) (_ *table, err error) {
	t := &table{heads: []string{"path", "connections", "requests/s", "p50", "p99", "CPU/request, Envoy and Chaperone", "CPU of load and origin's CPU", "added to Envoy alone", "RSS"}}
	if missing := testenv.Missing(testenv.EnvoyServer()); missing != nil {
		t.title = "A real Envoy"
		t.add("not measured: " + oneLine(missing))
		return t, optional(missing)
	}
	p := &plane{}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.start(ctx, w); err != nil {
		return nil, err
	}
	t.title = fmt.Sprintf("GETs of 1 KiB through a real Envoy with one worker; %d rules; Envoy and Chaperone on CPU %d, load and origin on CPU %d, %d rounds in turn",
		siteRules, p.cpu, p.loaderCPU, turns)
	for _, connections := range []int{8, 64} {
		if err := press(ctx, p.loader, p.parties, connections, w.length); err != nil {
			return nil, errors.Join(err, p.logs())
		}
		alone := p.parties[1].typical()
		for i, party := range p.parties {
			cells := party.cells(connections)
			if i == 0 {
				t.add(append(cells[:5], "", cells[6], "", "")...)
				continue
			}
			added := ""
			if i > 1 {
				added = fmt.Sprintf("%.1f µs of CPU", float64(party.typical().CPU-alone.CPU)/1000)
			}
			t.add(append(cells, added, mib(party.rss))...)
		}
	}
	return t, p.asked(ctx)
}

// asked proves that whoever was to be asked for every request was.
func (p *plane) asked(ctx context.Context) error {
	done := map[*testenv.Envoy]int{}
	for _, party := range p.parties {
		if party.asks != nil {
			done[party.asks] += party.done
		}
	}
	for e, requests := range done {
		text, err := e.Admin(ctx, http.MethodGet, "/stats?filter=ext_authz[.]ok")
		if err != nil {
			return err
		}
		allowed := 0
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if n, err := strconv.Atoi(value); err == nil && strings.HasPrefix(name, "http.") {
				allowed += n
			}
		}
		if allowed != requests {
			return fmt.Errorf("of %d requests through an Envoy %d had a Check", requests, allowed)
		}
	}
	return nil
}

// logs returns the output of the sidecars as an error.
func (p *plane) logs() error {
	var texts []error
	for _, s := range p.sidecars {
		if s.stderr.Len() > 0 {
			texts = append(texts, errors.New(strings.TrimSpace(s.stderr.String())))
		}
	}
	for _, e := range p.envoys {
		if log := e.Log(); log != "" {
			texts = append(texts, errors.New(strings.TrimSpace(log)))
		}
	}
	return errors.Join(texts...)
}

// start starts the origin, the load, and every way between them.
func (p *plane) start(ctx context.Context, w *env) (err error) {
	if p.cpu, p.loaderCPU, err = cores(); err != nil {
		return err
	}
	if p.loader, err = startLoader(p.loaderCPU, nil); err != nil {
		return err
	}
	if p.origin, err = startProgram(p.loaderCPU, "/proc/self/exe", "role=plain-origin", "tcp:127.0.0.1:0"); err != nil {
		return err
	}
	origin, err := netip.ParseAddrPort(strings.TrimPrefix(p.origin.address, "tcp:"))
	if err != nil {
		return err
	}
	p.port = origin.Port()
	p.site, p.file = newHosts(siteRules), w.file("hosts.json")
	if err := p.site.write(p.file); err != nil {
		return err
	}
	p.add("no proxy", p.origin.address)
	for _, start := range []func(context.Context, *env) error{p.foreign, p.alone, p.configured, p.confined} {
		if err := start(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// add adds a way to the origin that those processes are on.
func (p *plane) add(name, address string, pids ...int) *party {
	added := &party{name: name, order: order{Get: address, Site: p.file}, pids: pids}
	p.parties = append(p.parties, added)
	return added
}

// foreign starts an Envoy with a configuration of somebody else's: a listener
// that only routes, one with Envoy's own RBAC, and two that ask a sidecar.
func (p *plane) foreign(ctx context.Context, w *env) error {
	socket := w.file("envoy-check.sock")
	var addresses []string
	for i, listen := range []string{"127.0.0.1:0", "unix:" + socket} {
		sidecar, address, err := w.door(ctx, p.cpu, fmt.Sprintf("envoy-door%d", i), listen, p.site.hostGrant(authz.To{}), nil)
		if err != nil {
			return err
		}
		p.sidecars = append(p.sidecars, sidecar)
		addresses = append(addresses, address)
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(addresses[0], "tcp:"))
	if err != nil {
		return err
	}
	if p.hop, err = startProgram(p.cpu, "/proc/self/exe", "role=hop", strings.TrimPrefix(p.origin.address, "tcp:"), "unix:"+w.file("envoy-hop.sock")); err != nil {
		return err
	}
	e, err := p.envoy(ctx, p.bootstrap(port, socket))
	if err != nil {
		return err
	}
	tcp, unix := p.sidecars[0].cmd.Process.Pid, p.sidecars[1].cmd.Process.Pid
	for _, way := range []struct {
		name, listener string
		asked          int  // the sidecar that is
		hop            bool // the origin is behind it
	}{
		{"Envoy alone", "alone", 0, false},
		{"Envoy with its RBAC filter, the same rules", "rbac", 0, false},
		{"Envoy and chaperone, TCP", "tcp", tcp, false},
		{"Envoy and chaperone, unix socket", "unix", unix, false},
		{"the same and a bare copy between two sockets (floor of egress sockets)", "hop", unix, true},
	} {
		address, err := e.Listener(ctx, way.listener)
		if err != nil {
			return err
		}
		added := p.add(way.name, "tcp:"+address.String(), e.PID())
		if way.asked != 0 {
			added.pids, added.asks = append(added.pids, way.asked), e
		}
		if way.hop {
			added.pids = append(added.pids, p.hop.cmd.Process.Pid)
		}
	}
	return nil
}

func (p *plane) envoy(ctx context.Context, bootstrap string) (*testenv.Envoy, error) {
	e, err := testenv.StartEnvoy(ctx, testenv.EnvoyConfig{Bootstrap: bootstrap})
	if err != nil {
		return nil, err
	}
	p.envoys = append(p.envoys, e)
	return e, pin(e.PID(), p.cpu)
}

// alone starts a sidecar whose own proxy does it all.
func (p *plane) alone(ctx context.Context, w *env) error {
	grant, more := p.toOrigin()
	more["listen"] = map[string]any{"proxy": "127.0.0.1:0"}
	if err := w.sidecarFile("envoy-none", grant, more); err != nil {
		return err
	}
	sidecar, err := w.serve(ctx, p.cpu, w.file("envoy-none.json"), w.file("envoy-none"))
	if err != nil {
		return err
	}
	p.sidecars = append(p.sidecars, sidecar)
	way := p.add("chaperone's own proxy, no Envoy", "tcp:"+sidecar.address, sidecar.cmd.Process.Pid)
	way.order.Port = ":" + strconv.Itoa(int(p.port))
	way.order.Header = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("chaperone:"+proxyToken)) + "\r\n"
	return nil
}

// configured starts an Envoy that a sidecar configures: it asks for every
// request, and reaches the origin only through the sidecar's exits.
func (p *plane) configured(ctx context.Context, w *env) error {
	free, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	explicit := free.Addr().String()
	if err := free.Close(); err != nil {
		return err
	}
	sidecar, e, err := p.own(ctx, w, "envoy-xds", map[string]any{"envoy": map[string]any{"explicit": explicit, "accessLog": "off"}})
	if err != nil {
		return err
	}
	way := p.add("Envoy configured by chaperone: checks and egress sockets", "tcp:"+explicit, e.PID(), sidecar.cmd.Process.Pid)
	way.order.Port, way.asks = ":"+strconv.Itoa(int(p.port)), e
	return p.passes(ctx, way)
}

// confined does the same with the kernel half: the load is the plugin, which the
// sidecar identifies by the kernel and forwards to Envoy.
func (p *plane) confined(ctx context.Context, w *env) (err error) {
	if os.Geteuid() != 0 {
		return nil
	}
	if p.group, err = testenv.NewCgroup(ctx); err != nil {
		return err
	}
	p.detach = func() error {
		_, err := w.command(context.WithoutCancel(ctx), "detach", "--config", w.file("envoy-kernel.json"), "--kill")
		return err
	}
	sidecar, e, err := p.own(ctx, w, "envoy-kernel", map[string]any{
		"kernel": "required", "listen": map[string]any{"proxy": "127.0.0.1:0"}, "envoy": map[string]any{"accessLog": "off"},
	}, "--cgroup", p.group.Path)
	if err != nil {
		return err
	}
	if p.plugin, err = startLoader(p.loaderCPU, p.group); err != nil {
		return err
	}
	way := p.add("the same behind the kernel half: relay, checks and egress sockets", "tcp:"+sidecar.address, e.PID(), sidecar.cmd.Process.Pid)
	way.order.Port, way.asks, way.loader = ":"+strconv.Itoa(int(p.port)), e, p.plugin
	return p.passes(ctx, way)
}

// passes waits until a request passes: Envoy first has to find that the sidecar
// answers checks, and refuses until then. Those requests are not counted.
func (p *plane) passes(ctx context.Context, way *party) error {
	o := way.order
	o.Callers, o.Length = 1, time.Millisecond
	from := cmp.Or(way.loader, p.loader)
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		y, err := from.order(o)
		if err == nil {
			way.done += y.Warm + y.Done
			return nil
		}
		if ctx.Err() != nil || time.Since(begun) > 15*time.Second {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
}

// own starts a sidecar and the Envoy that it configures.
func (p *plane) own(ctx context.Context, w *env, name string, spec map[string]any, args ...string) (*sidecar, *testenv.Envoy, error) {
	grant, more := p.toOrigin()
	maps.Copy(more, spec)
	if err := w.sidecarFile(name, grant, more); err != nil {
		return nil, nil, err
	}
	sidecar, err := w.serve(ctx, p.cpu, w.file(name+".json"), w.file(name), args...)
	if err != nil {
		return nil, nil, err
	}
	p.sidecars = append(p.sidecars, sidecar)
	bootstrap, err := w.command(ctx, "envoy", "bootstrap", "--config", w.file(name+".json"))
	if err != nil {
		return nil, nil, err
	}
	e, err := p.envoy(ctx, string(bootstrap))
	return sidecar, e, err
}

// toOrigin is a grant of the hosts at the origin's port, and the further
// configuration of a sidecar that dials them itself.
func (p *plane) toOrigin() (authz.Grant, map[string]any) {
	loopback := netip.MustParseAddr("127.0.0.1")
	hosts := map[string][]netip.Addr{}
	for _, r := range p.site.Requests {
		hosts[r.Host] = []netip.Addr{loopback}
	}
	return p.site.hostGrant(authz.To{Scheme: authz.SchemeHTTP, Ports: []uint16{p.port}, Addresses: []netip.Prefix{netip.PrefixFrom(loopback, 32)}}),
		map[string]any{"dns": map[string]any{"hosts": hosts}}
}

// bootstrap is the configuration of the foreign Envoy: what configs/envoy has,
// less the access log, TLS and the look-up of names, so that what is measured
// beside Envoy is as much of the whole as it can be.
func (p *plane) bootstrap(checkPort, checkSocket string) string {
	var text strings.Builder
	text.WriteString("static_resources:\n  listeners:\n")
	for _, listener := range [][3]string{
		{"alone", "", "upstream"},
		{"rbac", p.rbac(), "upstream"},
		{"tcp", extAuthz("check-tcp"), "upstream"},
		{"unix", extAuthz("check-unix"), "upstream"},
		{"hop", extAuthz("check-unix"), "hop"},
	} {
		fmt.Fprintf(&text, `  - name: %[1]s
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: plugin
          scheme_header_transformation: {scheme_to_overwrite: https}
          use_remote_address: true
          skip_xff_append: true
          common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}
          route_config:
            virtual_hosts:
            - {name: everywhere, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %[3]s, timeout: 0s}}]}
          http_filters:
%[2]s          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
`, listener[0], listener[1], listener[2])
	}
	fmt.Fprintf(&text, `  clusters:
  - name: upstream
    connect_timeout: 5s
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}
  - name: hop
    connect_timeout: 5s
    load_assignment: {cluster_name: hop, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %s}}}}]}]}
`, p.port, strings.TrimPrefix(p.hop.address, "unix:"))
	for name, address := range map[string]string{
		"check-tcp": "socket_address: {address: 127.0.0.1, port_value: " + checkPort + "}", "check-unix": "pipe: {path: " + checkSocket + "}",
	} {
		fmt.Fprintf(&text, `  - name: %[1]s
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {%[2]s}}}]}]}
`, name, address)
	}
	return text.String()
}

// extAuthz is the filter as configs/envoy has it.
func extAuthz(cluster string) string {
	return fmt.Sprintf(`          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              grpc_service: {envoy_grpc: {cluster_name: %s}, timeout: 10s}
              failure_mode_allow: false
              status_on_error: {code: ServiceUnavailable}
              encode_raw_headers: true
              validate_mutations: true
              clear_route_cache: true
`, cluster)
}

// rbac is Envoy's own filter with the same rules: who asks, by address since
// nothing else proves it here, for which host, method and path.
func (p *plane) rbac() string {
	var text strings.Builder
	text.WriteString(`          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
`)
	for i, r := range p.site.Rules {
		var methods []string
		for _, method := range r.Methods {
			methods = append(methods, fmt.Sprintf("{header: {name: ':method', string_match: {exact: %s}}}", method))
		}
		fmt.Fprintf(&text, `                  r%04d:
                    principals: [{direct_remote_ip: {address_prefix: 127.0.0.1, prefix_len: 32}}]
                    permissions: [{and_rules: {rules: [{header: {name: ':authority', string_match: {exact: %s}}}, {or_rules: {rules: [%s]}}, {url_path: {path: {prefix: %s}}}]}}]
`, i, exactHost(i), strings.Join(methods, ", "), r.Prefix)
	}
	return text.String()
}

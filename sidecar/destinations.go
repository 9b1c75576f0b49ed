package sidecar

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
)

// connects is what the kernel was given last of where connects may go.
type connects struct {
	mu    sync.Mutex
	given *ebpf.Destinations // nil: nothing yet
}

// allowConnects has the kernel refuse connects to where no rule of the
// configuration leads, and no others. For a new configuration it is called
// before its policy is in force, so that nothing is refused that it grants.
func (t *KernelTelemetry) allowConnects() {
	if !t.cfg.Confinement().Kernel() {
		return
	}
	t.connects.mu.Lock()
	defer t.connects.mu.Unlock()
	want := t.destinations(t.cfg.Files())
	if t.connects.given != nil && reflect.DeepEqual(*t.connects.given, want) {
		return
	}
	t.connects.given = &want
	if err := t.cfg.Confinement().AllowConnects(want); err != nil {
		t.cfg.Log.Warn("connect filter not updated", zap.Error(err))
	}
}

// destinations are those that a rule may grant: any while the sidecar observes,
// and where a name has no address.
func (t *KernelTelemetry) destinations(cfg *configs.Config) ebpf.Destinations {
	if cfg.Sidecar.Mode == authz.ModeObserve && time.Now().Before(cfg.Sidecar.ObserveUntil) {
		return ebpf.Destinations{Any: true}
	}
	var out ebpf.Destinations
	for _, grant := range cfg.Grants {
		if grant.Plugin != string(t.cfg.Plugin) {
			continue
		}
		for _, rule := range grant.Rules {
			ports := rulePorts(&rule.To)
			out.Ports = append(out.Ports, ports...)
			for _, host := range rule.To.Hosts {
				if !t.addDestination(&out, host, ports) {
					return ebpf.Destinations{Any: true}
				}
			}
		}
	}
	for _, ports := range []*[]uint16{&out.Ports, &out.NamePorts} {
		slices.Sort(*ports)
		*ports = slices.Compact(*ports)
	}
	return out
}

// addDestination adds a host of a rule. False: its name has no address.
func (t *KernelTelemetry) addDestination(out *ebpf.Destinations, host string, ports []uint16) bool {
	if strings.Contains(host, "*") {
		out.NamePorts = append(out.NamePorts, ports...)
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		var ok bool
		if addr, ok = t.cfg.Resolver().Address(host); !ok {
			return false
		}
	}
	for _, port := range ports {
		out.Exact = append(out.Exact, netip.AddrPortFrom(addr, port))
	}
	return true
}

// rulePorts are the ports at which a rule takes connections.
func rulePorts(to *authz.To) []uint16 {
	ports := slices.Clone(to.Ports)
	scheme := to.Scheme
	if scheme == "" {
		scheme = authz.SchemeHTTPS
	}
	if port := scheme.DefaultPort(); len(ports) == 0 && port != 0 {
		ports = append(ports, port)
	}
	if to.TLS.Originate {
		ports = append(ports, authz.SchemeHTTP.DefaultPort())
	}
	return ports
}

// hostOf is the name that an address was given out for, or the address.
func (t *KernelTelemetry) hostOf(addr netip.Addr) string {
	if t.cfg.Resolver() != nil {
		if name, ok := t.cfg.Resolver().Host(addr); ok {
			return name
		}
	}
	return addr.Unmap().String()
}

// explainUngranted returns why no rule grants a destination, and what to ask for,
// in the words of the least that could be asked there.
func (t *KernelTelemetry) explainUngranted(to netip.AddrPort) (reason authz.Reason, detail, remedy string) {
	host := t.hostOf(to.Addr())
	reason, detail = authz.DestinationNotGranted, string(t.cfg.Plugin)+" may not connect to "+net.JoinHostPort(host, strconv.Itoa(int(to.Port())))
	e, err := t.cfg.Engine.Current().ExplainConnection(t.cfg.Plugin, host, to.Port(), time.Now())
	if err != nil {
		return reason, detail, ""
	}
	if !e.Decision.Reason.Allowed() {
		reason = e.Decision.Reason
	}
	return reason, detail, e.Remedy
}

package sidecar

import (
	"maps"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// envoyStatus returns how the Envoys stand that the sidecar configures; nil when it
// configures none.
func (s *Sidecar) envoyStatus() *admin.Envoy {
	if s.envoys.managed == nil {
		return nil
	}
	served := s.envoys.managed.xds.Status()
	out := &admin.Envoy{
		Dir: s.envoys.managed.spec.Dir, Generation: served.Generation, Problem: served.Problem, Exits: int(s.envoys.managed.exits.Load()),
		Connected: []admin.ConnectedEnvoy{},
	}
	for _, e := range served.Envoys {
		out.Connected = append(out.Connected, admin.ConnectedEnvoy{
			Version: e.Version, Since: e.Connected, Current: served.Current(e), Generation: oldest(e), Refused: e.Refused,
		})
	}
	return out
}

// oldest returns the oldest generation of which an Envoy has something in force.
func oldest(e xds.Envoy) uint64 {
	if len(e.Acknowledged) == 0 {
		return 0
	}
	return slices.Min(slices.Collect(maps.Values(e.Acknowledged)))
}

// envoyLine reports for readyz?verbose how Envoy stands. A sidecar without one
// is ready: it refuses, as it should.
func (s *Sidecar) envoyLine() string {
	e := s.envoyStatus()
	switch {
	case e == nil:
		return ""
	case len(e.Connected) == 0:
		return "[?]envoy none is connected, so everything is refused (readiness does not depend on it)\n"
	case slices.ContainsFunc(e.Connected, func(c admin.ConnectedEnvoy) bool { return len(c.Refused) > 0 }):
		return "[?]envoy has refused a part of its configuration (readiness does not depend on it)\n"
	}
	return "[+]envoy connected\n"
}

// registerEnvoyMetrics registers how the Envoys stand that the sidecar configures.
func (s *Sidecar) registerEnvoyMetrics() {
	figure := func(name, help string, of func(e *admin.Envoy) int) {
		s.metrics.gauge(name, help, func() float64 { return float64(of(s.envoyStatus())) })
	}
	count := func(e *admin.Envoy, counts func(admin.ConnectedEnvoy) bool) (n int) {
		for _, one := range e.Connected {
			if counts(one) {
				n++
			}
		}
		return n
	}
	figure("chaperone_envoy_connected", "Envoys that ask the sidecar for their configuration.",
		func(e *admin.Envoy) int { return len(e.Connected) })
	figure("chaperone_envoy_current", "Envoys that have applied all of their configuration.",
		func(e *admin.Envoy) int { return count(e, func(c admin.ConnectedEnvoy) bool { return c.Current }) })
	figure("chaperone_envoy_refusing", "Envoys that have refused a part of their configuration.",
		func(e *admin.Envoy) int {
			return count(e, func(c admin.ConnectedEnvoy) bool { return len(c.Refused) > 0 })
		})
	figure("chaperone_envoy_exits", "Places that Envoy may reach, each by a socket of its own.",
		func(e *admin.Envoy) int { return e.Exits })
	s.metrics.gauge("chaperone_envoy_generation", "Oldest generation of the policy of which an Envoy has something in force; 0 without one.", func() float64 {
		e := s.envoyStatus()
		if len(e.Connected) == 0 {
			return 0
		}
		least := e.Connected[0].Generation
		for _, one := range e.Connected {
			least = min(least, one.Generation)
		}
		return float64(least)
	})
}

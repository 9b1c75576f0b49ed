package authz

import (
	"slices"
	"strings"
	"time"
)

// Route is one destination that one rule grants, for a data plane that is
// configured in advance. It names the destination only; methods and paths are
// decided for each access.
type Route struct {
	Grant  string
	Rule   string
	Scheme Scheme
	// Host is canonical: a name, *.NAME, **.NAME or an address.
	Host      string
	Port      uint16
	Originate bool   // plain http from the plugin is accepted for this https destination
	Upgrades  string // the protocols a request may upgrade to, sorted and joined by a comma
	Terms     Terms
}

// Exact reports whether the route is to one host.
func (r Route) Exact() bool { return !strings.HasPrefix(r.Host, "*") }

// Matches reports whether host, in canonical form, belongs to the route.
func (r Route) Matches(host string) bool {
	pattern, err := parseHostPattern(r.Host)
	return err == nil && pattern.matches(host)
}

// Routes returns the destinations that a plugin may reach: one Route for each
// rule in force, host and port, in the order of grant names and rule ids. Rules
// that have expired or are quarantined or halted, and hosts of a never-list, are left
// out, as are those of databases, whose sessions the sidecar carries; the addresses that a name resolves to are judged by [Snapshot.DecideRoute].
func (s *Snapshot) Routes(p Principal, now time.Time) []Route {
	pol := s.pluginPolicy(p)
	if pol == nil || s.quarantined(p, nil, now) {
		return nil
	}
	var out []Route
	for _, r := range pol.rules {
		if r.scheme.Database() || !now.Before(r.notAfter) || s.quarantined(p, r, now) {
			continue // of a database: no data plane reads its statements
		}
		upgrades := slices.Sorted(slices.Values(r.spec.Upgrades))
		for _, host := range r.spec.To.Hosts {
			if pattern, err := parseHostPattern(host); err != nil || pol.refuses(&Destination{host: host, addr: pattern.addr}) != nil {
				continue
			}
			for _, port := range r.ports {
				out = append(out, Route{
					Grant: r.grant.Name, Rule: r.id, Scheme: r.scheme, Host: host, Port: port,
					Originate: r.spec.To.TLS.Originate, Upgrades: strings.Join(upgrades, ","), Terms: r.terms,
				})
			}
		}
	}
	return out
}

// DecideRoute decides whether a connection to a destination of a route may be
// made or go on. Its accesses were admitted one by one under the route's rule.
// [Decision.CheckAddress] then judges the resolved address, and [Decision.Cuts]
// whether a live connection must end. Limits are not checked: the accesses have
// spent from them.
func (s *Snapshot) DecideRoute(p Principal, grant, id string, to Destination, now time.Time) Decision {
	d := Decision{Generation: s.generation, Grant: grant, Rule: id}
	if s.policy == nil {
		return d
	}
	d.plugin = s.pluginPolicy(p)
	switch {
	case d.applyRevocation(s.revoked(p, nil, now)):
	case d.plugin == nil:
		d.Reason = NoGrant
	case d.plugin.refuses(&to) != nil:
		d.Reason = GuardrailDenied
	default:
		s.decideRoute(&d, &to, now)
	}
	return d
}

func (s *Snapshot) decideRoute(d *Decision, to *Destination, now time.Time) {
	for e := range d.plugin.candidates(to.host) {
		r := e.rule
		if r.id != d.Rule || r.grant.Name != d.Grant || r.scheme != to.scheme || !r.hasPort(to.port) {
			continue
		}
		d.rule, d.literal, d.host = r, to.addr, to.host
		switch {
		case d.applyRevocation(s.revoked(d.plugin.name, r, now)):
		case !now.Before(r.notAfter):
			d.Reason = GrantExpired
		default:
			d.Reason = Granted
		}
		return
	}
	d.Reason = DestinationNotGranted
}

// Covers reports whether the rule of d still allows everything that the rule of
// an earlier decision about the same route allowed, as far as comparing the rules'
// texts can show. Accesses admitted under the earlier rule may then go on. A rule
// covers its earlier version if it was widened, or if only its limits or its end changed.
func (d Decision) Covers(earlier Decision) bool {
	now, then := d.rule, earlier.rule
	switch {
	case now == nil || then == nil:
		return false
	case now == then:
		return true
	}
	return now.coversRegions(then) && containsAll(now.spec.Paths, then.spec.Paths) && containsAll(now.spec.Upgrades, then.spec.Upgrades) &&
		(now.anyMethod || !then.anyMethod && containsAll(now.spec.Methods, then.spec.Methods)) &&
		(now.encodedSlash || !then.encodedSlash) && sameCredential(now, then) && now.terms == then.terms &&
		(len(now.addresses) == 0 && len(then.addresses) == 0 || len(then.addresses) > 0 && containsAll(now.addresses, then.addresses))
}

func sameCredential(a, b *rule) bool {
	if a.credential == nil || b.credential == nil {
		return a.credential == b.credential
	}
	return a.credential.ref == b.credential.ref
}

// containsAll reports whether every element of part is one of all.
func containsAll[T comparable](all, part []T) bool {
	return !slices.ContainsFunc(part, func(v T) bool { return !slices.Contains(all, v) })
}

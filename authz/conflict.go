package authz

import (
	"fmt"
	"slices"
	"strings"
)

// conflicts refuses rules of one plugin that contradict a rule of a database: those of
// another scheme at the same host and port, where the first byte of a connection must be
// read, and those with another credential for the same database, since the login comes
// before the first statement.
func (c *compiler) conflicts(s *pluginPolicy) {
	for i, r := range s.rules {
		if !r.scheme.Database() {
			continue
		}
		for j, other := range s.rules {
			if j == i || j > i && other.scheme.Database() { // each pair once
				continue
			}
			host, port, same := r.shares(other)
			switch {
			case !same:
			case other.scheme != r.scheme:
				c.reportRule(r, "to.scheme", "%s at %s port %d contradicts scheme %s of %s; a host and port has one scheme", r.scheme, host, port, other.scheme, other.name())
			case !sameCredential(r, other):
				if database, same := r.matcher.sharedDatabase(other.matcher); same {
					c.reportRule(r, "credential", "differs from the one of %s, which also grants database %s at %s port %d; a session has one login, so give both rules the same, in one grant",
						other.name(), clip(database), host, port)
				}
			}
		}
	}
}

// reportRule reports a problem of a field of a compiled rule.
func (c *compiler) reportRule(r *rule, field, format string, args ...any) {
	i := slices.IndexFunc(r.grant.Rules, func(spec Rule) bool { return spec.ID == r.id })
	c.report(r.grant.Origin, kindGrant, r.grant.Name, rulePath(i, field), format, args...)
}

// shares returns a host and port at which both rules match. The hosts of r are exact, as
// those of every rule of a database.
func (r *rule) shares(other *rule) (host string, port uint16, ok bool) {
	i := slices.IndexFunc(r.spec.To.Hosts, func(host string) bool {
		return slices.ContainsFunc(other.spec.To.Hosts, func(pattern string) bool {
			p, err := parseHostPattern(pattern)
			exact, errExact := parseHostPattern(host)
			return err == nil && errExact == nil && p.matches(exact.name)
		})
	})
	j := slices.IndexFunc(r.ports, func(port uint16) bool {
		return other.hasPort(port) || other.originates(&Destination{scheme: SchemeHTTP, port: port})
	})
	if i < 0 || j < 0 {
		return "", 0, false
	}
	return r.spec.To.Hosts[i], r.ports[j], true
}

// sharedDatabase returns a database, or a pattern of databases, that both matchers grant.
func (m *matcher) sharedDatabase(other *matcher) (string, bool) {
	if m == nil || other == nil {
		return "", false
	}
	prefix := string(FactDatabase) + ":"
	for _, pair := range [...][2]*matcher{{m, other}, {other, m}} {
		for fact := range pair[0].exact {
			if name, ok := strings.CutPrefix(fact, prefix); ok && pair[1].grants(fact) {
				return name, true
			}
		}
		for _, p := range pair[0].prefixes {
			if name, ok := strings.CutPrefix(p, prefix); ok && slices.ContainsFunc(pair[1].prefixes, func(o string) bool { return strings.HasPrefix(p, o) }) {
				return name + "*", true
			}
		}
	}
	return "", false
}

// databaseHosts refuses what a rule of a database cannot have.
func (k grantCheck) databaseHosts(at func(string) string, spec *Rule, out *rule) {
	if !out.scheme.Database() {
		return
	}
	for j, host := range spec.To.Hosts {
		if strings.HasPrefix(host, "*") {
			k.report(fmt.Sprintf("%s[%d]", at("to.hosts"), j),
				"%q is a wildcard, and a session logs in before its first statement is decided; name the servers", clip(host))
		}
	}
	if spec.WildcardCredential {
		k.report(at("wildcardCredential"), "does not apply to scheme %s; remove it", out.scheme)
	}
}

package proxy

import (
	"fmt"

	"github.com/chaperone-proxy/chaperone/authz"
)

// EgressSockets creates the Unix sockets by which an Envoy reaches upstreams, one for
// each route, and returns their paths in the order of the routes. Each call replaces the
// set. A route that stays keeps its path and its connections. A route that is removed
// accepts no more connections, and its open ones are cut by [Proxy.Revalidate] only.
// After an error the set is unchanged.
//
// Another enforcement point admits each access on these connections. The egress socket
// checks that the rule is in force, resolves the name, checks the address, and ends the
// connection with the rule.
//
// dir belongs to the egress sockets. It is created if it is missing, for the sidecar's
// own user. Members of group, a name or a number, can enter it and use the sockets; "" is
// no group. Both are fixed by the first call. dir has at most 75 bytes, since a socket's
// path has at most 107 (unix(7)).
//
// It may be called before Serve, which closes the sockets when it ends, and at any time
// after. Without Serve, a call without routes closes them.
func (p *Proxy) EgressSockets(dir, group string, routes []authz.Route) ([]string, error) {
	paths, err := p.envoy.egress.Replace(dir, group, routes)
	if err != nil {
		return nil, fmt.Errorf("create egress sockets: %w", err)
	}
	return paths, nil
}

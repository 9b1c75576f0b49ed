package proxy

import (
	"fmt"

	"github.com/chaperone-proxy/chaperone/authz"
)

// EgressSockets makes the unix sockets by which an Envoy reaches upstreams, one for each
// route, and returns their paths in the order of the routes. Each call replaces
// the set: an exit that stays keeps its path and its connections, one whose route
// is not among them any more takes no more connections, and what it has is cut
// by [Proxy.Reconsider] alone. After an error the set is what it was.
//
// Connections there were admitted, access by access, through another door. The
// egress socket checks that the rule is in force, resolves the name, checks the
// address, and ends the connection with the rule.
//
// dir is the exits' own: it is made if it is missing, for the sidecar's own user
// and, to look up sockets in, for group, which is a name or a number and may use
// the sockets too; "" for nobody else. Both stay what they are at the first call.
// dir has at most 75 bytes, since a socket's path has at most 107 (unix(7)).
//
// It may be called before Serve, which closes the exits when it ends, and at any
// time after; without Serve, Exits of no routes closes them.
func (p *Proxy) EgressSockets(dir, group string, routes []authz.Route) ([]string, error) {
	paths, err := p.egress.Replace(dir, group, routes)
	if err != nil {
		return nil, fmt.Errorf("make exits: %w", err)
	}
	return paths, nil
}

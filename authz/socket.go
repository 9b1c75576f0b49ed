package authz

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// maxSocket is the longest name of a Unix socket in bytes: sun_path of 108 less
// the NUL that ends a path and begins an abstract name (unix(7)).
const maxSocket = 107

// checkSocket checks a Unix socket by what is written. Whether a path can be
// trusted is seen where the plugin runs.
func checkSocket(s string) error {
	name, abstract := strings.CutPrefix(s, "@")
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q holds a control character", clip(s))
	case abstract && name == "", !abstract && (!path.IsAbs(s) || path.Clean(s) != s || s == "/"):
		return fmt.Errorf("%q is not a socket; write an absolute path without //, . and .., as in /run/db.sock, or @NAME for an abstract one", clip(s))
	case len(s) > maxSocket:
		return fmt.Errorf("is %d bytes long; the kernel takes %d", len(s), maxSocket)
	}
	return nil
}

// Sockets returns the Unix sockets that grants in force let the plugin reach,
// sorted and each once: absolute paths, and @NAME for an abstract one. What is
// quarantined reaches none; what is paused keeps them. Links in paths are not
// followed here.
func (s *Snapshot) Sockets(p Principal, now time.Time) []string {
	pol := s.pluginPolicy(p)
	if pol == nil || s.quarantined(p, nil, now) {
		return nil
	}
	var out []string
	for _, g := range pol.grants {
		if now.Before(g.NotAfter) {
			out = append(out, g.Sockets...)
		}
	}
	out = slices.DeleteFunc(out, pol.refusesSocket)
	slices.Sort(out)
	return slices.Compact(out)
}

// refusesSocket reports whether a never-list names the socket.
func (pol *pluginPolicy) refusesSocket(socket string) bool {
	return slices.ContainsFunc(pol.never, func(n neverEntry) bool {
		return slices.ContainsFunc(n.sockets, func(s string) bool {
			prefix, all := strings.CutSuffix(s, "**")
			return s == socket || all && strings.HasPrefix(socket, prefix)
		})
	})
}

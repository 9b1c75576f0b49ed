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

// checkSocket checks the text of a Unix socket. Whether the path can be trusted is
// checked on the plugin's host.
func checkSocket(s string) error {
	name, abstract := strings.CutPrefix(s, "@")
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q holds a control character", clip(s))
	case abstract && name == "", !abstract && (!path.IsAbs(s) || path.Clean(s) != s || s == "/"):
		return fmt.Errorf("%q is not a socket; write an absolute path without //, . and .., as in /run/db.sock, or @NAME for an abstract one", clip(s))
	case len(s) > maxSocket:
		return fmt.Errorf("is %d bytes long, over the %d that the kernel allows; use a shorter path", len(s), maxSocket)
	}
	return nil
}

// Sockets returns the Unix sockets that grants in force allow the plugin to use,
// sorted and without duplicates: absolute paths, and @NAME for an abstract one. A
// quarantined plugin gets none; a paused one keeps them. Symbolic links are not
// resolved.
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

package sidecar

import (
	"slices"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// sockets are the Unix sockets that the grants let the plugin reach.
type sockets struct {
	mu      sync.Mutex // one change after the other
	doubted string     // what was last said about those that cannot be trusted
}

// allowSockets has the kernel let through the Unix sockets that the policy in
// force names, and no others. Its error names those that cannot be trusted and
// are refused.
func (s *Sidecar) allowSockets() error {
	if !s.confinement.Kernel() {
		return nil
	}
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	return s.confinement.AllowSockets(s.engine.Current().Sockets(s.name, time.Now()))
}

// followSockets is allowSockets for each generation: what cannot be trusted is
// said once, until something else is to be said.
func (s *Sidecar) followSockets() {
	doubt := ""
	if err := s.allowSockets(); err != nil {
		doubt = err.Error()
	}
	s.sockets.mu.Lock()
	said := s.sockets.doubted == doubt
	s.sockets.doubted = doubt
	s.sockets.mu.Unlock()
	if said || doubt == "" {
		return
	}
	s.cfg.Log.Warn("a Unix socket that a grant names is refused", zap.String("why", doubt))
	s.record(&authz.Record{Kind: authz.KindProcess, Door: authz.DoorKernel, Detail: "refused although granted: " + phrase.OneLine(doubt)})
}

// usedSocket records the use of a Unix socket that is let through.
func (s *Sidecar) usedSocket(d sandbox.Denial) {
	s.record(&authz.Record{
		Time: d.Time, Kind: authz.KindDecision, Door: authz.DoorKernel, Allowed: true, Reason: authz.Granted.String(),
		Decision: authz.NewID(time.Now()), Grant: s.grantOfSocket(d.Path), Generation: s.engine.Current().Generation(), Scheme: "unix", Path: d.Path,
		PID: int(d.PID), UID: int(d.UID), Exe: exeOf(d), Count: int(min(d.Count, 1<<31)),
	})
}

// untrustedSocket records that a socket no longer leads where its grant says.
func (s *Sidecar) untrustedSocket(d sandbox.Denial) {
	s.record(&authz.Record{
		Time: d.Time, Kind: authz.KindProcess, Door: authz.DoorKernel, Grant: s.grantOfSocket(d.Path), Path: d.Path, UID: -1,
		Detail: "refused from now on although granted: the path no longer leads where it says",
	})
}

// grantOfSocket returns the first grant in force that names a socket.
func (s *Sidecar) grantOfSocket(path string) string {
	now := time.Now()
	for _, g := range s.config.Load().Grants {
		if now.Before(g.NotAfter) && slices.Contains(g.Sockets, path) {
			return g.Name
		}
	}
	return ""
}

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
	doubted string     // the last report of those that cannot be trusted
}

// allowSockets has the kernel allow the Unix sockets that the policy in
// force names, and no others. Its error names those that cannot be trusted and
// are refused.
func (t *KernelTelemetry) allowSockets() error {
	if !t.cfg.Confinement().Kernel() {
		return nil
	}
	t.sockets.mu.Lock()
	defer t.sockets.mu.Unlock()
	return t.cfg.Confinement().AllowSockets(t.cfg.Engine.Current().Sockets(t.cfg.Plugin, time.Now()))
}

// followSockets is allowSockets for each generation: an untrusted path is
// reported once, until the report changes.
func (t *KernelTelemetry) followSockets() {
	doubt := ""
	if err := t.allowSockets(); err != nil {
		doubt = err.Error()
	}
	t.sockets.mu.Lock()
	said := t.sockets.doubted == doubt
	t.sockets.doubted = doubt
	t.sockets.mu.Unlock()
	if said || doubt == "" {
		return
	}
	t.cfg.Log.Warn("granted unix socket refused", zap.String("why", doubt))
	t.cfg.Record(&authz.Record{Kind: authz.KindProcess, Door: authz.DoorKernel, Detail: "refused although granted: " + phrase.OneLine(doubt)})
}

// usedSocket records the use of a Unix socket that is allowed.
func (t *KernelTelemetry) usedSocket(d sandbox.Denial) {
	t.cfg.Record(&authz.Record{
		Time: d.Time, Kind: authz.KindDecision, Door: authz.DoorKernel, Allowed: true, Reason: authz.Granted.String(),
		Decision: authz.NewID(time.Now()), Grant: t.grantOfSocket(d.Path), Generation: t.cfg.Engine.Current().Generation(), Scheme: "unix", Path: d.Path,
		PID: int(d.PID), UID: int(d.UID), Exe: exeOf(d), Count: int(min(d.Count, 1<<31)),
	})
}

// untrustedSocket records that a socket no longer resolves as its grant requires.
func (t *KernelTelemetry) untrustedSocket(d sandbox.Denial) {
	t.cfg.Record(&authz.Record{
		Time: d.Time, Kind: authz.KindProcess, Door: authz.DoorKernel, Grant: t.grantOfSocket(d.Path), Path: d.Path, UID: -1,
		Detail: "refused from now on although granted: the path no longer resolves to itself",
	})
}

// grantOfSocket returns the first grant in force that names a socket.
func (t *KernelTelemetry) grantOfSocket(path string) string {
	now := time.Now()
	for _, g := range t.cfg.Files().Grants {
		if now.Before(g.NotAfter) && slices.Contains(g.Sockets, path) {
			return g.Name
		}
	}
	return ""
}

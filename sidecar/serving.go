package sidecar

import (
	"os"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/proxy/inbound"
)

// makeInbound makes the way in for a plugin with a network or a view of its own.
// Beside one that shares the sidecar's, the plugin listens on the host itself, and
// the kernel lets it.
func (s *Sidecar) makeInbound(spec *configs.Sidecar) error {
	if err := removeLeftSockets(s.policy.state); err != nil {
		s.cfg.Log.Warn("sockets of an earlier sidecar not removed", zap.Error(err))
	}
	ports := len(spec.Process.Ports()) > 0 && !s.confinement.OfHost()
	if !ports && !s.forwardsSockets(spec) {
		return nil
	}
	cfg := inbound.Config{
		Plugin: s.name, Addresses: sandbox.PluginAddresses(), Record: s.journal.recorder.Record, Drain: time.Duration(spec.Drain), Log: s.cfg.Log.Named("inbound"),
		Connected: func(service inbound.Service, result string) {
			s.metrics.inbound.WithLabelValues(service.String(), result).Inc()
		},
		Passed: func(service inbound.Service, direction string, bytes uint64) {
			s.metrics.inboundBytes.WithLabelValues(service.String(), direction).Add(float64(bytes))
		},
	}
	cfg.Dial, cfg.Listening = s.confinement.DialContext, s.confinement.Listening
	if s.forwardsSockets(spec) {
		cfg.Exist = s.confinement.Bound
		cfg.SaveSockets = func(paths []string) error { return s.policy.state.save(socketsFile, paths) }
	}
	s.inbound = inbound.New(cfg)
	return nil
}

// forwardsSockets reports whether Unix sockets of the host are forwarded into the
// plugin's view: without a view the plugin's sockets are the host's.
func (s *Sidecar) forwardsSockets(spec *configs.Sidecar) bool {
	return len(spec.Process.Sockets()) > 0 && s.confinement.Info().View
}

// servingUnix returns what is called before the plugin listens on a Unix socket;
// nil: no socket is forwarded, and listen(2) is not to be reported.
func (s *Sidecar) servingUnix(spec *configs.Sidecar) func(sandbox.Listener) {
	if len(spec.Process.Sockets()) == 0 || spec.Process.View != configs.ViewOwn {
		return nil
	}
	return func(l sandbox.Listener) {
		if s.inbound == nil {
			_ = l.File.Close() // it was only open to be looked at
			return
		}
		services := make([]inbound.Service, len(spec.Process.Listen))
		for i, service := range spec.Process.Listen {
			services[i] = inbound.Service(service)
		}
		s.inbound.ServingUnix(inbound.PluginSocket{Path: l.Path, File: l.File, Inode: l.Socket}, services)
	}
}

// connectedDirectly records a connection that a process of the host made to a
// socket of the plugin's in a folder that both see.
func (s *Sidecar) connectedDirectly(c ebpf.DirectConn) {
	detail := string(c.State)
	switch c.State {
	case ebpf.DirectBegan:
		s.metrics.inbound.WithLabelValues("unix", "accepted").Inc()
	case ebpf.DirectCut:
		detail += ": " + inbound.ErrRevoked.Error()
	case ebpf.DirectEnded:
	}
	s.journal.record(&authz.Record{
		Time: time.Now(), Kind: authz.KindInbound, Door: authz.DoorKernel, Scheme: "unix", Path: c.Path,
		PID: c.PID, UID: c.UID, Exe: c.Exe, Detail: detail,
	})
}

// cutDirect ends those connections, unless a level spares them.
func (c *PolicyControl) cutDirect(level authz.Level) (cut int) {
	if level != authz.LevelQuarantine && level != authz.LevelHalt {
		return 0
	}
	cut, err := c.cfg.Confinement().CutDirect()
	if err != nil {
		c.cfg.Log.Error("connections to the plugin's sockets not cut", zap.Error(err))
	}
	return cut
}

// listenForPlugin binds the ports of the host's loopback that are forwarded.
func (s *Sidecar) listenForPlugin(spec *configs.Sidecar) error {
	if s.confinement.OfHost() {
		return nil // the plugin listens there itself
	}
	return s.inbound.Listen(spec.Process.Ports(), s.listening.endpoints.ports())
}

// removeLeftSockets removes the sockets of the host that an earlier sidecar of the
// state directory left.
func removeLeftSockets(kept *state) error {
	var paths []string
	if err := kept.load(socketsFile, &paths); err != nil || len(paths) == 0 {
		return err
	}
	if err := inbound.RemoveLeftovers(paths); err != nil {
		return err
	}
	return os.Remove(kept.path(socketsFile))
}

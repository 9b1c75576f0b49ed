package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
)

// managedEnvoy serves the Envoy that the sidecar configures: it sends what is granted,
// answers for each access, and holds the egress sockets.
type managedEnvoy struct {
	spec      configs.Envoy
	check     *extauthz.Server
	xds       *xds.Server
	listener  net.Listener // of xds
	bootstrap []byte       // that an Envoy is started with
	exits     atomic.Int64 // how many there are
	relays    bool         // connections to the proxy are forwarded to Envoy
	elsewhere bool         // the plugin is in another container or on another machine
	log       *zap.Logger
}

// relays reports whether the proxy forwards the plugin's connections to Envoy. Where
// the kernel half is preferred and not available, the proxy serves them itself.
func (s *Sidecar) relays(spec *configs.Sidecar) bool { return spec.Relays() && s.confinement.Kernel() }

// makeManagedEnvoy makes the two servers of the Envoy that the sidecar configures,
// when it is asked for.
func (s *Sidecar) makeManagedEnvoy(spec *configs.Sidecar) (err error) {
	if spec.Envoy == nil {
		return nil
	}
	own := &managedEnvoy{spec: *spec.Envoy, relays: s.relays(spec), elsewhere: s.policy.pluginElsewhere(), log: s.cfg.Log}
	if own.bootstrap, err = xds.Bootstrap(envoyParams(spec)); err != nil {
		return fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	check := extauthz.Config{
		Plugin: s.name, Gate: s.gate, Ready: func() bool { return s.checkReady() == nil }, Forbidden: s.listening.self.dial,
		Group: own.spec.Group, Drain: time.Duration(spec.Drain), Refused: s.cfg.Refused, Enforces: authz.ManagedEnvoyEnforces, RouteHeader: true,
		Log: s.cfg.Log.Named("envoy.check"), FindPlaceholder: placeholder.Finder(s.plugin.placeholders.current),
	}
	if s.egress.resolver != nil {
		check.Name = s.egress.resolver.Host
	}
	if own.check, err = extauthz.New(check); err != nil {
		return fmt.Errorf("make ext_authz server of Envoy: %w", err)
	}
	cfg := envoyConfig(spec, s.name)
	cfg.Engine, cfg.Leaf, cfg.Log = s.policy.engine, s.egress.proxy.Leaf, s.cfg.Log.Named("envoy.xds")
	cfg.EgressSockets = func(routes []authz.Route) ([]string, error) {
		paths, err := s.egress.proxy.EgressSockets(own.spec.Exits(), own.spec.Group, routes)
		if err == nil {
			own.exits.Store(int64(len(paths)))
		}
		return paths, err
	}
	if s.egress.resolver != nil {
		cfg.Address = s.egress.resolver.Address
	}
	if own.xds, err = xds.New(cfg); err != nil {
		return fmt.Errorf("make xDS server of Envoy: %w", err)
	}
	s.envoys.managed = own
	return nil
}

// envoyConfig is what Envoy is configured with, less what only a sidecar that
// runs has: where the exits are, whose certificates are shown, and what is in force.
func envoyConfig(spec *configs.Sidecar, plugin authz.Principal) xds.Config {
	e := spec.Envoy
	cfg := xds.Config{
		Plugin: plugin, Now: time.Now, Check: e.Check(), Explicit: tcpAddress(e.Explicit), Transparent: tcpAddress(e.Transparent),
		Roots: string(upstreamRoots()), MaxStreamDuration: time.Duration(e.MaxStreamDuration), AccessLog: string(e.AccessLog),
		Group: e.Group,
	}
	if spec.Relays() {
		cfg.Listener = e.Plugin()
	}
	return cfg
}

// upstreamRoots returns the authorities of upstreams whose rule names none: those
// that SSL_CERT_FILE names, as for the sidecar's own proxy, or the system's.
func upstreamRoots() []byte {
	if file := os.Getenv("SSL_CERT_FILE"); file != "" {
		if data, err := os.ReadFile(file); err == nil { //nolint:gosec // the operator names it
			return data
		}
	}
	return systemCertificates()
}

func tcpAddress(a configs.Address) netip.AddrPort {
	at, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return netip.AddrPort{} // closed
	}
	return at
}

// listen binds both sockets in a folder of their own, and puts the bootstrap that
// names them beside them, for whoever starts the Envoy.
func (o *managedEnvoy) listen(ctx context.Context) error {
	if err := takeEnvoyFolder(o.spec.Dir, o.spec.Group); err != nil {
		return fmt.Errorf("prepare the folder of Envoy: %w", err)
	}
	if err := o.checkDir(); err != nil {
		return err
	}
	cfg := unixsock.Config{Group: o.spec.Group, DirChecked: true}
	check, err := unixsock.Listen(ctx, o.spec.Check(), cfg)
	if err != nil {
		return fmt.Errorf("listen for Envoy: %w", err)
	}
	o.check.AddListener(check)
	if o.listener, err = unixsock.Listen(ctx, o.spec.XDS(), cfg); err != nil {
		return fmt.Errorf("listen for xDS on %s: %w", o.spec.XDS(), err)
	}
	return o.writeBootstrap()
}

// checkDir refuses a directory that another user may replace: Envoy would connect to
// that user's sockets, and ask a server that allows everything. If the plugin is in
// another container, it cannot, and the volume that Envoy shares belongs to root and
// is open to others: the directory is then only logged.
func (o *managedEnvoy) checkDir() error {
	err := unixsock.CheckPath(o.spec.Dir)
	if err == nil || !o.elsewhere {
		return err
	}
	o.log.Info("envoy directory replaceable", zap.Error(err))
	return nil
}

// writeBootstrap replaces the file, from which an Envoy may be starting. It holds no
// secret, and Envoy may be another user.
func (o *managedEnvoy) writeBootstrap() error {
	if err := atomicfile.Write(o.spec.Bootstrap(), o.bootstrap, 0o644); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	return nil
}

// run serves Envoy until ctx ends.
func (o *managedEnvoy) run(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return o.check.Run(ctx) })
	g.Go(func() error { return o.xds.Serve(ctx, o.listener) })
}

// Modes of the folder of Envoy's sockets. A group that Envoy runs in makes its
// sockets there, of that group, and removes no others (inode(7): the sticky bit).
const (
	envoyFolderAlone = 0o700
	envoyFolderGroup = 0o770 | fs.ModeSetgid | fs.ModeSticky
)

// takeEnvoyFolder makes the folder, or takes over the one of an earlier sidecar.
func takeEnvoyFolder(dir, group string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // Envoy looks its folder up in it
		return err
	}
	if err := os.Mkdir(dir, envoyFolderAlone); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int64(owner.Uid) != int64(os.Geteuid()) {
		return fmt.Errorf("%s is not a folder of the sidecar's own user", dir)
	}
	if group == "" {
		return os.Chmod(dir, envoyFolderAlone)
	}
	gid, err := unixsock.GroupID(group)
	if err != nil {
		return err
	}
	return errors.Join(os.Chown(dir, -1, gid), os.Chmod(dir, envoyFolderGroup))
}

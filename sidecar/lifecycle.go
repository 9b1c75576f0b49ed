package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/vault"
)

// Listen binds every door, attaches the kernel programs, puts the policy in force and
// has the kernel meter and limit the plugin.
func (s *Sidecar) Listen(ctx context.Context) error {
	if err := s.bind(ctx); err != nil {
		return err
	}
	s.install(s.config.Load())
	s.announceStart()
	return s.startMetering()
}

// announceStart prints what an operator should know at the start, or logs it beside a
// plugin that somebody else starts.
func (s *Sidecar) announceStart() {
	for _, notice := range s.startNotices(time.Now()) {
		if s.cfg.External {
			s.cfg.Log.Warn("start notice", zap.String("notice", notice))
		} else {
			s.cfg.Notice(notice)
		}
	}
}

// bind binds every door and then attaches the kernel programs, so that what
// they redirect has somewhere to go.
func (s *Sidecar) bind(ctx context.Context) error {
	spec := &s.config.Load().Sidecar
	s.self.resolve(ctx)
	if !spec.Listen.Proxy.IsZero() {
		if err := s.listenProxy(ctx, spec); err != nil {
			return err
		}
	}
	if s.inbound != nil {
		if err := s.listenForPlugin(spec); err != nil {
			return err
		}
		for _, addr := range s.inbound.Ports() {
			s.addOwn(addr)
		}
	}
	if s.envoy != nil {
		addr, err := s.envoy.Listen(ctx, spec.Listen.ExtAuthz.String())
		if err != nil {
			return fmt.Errorf("listen for ext_authz: %w", err)
		}
		s.addresses.extAuthz = addressText(addr)
		s.addOwn(addr)
	}
	if s.managed != nil {
		if err := s.managed.listen(ctx); err != nil {
			return err
		}
		for _, at := range []netip.AddrPort{tcpAddress(s.managed.spec.Explicit), tcpAddress(s.managed.spec.Transparent)} {
			s.addOwn(net.TCPAddrFromAddrPort(at))
		}
	}
	if err := s.admin.Listen(); err != nil {
		return fmt.Errorf("listen for admin: %w", err)
	}
	s.addresses.admin = spec.Listen.Admin.String()
	for _, w := range s.webs {
		if err := w.listen(ctx); err != nil {
			return err
		}
		s.addOwn(w.listener.Addr())
		if w.name == webMetrics {
			s.addresses.metrics = w.listener.Addr().String()
		}
	}
	return nil
}

// Run serves until ctx ends. Doors drain first; then leases are revoked and
// the audit is closed.
func (s *Sidecar) Run(ctx context.Context) error {
	// A file size limit is a full disk: the write fails and what it was for is
	// refused. By default the signal would end the sidecar.
	signal.Ignore(syscall.SIGXFSZ)
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	defer s.register()()
	workers, workersCtx := errgroup.WithContext(inner)
	s.startWorkers(workersCtx, workers)

	doors, doorsCtx := errgroup.WithContext(ctx)
	s.startDoors(doorsCtx, doors)
	doors.Go(func() error { // a worker that fails ends the doors
		select {
		case <-workersCtx.Done():
			return errors.New("a part of the sidecar has ended")
		case <-doorsCtx.Done():
			return nil
		}
	})
	doors.Go(func() error { s.awaitReady(doorsCtx); return nil })

	err := doors.Wait()
	stopInner()
	if werr := workers.Wait(); werr != nil {
		err = errors.Join(werr, err)
	}
	return err
}

// Registry returns the folder where the sidecars of a host list their admin
// sockets: CHAPERONE_REGISTRY, or the default for "".
func Registry() string { return os.Getenv("CHAPERONE_REGISTRY") }

// register lists the sidecar for revoke --all, and returns what takes it off
// the list. A sidecar that cannot be listed serves all the same, and says so.
func (s *Sidecar) register() (unregister func()) {
	cfg := s.config.Load()
	off, err := admin.Register(Registry(), admin.Sidecar{
		Plugin: string(s.name), Socket: s.admin.Socket(), PID: os.Getpid(),
		StateDir: AbsPath(cfg.Sidecar.StateDir), Config: AbsPath(cfg.Path), Audit: AbsPath(s.audit.Status().File),
	})
	if w := s.otherSidecarWarning(); w != "" {
		s.cfg.Log.Warn("second sidecar of the plugin", zap.String("detail", w))
	}
	if err != nil {
		level := zap.WarnLevel
		if os.Geteuid() != 0 {
			level = zap.InfoLevel // the default folder is root's
		}
		s.cfg.Log.Log(level, "sidecar not listed", zap.Error(err),
			zap.String("lost", "revoke --all reaches it by the host's revocations only, within a second and without an answer; other commands need --config"))
		return func() {}
	}
	return func() {
		if err := off(); err != nil {
			s.cfg.Log.Warn("the sidecar stays listed", zap.Error(err))
		}
	}
}

// startWorkers runs what the doors depend on.
func (s *Sidecar) startWorkers(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return s.engine.Run(ctx, time.Now) })
	g.Go(func() error { s.follow(ctx, s.followKernel); return nil })
	g.Go(func() error { s.maintainTotals(ctx); return nil })
	g.Go(func() error { s.maintainCounts(ctx); return nil })
	if s.cfg.ReportDropped != nil {
		g.Go(func() error {
			defer s.cfg.ReportDropped()
			tick(ctx, time.Minute, s.cfg.ReportDropped)
			return nil
		})
	}
	g.Go(func() error {
		if err := s.reaper.Run(ctx); err != nil {
			s.cfg.Log.Warn("orphaned processes are not collected", zap.Error(err))
		}
		return nil
	})
	g.Go(func() error { s.watchFiles(ctx); return nil })
	g.Go(func() error { s.maintainTrust(ctx); return nil })
	g.Go(func() error { s.watchHost(ctx); return nil })
	if s.broker != nil {
		g.Go(func() error { return s.broker.Run(ctx) })
		g.Go(func() error { return s.closeTokens(ctx) })
		g.Go(func() error { s.follow(ctx, func(*authz.Snapshot) { s.retainLeases(ctx) }); return nil })
	}
	if s.confinement.Kernel() {
		g.Go(func() error {
			defer func() { s.recordSuppressed(time.Now(), true); s.recordProbes(time.Now(), true) }()
			return s.confinement.Run(ctx)
		})
		g.Go(func() error { s.watchUnmediated(ctx); return nil })
	}
	g.Go(func() error {
		tick(ctx, time.Minute, func() { s.self.resolve(ctx) })
		return nil
	})
}

// startDoors runs what others talk to.
func (s *Sidecar) startDoors(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return s.admin.Run(ctx) })
	if s.proxy != nil {
		g.Go(func() error { return s.proxy.Serve(ctx, s.endpoints.proxy...) })
	}
	if s.resolver != nil {
		for _, ends := range s.endpoints.resolvers {
			g.Go(func() error { return s.resolver.Serve(ctx, ends.udp, ends.tcp) })
		}
	}
	if s.inbound != nil {
		g.Go(func() error { return s.inbound.Run(ctx) })
	}
	if s.envoy != nil {
		g.Go(func() error { return s.envoy.Run(ctx) })
	}
	if s.managed != nil {
		s.managed.run(ctx, g)
	}
	for _, w := range s.webs {
		g.Go(func() error { return w.run(ctx) })
	}
}

// awaitReady logs in to Vault when a credential needs it, and reports as soon as
// nothing is missing. The broker logs what fails.
func (s *Sidecar) awaitReady(ctx context.Context) {
	const pause = 250 * time.Millisecond
	for ctx.Err() == nil {
		if s.broker != nil && s.needsVault() {
			if err := s.broker.Login(ctx); vault.Permanent(err) {
				select {
				case s.loginFailed <- err:
				default: // serve waits on, since files may be replaced
				}
			}
		}
		if s.checkReady() == nil {
			close(s.readied)
			s.announceReady()
			forgetStart()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// announceReady logs that the sidecar is ready and tells the service manager, unless
// the plugin has to be started first.
func (s *Sidecar) announceReady() {
	if !s.cfg.External {
		return
	}
	s.cfg.Log.Info("ready", zap.String("plugin", string(s.name)), zap.String("proxy", s.addresses.proxy),
		zap.String("ext_authz", s.addresses.extAuthz), zap.String("admin", s.addresses.admin), zap.String("metrics", s.addresses.metrics),
		zap.String("certificates", s.certificates()))
	notifyReady()
}

// needsVault reports whether any rule in force has a credential.
func (s *Sidecar) needsVault() bool {
	return len(s.engine.Current().CredentialRefs(s.name, time.Now())) > 0
}

// check is one thing that readiness takes.
type check struct {
	name string
	err  error
}

// checks returns what readiness takes, each with what is wrong with it.
func (s *Sidecar) checks() []check {
	policy := check{"policy", nil}
	if !s.engine.Current().Ready() {
		policy.err = errors.New("no policy is loaded")
	}
	out := []check{policy, {"audit", s.audit.Healthy()}}
	if s.needsVault() {
		c := check{"vault", nil}
		if s.broker == nil {
			c.err = errors.New("a grant has a credential and no Vault is configured")
		} else if !s.broker.Status().LoggedIn {
			c.err = errors.New("not logged in")
			if cause := s.broker.Status().LoginErr; cause != "" {
				c.err = fmt.Errorf("not logged in: %s", cause)
			}
		}
		out = append(out, c)
	}
	if s.config.Load().Sidecar.Kernel == configs.KernelRequired && s.cfg.Confine {
		c := check{"kernel", nil}
		c.err = s.confinement.Check()
		out = append(out, c)
	}
	return out
}

// Ready returns a channel that is closed once nothing is missing: the policy is in
// force, the audit log can be written, and Vault and the kernel are there if they are
// needed.
func (s *Sidecar) Ready() <-chan struct{} { return s.readied }

// checkReady returns nil when the sidecar is ready, or the first thing that is not.
func (s *Sidecar) checkReady() error {
	for _, c := range s.checks() {
		if c.err != nil {
			return fmt.Errorf("%s: %w", c.name, c.err)
		}
	}
	return nil
}

// Close gives back what newSidecar took, in reverse.
func (s *Sidecar) Close() error {
	var errs []error
	errs = append(errs, s.confinement.Close())
	for _, l := range s.endpoints.proxy {
		_ = l.Close() // closed by Serve already when the proxy ran
	}
	if s.inbound != nil {
		s.inbound.Close() // likewise
	}
	errs = append(errs, s.streams.restore(), s.forgetChowned())
	if s.trust != nil {
		errs = append(errs, s.trust.Close())
	}
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
	}
	if s.state != nil {
		errs = append(errs, s.saveUsedExactly())
		s.advanceHistory() // a copy that was made while it ran is an older one from now on
		errs = append(errs, s.state.Close())
	}
	return errors.Join(errs...)
}

// maintainTotals writes down what is used of limits before accesses have to wait for it,
// and what the kernel counts, of which a loss of power forgets at most the last
// moment.
func (s *Sidecar) maintainTotals(ctx context.Context) {
	tick(ctx, time.Second, func() {
		if err := s.saveUsed(); err != nil {
			s.cfg.Log.Error("usage not written", zap.Error(err))
		}
	})
}

// maintainCounts writes the counts of equal refusals once their minute is over.
func (s *Sidecar) maintainCounts(ctx context.Context) {
	tick(ctx, 5*time.Second, func() { s.flushCounts(false) })
}

// flushCounts writes the counts of equal refusals that are due, or all.
func (s *Sidecar) flushCounts(all bool) {
	if err := s.audit.Flush(time.Now(), all); err != nil {
		s.cfg.Log.Error("counts of refusals not recorded", zap.Error(err))
	}
}

// tick calls f at an interval until ctx ends.
func tick(ctx context.Context, interval time.Duration, f func()) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
			f()
		}
	}
}

// addOwn adds a listener of our own to what is never dialled.
func (s *Sidecar) addOwn(addr net.Addr) {
	if at := addrPort(addr); at.IsValid() {
		s.self.listeners = append(s.self.listeners, at)
	}
}

func addrPort(addr net.Addr) netip.AddrPort {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		at := tcp.AddrPort()
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	return netip.AddrPort{}
}

func addressText(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "unix:" + addr.String()
	}
	return addr.String()
}

// install puts the policy of the configuration in force.
func (s *Sidecar) install(cfg *configs.Config) uint64 {
	s.config.Store(cfg)
	if s.cfg.SetLevel != nil {
		s.cfg.SetLevel(cfg.Sidecar.LogLevel)
	}
	if err := s.placeholders.follow(string(s.name), cfg.Grants); err != nil {
		s.cfg.Log.Error("a placeholder is missing", zap.Error(err))
	}
	s.allowConnects()
	generation := s.engine.Install(cfg.Policy)
	s.metrics.reloadOK.Set(1)
	s.metrics.follow(cfg.Grants, s.ledger.Report(s.engine.Current(), s.name, time.Now()))
	if stop := s.stopWatch.Load(); stop != nil {
		(*stop)() // the new configuration may name other files
	}
	return generation
}

// limitExceeded says that a limit which a door keeps was exceeded: once, until it
// recovers.
func (s *Sidecar) limitExceeded(c authz.Crossing) {
	name := c.Grant
	if c.Rule != "" {
		name += "/" + c.Rule
	}
	s.metrics.crossings.WithLabelValues(name + " " + c.Kind.String()).Inc()
	detail := fmt.Sprintf("%s exceeded: %s; ", c.Kind, limitText(authz.UsageOf{Kind: c.Kind, Limit: c.Limit}))
	switch c.Action {
	case authz.OnExceededKill:
		detail += "the plugin is ended"
	case authz.OnExceededThrottle:
		detail += "requests wait for it"
	case authz.OnExceededDeny, authz.OnExceededStop:
		detail += "requests are refused"
	default:
		detail += "only observed"
	}
	s.record(&authz.Record{Kind: authz.KindLimit, Reason: authz.QuotaExceeded.String(), Grant: c.Grant, Rule: c.Rule, UID: -1, Detail: detail})
	if c.Action == authz.OnExceededKill {
		s.reportAction(fmt.Sprintf("limit %s of grant %s exceeded: %s", c.Kind, c.Grant, strings.TrimPrefix(detail, c.Kind.String()+" exceeded: ")),
			fmt.Sprintf("ask for a higher limits.%s in grant %s", c.Kind, c.Grant))
		if err := s.confinement.Kill(); err != nil {
			s.cfg.Log.Error("the plugin over its limit could not be ended", zap.Error(err))
		}
	}
}

// listenProxy binds the proxy and the resolver where the plugin reaches them.
func (s *Sidecar) listenProxy(ctx context.Context, spec *configs.Sidecar) (err error) {
	s.endpoints, err = s.confinement.Bind(ctx, spec.Listen.Proxy.Addr)
	if err != nil {
		return err
	}
	s.addresses.proxy = s.endpoints.proxy[0].Addr().String()
	if s.confinement.OfHost() {
		for _, addr := range s.endpoints.all() {
			s.addOwn(addr)
		}
	}
	return nil
}

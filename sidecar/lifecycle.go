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
	cfg := s.policy.config.Load()
	if err := s.policy.keepGenerations(cfg); err != nil {
		return err
	}
	s.policy.recordFiles(cfg, "start", s.policy.install(cfg), "loaded at the start")
	s.announceStart()
	return s.telemetry.startMetering()
}

// announceStart prints what an operator should know at the start, or logs it beside a
// plugin that somebody else starts.
func (s *Sidecar) announceStart() {
	for _, notice := range s.policy.startNotices(time.Now()) {
		if s.cfg.External {
			s.cfg.Log.Warn("operator notice", zap.String("notice", notice))
		} else {
			s.cfg.Notice(notice)
		}
	}
}

// bind binds every door and then attaches the kernel programs, so that what
// they redirect has somewhere to go.
func (s *Sidecar) bind(ctx context.Context) error {
	spec := &s.policy.config.Load().Sidecar
	s.listening.self.resolve(ctx)
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
	if s.envoys.envoy != nil {
		addr, err := s.envoys.envoy.Listen(ctx, spec.Listen.ExtAuthz.String())
		if err != nil {
			return fmt.Errorf("listen for ext_authz: %w", err)
		}
		s.listening.addresses.extAuthz = addressText(addr)
		s.addOwn(addr)
	}
	if s.envoys.managed != nil {
		if err := s.envoys.managed.listen(ctx); err != nil {
			return err
		}
		for _, at := range []netip.AddrPort{tcpAddress(s.envoys.managed.spec.Explicit), tcpAddress(s.envoys.managed.spec.Transparent)} {
			s.addOwn(net.TCPAddrFromAddrPort(at))
		}
	}
	if err := s.admin.Listen(); err != nil {
		return fmt.Errorf("listen for admin: %w", err)
	}
	s.listening.addresses.admin = spec.Listen.Admin.String()
	for _, w := range s.listening.webs {
		if err := w.listen(ctx); err != nil {
			return err
		}
		s.addOwn(w.listener.Addr())
		if w.name == webMetrics {
			s.listening.addresses.metrics = w.listener.Addr().String()
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
// the list. A sidecar that cannot be listed serves nevertheless, and logs that.
func (s *Sidecar) register() (unregister func()) {
	cfg := s.policy.config.Load()
	off, err := admin.Register(Registry(), admin.Sidecar{
		Plugin: string(s.name), Socket: s.admin.Socket(), PID: os.Getpid(),
		StateDir: AbsPath(cfg.Sidecar.StateDir), Config: AbsPath(cfg.Path), Audit: AbsPath(s.journal.audit.Status().File),
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
			s.cfg.Log.Warn("sidecar deregistration failed", zap.Error(err))
		}
	}
}

// startWorkers runs what the doors depend on.
func (s *Sidecar) startWorkers(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return s.policy.engine.Run(ctx, s.policy.generations.clock.Now) })
	g.Go(func() error { s.policy.maintainGenerations(ctx); return nil })
	g.Go(func() error { s.policy.followContainment(ctx); return nil })
	g.Go(func() error { s.policy.follow(ctx, s.policy.followKernel); return nil })
	g.Go(func() error { s.policy.maintainTotals(ctx); return nil })
	g.Go(func() error { s.journal.maintainCounts(ctx); return nil })
	g.Go(func() error {
		defer s.sampler.report()
		tick(ctx, time.Minute, s.sampler.report)
		return nil
	})
	g.Go(func() error {
		if err := s.reaper.Run(ctx); err != nil {
			s.cfg.Log.Warn("orphan collection failed", zap.Error(err))
		}
		return nil
	})
	g.Go(func() error { s.policy.watchFiles(ctx); return nil })
	g.Go(func() error { s.plugin.maintainTrust(ctx); return nil })
	g.Go(func() error { s.policy.watchHost(ctx); return nil })
	if s.credentials.broker != nil {
		g.Go(func() error { return s.credentials.broker.Run(ctx) })
		g.Go(func() error { return s.credentials.closeTokens(ctx) })
		g.Go(func() error { s.policy.follow(ctx, func(*authz.Snapshot) { s.policy.retainLeases(ctx) }); return nil })
	}
	if s.confinement.Kernel() {
		g.Go(func() error {
			defer func() { s.telemetry.recordSuppressed(time.Now(), true); s.telemetry.recordProbes(time.Now(), true) }()
			return s.confinement.Run(ctx)
		})
		g.Go(func() error { s.telemetry.watchUnmediated(ctx); return nil })
	}
	g.Go(func() error {
		tick(ctx, time.Minute, func() { s.listening.self.resolve(ctx) })
		return nil
	})
}

// startDoors runs what others talk to.
func (s *Sidecar) startDoors(ctx context.Context, g *errgroup.Group) {
	if s.cfg.External { // a program that starts as soon as the sidecar is ready reads the bundle
		if err := s.renewAuthority(); err != nil {
			g.Go(func() error { return err })
		}
	}
	g.Go(func() error { return s.admin.Run(ctx) })
	if s.egress.proxy != nil {
		g.Go(func() error { return s.egress.proxy.Serve(ctx, s.listening.endpoints.proxy...) })
	}
	if s.egress.resolver != nil {
		for _, ends := range s.listening.endpoints.resolvers {
			g.Go(func() error { return s.egress.resolver.Serve(ctx, ends.udp, ends.tcp) })
		}
	}
	if s.inbound != nil {
		g.Go(func() error { return s.inbound.Run(ctx) })
	}
	if s.envoys.envoy != nil {
		g.Go(func() error { return s.envoys.envoy.Run(ctx) })
	}
	if s.envoys.managed != nil {
		s.envoys.managed.run(ctx, g)
	}
	for _, w := range s.listening.webs {
		g.Go(func() error { return w.run(ctx) })
	}
}

// awaitReady logs in to Vault when a credential needs it, and reports as soon as
// nothing is missing. The broker logs what fails.
func (s *Sidecar) awaitReady(ctx context.Context) {
	const pause = 250 * time.Millisecond
	for ctx.Err() == nil {
		if s.credentials.broker != nil && s.policy.needsVault() {
			if err := s.credentials.broker.Login(ctx); vault.Permanent(err) {
				select {
				case s.credentials.loginFailed <- err:
				default: // serve waits on, since files may be replaced
				}
			}
		}
		if s.checkReady() == nil {
			close(s.readied)
			s.announceReady()
			releaseStartupMemory(ctx)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// announceReady logs that the sidecar is ready and notifies the service manager, unless
// the plugin has to be started first.
func (s *Sidecar) announceReady() {
	if !s.cfg.External {
		return
	}
	s.cfg.Log.Info("ready", zap.String("plugin", string(s.name)), zap.String("proxy", s.listening.addresses.proxy),
		zap.String("ext_authz", s.listening.addresses.extAuthz), zap.String("admin", s.listening.addresses.admin), zap.String("metrics", s.listening.addresses.metrics),
		zap.String("certificates", s.plugin.certificates()))
	notifyReady()
}

// needsVault reports whether any rule in force has a credential.
func (c *PolicyControl) needsVault() bool {
	return len(c.engine.Current().CredentialRefs(c.cfg.Plugin, time.Now())) > 0
}

// check is one thing that readiness takes.
type check struct {
	name string
	err  error
}

// checks returns what readiness takes, each with what is wrong with it.
func (s *Sidecar) checks() []check {
	policy := check{"policy", nil}
	if !s.policy.engine.Current().Ready() {
		policy.err = errors.New("no policy is loaded")
	}
	out := []check{policy, {"audit", s.journal.audit.Healthy()}}
	if s.policy.needsVault() {
		c := check{"vault", nil}
		if s.credentials.broker == nil {
			c.err = errors.New("a grant has a credential and no Vault is configured")
		} else if !s.credentials.broker.Status().LoggedIn {
			c.err = errors.New("not logged in")
			if cause := s.credentials.broker.Status().LoginErr; cause != "" {
				c.err = fmt.Errorf("not logged in: %s", cause)
			}
		}
		out = append(out, c)
	}
	if s.policy.config.Load().Sidecar.Kernel == configs.KernelRequired && s.cfg.Confine {
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

// Close gives back what New took. Parts that wait for the kernel or the disk close side by
// side, and the stateDir is unlocked last.
func (s *Sidecar) Close() error {
	var closing errgroup.Group
	closing.Go(func() error {
		err := errors.Join(s.confinement.Close(), s.kernel.preloaded.Close())
		for _, l := range s.listening.endpoints.proxy {
			_ = l.Close() // closed by Serve already when the proxy ran
		}
		if s.inbound != nil {
			s.inbound.Close() // likewise
		}
		return errors.Join(err, s.plugin.streams.restore(), s.plugin.forgetChowned())
	})
	if s.plugin.trust != nil {
		closing.Go(s.plugin.trust.Close)
	}
	var errs []error
	if s.journal.audit != nil {
		errs = append(errs, s.journal.audit.Close())
	}
	if s.policy.state != nil {
		s.policy.advancing.Wait()
		errs = append(errs, s.policy.saveUsedExactly())
		s.policy.advanceHistory() // a copy that was made while it ran is an older one from now on
	}
	errs = append(errs, closing.Wait())
	if s.policy.state != nil {
		errs = append(errs, s.policy.state.Close())
	}
	return errors.Join(errs...)
}

// maintainTotals writes down what is used of limits before accesses have to wait for it,
// and what the kernel counts, of which a loss of power forgets at most the last
// moment.
func (c *PolicyControl) maintainTotals(ctx context.Context) {
	tick(ctx, time.Second, func() {
		if err := c.saveUsed(); err != nil {
			c.cfg.Log.Error("usage not written", zap.Error(err))
		}
	})
}

// maintainCounts writes the counts of equal refusals once their minute is over.
func (j *journal) maintainCounts(ctx context.Context) {
	tick(ctx, 5*time.Second, func() { j.flushCounts(false) })
}

// flushCounts writes the counts of equal refusals that are due, or all.
func (j *journal) flushCounts(all bool) {
	if err := j.audit.Flush(time.Now(), all); err != nil {
		j.log.Error("counts of refusals not recorded", zap.Error(err))
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
		s.listening.self.listeners = append(s.listening.self.listeners, at)
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
func (c *PolicyControl) install(cfg *configs.Config) uint64 {
	c.config.Store(cfg)
	if c.cfg.SetLevel != nil {
		c.cfg.SetLevel(cfg.Sidecar.LogLevel)
	}
	if err := c.cfg.Placeholders().follow(string(c.cfg.Plugin), cfg.Grants); err != nil {
		c.cfg.Log.Error("placeholder missing", zap.Error(err))
	}
	c.cfg.Telemetry.allowConnects()
	c.containment.follow(cfg.Containment)
	generation := c.engine.Install(cfg.Policy)
	c.cfg.Metrics.reloadOK.Set(1)
	c.cfg.Metrics.follow(cfg.Grants, c.ledger.Report(c.engine.Current(), c.cfg.Plugin, time.Now()))
	if stop := c.stopWatch.Load(); stop != nil {
		(*stop)() // the new configuration may name other files
	}
	return generation
}

// limitExceeded reports that a limit which a door keeps was exceeded: once, until it
// recovers.
func (t *KernelTelemetry) limitExceeded(c authz.Crossing) {
	name := c.Grant
	if c.Rule != "" {
		name += "/" + c.Rule
	}
	t.cfg.Metrics.crossings.WithLabelValues(name + " " + c.Kind.String()).Inc()
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
	t.cfg.Record(&authz.Record{Kind: authz.KindLimit, Reason: authz.QuotaExceeded.String(), Grant: c.Grant, Rule: c.Rule, UID: -1, Detail: detail})
	if c.Action == authz.OnExceededKill {
		t.reportAction(fmt.Sprintf("limit %s of grant %s exceeded: %s", c.Kind, c.Grant, strings.TrimPrefix(detail, c.Kind.String()+" exceeded: ")),
			fmt.Sprintf("ask for a higher limits.%s in grant %s", c.Kind, c.Grant))
		if err := t.cfg.Confinement().Kill(); err != nil {
			t.cfg.Log.Error("plugin kill failed", zap.Error(err))
		}
	}
}

// listenProxy binds the proxy and the resolver where the plugin reaches them.
func (s *Sidecar) listenProxy(ctx context.Context, spec *configs.Sidecar) (err error) {
	s.listening.endpoints, err = s.confinement.Bind(ctx, spec.Listen.Proxy.Addr)
	if err != nil {
		return err
	}
	s.listening.addresses.proxy = s.listening.endpoints.proxy[0].Addr().String()
	if s.confinement.OfHost() {
		for _, addr := range s.listening.endpoints.all() {
			s.addOwn(addr)
		}
	}
	return nil
}

// Reload reads the files again and puts them in force, for an actor that the audit log
// names. It returns what has changed. Files that cannot be used change nothing; that is
// also recorded and logged.
func (s *Sidecar) Reload(ctx context.Context, actor string) (changes []string, err error) {
	return s.policy.Reload(ctx, actor)
}

package sidecar

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/reaper"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
	"github.com/chaperone-proxy/chaperone/proxy/inbound"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
	"github.com/chaperone-proxy/chaperone/vault"
	"github.com/chaperone-proxy/chaperone/vault/tokens"
)

// Config are what a sidecar is made from. Functions that are nil are not called.
type Config struct {
	Files    *configs.Config // the files, as configs.Load returned them; required
	Version  string          // of the program, for status and metrics
	Cgroup   string          // of a plugin that runs already: the folder in cgroup v2; "" for none
	Token    authz.Secret    // proves the plugin while the kernel is off; run makes one if it is empty
	Confine  bool            // the plugin is confined: by run, or by serve with a cgroup
	External bool            // another process starts the plugin: serve
	Log      *zap.Logger     // the operator's log, of which each message gets 30 lines a minute; nil discards it

	SetLevel      func(configs.LogLevel)    // sets the level of log
	StderrDropped func() uint64             // messages that standard error lost, for metrics
	Refused       func(authz.Refusal)       // prints refusals
	Acted         func(what, remedy string) // prints what a limit did to the plugin; nil: it is logged
	Event         func(what, remedy string) // prints what went wrong with a connection; nil: it is logged
	Notice        func(text string)         // prints a text once to the user of the command
	RawMode       func(bool)                // reports that the terminal of run is in raw mode, or no longer is
}

// Sidecar is one sidecar: its parts, in the order in which they are made.
type Sidecar struct {
	cfg     Config
	name    authz.Principal // of the plugin
	started time.Time
	readied chan struct{} // closed once the sidecar is ready
	sampler *logSampler   // of cfg.Log

	metrics     *metrics
	journal     *journal
	credentials *credentials
	telemetry   *KernelTelemetry
	policy      *PolicyControl
	plugin      *Plugin
	gate        *authz.Gate
	confinement Confinement
	reaper      *reaper.Reaper
	kernel      kernelState
	inbound     *inbound.Forwarder // nil: nothing is forwarded to the plugin
	egress      egress
	envoys      envoys
	admin       *admin.Server
	listening   listening
}

// credentials are leased from Vault and exchanged for tokens.
type credentials struct {
	broker      *vault.Broker  // nil: no Vault is configured
	tokens      *tokens.Source // over the broker; nil without it
	loginFailed chan error     // receives a failed login to Vault that does not mend by itself
}

// egress is the plugin's way out, when it has one here.
type egress struct {
	proxy    *proxy.Proxy   // nil: all accesses are Envoy's
	resolver *dns.Resolver  // nil without the kernel half
	budget   *budget.Budget // of the memory that the plugin and its upstreams may have held
}

// envoys are the servers that Envoys ask.
type envoys struct {
	envoy       *extauthz.Server // of an Envoy that others configure; nil for none
	extAuthzTLS *extAuthzTLS     // of envoy; nil without TLS
	managed     *managedEnvoy    // that this sidecar configures; nil for none
}

// listening is where the sidecar listens.
type listening struct {
	self      *selfAddrs
	endpoints endpoints // where the plugin reaches the sidecar
	addresses addresses
	webs      []*web
}

// addresses are where the doors are, once they are bound.
type addresses struct {
	proxy, extAuthz, admin, metrics string
}

// New makes the parts, inside out. It starts nothing and binds no socket.
func New(opts Config) (s *Sidecar, err error) {
	cfg := opts.Files
	if err := checkTrust(cfg, opts.External); err != nil {
		return nil, err
	}
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
	log, sampler := sampleLog(opts.Log)
	opts.Log = log
	if opts.Notice == nil {
		opts.Notice = func(string) {}
	}
	if opts.RawMode == nil {
		opts.RawMode = func(bool) {}
	}
	if opts.Token.Empty() && opts.Confine && !opts.External && cfg.Sidecar.Kernel != configs.KernelRequired {
		opts.Token = newToken()
	}
	s = &Sidecar{
		cfg: opts, name: authz.Principal(cfg.Sidecar.Plugin), started: time.Now(), readied: make(chan struct{}), sampler: sampler,
		metrics: newMetrics(), reaper: reaper.New(), credentials: &credentials{loginFailed: make(chan error, 1)},
	}
	s.journal = &journal{plugin: s.name, log: opts.Log}
	s.confinement = &noConfinement{reaper: s.reaper}
	s.listening.self = newSelfAddrs(&cfg.Sidecar)
	s.makeParts()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	for _, make := range []func(*configs.Sidecar) error{
		s.preloadPrograms, s.policy.openState, s.openAudit, s.policy.startHistory, s.policy.loadHostRevocations, s.makeBroker, s.makeTokens, s.makePlaceholders, s.makeGate, s.makeTrust, s.makeConfinement, s.makeInbound, s.makeProxy, s.makeEnvoy, s.makeManagedEnvoy, s.makeAdmin, s.makeWeb, s.policy.awaitHistory,
	} {
		if err := make(&cfg.Sidecar); err != nil {
			return s, err
		}
	}
	s.registerMetrics()
	return s, nil
}

// makeParts makes the parts that own the policy, the kernel's readings and the plugin.
// Parts that are made later are looked up when they are used.
func (s *Sidecar) makeParts() {
	engine, ledger := &authz.Engine{}, authz.NewLedger()
	confinement := func() Confinement { return s.confinement }
	files := func() *configs.Config { return s.policy.config.Load() }
	proxyAddress := func() string { return s.listening.addresses.proxy }
	s.telemetry = &KernelTelemetry{cfg: TelemetryConfig{
		Plugin: s.name, Cgroup: s.cfg.Cgroup, Engine: engine, Ledger: ledger, Confinement: confinement, Files: files,
		ProxyAddress: proxyAddress, Resolver: func() *dns.Resolver { return s.egress.resolver },
		SaveUsage: func() error { return s.policy.saveUsed() }, Charged: func() bool { return s.policy.charged() },
		Record: s.journal.record, Refused: s.cfg.Refused, Acted: s.cfg.Acted, Metrics: s.metrics, Log: s.cfg.Log,
	}}
	s.policy = newPolicyControl(s.cfg.Files, PolicyConfig{
		Plugin: s.name, Cgroup: s.cfg.Cgroup, External: s.cfg.External, Engine: engine, Ledger: ledger,
		Telemetry: s.telemetry, Credentials: s.credentials, Confinement: confinement,
		Inbound: func() *inbound.Forwarder { return s.inbound }, Proxy: func() *proxy.Proxy { return s.egress.proxy },
		Placeholders: func() *placeholders { return s.plugin.placeholders },
		ExtAuthzTLS:  func() *extAuthzTLS { return s.envoys.extAuthzTLS },
		Record:       s.journal.record, Recorder: func() authz.BatchRecorder { return s.journal.recorder },
		Metrics: s.metrics, Log: s.cfg.Log, SetLevel: s.cfg.SetLevel,
	})
	s.plugin = &Plugin{cfg: PluginConfig{
		Name: s.name, Token: s.cfg.Token, Engine: engine, Confinement: confinement, Files: files, ProxyAddress: proxyAddress,
		State: func() *state { return s.policy.state }, RenewAuthority: s.renewAuthority,
		Verified: s.policy.verified,
		Record:   s.journal.record, Metrics: s.metrics, Log: s.cfg.Log,
	}}
}

// openState locks the stateDir and puts back what earlier runs left in it.
func (c *PolicyControl) openState(spec *configs.Sidecar) (err error) {
	if err := c.checkPlaces(spec); err != nil {
		return err
	}
	if c.state, c.history, c.lost, err = openStateWithHistory(spec, c.config.Load().Path); err != nil {
		return err
	}
	if err := restoreLeftStreams(c.state); err != nil {
		c.cfg.Log.Warn("lent files not restored", zap.Error(err))
	}
	if err := c.state.revocationsInto(c.engine); err != nil {
		return err
	}
	return c.restoreUsed()
}

func (s *Sidecar) openAudit(spec *configs.Sidecar) (err error) {
	cfg := auditConfig(spec)
	cfg.FullPaths = s.policy.fullPaths
	s.journal.audit, err = audit.Open(cfg)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	s.journal.recorder = counting{s.journal.audit, s.metrics, s.policy.containment}
	if show := s.cfg.Refused; show != nil && spec.Audit.Paths == configs.AuditPathsMasked {
		s.cfg.Refused = func(r authz.Refusal) { show(maskRefusal(r, s.journal.audit.MaskPath)) }
		s.telemetry.cfg.Refused = s.cfg.Refused
	}
	return nil
}

// auditConfig returns where the audit log of a sidecar is.
func auditConfig(spec *configs.Sidecar) audit.Config {
	return audit.Config{
		File: spec.Audit.File, StateDir: spec.StateDir, MaxSize: int64(spec.Audit.MaxSize), Keep: spec.Audit.Keep,
		FullPaths: func() bool { return spec.Audit.Paths == configs.AuditPathsFull },
	}
}

// fullPaths reports whether paths are recorded unmasked: if the Sidecar sets that, and
// without a setting while it or a rule observes.
func (c *PolicyControl) fullPaths() bool {
	switch c.running.Audit.Paths {
	case configs.AuditPathsFull:
		return true
	case configs.AuditPathsMasked:
		return false
	}
	until := c.config.Load().ObservesUntil()
	return !until.IsZero() && time.Now().Before(until)
}

// makeBroker makes the leasing of credentials, when there is a Vault.
func (s *Sidecar) makeBroker(spec *configs.Sidecar) (err error) {
	if spec.Vault == nil {
		return nil
	}
	cfg := brokerConfig(spec.Plugin, spec.Vault, s.cfg.Log.Named("vault"))
	cfg.StateFile = s.policy.state.path(leasesFile)
	cfg.Recorder = s.journal.recorder
	cfg.Changed = func() { s.policy.engine.Bump() }
	cfg.Renders = func(ref authz.CredentialRef, c authz.Credential) error {
		return s.policy.engine.Current().Renders(ref, c)
	}
	cfg.Fetched = func(took time.Duration, _ error) { s.metrics.fetches.Observe(took.Seconds()) }
	s.credentials.broker, err = vault.New(cfg)
	if err != nil {
		return fmt.Errorf("make credential broker: %w", err)
	}
	return nil
}

// brokerConfig returns how Vault is talked to.
func brokerConfig(plugin string, v *configs.Vault, log *zap.Logger) vault.Config {
	return vault.Config{
		Plugin: plugin, Address: v.Address, Namespace: v.Namespace, CAFile: v.CAFile,
		Auth: vault.Auth{
			Method: vault.Method(v.Auth.Method), Mount: v.Auth.Mount, TokenFile: v.Auth.TokenFile,
			RoleIDFile: v.Auth.RoleIDFile, SecretIDFile: v.Auth.SecretIDFile, SecretIDWrapped: v.Auth.SecretIDWrapped,
			Role: v.Auth.Role, JWTFile: v.Auth.JWTFile, CertFile: v.Auth.CertFile, KeyFile: v.Auth.KeyFile,
		},
		Logger: log,
	}
}

// makeGate makes the one door that all others lead through.
func (s *Sidecar) makeGate(*configs.Sidecar) (err error) {
	cfg := authz.GateConfig{
		Engine: s.policy.engine, Ledger: s.policy.ledger, Recorder: redactingRecorder{s.journal.recorder, s.plugin.placeholders.current}, Now: s.policy.generations.clock.Now,
		Crossed: func(c authz.Crossing) { s.telemetry.limitExceeded(c) }, Persist: s.policy.saveUsed,
	}
	if s.credentials.broker != nil {
		cfg.Credentials = s.credentials.tokens
	}
	s.gate, err = authz.NewGate(cfg)
	return err
}

// makeTrust makes the certificates of the plugin, when it has a way out here.
func (s *Sidecar) makeTrust(spec *configs.Sidecar) (err error) {
	if !s.hasProxy(spec) {
		return nil
	}
	if s.plugin.trust, err = newTrustBundle(s.policy.state, os.Environ(), spec.Process.Env); err != nil {
		return err
	}
	s.plugin.trust.begin(func(text string) { s.cfg.Log.Warn("authorities ignored", zap.String("detail", text)) })
	return nil
}

// changeAuthority puts an authority into the plugin's trust bundle. The proxy's first one,
// which covers no host yet, is not written before run starts the plugin: see
// renewAuthority.
func (s *Sidecar) changeAuthority(pem []byte) {
	if s.egress.proxy == nil && !s.cfg.External {
		s.plugin.trust.stage(pem)
		return
	}
	if err := s.plugin.trust.write(pem); err != nil {
		s.cfg.Log.Error("trust bundle update failed", zap.Error(err))
	}
}

// hasProxy reports whether the plugin has its way out here, or an Envoy that the sidecar
// configures has the end of its way.
func (*Sidecar) hasProxy(spec *configs.Sidecar) bool {
	return !spec.Listen.Proxy.IsZero() || spec.Envoy != nil
}

// makeProxy makes the plugin's way out, when it has one here, and the end of the
// way of an Envoy that the sidecar configures.
func (s *Sidecar) makeProxy(spec *configs.Sidecar) (err error) {
	s.egress.budget = budget.New(session.DefaultBudget)
	if !s.hasProxy(spec) {
		return nil
	}
	cfg := proxy.Config{
		Plugin: s.name, Gate: s.gate, Engine: s.policy.engine, Token: s.cfg.Token, Budget: s.egress.budget,
		Upstream: upstream.Config{Servers: spec.DNS.Servers, Hosts: spec.DNS.Hosts, Forbidden: s.listening.self.dial},
		Refused:  s.cfg.Refused, Drain: time.Duration(spec.Drain), Log: s.cfg.Log.Named("proxy"),
		Event: s.proxyEvent, Placeholders: s.plugin.placeholders.current, CredentialRefused: s.credentials.credentialRefused,
		Databases: proxy.Databases{Statement: s.metrics.statement, Texts: s.policy.fullPaths()},
	}
	if s.relays(spec) {
		cfg.Relay = spec.Envoy.Plugin()
	}
	if cfg.Upstream.Proxy, cfg.Upstream.NoProxy, err = upstreamProxy(spec); err != nil {
		return err
	}
	if s.confinement.Kernel() {
		cfg.Identify, cfg.Attribute = s.confinement.Identify, s.telemetry.attribute
		s.egress.resolver, err = dns.NewResolver(dns.Config{
			Plugin: s.name, Gate: s.gate, Engine: s.policy.engine, NamesFile: s.policy.state.path(namesFile), Refused: s.cfg.Refused, Identify: s.confinement.IdentifyQuery,
			Probe: s.telemetry.probedName, Log: s.cfg.Log.Named("resolver"),
		})
		if err != nil {
			return fmt.Errorf("make resolver: %w", err)
		}
		cfg.Resolver = s.egress.resolver
	}
	cfg.CAChanged = s.changeAuthority
	if s.egress.proxy, err = proxy.New(cfg); err != nil {
		return fmt.Errorf("make proxy: %w", err)
	}
	return nil
}

// maintainTrust writes the plugin's certificates again when they are gone.
func (p *Plugin) maintainTrust(ctx context.Context) {
	if p.trust == nil {
		return
	}
	failing := false
	tick(ctx, trustInterval, func() {
		mended, err := p.trust.repair()
		switch {
		case err != nil && !failing:
			p.cfg.Log.Error("trust bundle missing", zap.String("folder", p.trust.dir), zap.Error(err))
		case mended:
			p.cfg.Log.Warn("trust bundle written again", zap.String("folder", p.trust.dir))
		}
		failing = err != nil
	})
}

// makeEnvoy makes Envoy's door, when it is asked for.
func (s *Sidecar) makeEnvoy(spec *configs.Sidecar) (err error) {
	if spec.Listen.ExtAuthz.IsZero() {
		return nil
	}
	cfg := extauthz.Config{
		Plugin: s.name, Gate: s.gate, Ready: func() bool { return s.checkReady() == nil }, Forbidden: s.listening.self.dial,
		Group: spec.Listen.ExtAuthzGroup, Drain: time.Duration(spec.Drain), Refused: s.cfg.Refused, PluginElsewhere: s.policy.pluginElsewhere(),
		Log: s.cfg.Log.Named("ext_authz"), FindPlaceholder: placeholder.Finder(s.plugin.placeholders.current),
	}
	if len(spec.SPIFFEIDs) > 0 {
		cfg.SPIFFEIDs = map[string]authz.Principal{}
		for _, id := range spec.SPIFFEIDs {
			cfg.SPIFFEIDs[id] = s.name
		}
	}
	if t := spec.Listen.ExtAuthzTLS; t != nil {
		cfg.Callers = t.Callers
		if s.envoys.extAuthzTLS, err = newExtAuthzTLS(t); err != nil {
			return err
		}
		cfg.TLS = s.envoys.extAuthzTLS.config()
	}
	if s.envoys.envoy, err = extauthz.New(cfg); err != nil {
		return fmt.Errorf("make ext_authz server: %w", err)
	}
	return nil
}

// record writes an audit record of something that is not an access.
func (j *journal) record(r *authz.Record) {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	if r.Plugin == "" {
		r.Plugin = string(j.plugin)
	}
	if r.UID == 0 && r.PID == 0 {
		r.UID = -1 // not of a process
	}
	if err := j.recorder.Record(r); err != nil {
		j.log.Error("audit record not written", zap.String("kind", string(r.Kind)), zap.Error(err))
	}
}

// selfAddrs are the addresses that are never dialled, whatever is granted: the
// sidecar's own listeners and its Vault.
type selfAddrs struct {
	listeners []netip.AddrPort
	vault     atomic.Pointer[[]netip.AddrPort]
	vaultHost string
	vaultPort uint16
}

func newSelfAddrs(spec *configs.Sidecar) *selfAddrs {
	f := &selfAddrs{}
	if spec.Vault == nil {
		return f
	}
	u, err := url.Parse(spec.Vault.Address)
	if err != nil {
		return f // refused when the file was loaded
	}
	f.vaultHost = u.Hostname()
	f.vaultPort = authz.Scheme(u.Scheme).DefaultPort()
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		f.vaultPort = uint16(n)
	}
	return f
}

// resolve looks up where Vault is. While that is not known, nothing is dialled
// on its port.
func (f *selfAddrs) resolve(ctx context.Context) {
	if f.vaultPort == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", f.vaultHost)
	if err != nil {
		return
	}
	found := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		found = append(found, netip.AddrPortFrom(a.Unmap(), f.vaultPort))
	}
	f.vault.Store(&found)
}

// dial reports whether an address is forbidden, or reaches one that is.
func (f *selfAddrs) dial(to netip.AddrPort) bool {
	return slices.ContainsFunc(authz.Reaches(to.Addr()), func(at netip.Addr) bool {
		return f.holds(netip.AddrPortFrom(at, to.Port()))
	})
}

func (f *selfAddrs) holds(to netip.AddrPort) bool {
	for _, l := range f.listeners {
		if l.Port() == to.Port() && (l.Addr() == to.Addr() || l.Addr().IsUnspecified() && isLocal(to.Addr())) {
			return true
		}
	}
	if f.vaultPort == 0 || f.vaultPort != to.Port() {
		return false
	}
	known := f.vault.Load()
	if known == nil {
		return true
	}
	// A Vault on this host may answer at each of its addresses.
	here := func(at netip.AddrPort) bool { return isLocal(at.Addr()) }
	return slices.Contains(*known, to) || isLocal(to.Addr()) && slices.ContainsFunc(*known, here)
}

// isLocal reports whether an address is one of this host's. One that cannot be
// found out about is taken for it.
func isLocal(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(own, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == addr
	})
}

// newToken returns a random token that proves the plugin while the kernel is off.
func newToken() authz.Secret { return authz.NewSecret(rand.Text()) }

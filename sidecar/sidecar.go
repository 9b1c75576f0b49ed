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
	"sync"
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
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/dns"
	"github.com/chaperone-proxy/chaperone/proxy/inbound"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
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
	External bool            // somebody else starts the plugin: serve
	Log      *zap.Logger     // the operator's log; nil discards it

	SetLevel      func(configs.LogLevel)    // sets the level of log
	ReportDropped func()                    // reports what log dropped, once a minute and at the end
	StderrDropped func() uint64             // messages that standard error lost, for metrics
	Refused       func(authz.Refusal)       // prints refusals
	Acted         func(what, remedy string) // prints what a limit did to the plugin; nil: it is logged
	Event         func(what, remedy string) // prints what went wrong with a connection; nil: it is logged
	Notice        func(text string)         // prints a text once to the user of the command
	RawMode       func(bool)                // reports that the terminal of run is in raw mode, or no longer is
}

// Sidecar is everything there is, in the order in which it is made. Parts that
// the configuration does not ask for are nil.
type Sidecar struct {
	cfg     Config
	name    authz.Principal
	started time.Time

	running   configs.Sidecar                    // as it was when the sidecar started
	config    atomic.Pointer[configs.Config]     // replaced by a reload
	reloading sync.Mutex                         // reloads take turns
	stopWatch atomic.Pointer[context.CancelFunc] // of the files that config names

	metrics      *metrics
	state        *state
	history      *statehistory.History
	lost         *statehistory.LostError // that the stateDir had, which was begun again; nil for none
	audit        *audit.Log
	recorder     authz.BatchRecorder
	engine       *authz.Engine
	ledger       *authz.Ledger
	broker       *vault.Broker
	tokens       *tokens.Source // over the broker
	readied      chan struct{}  // closed once the sidecar is ready
	loginFailed  chan error     // receives the failure of a login to Vault that stays until somebody acts
	placeholders *placeholders
	gate         *authz.Gate
	confinement  Confinement
	reaper       *reaper.Reaper
	kernel       kernelState
	inbound      *inbound.Forwarder
	trust        *trustBundle
	streams      chownedStreams
	resolver     *dns.Resolver
	budget       *budget.Budget // of what the plugin and its upstreams have held in memory
	proxy        *proxy.Proxy
	envoy        *extauthz.Server // that others configure
	extAuthzTLS  *extAuthzTLS     // of envoy; nil without TLS
	managed      *managedEnvoy    // the one that this sidecar configures
	admin        *admin.Server
	webs         []*web

	self        *selfAddrs
	endpoints   endpoints // where the plugin reaches the sidecar
	addresses   addresses
	saving      sync.Mutex                  // guards used
	used        authz.State                 // as it was last written down
	restored    bool                        // what earlier runs have used was read
	pid         atomic.Int64                // of the plugin; 0 before it is started
	limits      limits                      // that the kernel enforces
	host        hostWide                    // what is revoked on the whole host
	answers     map[string]revocationResult // of revocations by id, under cutting
	sockets     sockets                     // that the plugin may reach
	connects    connects                    // that the kernel lets pass
	probes      libraryProbes               // of the plugin's libraries
	mediation   mediation                   // of connections
	ruleNumbers ruleNumbers                 // of bytes to rules
	enforcing   sync.Mutex                  // so does bringing the kernel in line with the policy
	cutting     sync.Mutex                  // revocations take turns
	leasing     sync.Mutex                  // so do changes of what is leased
}

// addresses are where the doors are, once they are bound.
type addresses struct {
	proxy, extAuthz, admin, metrics string
}

// New makes the parts, inside out. Nothing runs and nothing listens yet.
func New(opts Config) (s *Sidecar, err error) {
	cfg := opts.Files
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
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
		cfg: opts, name: authz.Principal(cfg.Sidecar.Plugin), started: time.Now(),
		readied: make(chan struct{}), metrics: newMetrics(), loginFailed: make(chan error, 1), reaper: reaper.New(), engine: &authz.Engine{}, ledger: authz.NewLedger(),
	}
	s.confinement = &noConfinement{reaper: s.reaper}
	s.running = cfg.Sidecar
	s.config.Store(cfg)
	s.self = newSelfAddrs(&cfg.Sidecar)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	for _, make := range []func(*configs.Sidecar) error{
		s.openState, s.openAudit, s.startHistory, s.loadHostRevocations, s.makeBroker, s.makeTokens, s.makePlaceholders, s.makeGate, s.makeConfinement, s.makeInbound, s.makeProxy, s.makeEnvoy, s.makeManagedEnvoy, s.makeAdmin, s.makeWeb,
	} {
		if err := make(&cfg.Sidecar); err != nil {
			return s, err
		}
	}
	s.registerMetrics()
	return s, nil
}

// openState locks the stateDir and puts back what earlier runs left in it.
func (s *Sidecar) openState(spec *configs.Sidecar) (err error) {
	if err := s.checkPlaces(spec); err != nil {
		return err
	}
	if s.state, s.history, s.lost, err = openStateWithHistory(spec, s.config.Load().Path); err != nil {
		return err
	}
	if err := restoreLeftStreams(s.state); err != nil {
		s.cfg.Log.Warn("lent files not restored", zap.Error(err))
	}
	if err := s.state.revocationsInto(s.engine); err != nil {
		return err
	}
	return s.restoreUsed()
}

func (s *Sidecar) openAudit(spec *configs.Sidecar) (err error) {
	cfg := auditConfig(spec)
	cfg.FullPaths = s.fullPaths
	s.audit, err = audit.Open(cfg)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	s.recorder = counting{s.audit, s.metrics}
	if show := s.cfg.Refused; show != nil && spec.Audit.Paths == configs.AuditPathsMasked {
		s.cfg.Refused = func(r authz.Refusal) { show(maskRefusal(r, s.audit.MaskPath)) }
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

// fullPaths reports whether paths are recorded as they are: where the Sidecar says
// so and, unless it says otherwise, while it or a rule observes.
func (s *Sidecar) fullPaths() bool {
	switch s.running.Audit.Paths {
	case configs.AuditPathsFull:
		return true
	case configs.AuditPathsMasked:
		return false
	}
	return time.Now().Before(s.config.Load().ObservesUntil())
}

// makeBroker makes the leasing of credentials, when there is a Vault.
func (s *Sidecar) makeBroker(spec *configs.Sidecar) (err error) {
	if spec.Vault == nil {
		return nil
	}
	cfg := brokerConfig(spec.Plugin, spec.Vault, s.cfg.Log.Named("vault"))
	cfg.StateFile = s.state.path(leasesFile)
	cfg.Recorder = s.recorder
	cfg.Changed = func() { s.engine.Bump() }
	cfg.Renders = func(ref authz.CredentialRef, c authz.Credential) error { return s.engine.Current().Renders(ref, c) }
	cfg.Fetched = func(took time.Duration, _ error) { s.metrics.fetches.Observe(took.Seconds()) }
	s.broker, err = vault.New(cfg)
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
		Engine: s.engine, Ledger: s.ledger, Recorder: redactingRecorder{s.recorder, s.placeholders.current}, Now: time.Now,
		Crossed: func(c authz.Crossing) { s.limitExceeded(c) }, Persist: s.saveUsed,
	}
	if s.broker != nil {
		cfg.Credentials = s.tokens
	}
	s.gate, err = authz.NewGate(cfg)
	return err
}

// makeProxy makes the plugin's way out, when it has one here, and the end of the
// way of an Envoy that the sidecar configures.
func (s *Sidecar) makeProxy(spec *configs.Sidecar) (err error) {
	s.budget = budget.New(session.DefaultBudget)
	if spec.Listen.Proxy.IsZero() && spec.Envoy == nil {
		return nil
	}
	cfg := proxy.Config{
		Plugin: s.name, Gate: s.gate, Engine: s.engine, Token: s.cfg.Token, Budget: s.budget,
		DNSServers: spec.DNS.Servers, DNSHosts: spec.DNS.Hosts, Forbidden: s.self.dial,
		Refused: s.cfg.Refused, Drain: time.Duration(spec.Drain), Log: s.cfg.Log.Named("proxy"),
		Echo: func(r *authz.Record) { s.record(r) }, Handshake: s.failedHandshake, Placeholders: s.placeholders.current, CredentialRefused: s.credentialRefused,
	}
	if s.relays(spec) {
		cfg.Relay = spec.Envoy.Plugin()
	}
	if cfg.UpstreamProxy, cfg.NoProxy, err = upstreamProxy(spec); err != nil {
		return err
	}
	if s.confinement.Kernel() {
		cfg.Identify, cfg.Attribute = s.confinement.Identify, s.attribute
		s.resolver, err = dns.NewResolver(dns.Config{
			Plugin: s.name, Gate: s.gate, Engine: s.engine, NamesFile: s.state.path(namesFile), Refused: s.cfg.Refused, Identify: s.confinement.IdentifyQuery,
			Probe: s.probedName, Log: s.cfg.Log.Named("resolver"),
		})
		if err != nil {
			return fmt.Errorf("make resolver: %w", err)
		}
		cfg.Resolver = s.resolver
	}
	if s.trust, err = newTrustBundle(s.state, os.Environ(), spec.Process.Env); err != nil {
		return err
	}
	for _, w := range s.trust.warnings {
		s.cfg.Log.Warn("authorities ignored", zap.String("detail", w))
	}
	cfg.CAChanged = func(pem []byte) {
		if err := s.trust.write(pem); err != nil {
			s.cfg.Log.Error("the plugin's trust bundle is out of date", zap.Error(err))
		}
	}
	if s.proxy, err = proxy.New(cfg); err != nil {
		return fmt.Errorf("make proxy: %w", err)
	}
	return nil
}

// maintainTrust writes the plugin's certificates again when they are gone.
func (s *Sidecar) maintainTrust(ctx context.Context) {
	if s.trust == nil {
		return
	}
	failing := false
	tick(ctx, trustInterval, func() {
		mended, err := s.trust.repair()
		switch {
		case err != nil && !failing:
			s.cfg.Log.Error("trust bundle missing", zap.String("folder", s.trust.dir), zap.Error(err))
		case mended:
			s.cfg.Log.Warn("trust bundle written again", zap.String("folder", s.trust.dir))
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
		Plugin: s.name, Gate: s.gate, Ready: func() bool { return s.checkReady() == nil }, Forbidden: s.self.dial,
		Group: spec.Listen.ExtAuthzGroup, Drain: time.Duration(spec.Drain), Refused: s.cfg.Refused, PluginElsewhere: s.pluginElsewhere(),
		Log: s.cfg.Log.Named("ext_authz"), FindPlaceholder: placeholder.Finder(s.placeholders.current),
	}
	if len(spec.SPIFFEIDs) > 0 {
		cfg.SPIFFEIDs = map[string]authz.Principal{}
		for _, id := range spec.SPIFFEIDs {
			cfg.SPIFFEIDs[id] = s.name
		}
	}
	if t := spec.Listen.ExtAuthzTLS; t != nil {
		cfg.Callers = t.Callers
		if s.extAuthzTLS, err = newExtAuthzTLS(t); err != nil {
			return err
		}
		cfg.TLS = s.extAuthzTLS.config()
	}
	if s.envoy, err = extauthz.New(cfg); err != nil {
		return fmt.Errorf("make ext_authz server: %w", err)
	}
	return nil
}

// record writes an audit record of something that is not an access.
func (s *Sidecar) record(r *authz.Record) {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	if r.Plugin == "" {
		r.Plugin = string(s.name)
	}
	if r.UID == 0 && r.PID == 0 {
		r.UID = -1 // not of a process
	}
	if err := s.recorder.Record(r); err != nil {
		s.cfg.Log.Error("an audit record could not be written", zap.String("kind", string(r.Kind)), zap.Error(err))
	}
}

// selfAddrs knows what is never dialled, whatever is granted: the sidecar's
// own listeners and its Vault.
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

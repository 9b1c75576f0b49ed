package sidecar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// startPatience is how long run waits for Vault and the kernel before it gives up.
const startPatience = 15 * time.Second

// RunPlugin listens, serves, and starts a plugin, args, inside its confinement; it
// returns when both have ended. The status is the plugin's, as a shell has it. An
// error with status 0 is the sidecar's.
func (s *Sidecar) RunPlugin(ctx context.Context, args []string) (status int, err error) {
	terminals := openTerminals()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := s.Listen(ctx); err != nil {
		return 0, err
	}
	// Made while the rest starts. startPlugin makes it if this fails, and reports the error.
	var renewing sync.WaitGroup
	renewing.Go(func() { _ = s.renewAuthority() })
	defer renewing.Wait()
	for _, notice := range s.plugin.accessNotices(args) {
		s.cfg.Notice(notice)
	}
	if r, halted := s.policy.halted(); halted {
		return 0, fmt.Errorf("%s is halted: %s\n  chaperone restore %s --config %s --reason TEXT", s.name, r.Reason, r.ID, s.cfg.Files.Path)
	}
	// A signal is the plugin's to act on, and it may need the sidecar for that:
	// the sidecar ends when the plugin has.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- s.Run(serving) }()
	defer func() {
		stop()
		if serr := <-served; serr != nil && err == nil {
			s.cfg.Log.Error("sidecar failed", zap.Error(serr))
		}
	}()
	select {
	case <-s.readied:
	case serr := <-served:
		served <- nil
		return 0, fmt.Errorf("start sidecar: %w", errors.Join(serr, ctx.Err()))
	case sig := <-signals:
		return 128 + int(sig.(syscall.Signal)), fmt.Errorf("interrupted before the plugin ran: %v", sig) //nolint:forcetypeassert // of package syscall on every Unix
	case err := <-s.credentials.loginFailed: // to wait for it would only hide it
		return 0, fmt.Errorf("start sidecar: vault: not logged in: %w", err)
	case <-time.After(startPatience):
		return 0, fmt.Errorf("start sidecar: not ready after %s: %w", startPatience, s.checkReady())
	}
	if sig, err := s.awaitLimits(signals); err != nil || sig != 0 {
		return sig, err
	}
	// Signals that do not end the sidecar are relayed, also those that come while the
	// plugin is being started: it may run before startPlugin returns.
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGALRM, syscall.SIGWINCH, syscall.SIGTSTP)
	p, background, err := s.plugin.startPlugin(args)
	if err != nil {
		return startStatus(err), err
	}
	// A halt that came while it was being started found nothing to kill.
	if err := s.policy.enforceLevel(); err != nil {
		s.cfg.Log.Error("revocation not enforced", zap.Error(err))
	}
	notifyReady()
	if err := terminals.attach(p.Terminal(), background, s.cfg.RawMode); err != nil {
		s.cfg.Log.Error("terminal not relayed", zap.Error(err))
	}
	defer func() { err = errors.Join(err, terminals.detach()) }()
	w := &supervisor{s: s, p: p, terminals: terminals, signals: signals, served: served}
	return w.wait(serving)
}

// halted returns the revocation that keeps the plugin from starting.
func (c *PolicyControl) halted() (authz.Revocation, bool) {
	snapshot := c.engine.Current()
	if snapshot.RevokedLevel(c.cfg.Plugin, time.Now()) != authz.LevelHalt {
		return authz.Revocation{}, false
	}
	for _, r := range snapshot.Revocations() {
		if r.Level == authz.LevelHalt && r.Plugin == string(c.cfg.Plugin) {
			return r, true
		}
	}
	return authz.Revocation{}, false
}

// startPlugin starts CMD with the plugin's environment, and reports whether it is
// in the background of its terminal.
func (p *Plugin) startPlugin(args []string) (started process, background bool, err error) {
	spec := &p.cfg.Files().Sidecar
	if err := p.cfg.RenewAuthority(); err != nil {
		return nil, false, err
	}
	extra := p.placeholders.environment()
	maps.Copy(extra, spec.Process.Env)
	env := pluginEnvironment(p.verifiedEnvironment(p.accountEnvironment(os.Environ())), extra, p.cfg.ProxyAddress(), p.proxyToken(), p.trust)
	started, background, err = p.startIn(spec, args, env)
	result := "ok"
	if err != nil {
		result = "error"
	}
	p.cfg.Metrics.starts.WithLabelValues(result).Inc()
	if err == nil {
		p.pid.Store(int64(started.PID()))
	}
	p.cfg.Record(&authz.Record{Kind: authz.KindProcess, Allowed: err == nil, Exe: args[0], UID: p.cfg.Confinement().UID(), Detail: p.startDetail(err)})
	return started, background, err
}

// renewAuthority puts an authority that covers the granted hosts into the
// trust bundle before the plugin can read it: the proxy is made before a policy
// is installed.
func (s *Sidecar) renewAuthority() error {
	if s.egress.proxy == nil {
		return nil
	}
	return errors.Join(s.egress.proxy.RenewAuthority(), s.plugin.trust.flush())
}

// startIn starts CMD in whatever confines it.
func (p *Plugin) startIn(spec *configs.Sidecar, args, env []string) (started process, background bool, err error) {
	path, digest, err := p.verifyArtifact(args)
	if err != nil {
		return nil, false, err
	}
	command := sandbox.Command{Path: path, Digest: digest, Args: args, Env: env, Files: p.pluginFiles(spec), Kept: keptPaths(p.cfg.Files(), args)}
	if p.trust != nil {
		command.TrustBundle = p.trust.pemFile()
	}
	if err := streams(&command); err != nil {
		return nil, false, err
	}
	if p.cfg.Confinement().Kernel() {
		account, _ := p.cfg.Confinement().Account()
		if err := p.streams.chown(account, hiddenFiles(p.cfg.Files()), p.saveChowned, os.Stdin, os.Stdout, os.Stderr); err != nil {
			p.cfg.Log.Debug("standard stream stays closed to opening by name", zap.Error(err))
		}
	}
	return p.cfg.Confinement().Start(command)
}

// proxyToken returns the token a plugin proves itself with; none while the
// kernel does.
func (p *Plugin) proxyToken() authz.Secret {
	if p.cfg.Confinement().Kernel() {
		return authz.Secret{}
	}
	return p.cfg.Token
}

func (p *Plugin) startDetail(err error) string {
	words := []string{"started"}
	if err != nil {
		words = []string{"not started: " + err.Error()}
		if _, is := errors.AsType[*grantcheck.CommandError](err); is {
			words = []string{"not started: CMD is not the command of the grant"} // an argument may be a secret
		}
	}
	if by := p.cfg.Confinement().Description(); by != "" {
		words = append(words, by)
	}
	if p.cfg.Engine.Current().Observing(p.cfg.Name, time.Now()) {
		words = append(words, "observing: what is not granted passes, and its CA covers all names")
	}
	return strings.Join(words, "; ")
}

// startStatus returns the exit status of a CMD that could not be started, as
// a shell has it, and 0 when it is the sidecar's fault.
func startStatus(err error) int {
	if exec, ok := errors.AsType[*sandbox.ExecError](err); ok {
		return exec.Status
	}
	return 0
}

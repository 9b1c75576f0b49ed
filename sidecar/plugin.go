package sidecar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
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
	for _, notice := range s.accessNotices(args) {
		s.cfg.Notice(notice)
	}
	if r, halted := s.halted(); halted {
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
			s.cfg.Log.Error("the sidecar failed", zap.Error(serr))
		}
	}()
	select {
	case <-s.readied:
	case serr := <-served:
		served <- nil
		return 0, fmt.Errorf("start sidecar: %w", errors.Join(serr, ctx.Err()))
	case sig := <-signals:
		return 128 + int(sig.(syscall.Signal)), fmt.Errorf("interrupted before the plugin ran: %v", sig) //nolint:forcetypeassert // of package syscall on every Unix
	case err := <-s.loginFailed: // to wait for it would only hide it
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
	p, background, err := s.startPlugin(args)
	if err != nil {
		return startStatus(err), err
	}
	// A halt that came while it was being started found nothing to kill.
	if err := s.enforceLevel(); err != nil {
		s.cfg.Log.Error("a revocation is not enforced by the kernel", zap.Error(err))
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
func (s *Sidecar) halted() (authz.Revocation, bool) {
	snapshot := s.engine.Current()
	if snapshot.RevokedLevel(s.name, time.Now()) != authz.LevelHalt {
		return authz.Revocation{}, false
	}
	for _, r := range snapshot.Revocations() {
		if r.Level == authz.LevelHalt && r.Plugin == string(s.name) {
			return r, true
		}
	}
	return authz.Revocation{}, false
}

// startPlugin starts CMD with the plugin's environment, and reports whether it is
// in the background of its terminal.
func (s *Sidecar) startPlugin(args []string) (p process, background bool, err error) {
	spec := &s.config.Load().Sidecar
	if err := s.renewAuthority(); err != nil {
		return nil, false, err
	}
	extra := s.placeholders.environment()
	maps.Copy(extra, spec.Process.Env)
	env := pluginEnvironment(s.accountEnvironment(os.Environ()), extra, s.addresses.proxy, s.proxyToken(), s.trust)
	p, background, err = s.startIn(spec, args, env)
	result := "ok"
	if err != nil {
		result = "error"
	}
	s.metrics.starts.WithLabelValues(result).Inc()
	if err == nil {
		s.pid.Store(int64(p.PID()))
	}
	s.record(&authz.Record{Kind: authz.KindProcess, Allowed: err == nil, Exe: args[0], UID: s.confinement.UID(), Detail: s.startDetail(err)})
	return p, background, err
}

// renewAuthority puts an authority that covers the granted hosts into the
// trust bundle before the plugin can read it: the proxy is made before a policy
// is installed.
func (s *Sidecar) renewAuthority() error {
	if s.proxy == nil {
		return nil
	}
	return s.proxy.RenewAuthority()
}

// startIn starts CMD in whatever confines it.
func (s *Sidecar) startIn(spec *configs.Sidecar, args, env []string) (p process, background bool, err error) {
	command := sandbox.Command{Args: args, Env: env, Files: s.pluginFiles(spec), Kept: keptPaths(s.config.Load(), args)}
	if s.trust != nil {
		command.TrustBundle = s.trust.pemFile()
	}
	if err := streams(&command); err != nil {
		return nil, false, err
	}
	if s.confinement.Kernel() {
		account, _ := s.confinement.Account()
		if err := s.streams.chown(account, hiddenFiles(s.config.Load()), s.saveChowned, os.Stdin, os.Stdout, os.Stderr); err != nil {
			s.cfg.Log.Debug("standard stream stays closed to opening by name", zap.Error(err))
		}
	}
	return s.confinement.Start(command)
}

// proxyToken returns the token a plugin proves itself with; none while the
// kernel does.
func (s *Sidecar) proxyToken() authz.Secret {
	if s.confinement.Kernel() {
		return authz.Secret{}
	}
	return s.cfg.Token
}

func (s *Sidecar) startDetail(err error) string {
	words := []string{"started"}
	if err != nil {
		words = []string{"not started: " + err.Error()}
	}
	if by := s.confinement.Description(); by != "" {
		words = append(words, by)
	}
	if s.engine.Current().Observing(s.name, time.Now()) {
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

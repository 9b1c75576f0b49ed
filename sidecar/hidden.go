package sidecar

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// makeFence confines what run starts without the kernel half as far as an
// ordinary user can. Where not even that is to be had, the plugin is a process
// that its environment leads to the proxy. What either cannot do is never kept
// quiet: s.kernel.lacks is printed at the start and shown by status.
func (s *Sidecar) makeFence(spec *configs.Sidecar) error {
	if spec.Process.Network == configs.NetworkHost {
		s.kernel.limitations = unconfinedLimitations(errors.New("process.network is host"))
		return nil
	}
	fence, err := sandbox.NewFence(sandbox.FenceConfig{
		Plugin: spec.Plugin, StateDir: AbsPath(spec.StateDir), Proxy: []string{spec.Listen.Proxy.Addr}, User: string(spec.Process.User),
		Serve: spec.Process.Ports(), Private: hiddenFiles(s.config.Load()), Denied: s.denied, Reaper: s.reaper, Logger: s.opts.Log.Named("fence"),
	})
	switch {
	case err == nil:
		s.fence = fence
		s.kernel.limitations = fence.Limits()
		if w := canEditOwnGrant(s.config.Load(), os.Getuid(), os.Getgid()); w != "" {
			s.kernel.limitations = append(s.kernel.limitations, w+" (they are hidden by name: who may rename or replace them, or the folders above, undoes that)")
		}
		return nil
	case errors.Is(err, sandbox.ErrNoFence), errors.Is(err, sandbox.ErrUnsupported):
		s.kernel.limitations = unconfinedLimitations(err)
		return nil
	}
	return unknownUser(spec, fmt.Errorf("fence the plugin in: %w", err))
}

// unknownUser says which field names a user that the host does not have.
func unknownUser(spec *configs.Sidecar, err error) error {
	var name user.UnknownUserError
	var id user.UnknownUserIdError
	if errors.As(err, &name) || errors.As(err, &id) {
		return fmt.Errorf("spec.process.user: %q is not a user of this host; create it, write a uid, or leave user out for one of the plugin's own", spec.Process.User)
	}
	return err
}

// unconfinedLimitations says what a plugin that nothing confines is not kept from.
func unconfinedLimitations(why error) []string {
	return []string{
		fmt.Sprintf("nothing confines the plugin (%v): its environment leads it to the proxy, and nothing holds it there", why),
		"nothing is metered: limits on connections, bytes, system calls and processes cannot be kept",
		"a caller is known by the proxy token, which every process of the plugin's user can read",
	}
}

// hiddenFiles are the files that a plugin behind the fence, which may run as the
// sidecar's own user, is not to see: what is the sidecar's alone, and what says
// what it is granted. A folder of grants is hidden whole, so that none is added
// to it, unless the plugin is started in it or the Sidecar's file lies there.
func hiddenFiles(cfg *configs.Config) []string {
	cfg = absolute(cfg)
	out := append(privateFiles(&cfg.Sidecar), cfg.Sidecar.StateDir)
	here, err := os.Getwd()
	if err != nil {
		here = "/"
	}
	for _, path := range slices.Concat(cfg.Sidecar.Grants, cfg.Sidecar.Guardrails) {
		info, err := os.Stat(path)
		if err == nil && info.IsDir() && !within(path, here) && !within(path, cfg.Path) {
			out = append(out, path)
		}
	}
	for _, f := range cfg.Files {
		if !slices.ContainsFunc(out, func(root string) bool { return within(root, f.Path) }) {
			out = append(out, f.Path)
		}
	}
	return out
}

// absolute returns a configuration with the names of its files as they are from
// anywhere.
func absolute(cfg *configs.Config) *configs.Config {
	out := *cfg
	out.Path, out.Sidecar.StateDir = AbsPath(cfg.Path), AbsPath(cfg.Sidecar.StateDir)
	out.Files = slices.Clone(cfg.Files)
	for i := range out.Files {
		out.Files[i].Path = AbsPath(out.Files[i].Path)
	}
	out.Sidecar.Grants, out.Sidecar.Guardrails = slices.Clone(cfg.Sidecar.Grants), slices.Clone(cfg.Sidecar.Guardrails)
	for _, paths := range [][]string{out.Sidecar.Grants, out.Sidecar.Guardrails} {
		for i := range paths {
			paths[i] = AbsPath(paths[i])
		}
	}
	return &out
}

// within reports whether a path is a folder or lies in it.
func within(folder, path string) bool {
	inside, err := filepath.Rel(folder, path)
	return err == nil && inside != ".." && !strings.HasPrefix(inside, "../")
}

// killPlugin ends the plugin, however it is confined.
func (s *Sidecar) killPlugin() error {
	switch {
	case s.cage != nil:
		return s.cage.Kill()
	case s.fence != nil:
		return s.fence.Kill()
	}
	p := s.process.Load()
	if p == nil {
		return nil
	}
	if err := p.Signal(os.Kill); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill the plugin: %w", err)
	}
	return nil
}

// confinedBy says for the record of a start what holds the plugin.
func (s *Sidecar) confinedBy() string {
	switch {
	case s.cage != nil && s.cage.Info().SameUser:
		return "unsafeSameUser: it can end its own confinement"
	case s.cage != nil:
		return ""
	case s.fence != nil:
		return "not metered, and confined without the kernel half"
	}
	return "not confined by the kernel"
}

// recordPreferred records that the kernel half was preferred and is not to be had.
func (s *Sidecar) recordPreferred(err error) {
	s.kernel.missing = err.Error()
	s.opts.Log.Warn("the kernel half is preferred and not to be had", zap.Error(err))
	s.record(&authz.Record{Kind: authz.KindProcess, Detail: "kernel: preferred, and not to be had: " + phrase.FirstLine(err.Error())})
}

// Limitations returns what the plugin is not kept from without the kernel half.
func (s *Sidecar) Limitations() []string {
	var out []string
	for _, lack := range s.kernel.limitations {
		out = append(out, fmt.Sprintf("kernel %s: %s", s.kernel.setting, lack))
	}
	return out
}

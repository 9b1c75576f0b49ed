package sidecar

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// kernelState describes the kernel half for status.
type kernelState struct {
	setting     configs.Kernel
	missing     string   // why it is not there although it is preferred
	limitations []string // the abilities of an unconfined plugin

	preloaded *ebpf.Preloaded // programs that the kernel verifies while the parts are made; nil: none
}

// preloadPrograms has the kernel verify the programs while the other parts are made.
func (s *Sidecar) preloadPrograms(spec *configs.Sidecar) error {
	if s.cfg.Confine && spec.Kernel != configs.KernelOff {
		s.kernel.preloaded = ebpf.Preload(ebpf.Config{
			StateDir: spec.StateDir, CgroupPath: s.cfg.Cgroup, View: spec.Process.View == configs.ViewOwn, CountSyscalls: countsObserved(s.cfg.Files),
		})
	}
	return nil
}

// makeConfinement makes the plugin's confinement. If the kernel half is required and
// not available, that is an error; if it is preferred, status, the log and the audit
// report it.
func (s *Sidecar) makeConfinement(spec *configs.Sidecar) error {
	s.kernel.setting = spec.Kernel
	switch {
	case !s.cfg.Confine:
		return nil
	case spec.Kernel == configs.KernelOff:
		return s.makeRootless(spec)
	}
	kernel, err := s.newKernelConfinement(spec)
	if err == nil {
		s.confinement = kernel
		if w := s.grantWarning(); w != "" {
			s.cfg.Log.Warn(w)
		}
		return nil
	}
	if spec.Kernel == configs.KernelRequired {
		return s.unconfinable(err)
	}
	s.recordPreferred(err)
	if s.cfg.Cgroup != "" {
		return nil // its processes are where they are
	}
	return s.makeRootless(spec)
}

func (s *Sidecar) newKernelConfinement(spec *configs.Sidecar) (kernelConfinement, error) {
	cage, err := s.kernel.preloaded.New(ebpf.Config{
		Plugin: spec.Plugin, StateDir: spec.StateDir, CgroupPath: s.cfg.Cgroup,
		HostNetwork: spec.Process.Network == configs.NetworkHost || s.cfg.Cgroup != "",
		View:        spec.Process.View == configs.ViewOwn,
		User:        string(spec.Process.User), UnsafeSameUser: spec.Process.UnsafeSameUser,
		Serve: spec.Process.Ports(), Private: privateFiles(spec), Denied: s.telemetry.denied, LimitChanged: s.telemetry.limitExceededInKernel, Sample: s.telemetry.sampled,
		CountSyscalls: countsObserved(s.cfg.Files),
		EndLeft:       s.endedLeft, Direct: s.connectedDirectly,
		Listen: ebpf.ListenHandlers{Unix: s.servingUnix(spec), TCP: func(port uint16) {
			if s.inbound != nil {
				s.inbound.Serving(port)
			}
		}},
		Reaper: s.reaper, Logger: s.cfg.Log.Named("kernel"),
	})
	return kernelConfinement{cage}, err
}

// countsObserved reports whether system calls are counted although no limit is in force: a
// sidecar that observes enforces none, and countSyscalls: exact asks for the figure.
func countsObserved(files *configs.Config) bool {
	return files.Sidecar.Mode == authz.ModeObserve && slices.ContainsFunc(files.Grants, func(g authz.Grant) bool {
		return g.Limits.CountSyscalls == authz.CountExact
	})
}

// makeRootless confines what run starts without the kernel half as far as an ordinary
// user can. Where that is not possible, the plugin is a process that its environment
// points to the proxy. The limitations of either are printed at the start and reported
// by status.
func (s *Sidecar) makeRootless(spec *configs.Sidecar) error {
	if spec.Process.Network == configs.NetworkHost {
		s.kernel.limitations = unconfinedLimitations(errors.New("process.network is host"))
		return nil
	}
	rootless, err := sandbox.NewRootless(sandbox.RootlessConfig{
		Plugin: spec.Plugin, StateDir: AbsPath(spec.StateDir), Proxy: []string{spec.Listen.Proxy.Addr}, User: string(spec.Process.User),
		Serve: spec.Process.Ports(), Private: hiddenFiles(s.policy.config.Load()), Denied: s.telemetry.denied, Reaper: s.reaper, Logger: s.cfg.Log.Named("sandbox"),
	})
	switch {
	case err == nil:
		s.confinement = rootlessConfinement{Rootless: rootless}
		s.kernel.limitations = rootless.Limits()
		if w := canEditOwnGrant(s.policy.config.Load(), os.Getuid(), os.Getgid()); w != "" {
			s.kernel.limitations = append(s.kernel.limitations, w+" (they are hidden by name: who may rename or replace them, or the folders above, undoes that)")
		}
		return nil
	case errors.Is(err, sandbox.ErrNoUserNamespace), errors.Is(err, sandbox.ErrUnsupported):
		s.kernel.limitations = unconfinedLimitations(err)
		return nil
	}
	return unknownUser(spec, fmt.Errorf("make rootless sandbox: %w", err))
}

// unknownUser returns which field names a user that the host does not have.
func unknownUser(spec *configs.Sidecar, err error) error {
	var name user.UnknownUserError
	var id user.UnknownUserIdError
	if errors.As(err, &name) || errors.As(err, &id) {
		return fmt.Errorf("spec.process.user: %q is not a user of this host; create it, write a uid, or leave user out for one of the plugin's own", spec.Process.User)
	}
	return err
}

// unconfinedLimitations lists what an unconfined plugin can still do.
func unconfinedLimitations(why error) []string {
	return []string{
		fmt.Sprintf("the plugin is not confined (%v): its environment points it to the proxy, and it can bypass that", why),
		"usage is not metered: limits on connections, bytes, system calls and processes are not enforced",
		"a caller is known by the proxy token, which every process of the plugin's user can read",
	}
}

// recordPreferred records that the kernel half was preferred and is not available.
func (s *Sidecar) recordPreferred(err error) {
	s.kernel.missing = err.Error()
	s.cfg.Log.Warn("kernel half unavailable", zap.Error(err))
	s.journal.record(&authz.Record{Kind: authz.KindProcess, Detail: "kernel: preferred, and not available: " + phrase.FirstLine(err.Error())})
}

// Limitations returns what the plugin is not kept from without the kernel half.
func (s *Sidecar) Limitations() []string {
	var out []string
	for _, lack := range s.kernel.limitations {
		out = append(out, fmt.Sprintf("kernel %s: %s", s.kernel.setting, lack))
	}
	return out
}

package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/rlimit"
	"go.uber.org/zap"
)

// Preloaded are the programs of one confinement, which the kernel verifies while its
// owner does other things. They are neither attached nor pinned.
type Preloaded struct {
	own    bool
	view   bool
	loaded chan struct{} // closed when the rest is set

	programs *collection // nil once they are taken
	err      error

	cache   *programCache // that the programs go to when their confinement has ended; nil: none
	refused error         // why programs in the cache were not used
}

// Preload begins to load the programs for the confinement that [New] is to make of a
// config, and returns at once. It takes them out of the cache where an earlier sidecar of
// this host has left them. Only StateDir, CgroupPath and View of the config matter. An error is
// reported by [Preloaded.New], which has to be called, or else [Preloaded.Close].
func Preload(config Config) *Preloaded {
	p := &Preloaded{own: config.CgroupPath == "", view: config.View && config.CgroupPath == "", loaded: make(chan struct{})}
	go func() {
		defer close(p.loaded)
		// Kernels before 5.11 charge maps to a limit instead of the cgroup.
		if p.err = rlimit.RemoveMemlock(); p.err != nil {
			p.err = fmt.Errorf("lift memory limit: %w", p.err)
			return
		}
		if p.programs = p.takeCached(config.StateDir); p.programs == nil {
			p.programs, p.err = p.load()
		}
		if p.cache != nil && p.err == nil {
			p.cache.shared = sorted(p.programs.pinnedMaps)
		}
	}()
	return p
}

func (p *Preloaded) load() (*collection, error) {
	w := newCollection()
	w.viewInit = p.view
	if err := w.loadPrograms("", p.own); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// takeCached takes programs out of the cache; nil: they have to be loaded. Programs on a
// cgroup that was given outlast their sidecar there, and are not cached.
func (p *Preloaded) takeCached(stateDir string) *collection {
	if !p.own || stateDir == "" {
		return nil
	}
	var w *collection
	if p.cache, p.refused = openProgramCache(stateDir, p.own, p.view); p.refused != nil {
		p.cache = nil
		return nil
	}
	w, p.refused = p.cache.take(p.view)
	return w
}

// New is [New] with the programs that were preloaded, if the config asks for such programs.
func (p *Preloaded) New(config Config) (*Confinement, error) {
	c, err := newConfinement(config, p)
	return c, errors.Join(err, p.Close())
}

// Close waits until the programs are loaded and removes them, unless a confinement has
// them. A nil Preloaded has none.
func (p *Preloaded) Close() error {
	if p == nil {
		return nil
	}
	<-p.loaded
	w := p.programs
	if p.programs = nil; w == nil {
		return nil
	}
	return w.close()
}

// take returns the programs, if they were loaded for such a confinement.
func (p *Preloaded) take(own, view bool) (*collection, error) {
	<-p.loaded
	if p.err != nil || p.own != own || p.view != view {
		return nil, errors.Join(p.err, p.Close())
	}
	w := p.programs
	p.programs = nil
	return w, nil
}

// loadPrograms returns the programs of the confinement: those that were preloaded, if no
// earlier sidecar left maps that they have to go on with.
func (c *Confinement) loadPrograms(preloaded *Preloaded) (*collection, error) {
	left, err := pinned(c.pinDir)
	if err != nil {
		return nil, err
	}
	if preloaded == nil || len(left) > 0 {
		return loadCollection(c.pinDir, c.group, c.group.Own, c.hasView(), c.config.CountSyscalls)
	}
	w, err := preloaded.take(c.group.Own, c.hasView())
	if err != nil {
		return nil, err
	}
	c.cache = preloaded.cache
	if preloaded.refused != nil {
		c.config.Logger.Warn("programs not taken from the cache", zap.Error(preloaded.refused))
	}
	if w == nil {
		return loadCollection(c.pinDir, c.group, c.group.Own, c.hasView(), c.config.CountSyscalls)
	}
	if err := w.setCgroup(c.pinDir, c.group, c.group.Own, c.config.CountSyscalls); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

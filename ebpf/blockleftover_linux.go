package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// BlockLeftover blocks the plugin of what a sidecar has pinned for a state directory,
// whether the sidecar runs, hangs or is gone: the pinned programs then refuse every
// connect and drop every packet with payload that the plugin sends. A sidecar that
// goes on unblocks the plugin only when nothing is revoked any more. If kill is set, the
// processes of the cgroup that the sidecar made are killed too. If nothing is pinned,
// [Leftover.Blocked] is not set and there is no error. It needs CAP_BPF and, for the
// cgroups, CAP_DAC_READ_SEARCH.
func BlockLeftover(stateDir string, kill bool) (Leftover, error) {
	fail := func(err error) (Leftover, error) { return Leftover{}, fmt.Errorf("block the plugin: %w", err) }
	p, err := sandbox.FindPaths(stateDir)
	if err != nil {
		return fail(err)
	}
	pins, err := existingPins(p)
	if err != nil {
		return fail(err)
	}
	door, err := ebpf.LoadPinnedMap(filepath.Join(pins, "door"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return Leftover{}, nil
	}
	if err != nil {
		return fail(err)
	}
	ledger := limitTable{control: door}
	err = ledger.updateControl(func(d *hooksControl) { d.Open = 0 })
	if err = errors.Join(err, door.Close()); err != nil {
		return fail(err)
	}
	left := Leftover{Blocked: true}
	h, err := p.FindCgroupMount()
	if err != nil {
		return left, fmt.Errorf("find the cgroup: %w", err)
	}
	if left.Cgroups, err = linkedCgroups(h, pins); err != nil {
		return left, fmt.Errorf("find the cgroup: %w", err)
	}
	for _, path := range left.Cgroups {
		ours := filepath.Base(path) == cgroupPrefix+p.ID
		populated, err := killIn(path, kill && ours)
		if err != nil {
			return left, fmt.Errorf("kill the plugin: %w", err)
		}
		left.Populated = left.Populated || populated
		left.Killed = left.Killed || kill && ours
	}
	return left, nil
}

// killIn reports whether processes are in a cgroup, and kills them if it is to.
func killIn(path string, kill bool) (populated bool, err error) {
	g, err := sandbox.OpenCgroup(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	populated, err = g.Populated()
	if err != nil || !populated || !kill {
		return populated, err
	}
	if err := g.Kill(); err != nil {
		return true, err
	}
	return false, nil
}

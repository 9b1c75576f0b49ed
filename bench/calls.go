package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// callRows are the rows of callsScene.
type callRows struct {
	nothing, without, elsewhere        series // outside
	inside, inside2, metered, metered2 series // in the cage, on one CPU and on two
}

// callsScene measures what a system call costs: a process that is nobody's
// plugin, and a plugin with a limit on its calls and without.
func callsScene(ctx context.Context, w *world) (*table, error) {
	outsider, err := outside()
	if err != nil {
		return nil, err
	}
	var rows callRows
	for range kernelRounds {
		if err = rows.round(ctx, w, outsider); err != nil {
			break
		}
	}
	if err = errors.Join(err, outsider.Close()); err != nil {
		return nil, err
	}
	t := &table{
		title: fmt.Sprintf("A system call (getppid), CPU time of its thread, %d rounds in turn", kernelRounds),
		heads: []string{"process", "fastest", "median", "added to", "added", "goal"},
	}
	add := func(name string, s series, to string, base series, goal string, most int64) {
		cells := []string{name, ns(s.fastest()), ns(s.median()), to, "", ""}
		if base != nil {
			cells[4] = ns(s.added(base))
		}
		if goal != "" {
			cells[5] = goal + ": " + verdict(s.added(base) <= most)
		}
		t.add(cells...)
	}
	add("outside, nothing attached", rows.nothing, "", nil, "", 0)
	add("outside, a sidecar runs, no limit on calls", rows.without, "nothing", rows.nothing, "nothing (below 2 ns, the noise)", 2000)
	add("outside, a plugin elsewhere has a limit", rows.elsewhere, "nothing", rows.nothing, "at most 20 ns", 20_000)
	add("the plugin, no limit (its seccomp filter)", rows.inside, "nothing", rows.nothing, "", 0)
	add("the plugin, limit, one CPU", rows.metered, "no limit", rows.inside, "at most 35 ns", 35_000)
	add("the plugin, no limit, two CPUs at once", rows.inside2, "nothing", rows.nothing, "", 0)
	add("the plugin, limit, two CPUs at once", rows.metered2, "no limit, two CPUs", rows.inside2, "at most 35 ns", 35_000)
	return t, nil
}

func (rows *callRows) round(ctx context.Context, w *world, outsider *worker) (err error) {
	undisturbed(outsider.tids[0], 0)
	if err := calls(&rows.nothing, outsider, 1); err != nil {
		return err
	}
	r, err := w.newRig()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.attach(ctx); err != nil {
		return err
	}
	plugin, err := inside(r.cage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plugin.Close()) }()
	for cpu, tid := range plugin.tids {
		undisturbed(tid, cpu)
	}
	if err := errors.Join(calls(&rows.without, outsider, 1), calls(&rows.inside, plugin, 1), calls(&rows.inside2, plugin, 2)); err != nil {
		return err
	}
	// High enough that it is never reached: what is measured is the counting.
	if err := r.cage.Limit([]ebpf.Limit{{Name: "bench", Kind: ebpf.LimitSyscalls, Count: 1e9, Period: time.Second}}); err != nil {
		return err
	}
	return errors.Join(calls(&rows.elsewhere, outsider, 1), calls(&rows.metered, plugin, 1), calls(&rows.metered2, plugin, 2))
}

// calls adds a round of eight batches to a row.
func calls(s *series, w *worker, threads int) error {
	var round []int64
	for range 8 {
		took, err := w.numbers("calls", threads, 20_000)
		if err != nil {
			return err
		}
		round = append(round, took...)
	}
	*s = append(*s, round)
	return nil
}

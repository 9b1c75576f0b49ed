package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// callRows are the rows of callsScene.
type callRows struct {
	before, after                      series // outside, nothing attached
	without, elsewhere                 series // outside, a sidecar runs
	inside, inside2, metered, metered2 series // the plugin, on one CPU and on two
}

// callsScene measures what a system call costs: a process that is nobody's
// plugin, and a plugin with a limit on its calls and without.
func callsScene(ctx context.Context, w *env) (*table, error) {
	outsider, err := outside()
	if err != nil {
		return nil, err
	}
	undisturbed(outsider.tids[0], 0)
	var rows callRows
	for range kernelRounds {
		err = errors.Join(calls(&rows.before, outsider, 1), rows.attached(ctx, w, outsider), calls(&rows.after, outsider, 1))
		if err != nil {
			break
		}
	}
	if err = errors.Join(err, outsider.Close()); err != nil {
		return nil, err
	}
	t := &table{
		title: fmt.Sprintf("A system call (getppid), CPU time of its thread, %d rounds in turn", kernelRounds),
		heads: []string{"process", "fastest", "median", "beside", "added to the fastest", "to the median", "goal"},
	}
	add := func(name string, s series, to string, base series, goal string, reached bool) {
		if goal != "" {
			goal += ": " + verdict(reached)
		}
		t.add(name, ns(s.fastest()), ns(s.median()), to, ns(s.fastest()-base.fastest()), ns(s.median()-base.median()), goal)
	}
	below := func(s, base series, most int64) bool { return s.fastest()-base.fastest() <= most }
	nothing := slices.Concat(rows.before, rows.after)
	add("outside, nothing attached; once more: the noise", rows.after, "itself", rows.before, "", true)
	add("outside, a sidecar without a limit on calls", rows.without, "nothing", nothing, "at most 2 ns (noise)", below(rows.without, nothing, 2000))
	add("outside, a plugin elsewhere has such a limit", rows.elsewhere, "nothing", nothing, "at most 20 ns", below(rows.elsewhere, nothing, 20_000))
	add("the plugin, no limit: its seccomp filter", rows.inside, "nothing", nothing, "", true)
	add("the plugin, limit, on one CPU", rows.metered, "no limit", rows.inside, "at most 35 ns", below(rows.metered, rows.inside, 35_000))
	// By the median: in the fastest batch the other CPU may have been late.
	add("the plugin, limit, on two CPUs at once", rows.metered2, "no limit, on two", rows.inside2, "at most 35 ns",
		rows.metered2.median()-rows.inside2.median() <= 35_000)
	return t, nil
}

// attached measures while a sidecar runs.
func (rows *callRows) attached(ctx context.Context, w *env, outsider *worker) (err error) {
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
	// High enough that it is never reached, to measure the counting.
	if err := r.cage.Limit([]ebpf.Limit{{Name: "bench", Kind: ebpf.LimitSyscalls, Count: 1e9, Period: time.Second}}); err != nil {
		return err
	}
	return errors.Join(calls(&rows.elsewhere, outsider, 1), calls(&rows.metered, plugin, 1), calls(&rows.metered2, plugin, 2))
}

// calls adds a round to a row.
func calls(s *series, w *worker, threads int) error {
	for range kernelBatches {
		took, err := w.numbers("calls", threads, 10_000)
		if err != nil {
			return err
		}
		*s = append(*s, took...)
	}
	return nil
}

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
	empty                              series // outside, a program that does nothing is attached
	allowed                            series // outside, under a filter that allows everything
	without, far, elsewhere            series // outside, a sidecar runs
	inside, inside2, metered, metered2 series // the plugin, on one CPU and on two
	uncounted                          series // the plugin, far from its limit
	floor, floor2                      series // the plugin, no limit, a program that does nothing is attached
}

// callsScene measures what a system call costs: a process that is nobody's
// plugin, and a plugin with a limit on its calls and without.
func callsScene(ctx context.Context, w *env) (*table, error) {
	outsider, err := outside()
	if err != nil {
		return nil, err
	}
	undisturbed(outsider.tids[0], 0)
	filtered, err := outside()
	if err != nil {
		return nil, errors.Join(err, outsider.Close())
	}
	undisturbed(filtered.tids[0], 0)
	_, err = filtered.order("filter", 1)
	var rows callRows
	for round := 0; round < kernelRounds && err == nil; round++ {
		err = errors.Join(calls(&rows.before, outsider, 1), calls(&rows.allowed, filtered, 1), rows.attached(ctx, w, outsider), calls(&rows.after, outsider, 1))
	}
	if err = errors.Join(err, filtered.Close(), outsider.Close()); err != nil {
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
	add("outside, an empty program: the floor of what is counted", rows.empty, "nothing", nothing, "", true)
	add("outside, a sidecar without a limit on calls", rows.without, "nothing", nothing, "at most 2 ns (noise)", below(rows.without, nothing, 2000))
	add("outside, a plugin elsewhere is far from its limit", rows.far, "nothing", nothing, "at most 2 ns (noise)", below(rows.far, nothing, 2000))
	add("outside, calls of a plugin elsewhere are counted", rows.elsewhere, "an empty program", rows.empty, "at most 10 ns", below(rows.elsewhere, rows.empty, 10_000))
	add("outside, a seccomp filter that allows everything: the floor of the next", rows.allowed, "nothing", nothing, "", true)
	add("the plugin, no limit: its seccomp filter", rows.inside, "nothing", nothing, "at most 25 ns", below(rows.inside, nothing, 25_000))
	add("the plugin, far from its limit", rows.uncounted, "no limit", rows.inside, "at most 2 ns (noise)", below(rows.uncounted, rows.inside, 2000))
	add("the plugin, an empty program: the floor, on one CPU", rows.floor, "no limit", rows.inside, "", true)
	add("the plugin, counted, on one CPU", rows.metered, "an empty program", rows.floor, "at most 15 ns", below(rows.metered, rows.floor, 15_000))
	// By the median: in the fastest batch the other CPU may have been late.
	add("the plugin, counted, on two CPUs at once", rows.metered2, "an empty program, on two", rows.floor2, "at most 15 ns",
		rows.metered2.median()-rows.floor2.median() <= 15_000)
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
	if err := rows.withEmpty(outsider, plugin); err != nil {
		return err
	}
	// High enough that it is never near.
	limit := ebpf.Limit{Name: "bench", Kind: ebpf.LimitSyscalls, Count: 1e12, Period: time.Second}
	if err := r.cage.Limit([]ebpf.Limit{limit}); err != nil {
		return err
	}
	if err := awaitUncounted(ctx, r.cage); err != nil {
		return err
	}
	if err := errors.Join(calls(&rows.far, outsider, 1), calls(&rows.uncounted, plugin, 1)); err != nil {
		return err
	}
	limit.Exact = true
	if err := r.cage.Limit([]ebpf.Limit{limit}); err != nil {
		return err
	}
	return errors.Join(calls(&rows.elsewhere, outsider, 1), calls(&rows.metered, plugin, 1), calls(&rows.metered2, plugin, 2))
}

// awaitUncounted waits until no system call is counted any more.
func awaitUncounted(ctx context.Context, cage *ebpf.Confinement) error {
	for deadline := time.Now().Add(10 * time.Second); cage.Info().Syscalls; time.Sleep(time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("system calls are counted although no limit is near")
		}
	}
	return nil
}

// withEmpty measures while a program that does nothing is attached in place of the
// counter.
func (rows *callRows) withEmpty(outsider, plugin *worker) error {
	empty, err := ebpf.AttachEmptyTrace()
	if err != nil {
		return err
	}
	err = errors.Join(calls(&rows.empty, outsider, 1), calls(&rows.floor, plugin, 1), calls(&rows.floor2, plugin, 2))
	return errors.Join(err, empty.Close())
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

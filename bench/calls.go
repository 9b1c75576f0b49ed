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
	without, idle, paced, busy         series // outside, a sidecar runs
	inside, inside2, metered, metered2 series // the plugin, on one CPU and on two
	uncounted                          series // the plugin, far from its limit
	floor, floor2                      series // the plugin, no limit, a program that does nothing is attached

	switches, emptySwitches, watchedSwitches series // outside: nothing attached, a program that does nothing, the watch
}

// callsScene measures what a system call costs: a process that is nobody's
// plugin, and a plugin with a limit on its calls and without.
func callsScene(ctx context.Context, w *env) (*table, error) {
	outsider, err := outside()
	if err != nil {
		return nil, err
	}
	for _, tid := range outsider.tids {
		undisturbed(tid, 0)
	}
	filtered, err := outside()
	if err != nil {
		return nil, errors.Join(err, outsider.Close())
	}
	undisturbed(filtered.tids[0], 0)
	_, err = filtered.order("filter", 1)
	var rows callRows
	for round := 0; round < kernelRounds && err == nil; round++ {
		err = errors.Join(calls(&rows.before, outsider, 1), calls(&rows.allowed, filtered, 1), switches(&rows.switches, outsider),
			rows.attached(ctx, w, outsider), calls(&rows.after, outsider, 1))
	}
	if err = errors.Join(err, filtered.Close(), outsider.Close()); err != nil {
		return nil, err
	}
	t := &table{
		title: fmt.Sprintf("A system call (getppid), CPU time of its thread, and a switch of threads, %d rounds in turn", kernelRounds),
		heads: []string{"process", "fastest", "median", "beside", "added to the fastest", "to the median", "goal"},
	}
	add := func(name string, s series, to string, base series, goal string, reached bool) {
		if goal != "" {
			goal += ": " + verdict(reached)
		}
		t.add(name, ns(s.fastest()), ns(s.median()), to, ns(s.fastest()-base.fastest()), ns(s.median()-base.median()), goal)
	}
	below := func(s, base series, most int64) bool { return s.fastest()-base.fastest() <= most }
	same := func(s, base series) bool { return s.median()-base.median() <= 2000 } // a single batch varies by more than that
	nothing := slices.Concat(rows.before, rows.after)
	add("outside, nothing attached; once more: the noise", rows.after, "itself", rows.before, "", true)
	add("outside, an empty program: the floor of what is counted", rows.empty, "nothing", nothing, "", true)
	add("outside, a sidecar without a limit on calls", rows.without, "nothing", nothing, "at most 2 ns (noise), by the median", same(rows.without, nothing))
	add("outside, an idle plugin elsewhere may call 200000/1s", rows.idle, "nothing", nothing, "at most 2 ns (noise), by the median", same(rows.idle, nothing))
	add("outside, it makes 1,000 calls a second", rows.paced, "nothing", nothing, "at most 2 ns (noise), by the median", same(rows.paced, nothing))
	add("outside, it makes calls all the time, which are counted", rows.busy, "an empty program", rows.empty, "at most 10 ns", below(rows.busy, rows.empty, 10_000))
	add("outside, a switch of threads, an empty program: the floor of the next", rows.emptySwitches, "nothing", rows.switches, "", true)
	add("outside, a switch of threads while the plugin is far from its limit", rows.watchedSwitches, "an empty program", rows.emptySwitches,
		"at most 20 ns, by the median", rows.watchedSwitches.median()-rows.emptySwitches.median() <= 20_000)
	add("outside, a seccomp filter that allows everything: the floor of the next", rows.allowed, "nothing", nothing, "", true)
	add("the plugin, no limit: its seccomp filter", rows.inside, "nothing", nothing, "at most 25 ns", below(rows.inside, nothing, 25_000))
	add("the plugin, far from its limit", rows.uncounted, "no limit", rows.inside, "at most 2 ns (noise), by the median", same(rows.uncounted, rows.inside))
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
	return rows.limited(ctx, r.cage, outsider, plugin)
}

// limited measures while the plugin has a usual limit, and is idle, calm or busy, and while
// it is far from a high one.
func (rows *callRows) limited(ctx context.Context, cage *ebpf.Confinement, outsider, plugin *worker) error {
	const usual, high = 200_000, 1_000_000_000_000
	limit := func(count uint64, exact, counted bool) error {
		l := ebpf.Limit{Name: "bench", Kind: ebpf.LimitSyscalls, Count: count, Period: time.Second, Exact: exact}
		return errors.Join(cage.Limit([]ebpf.Limit{l}), awaitCounted(ctx, cage, counted))
	}
	paced := func(row *series, counted bool, each int, pause time.Duration) error {
		undisturbed(plugin.tids[0], 1) // on the other CPU
		defer undisturbed(plugin.tids[0], 0)
		if _, err := plugin.order("pace", each, int64(pause)); err != nil {
			return err
		}
		err := errors.Join(awaitCounted(ctx, cage, counted), calls(row, outsider, 1))
		if err == nil && cage.Info().Syscalls != counted {
			err = fmt.Errorf("%d calls at a time: that they are counted does not stay %t", each, counted)
		}
		_, resting := plugin.order("rest")
		return errors.Join(err, resting)
	}
	for _, step := range []func() error{
		func() error { return limit(usual, false, false) },
		func() error { return calls(&rows.idle, outsider, 1) },
		func() error { return switches(&rows.watchedSwitches, outsider) },
		func() error { return paced(&rows.paced, false, 100, 100*time.Millisecond) },
		func() error { return limit(high, false, false) },
		func() error { return calls(&rows.uncounted, plugin, 1) },
		func() error { return limit(usual, false, true) },
		func() error { return paced(&rows.busy, true, 1000, 0) },
		func() error { return limit(high, true, true) },
		func() error { return calls(&rows.metered, plugin, 1) },
		func() error { return calls(&rows.metered2, plugin, 2) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// awaitCounted waits until system calls are counted, or are not any more.
func awaitCounted(ctx context.Context, cage *ebpf.Confinement, counted bool) error {
	for deadline := time.Now().Add(30 * time.Second); cage.Info().Syscalls != counted; time.Sleep(time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("that system calls are counted does not become %t", counted)
		}
	}
	return nil
}

// withEmpty measures while a program that does nothing is attached in place of the
// counter.
func (rows *callRows) withEmpty(outsider, plugin *worker) error {
	onSwitch, err := ebpf.AttachEmptyTrace("sched_switch")
	if err != nil {
		return err
	}
	if err := errors.Join(switches(&rows.emptySwitches, outsider), onSwitch.Close()); err != nil {
		return err
	}
	empty, err := ebpf.AttachEmptyTrace("sys_exit")
	if err != nil {
		return err
	}
	err = errors.Join(calls(&rows.empty, outsider, 1), calls(&rows.floor, plugin, 1), calls(&rows.floor2, plugin, 2))
	return errors.Join(err, empty.Close())
}

// switches adds a round of switches between two threads to a row.
func switches(s *series, w *worker) error {
	for range kernelBatches {
		took, err := w.numbers("switches", 2000)
		if err != nil {
			return err
		}
		*s = append(*s, took...)
	}
	return nil
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

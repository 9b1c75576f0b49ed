package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// The goals of the program that a host stores and an idle sidecar holds in memory.
const (
	mostProgram = 30e6     // bytes
	mostIdle    = 20 << 10 // KiB resident
)

// idleScene measures the weight of a sidecar that has nothing to do: the program, and its
// resident memory a while after the start, with Vault on the same host.
func idleScene(ctx context.Context, w *env) (*table, error) {
	const idle = 30 * time.Second // the memory of the start was given back, and some garbage has come since
	program, err := os.Stat(w.binary)
	if err != nil {
		return nil, err
	}
	t := &table{title: fmt.Sprintf("Weight of an idle sidecar, after %v", idle), heads: []string{"", "weight", "goal"}}
	t.add("the program", fmt.Sprintf("%.1f MB", float64(program.Size())/1e6), "at most 30 MB: "+verdict(float64(program.Size()) <= mostProgram))
	measure := func(name string, s *sidecar) {
		select {
		case <-ctx.Done():
		case <-time.After(idle):
		}
		kib := s.rss()
		s.Close()
		t.add(name, fmt.Sprintf("%.1f MiB resident", float64(kib)/1024), "at most 20 MiB: "+verdict(kib > 0 && kib <= mostIdle))
	}
	s, err := w.startSidecar(ctx)
	if err != nil {
		return nil, err
	}
	measure("serve, kernel off", s)
	if os.Geteuid() != 0 {
		return t, nil
	}
	if err := w.kernelConfig(""); err != nil {
		return nil, err
	}
	if s, _, err = w.runPlugin(ctx, nil, "sleep", "600"); err != nil {
		return nil, err
	}
	measure("run, with the kernel half and a plugin that sleeps", s)
	return t, nil
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// replayAccesses is how many accesses the log of a replay row has; each has two records.
const replayAccesses = 500_000

// replayRow measures policy replay on a log of a million records that its own policy
// decided, by the processor time of the whole command. Memory is compared with a log of a
// tenth.
func replayRow(full, verified bool) func(context.Context, *env) (string, bool, error) {
	return func(ctx context.Context, w *env) (string, bool, error) {
		small, err := replayOf(ctx, w, replayAccesses/10, full, verified)
		if err != nil {
			return "", false, err
		}
		large, err := replayOf(ctx, w, replayAccesses, full, verified)
		if err != nil {
			return "", false, err
		}
		// The collector allows 16 MiB of garbage, which the smaller log does not make.
		const goal, slack = 1_000_000, 16 << 10 // records a second; KiB
		persecond := 2 * replayAccesses / large.took.Seconds()
		figure := fmt.Sprintf("%.0f records a second of processor time, %d MiB (%d MiB for a tenth)", persecond, large.memory>>10, small.memory>>10)
		return figure, (verified || persecond >= goal) && large.memory <= small.memory+slack, nil
	}
}

// replayRuns is how often each log is replayed. The fastest run counts.
const replayRuns = 5

// replayCost is the cost of replaying a log.
type replayCost struct {
	took   time.Duration // of user and system time, of the fastest run
	memory int           // at most, in KiB
}

func replayOf(ctx context.Context, w *env, accesses int, full, verified bool) (cost replayCost, err error) {
	dir, err := os.MkdirTemp("", "chaperone-bench-replay-")
	if err != nil {
		return cost, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	grant := filepath.Join(dir, "grant.yaml")
	if err := errors.Join(os.WriteFile(grant, []byte(policyFile("GET")), 0o600), writeReplayLog(dir, accesses, full)); err != nil {
		return cost, err
	}
	program, err := filepath.Abs(w.binary)
	if err != nil {
		return cost, err
	}
	args := []string{"policy", "replay", "--config", grant, filepath.Join(dir, audit.DefaultFile)}
	if !verified {
		args = append(args, "--unverified")
	}
	for range replayRuns {
		cmd := exec.CommandContext(ctx, program, args...)
		peak, err := runToEnd(cmd)
		if err != nil {
			return cost, fmt.Errorf("policy replay: %w", err)
		}
		took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		if cost.took == 0 || took < cost.took {
			cost.took = took
		}
		cost.memory = max(cost.memory, peak)
	}
	return cost, nil
}

// runToEnd runs a command and returns its highest resident memory in KiB, of which the last
// moments may be missing. The command's resource usage has that of this process instead if
// it is higher, since the command begins in a copy of it.
func runToEnd(cmd *exec.Cmd) (peak int, err error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				err = fmt.Errorf("%w: %.500s", err, out.String())
			}
			return peak, err
		case <-time.After(time.Millisecond):
			peak = max(peak, memoryOf(cmd.Process.Pid, "VmHWM:"))
		}
	}
}

// writeReplayLog writes the log of accesses that the rules of policyFile allow.
func writeReplayLog(dir string, accesses int, full bool) error {
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	log, err := audit.Open(audit.Config{StateDir: dir, Keep: -1, FullPaths: func() bool { return full }, Now: func() time.Time { return now }})
	if err != nil {
		return err
	}
	for i := range accesses {
		now = now.Add(time.Second)
		record := authz.Record{
			Time: now, Kind: authz.KindDecision, Plugin: "weather", Door: authz.DoorProxy, Decision: fmt.Sprintf("0193f6c2-7d3e-7000-8000-%012d", i),
			Allowed: true, Reason: authz.Granted.String(), Grant: "weather", Rule: fmt.Sprintf("r%d", i%20), Generation: 1, Method: "GET", Scheme: "https",
			Host: fmt.Sprintf("h%d.example", i%20), Port: 443, Path: fmt.Sprintf("/v1/item-%d", i%5000), Pattern: "/v1/*", PID: 4711, UID: 1000, Exe: "/usr/bin/plugin",
		}
		end := record
		end.Kind, end.Bytes, end.Latency, end.Address = authz.KindEnd, 1000, time.Millisecond, "93.184.215.14:443"
		if err := log.RecordAll([]*authz.Record{&record, &end}); err != nil {
			return errors.Join(err, log.Close())
		}
	}
	return log.Close()
}

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// learnAccesses is how many accesses the log of learnRow has; each has two records.
const learnAccesses = 500_000

// learnRow measures policy learn on a log of a million records, and scales the time to ten
// million: the log is read line by line, and what is kept of it is bounded.
func learnRow(ctx context.Context, w *env) (figure string, reached bool, err error) {
	dir, err := os.MkdirTemp("", "chaperone-bench-learn-")
	if err != nil {
		return "", false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := writeLearnLog(dir); err != nil {
		return "", false, err
	}
	program, err := filepath.Abs(w.binary)
	if err != nil {
		return "", false, err
	}
	cmd := exec.CommandContext(ctx, program, "policy", "learn", filepath.Join(dir, audit.DefaultFile), "--at", "2026-12-10T00:00:00Z")
	start := time.Now()
	peak, err := runToEnd(cmd)
	if err != nil {
		return "", false, fmt.Errorf("policy learn: %w", err)
	}
	const scale = 10_000_000 / (2 * learnAccesses)
	wall := scale * time.Since(start)
	took := scale * (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()) // the time on a quiet machine
	const goalTime, goalMemory = 60 * time.Second, 500 << 10                      // KiB
	return fmt.Sprintf("%v of processor time (%v here), %d MiB at most", took.Round(100*time.Millisecond), wall.Round(100*time.Millisecond), peak>>10), took < goalTime && peak < goalMemory, nil
}

// writeLearnLog writes the log: ids, words of which many are rare, and made-up paths.
func writeLearnLog(dir string) error {
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	log, err := audit.Open(audit.Config{StateDir: dir, Keep: -1, FullPaths: func() bool { return true }, Now: func() time.Time { return now }})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range learnAccesses {
		now = now.Add(time.Second)
		path := fmt.Sprintf("/v1/users/%d/posts/%d", r.IntN(1_000_000), r.IntN(100))
		switch i % 4 {
		case 1:
			path = fmt.Sprintf("/v1/city/c-%cx", 'a'+r.IntN(26))
		case 2:
			path = fmt.Sprintf("/wiki/page-%dx/edit", r.IntN(1_000_000))
		}
		record := authz.Record{
			Time: now, Kind: authz.KindDecision, Plugin: "weather", Door: authz.DoorProxy, Decision: fmt.Sprintf("0193f6c2-7d3e-7000-8000-%012d", i),
			Allowed: true, Reason: authz.Observed.String(), Generation: 1, Method: "GET", Scheme: "https", Host: hostOf(i % 20), Port: 443, Path: path, UID: -1,
		}
		end := record
		end.Kind, end.Bytes, end.Latency = authz.KindEnd, 1000, time.Millisecond
		for _, one := range []*authz.Record{&record, &end} {
			if err := log.Record(one); err != nil {
				return err
			}
		}
	}
	return log.Close()
}

package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// The goals of an admission, in nanoseconds, and how many callers the second is for.
const (
	goalAlone      = 3000
	goalConcurrent = 2000
	admitCallers   = 8
)

// admitting is a gate whose audit log is a real file.
type admitting struct {
	gate     *authz.Gate
	log      *audit.Log
	requests []authz.Request
	file     *os.File // of the floor
	line     []byte   // as long as a line of the log
	mac      hash.Hash
}

func (w *env) newAdmitting() (a *admitting, err error) {
	a = &admitting{mac: hmac.New(sha256.New, make([]byte, sha256.Size))}
	engine, requests, err := manyRules(1000)
	if err != nil {
		return nil, err
	}
	a.requests = requests
	dir := w.file("admit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if a.log, err = audit.Open(audit.Config{StateDir: dir}); err != nil {
		return nil, err
	}
	a.gate, err = authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: a.log, Now: time.Now})
	if err != nil {
		return nil, errors.Join(err, a.log.Close())
	}
	if err := a.admit(0); err != nil {
		return nil, errors.Join(err, a.log.Close())
	}
	a.line = make([]byte, a.log.Status().Size)
	a.file, err = os.OpenFile(filepath.Join(dir, "floor"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return a, err
}

// Close closes both files.
func (a *admitting) Close() error { return errors.Join(a.log.Close(), a.file.Close()) }

// admit admits one request.
func (a *admitting) admit(i int) error {
	admission, err := a.gate.Admit(context.Background(), a.requests[i%len(a.requests)], authz.Source{Door: authz.DoorProxy})
	if err == nil && admission.Refusal != nil {
		err = errors.New("not admitted: " + admission.Refusal.Detail)
	}
	return err
}

// record does what any log with a keyed chain does for one record: a MAC of the line,
// and a write.
func (a *admitting) record(int) error {
	a.mac.Reset()
	a.mac.Write(a.line)
	sum := a.mac.Sum(nil)
	copy(a.line[len(a.line)-len(sum):], sum)
	_, err := a.file.Write(a.line)
	return err
}

// batch returns how long one operation takes if callers do n of them at once, in
// nanoseconds.
func batch(callers, n int, once func(int) error) (int64, error) {
	failures := make([]error, callers)
	var wg sync.WaitGroup
	begun := time.Now()
	for c := range callers {
		wg.Go(func() {
			for i := range n / callers {
				if err := once(c*n/callers + i); err != nil {
					failures[c] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return int64(time.Since(begun)) / int64(n/callers*callers), errors.Join(failures...)
}

// admitScene measures the whole gate with a real audit log, for one caller and for
// several at once. The rows take turns; the fastest batch of each counts.
func admitScene(ctx context.Context, w *env) (_ *table, err error) {
	const garbage = 200 // percent, as sidecar.TuneGC sets it
	defer debug.SetGCPercent(debug.SetGCPercent(garbage))
	a, err := w.newAdmitting()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	const rounds, each = 150, 4000 // some 15 ms
	rows := []struct {
		name    string
		callers int
		once    func(int) error
		goal    int64
		best    int64
	}{
		{"HMAC of a line and a write (floor)", 1, a.record, 0, math.MaxInt64},
		{"Gate.Admit", 1, a.admit, goalAlone, math.MaxInt64},
		{"Gate.Admit", admitCallers, a.admit, goalConcurrent, math.MaxInt64},
	}
	for range rounds {
		for i := range rows {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			took, err := batch(rows[i].callers, each, rows[i].once)
			if err != nil {
				return nil, err
			}
			rows[i].best = min(rows[i].best, took)
		}
	}
	t := &table{
		title: fmt.Sprintf("Gate.Admit with the audit log on, 1,000 rules, a line of %d bytes; the fastest of %d batches", len(bytes.TrimSpace(a.line)), rounds),
		heads: []string{"what", "callers", "each", "allocations", "goal"},
	}
	for _, r := range rows {
		goal := ""
		if r.goal > 0 {
			goal = fmt.Sprintf("at most %d µs: %s", r.goal/1000, verdict(r.best <= r.goal))
		}
		allocations := testing.AllocsPerRun(100, func() { err = errors.Join(err, r.once(0)) })
		t.add(r.name, fmt.Sprint(r.callers), fmt.Sprintf("%.2f µs", float64(r.best)/1000), fmt.Sprint(allocations), goal)
	}
	return t, err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// haltTimes is how often each way to end a plugin is measured, in turn.
const haltTimes = 15

// haltGoal is the most that a halt by the admin socket may take beyond cgroup.kill.
const haltGoal = 2 * time.Millisecond

// haltScene measures from a halt to the moment at which no process of the plugin
// lives any more, by what the kernel reports of its cgroup. The floor is a write to
// cgroup.kill of the same plugin under the same sidecar.
func haltScene(ctx context.Context, w *env) (*table, error) {
	const processes = 20
	if err := w.kernelConfig(""); err != nil {
		return nil, err
	}
	ways := []struct {
		name string
		end  func(ctx context.Context, cgroup string) ([]byte, error)
		took []time.Duration
	}{
		{name: "the kernel's part: cgroup.kill", end: func(_ context.Context, cgroup string) ([]byte, error) {
			return nil, os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0)
		}},
		{name: "the sidecar: from the request on its admin socket", end: func(ctx context.Context, _ string) ([]byte, error) {
			return w.askToHalt(ctx)
		}},
		{name: "the command chaperone revoke --level halt, its own start included", end: func(ctx context.Context, _ string) ([]byte, error) {
			return w.command(ctx, "revoke", "--config", w.file("kernel.yaml"), "--level", "halt", "--reason", "benchmark", "--output", "json")
		}},
	}
	for range haltTimes {
		for i := range ways {
			took, err := w.halt(ctx, processes, ways[i].end)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ways[i].name, err)
			}
			ways[i].took = append(ways[i].took, took)
		}
	}
	t := &table{
		title: fmt.Sprintf("halt of a plugin with %d processes, %d times in turn", processes, haltTimes),
		heads: []string{"until all its processes are gone", "fastest", "median", "worst", "added to the median", fmt.Sprintf("goal: at most %v", haltGoal)},
	}
	for i := range ways {
		slices.Sort(ways[i].took)
	}
	floor := ways[0].took[haltTimes/2]
	for i, way := range ways {
		median, added, goal := way.took[haltTimes/2], "", ""
		if i > 0 {
			added = ms(median - floor)
		}
		if i == 1 {
			goal = verdict(median-floor <= haltGoal)
		}
		t.add(way.name, ms(way.took[0]), ms(median), ms(way.took[haltTimes-1]), added, goal)
	}
	return t, nil
}

// untilDead returns how long it takes from the begin of end to an empty cgroup.
func untilDead(cgroup string, end func() error) (time.Duration, error) {
	events, err := os.Open(filepath.Join(cgroup, "cgroup.events"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = events.Close() }()
	begun := time.Now()
	failed := make(chan error, 1)
	go func() { failed <- end() }()
	buffer := make([]byte, 64)
	for time.Since(begun) < 10*time.Second {
		n, err := events.ReadAt(buffer, 0)
		gone := errors.Is(err, syscall.ENODEV) // the cgroup itself was removed
		if err != nil && !gone && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if gone || strings.Contains(string(buffer[:n]), "populated 0") {
			took := time.Since(begun)
			return took, <-failed
		}
		time.Sleep(20 * time.Microsecond)
	}
	return 0, fmt.Errorf("%s is still populated", cgroup)
}

// kernelConfig writes kernel.yaml: the sidecar's configuration with the kernel,
// and with more listeners.
func (w *env) kernelConfig(more string) error {
	config, err := os.ReadFile(w.file("sidecar.yaml"))
	if err != nil {
		return err
	}
	text := strings.Replace(string(config), `kernel: "off"`, "kernel: required", 1)
	return os.WriteFile(w.file("kernel.yaml"), []byte(strings.Replace(text, `proxy: "127.0.0.1:0"`, `proxy: "127.0.0.1:0"`+more, 1)), 0o600)
}

// runPlugin starts chaperone run and returns when the plugin runs, and its cgroup.
func (w *env) runPlugin(ctx context.Context, out *os.File, plugin ...string) (*sidecar, string, error) {
	s := &sidecar{}
	s.cmd = exec.Command(w.binary, append([]string{"run", "--config", w.file("kernel.yaml"), "--"}, plugin...)...) //nolint:noctx // the program under measurement; ended by Close
	s.cmd.Stderr = &s.stderr
	if out != nil {
		s.cmd.Stdout = out
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, "", err
	}
	for begun := time.Now(); time.Since(begun) < 20*time.Second && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		if status, err := w.status(); err == nil && status.Ready && status.Process.PID != 0 {
			return s, status.Process.Cgroup, nil
		}
	}
	s.Close()
	return nil, "", fmt.Errorf("the plugin was not started:\n%s", s.stderr.String())
}

// halt starts a plugin, halts it in one way and lifts the halt for the next. how
// returns what the sidecar answered, nil if it was not asked.
func (w *env) halt(ctx context.Context, processes int, how func(ctx context.Context, cgroup string) ([]byte, error)) (time.Duration, error) {
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do sleep 600 & i=$((i+1)); done; wait", processes)
	s, cgroup, err := w.runPlugin(ctx, nil, "sh", "-c", script)
	if err != nil {
		return 0, err
	}
	time.Sleep(200 * time.Millisecond) // for its processes to start
	var answer []byte
	took, err := untilDead(cgroup, func() (err error) {
		answer, err = how(ctx, cgroup)
		return err
	})
	s.Close()
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, s.stderr.String())
	}
	if answer == nil { // killed without a revocation
		return took, nil
	}
	var result struct{ ID string }
	if err := json.Unmarshal(answer, &result); err != nil {
		return 0, err
	}
	_, err = w.command(ctx, "restore", result.ID, "--config", w.file("kernel.yaml"), "--reason", "benchmark")
	return took, err
}

// askToHalt asks the sidecar to halt its plugin, as the command does.
func (w *env) askToHalt(ctx context.Context) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.file("state/admin.sock"))
	}}}
	defer client.CloseIdleConnections()
	body := strings.NewReader(`{"level": "halt", "reason": "benchmark"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://admin/v1/revocations", body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode >= 300 {
		err = fmt.Errorf("halt: %s: %s", answer.Status, text)
	}
	return text, err
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// storms is how many connections mediationScene opens.
const storms = 10_000

// mediationScene has a plugin open many connections to a granted name, and compares the
// connections that the kernel redirected with those that the proxy handled. The kernel
// refuses a connect to any other address at once.
func mediationScene(ctx context.Context, w *env) (*table, error) {
	free, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	metrics := free.Addr().String()
	if err := errors.Join(free.Close(), w.kernelConfig(fmt.Sprintf(", metrics: %q", metrics))); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(w.sink.address)
	if err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`
import socket, time
granted = socket.gethostbyname("sink.weather.example")
for i in range(%d):
    try:
        socket.create_connection((granted, %s)).close()
    except ConnectionResetError:
        pass # the proxy was quicker
print("done", flush=True)
time.sleep(600)`, storms, port)
	said, saying, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = said.Close() }()
	begun := time.Now()
	s, _, err := w.runPlugin(ctx, saying, "python3", "-c", script)
	if err = errors.Join(err, saying.Close()); err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := io.ReadFull(said, make([]byte, len("done"))); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, s.stderr.String())
	}
	took := time.Since(begun)
	time.Sleep(time.Second) // for a sample or two: a pending connection is not unmediated
	figures, err := scrape(ctx, metrics)
	if err != nil {
		return nil, err
	}
	through := figures[`chaperone_plugin_connections_total{verdict="redirected"}`]
	unmediated, known := figures["chaperone_kernel_unmediated_total"]
	if !known || through != storms {
		return nil, fmt.Errorf("of %d connections the kernel redirected %v; unmediated: %v", storms, through, unmediated)
	}
	t := &table{
		title: "Mediation: connections of a plugin through a sidecar, by name",
		heads: []string{"connections", "took", "redirected by the kernel", "not handled by the proxy", "goal: none"},
	}
	t.add(fmt.Sprint(storms), took.Round(10*time.Millisecond).String(), fmt.Sprint(through), fmt.Sprint(unmediated), verdict(unmediated == 0))
	return t, nil
}

// scrape reads metrics by name and labels.
func scrape(ctx context.Context, address string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(answer.Body); err != nil {
		return nil, err
	}
	figures := make(map[string]float64)
	for line := range strings.Lines(text.String()) {
		var name string
		var value float64
		if n, _ := fmt.Sscan(line, &name, &value); n == 2 {
			figures[name] = value
		}
	}
	return figures, nil
}

package pilotrun

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// The times of requests of a load.
const (
	requestTimeout = 30 * time.Second
	readyPause     = 5 * time.Millisecond
)

// maxAnswer bounds what is read of an answer; the connection of a longer one is closed.
const maxAnswer = 64 << 20

// drive runs the phases of the load, again and again, until ctx ends.
func (r *run) drive(ctx context.Context, served []admin.Port) error {
	if r.cfg.Profile == nil {
		return nil
	}
	for ctx.Err() == nil {
		for i := range r.cfg.Profile.Phases {
			if err := r.phase(ctx, &r.cfg.Profile.Phases[i], served); err != nil {
				return err
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	return nil
}

// phase runs one phase.
func (r *run) phase(ctx context.Context, p *pilot.Phase, served []admin.Port) error {
	request := commandRequest(p.Command)
	if p.HTTP != nil {
		base, err := r.inboundURL(p.HTTP.Port, served)
		if err != nil {
			return err
		}
		client := loadClient(p.Concurrency)
		defer client.CloseIdleConnections()
		if r.ready.IsZero() && !r.awaitReady(ctx, client, base, &p.HTTP.Requests[0]) {
			return nil
		}
		request = func(ctx context.Context, i uint64) bool {
			return send(ctx, client, base, &p.HTTP.Requests[i%uint64(len(p.HTTP.Requests))])
		}
	}
	from := time.Now()
	drivePhase(ctx, p, &r.load, request)
	r.spans = append(r.spans, pilot.Span{Level: p.Level, From: from, Until: time.Now()})
	return nil
}

// drivePhase sends the requests of a phase, each when it is due. Those that no worker was
// free for before the phase ended have failed.
func drivePhase(ctx context.Context, p *pilot.Phase, load *pilot.Load, request func(ctx context.Context, i uint64) bool) {
	from := time.Now()
	until := from.Add(time.Duration(p.Duration))
	var next atomic.Uint64
	var workers sync.WaitGroup
	for range p.Concurrency {
		workers.Go(func() {
			for {
				i := next.Add(1) - 1
				due := from.Add(time.Duration(float64(i) / p.Rate * float64(time.Second)))
				if !due.Before(until) || !sleepUntil(ctx, due) {
					return
				}
				ok := time.Now().Before(until) && request(ctx, i)
				if ctx.Err() != nil {
					return // the pilot ended it
				}
				load.Add(p.Level, time.Since(due), ok)
			}
		})
	}
	workers.Wait()
}

// sleepUntil waits for a time, and reports whether ctx did not end before.
func sleepUntil(ctx context.Context, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// loadClient returns a client that keeps a connection for each worker, follows no redirect
// and uses no proxy.
func loadClient(concurrency int) *http.Client {
	return &http.Client{
		Timeout:       requestTimeout,
		Transport:     &http.Transport{MaxIdleConns: concurrency, MaxIdleConnsPerHost: concurrency, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send sends a request and reads the answer. It reports whether there is one below 500.
func send(ctx context.Context, client *http.Client, base *url.URL, r *pilot.Request) bool {
	request, err := http.NewRequestWithContext(ctx, r.Method, base.String()+r.Path, strings.NewReader(r.Body))
	if err != nil {
		return false
	}
	for key, value := range r.Headers {
		request.Header.Set(key, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
	return err == nil && n < maxAnswer && answer.StatusCode < http.StatusInternalServerError
}

// awaitReady waits for the plugin's first answer, of any status, and notes when it came.
func (r *run) awaitReady(ctx context.Context, client *http.Client, base *url.URL, first *pilot.Request) bool {
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String()+first.Path, http.NoBody)
		if err != nil {
			return false
		}
		if answer, err := client.Do(request); err == nil {
			_ = answer.Body.Close()
			r.ready = time.Now()
			return true
		}
		if !sleepUntil(ctx, time.Now().Add(readyPause)) {
			return false
		}
	}
}

// inboundURL returns where the sidecar forwards a port to the plugin.
func (r *run) inboundURL(port uint16, served []admin.Port) (*url.URL, error) {
	if r.cfg.Cgroup != "" { // the sidecar shares the plugin's network
		return &url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}, nil
	}
	var ports []string
	for _, one := range served {
		if one.Port == port && len(one.Addresses) > 0 {
			return &url.URL{Scheme: "http", Host: one.Addresses[0]}, nil
		}
		if one.Port != 0 {
			ports = append(ports, fmt.Sprint(one.Port))
		}
	}
	return nil, fmt.Errorf("the load profile sends requests to port %d, which the plugin does not serve (%s); add it to process.listen of the Sidecar", port, strings.Join(ports, ", "))
}

// commandRequest returns a request that runs a command.
func commandRequest(args []string) func(context.Context, uint64) bool {
	return func(ctx context.Context, _ uint64) bool {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.WaitDelay = time.Second
		return cmd.Run() == nil
	}
}

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// client returns an HTTP client that keeps n connections open. proxy is "" for
// a direct one; roots are PEM of who is trusted.
func client(n int, proxy string, config *tls.Config) *http.Client {
	t := &http.Transport{
		TLSClientConfig: config, MaxIdleConnsPerHost: n, MaxConnsPerHost: n, DisableCompression: true,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1, on every row
	}
	if proxy != "" {
		t.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy, User: url.UserPassword("chaperone", proxyToken)})
	}
	return &http.Client{Transport: t, Timeout: 30 * time.Second}
}

// measured is what a load row has seen.
type measured struct {
	rate     float64 // requests a second
	p50, p99 time.Duration
	cpu      time.Duration // of the measured process, for each request
}

// load runs n callers in a closed loop for length, after a warm-up, and
// verifies every answer.
func load(ctx context.Context, c *http.Client, target string, n int, length time.Duration, measure *process) (measured, error) {
	if _, err := callers(ctx, c, target, n, length/4); err != nil {
		return measured{}, err
	}
	before := time.Duration(0)
	if measure != nil {
		before = measure.cpu()
	}
	started := time.Now()
	took, err := callers(ctx, c, target, n, length)
	if err != nil {
		return measured{}, err
	}
	elapsed := time.Since(started)
	slices.Sort(took)
	m := measured{
		rate: float64(len(took)) / elapsed.Seconds(), p50: took[len(took)/2], p99: took[len(took)*99/100],
	}
	if measure != nil {
		m.cpu = (measure.cpu() - before) / time.Duration(len(took))
	}
	return m, nil
}

// callers returns how long each request took.
func callers(ctx context.Context, c *http.Client, target string, n int, length time.Duration) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failure error
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for range n {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for err == nil && time.Now().Before(end) {
				started := time.Now()
				if err = get(ctx, c, target); err == nil {
					mine = append(mine, time.Since(started))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if err != nil && failure == nil {
				failure = err
			}
		})
	}
	wg.Wait()
	if failure == nil && len(all) == 0 {
		failure = fmt.Errorf("no request ended within %s", length)
	}
	return all, failure
}

func get(ctx context.Context, c *http.Client, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	answer, err := c.Do(req)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || n < 1000 {
		return fmt.Errorf("%s answered %d with %d bytes", target, answer.StatusCode, n)
	}
	return nil
}

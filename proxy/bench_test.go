package proxy_test

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRequest measures a request of 1 KiB over kept connections: direct,
// through a plain net/http reverse proxy with TLS on both sides (the floor),
// and through this one, which also decides, injects, scrubs and records. The
// CPU time is of the whole process, client and upstream included: what a proxy
// costs is the difference to direct.
func BenchmarkRequest(b *testing.B) {
	body := strings.Repeat("x", 1024)
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = []string{"application/octet-stream"}
		_, _ = io.WriteString(w, body)
	}))
	defer api.Close()
	world := newWorld(b, setup{input: granted(ruleFor(api))})
	floor := newFloor(b, api)
	trusting := &tls.Config{InsecureSkipVerify: true}
	for _, row := range []struct {
		name   string
		url    string
		client func() *http.Client
	}{
		{"direct", api.URL, func() *http.Client {
			return &http.Client{Transport: &http.Transport{TLSClientConfig: trusting.Clone()}}
		}},
		{"floor", floor.URL, func() *http.Client {
			return &http.Client{Transport: &http.Transport{TLSClientConfig: trusting.Clone()}}
		}},
		{"proxy", urlOf(api, "/"), func() *http.Client { return world.client(nil) }},
	} {
		for _, connections := range []int{1, 16, 64} {
			b.Run(row.name+"/connections="+strconv.Itoa(connections), func(b *testing.B) {
				measure(b, connections, row.url, row.client)
			})
		}
	}
}

// newFloor starts the plainest reverse proxy that does TLS on both sides.
func newFloor(b *testing.B, api *httptest.Server) *httptest.Server {
	b.Helper()
	target, err := url.Parse(api.URL)
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		MaxIdleConnsPerHost: 128, DisableCompression: true,
	}
	b.Cleanup(transport.CloseIdleConnections)
	floor := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	})
	b.Cleanup(floor.Close)
	return floor
}

// measure sends b.N requests over a number of connections.
func measure(b *testing.B, connections int, url string, client func() *http.Client) {
	b.Helper()
	clients := make([]*http.Client, connections)
	for i := range clients {
		clients[i] = client()
		get(b, clients[i], url) // connects
	}
	latencies := make([][]time.Duration, connections)
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	before := processCPU()
	b.ResetTimer()
	var running sync.WaitGroup
	for i, c := range clients {
		running.Go(func() {
			for range work {
				start := time.Now()
				get(b, c, url)
				latencies[i] = append(latencies[i], time.Since(start))
			}
		})
	}
	running.Wait()
	b.StopTimer()
	b.ReportMetric(float64((processCPU()-before).Microseconds())/float64(b.N), "cpu-µs/op")
	all := slices.Concat(latencies...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	for _, c := range clients {
		c.CloseIdleConnections()
	}
}

func get(b *testing.B, c *http.Client, url string) {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	response, err := c.Do(r)
	if err != nil {
		b.Error(err)
		return
	}
	defer response.Body.Close()
	if n, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != 200 || n != 1024 {
		b.Errorf("answer is %s with %d bytes, %v", response.Status, n, err)
	}
}

// processCPU returns the CPU time that the process has used.
func processCPU() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

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
				measure(b, connections, row.url, len(body), row.client)
			})
		}
	}
}

// BenchmarkScrub measures what it costs to search answers of JSON for the
// credential: direct, through the floor, through this proxy without a credential
// and with one. The last row is of a type that is not searched.
func BenchmarkScrub(b *testing.B) {
	const line = `{"id":12345,"name":"a plain name","url":"https://api.example.com/v1/items/12345?x=1","hash":"dGhpcyBpcyBiYXNlNjQgdGV4dA=="},`
	for name, size := range map[string]int{"2KiB": 2 << 10, "1MiB": 1 << 20} {
		body := []byte(strings.Repeat(line, size/len(line)+1)[:size])
		octets := append([]byte{0}, body[1:]...)
		api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = []string{"application/json"}
			if r.URL.Path == "/octets" {
				w.Header()["Content-Type"] = []string{"application/octet-stream"}
			}
			w.Header()["Content-Length"] = []string{strconv.Itoa(size)}
			if r.URL.Path == "/octets" {
				_, _ = w.Write(octets)
				return
			}
			_, _ = w.Write(body)
		}))
		bare := ruleFor(api)
		bare.Credential = ""
		without, with := newWorld(b, setup{input: granted(bare)}), newWorld(b, setup{input: granted(ruleFor(api))})
		floor := newFloor(b, api)
		trusting := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		plain := func() *http.Client { return &http.Client{Transport: trusting.Clone()} }
		for _, row := range []struct {
			name   string
			url    string
			client func() *http.Client
		}{
			{"direct", api.URL, plain},
			{"floor", floor.URL, plain},
			{"without", urlOf(api, "/"), func() *http.Client { return without.client(nil) }},
			{"with", urlOf(api, "/"), func() *http.Client { return with.client(nil) }},
			{"unscannable", urlOf(api, "/octets"), func() *http.Client { return with.client(nil) }},
		} {
			b.Run(name+"/"+row.name, func(b *testing.B) {
				b.SetBytes(int64(size))
				measure(b, 1, row.url, size, row.client)
			})
		}
		api.Close()
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
func measure(b *testing.B, connections int, url string, size int, client func() *http.Client) {
	b.Helper()
	clients := make([]*http.Client, connections)
	for i := range clients {
		clients[i] = client()
		get(b, clients[i], url, size) // connects
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
				get(b, c, url, size)
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

func get(b *testing.B, c *http.Client, url string, size int) {
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
	if n, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != 200 || n != int64(size) {
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

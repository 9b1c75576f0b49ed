package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// decideScene measures one decision among many rules, beside a plain map.
func decideScene(context.Context, *env) (*table, error) {
	t := &table{title: "Snapshot.Decide, random hosts, one decision", heads: []string{"rules", "decide", "allocations", "a plain map", "goal: below 400 ns, none"}}
	for _, n := range []int{10, 1000, 100_000} {
		engine, requests, err := manyRules(n)
		if err != nil {
			return nil, err
		}
		snapshot := engine.Current()
		now := time.Now()
		decide := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if !snapshot.Decide(requests[i%len(requests)], authz.Usage{}, now).Allowed() {
					b.Fatal("denied")
				}
			}
		})
		plain := make(map[string]int, n)
		for i := range n {
			plain[hostOf(i)] = i
		}
		lookup := testing.Benchmark(func(b *testing.B) {
			for i := range b.N {
				if _, ok := plain[requests[i%len(requests)].Destination.Host()]; !ok {
					b.Fatal("not there")
				}
			}
		})
		t.add(fmt.Sprint(n), fmt.Sprintf("%d ns", decide.NsPerOp()), fmt.Sprint(decide.AllocsPerOp()), fmt.Sprintf("%d ns", lookup.NsPerOp()),
			verdict(decide.NsPerOp() < 400 && decide.AllocsPerOp() == 0))
	}
	return t, nil
}

func hostOf(i int) string { return fmt.Sprintf("host-%06d.weather.example", i) }

// manyRules returns an engine with n rules for hosts of their own, and requests
// for random ones.
func manyRules(n int) (*authz.Engine, []authz.Request, error) {
	grant := authz.Grant{Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(time.Hour)}
	for i := range n {
		grant.Rules = append(grant.Rules, authz.Rule{
			ID: fmt.Sprintf("r%d", i), Reason: "benchmark", To: authz.To{Hosts: []string{hostOf(i)}}, Methods: []string{"GET"}, Paths: []string{"/v1/*"},
		})
	}
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{grant}}, time.Now())
	if problems != nil {
		return nil, nil, fmt.Errorf("compile: %v", problems[0])
	}
	engine := &authz.Engine{}
	engine.Install(policy)
	requests := make([]authz.Request, min(4096, 4*n))
	for i := range requests {
		d, err := authz.NewDestination(authz.SchemeHTTPS, hostOf(rand.IntN(n)), "/v1/forecast")
		if err != nil {
			return nil, nil, err
		}
		requests[i] = authz.Request{Principal: "weather", Action: authz.Action{Method: "GET"}, Destination: d}
	}
	return engine, requests, nil
}

// proxyScene measures requests with TLS on both sides: direct, through the
// floor, and through the sidecar without and with a credential.
func proxyScene(ctx context.Context, w *env) (*table, error) {
	s, err := w.startSidecar(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.PEM())
	trusting := &tls.Config{RootCAs: roots, ServerName: apiHost, MinVersion: tls.VersionTLS12}
	// The plugin's authority is in the sidecar's memory and is passed to the
	// plugin that it starts. No plugin is started here, so it is read from the
	// wire.
	ca, err := pluginCA(ctx, s.address, w.origin.address)
	if err != nil {
		return nil, err
	}
	pluginRoots := x509.NewCertPool()
	pluginRoots.AddCert(ca)
	intercepted := &tls.Config{RootCAs: pluginRoots, MinVersion: tls.VersionTLS12}
	_, port, err := net.SplitHostPort(w.origin.address)
	if err != nil {
		return nil, err
	}
	api := "https://" + net.JoinHostPort(apiHost, port)
	t := &table{
		title: "Proxy, TLS on both sides, 1 KiB answers, kept-alive HTTP/1.1, closed loop; client, proxy and origin share the CPUs",
		heads: []string{"path", "connections", "requests/s", "p50", "p99", "added p50", "proxy CPU/request", "goal: at most 1.2 × the floor"},
	}
	rows := []proxyRow{
		{"direct", "https://" + w.origin.address + "/open/1", "", trusting, nil},
		{"net/http reverse proxy (floor)", "https://" + w.floor.address + "/open/1", "", trusting, w.floor},
		{"chaperone, no credential", api + "/open/1", s.address, intercepted, &s.process},
		{"chaperone, credential and scrubbing", api + "/secret/1", s.address, intercepted, &s.process},
	}
	for _, n := range []int{1, 16, 64} {
		if err := w.proxyRows(ctx, t, rows, n); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, s.stderr.String())
		}
	}
	return t, nil
}

type proxyRow struct {
	name, target, proxy string
	trust               *tls.Config
	measure             *process
}

// rounds is how often the rows of one width take turns; the median counts, so
// that a busy moment of the machine does not land on one row.
const rounds = 3

func (w *env) proxyRows(ctx context.Context, t *table, rows []proxyRow, n int) error {
	seen := make([][]measured, len(rows))
	for range rounds {
		for i, r := range rows {
			c := client(n, r.proxy, r.trust)
			m, err := load(ctx, c, r.target, n, w.length/rounds, r.measure)
			c.CloseIdleConnections()
			if err != nil {
				return fmt.Errorf("%s at %d: %w", r.name, n, err)
			}
			seen[i] = append(seen[i], m)
		}
	}
	direct, floor := median(seen[0]), median(seen[1])
	for i, r := range rows {
		m := median(seen[i])
		added, cpu, goal := "", "", ""
		if i > 0 {
			added, cpu = us(m.p50-direct.p50), us(m.cpu)
		}
		if i > 1 {
			goal = fmt.Sprintf("CPU %.2f ×: %s", ratio(m.cpu, floor.cpu), verdict(ratio(m.cpu, floor.cpu) <= 1.2))
			if n == 1 {
				x := ratio(m.p50-direct.p50, floor.p50-direct.p50)
				goal = fmt.Sprintf("added p50 %.2f ×: %s; ", x, verdict(x <= 1.2)) + goal
			}
		}
		t.add(r.name, fmt.Sprint(n), fmt.Sprintf("%.0f", m.rate), us(m.p50), us(m.p99), added, cpu, goal)
	}
	return nil
}

func median(all []measured) measured {
	pick := func(value func(measured) float64) float64 {
		var values []float64
		for _, m := range all {
			values = append(values, value(m))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return measured{
		rate: pick(func(m measured) float64 { return m.rate }),
		p50:  time.Duration(pick(func(m measured) float64 { return float64(m.p50) })),
		p99:  time.Duration(pick(func(m measured) float64 { return float64(m.p99) })),
		cpu:  time.Duration(pick(func(m measured) float64 { return float64(m.cpu) })),
	}
}

func ratio(a, b time.Duration) float64 {
	if b <= 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func us(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/1000) }

// connect opens a tunnel to target through the proxy.
func connect(ctx context.Context, proxy, target string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", proxy)
	if err != nil {
		return nil, err
	}
	auth := base64.StdEncoding.EncodeToString([]byte("chaperone:" + proxyToken))
	if _, err := fmt.Fprintf(conn, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: Basic %[2]s\r\n\r\n", target, auth); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	r := bufio.NewReaderSize(conn, 16)
	status, err := r.ReadString('\n')
	if err != nil || !strings.Contains(status, " 200 ") {
		return nil, errors.Join(fmt.Errorf("CONNECT %s: %q: %w", target, status, err), conn.Close())
	}
	for line := ""; line != "\r\n"; {
		if line, err = r.ReadString('\n'); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// pluginCA returns the certificate of the plugin's authority, as the sidecar
// sends it in a handshake.
func pluginCA(ctx context.Context, proxy, origin string) (*x509.Certificate, error) {
	_, port, err := net.SplitHostPort(origin)
	if err != nil {
		return nil, err
	}
	conn, err := connect(ctx, proxy, net.JoinHostPort(apiHost, port))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	secure := tls.Client(conn, &tls.Config{ServerName: apiHost, InsecureSkipVerify: true})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	chain := secure.ConnectionState().PeerCertificates
	return chain[len(chain)-1], nil
}

// revokeScene measures from a revocation to the last of a thousand tunnels
// being closed at the plugin's end.
func revokeScene(ctx context.Context, w *env) (*table, error) {
	const tunnels, times = 1000, 15
	s, err := w.startSidecar(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var inside, outside []time.Duration
	for range times {
		in, out, err := w.revokeOnce(ctx, s, tunnels)
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, s.stderr.String())
		}
		inside, outside = append(inside, in), append(outside, out)
	}
	slices.Sort(inside)
	slices.Sort(outside)
	worst := inside[len(inside)-1]
	t := &table{
		title: fmt.Sprintf("revoke with %d open tunnels, %d times", tunnels, times),
		heads: []string{"", "median", "worst", "goal"},
	}
	t.add("revocation to last tunnel cut, in the sidecar", ms(inside[times/2]), ms(worst), "p99 below 20 ms: "+verdict(worst < 20*time.Millisecond))
	t.add("command started to last tunnel seen closed by the plugin, one process for all ends", ms(outside[times/2]), ms(outside[times-1]),
		"median below 60 ms: "+verdict(outside[times/2] < 60*time.Millisecond))
	return t, nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }

func (w *env) revokeOnce(ctx context.Context, s *sidecar, n int) (inside, outside time.Duration, err error) {
	_, port, err := net.SplitHostPort(w.sink.address)
	if err != nil {
		return 0, 0, err
	}
	var wg sync.WaitGroup
	var last atomic.Int64 // ns of CLOCK_MONOTONIC
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range n {
		c, err := connect(ctx, s.address, net.JoinHostPort("sink.weather.example", port))
		if err != nil {
			return 0, 0, err
		}
		conns = append(conns, c)
		wg.Go(func() {
			_, _ = io.Copy(io.Discard, c) // ends when the tunnel does
			for now, before := monotonic(), last.Load(); now > before && !last.CompareAndSwap(before, now); {
				before = last.Load()
			}
		})
	}
	started := monotonic()
	answer, err := w.command(ctx, "revoke", "--config", w.file("sidecar.yaml"), "--reason", "benchmark", "--output", "json")
	if err != nil {
		return 0, 0, err
	}
	wg.Wait()
	outside = time.Duration(last.Load() - started)
	var result struct {
		ID  string
		Cut int
		MS  float64
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return 0, 0, err
	}
	if result.Cut != n {
		return 0, 0, fmt.Errorf("%d of %d tunnels were cut", result.Cut, n)
	}
	_, err = w.command(ctx, "restore", result.ID, "--config", w.file("sidecar.yaml"), "--reason", "benchmark")
	return time.Duration(result.MS * float64(time.Millisecond)), outside, err
}

// command runs a command of the program under measurement.
func (w *env) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, w.binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("chaperone %s: %w\n%s", args[0], err, stderr.String())
	}
	return out, nil
}

// startScene measures the start, with Vault on the same host.
func startScene(ctx context.Context, w *env) (*table, error) {
	const times = 7
	var ready []time.Duration
	for range times {
		s, err := w.startSidecar(ctx)
		if err != nil {
			return nil, err
		}
		ready = append(ready, s.ready)
		s.Close()
	}
	slices.Sort(ready)
	t := &table{title: fmt.Sprintf("Start, %d times", times), heads: []string{"", "median", "worst", "goal"}}
	t.add("start to ready, Vault on the same host", ms(ready[times/2]), ms(ready[times-1]), "below 300 ms: "+verdict(ready[times-1] < 300*time.Millisecond))
	if os.Geteuid() == 0 {
		if err := w.confinedStarts(ctx, t, times); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// confinedStarts measures starting and ending a plugin that does nothing, when no program of
// the kernel's is cached and when an earlier sidecar has left them, and what a start of the
// program costs that does no work. The rounds of the three alternate.
func (w *env) confinedStarts(ctx context.Context, t *table, times int) error {
	if err := w.kernelConfig(""); err != nil {
		return err
	}
	run := []string{"run", "--config", w.file("kernel.yaml"), "--", "true"}
	rows := []struct {
		name, goal string
		limit      time.Duration
		before     func() error
		commands   [][]string
	}{
		{"floor: the program, without work", "", 0, nil, [][]string{{"version"}}},
		{"chaperone run -- true, confined, no programs cached", "at most 120 ms", 120 * time.Millisecond, dropCachedPrograms, [][]string{run}},
		{"chaperone run -- true, confined, after another sidecar", "at most 60 ms", 60 * time.Millisecond, nil, [][]string{run}},
	}
	took := make([][]time.Duration, len(rows))
	for range times {
		for i, row := range rows {
			if row.before != nil {
				if err := row.before(); err != nil {
					return err
				}
			}
			started := time.Now()
			for _, args := range row.commands {
				if _, err := w.command(ctx, args...); err != nil {
					return err
				}
			}
			took[i] = append(took[i], time.Since(started))
		}
	}
	for i, row := range rows {
		slices.Sort(took[i])
		goal := row.goal
		if goal != "" {
			goal += ": " + verdict(took[i][times/2] <= row.limit)
		}
		t.add(row.name, ms(took[i][times/2]), ms(took[i][times-1]), goal)
	}
	return nil
}

// dropCachedPrograms removes the programs that earlier sidecars of the host have left.
func dropCachedPrograms() error {
	return errors.Join(os.RemoveAll("/sys/fs/bpf/chaperone/programs"), os.RemoveAll("/run/chaperone/bpf/programs"))
}

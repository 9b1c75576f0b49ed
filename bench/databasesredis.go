package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// relay forwards connections to Redis, with as little work as a process between two
// sockets can do: without TLS, and with it towards the server.
func relay(l net.Listener, address, caFile string) error {
	dial := func() (net.Conn, error) { return net.DialTimeout("tcp", address, 5*time.Second) } //nolint:noctx // of this machine
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		config := &tls.Config{RootCAs: roots, ServerName: cacheHost, MinVersion: tls.VersionTLS12}
		dial = func() (net.Conn, error) { return tls.Dial("tcp", address, config) } //nolint:noctx // of this machine
	}
	for {
		near, err := l.Accept()
		if err != nil {
			return err
		}
		far, err := dial()
		if err != nil {
			return errors.Join(err, near.Close())
		}
		pass := func(to, from net.Conn) {
			_, _ = io.Copy(to, from)
			_ = errors.Join(to.Close(), from.Close())
		}
		go pass(far, near)
		go pass(near, far)
	}
}

// redisScene measures pipelines of redis-benchmark.
func redisScene(ctx context.Context, w *env) (t *table, err error) {
	d, err := w.newDatabases(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	contenders, end, err := d.redisContenders()
	if err != nil {
		return nil, err
	}
	defer end()
	t = &table{title: fmt.Sprintf("redis-benchmark, GET, pipelines of 16, commands a second, %d rounds in turn; client, proxy and server share the CPUs", rounds), heads: []string{"connections"}}
	for _, c := range contenders {
		t.heads = append(t.heads, c.name)
	}
	t.heads = append(t.heads, "chaperone to the plain relay", "chaperone to the relay with TLS", "goal: 0.9 of the plain relay",
		"CPU of the relay, of that with TLS, of the sidecar, µs a command")
	for _, connections := range []int{8, 1} {
		n := 200_000 * connections / 4
		args := []string{"-c", strconv.Itoa(connections), "-P", "16", "-t", "get", "--csv"}
		all, err := measure(ctx, contenders, task{
			args: append(slices.Clone(args), "-n", strconv.Itoa(n)), least: append(slices.Clone(args), "-n", "16"),
			figure: csvRate, n: func(string) (float64, error) { return float64(n), nil },
		})
		if err != nil {
			return nil, err
		}
		row := []string{strconv.Itoa(connections)}
		for _, r := range all {
			row = append(row, fmt.Sprintf("%.0f", r.figure))
		}
		x, secure := all[3].figure/all[1].figure, all[3].figure/all[2].figure
		t.add(append(row, fmt.Sprintf("%.2f", x), fmt.Sprintf("%.2f", secure), verdict(x >= 0.9), perOperation(all[1:]...))...)
	}
	return t, nil
}

// csvRate reads the rate of the row of GET.
func csvRate(output string) (float64, error) {
	for line := range strings.Lines(output) {
		if rest, found := strings.CutPrefix(line, `"GET","`); found {
			text, _, _ := strings.Cut(rest, `"`)
			return strconv.ParseFloat(text, 64)
		}
	}
	return 0, errors.New("the output has no row of GET")
}

// redisContenders are the ways of redis-benchmark to Redis; end ends the relays.
func (d *databases) redisContenders() (contenders []contender, end func(), err error) {
	outside := func(port int) func(context.Context, ...string) *exec.Cmd {
		return func(ctx context.Context, args ...string) *exec.Cmd {
			login := []string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "--user", "default", "-a", d.password}
			return exec.CommandContext(ctx, "redis-benchmark", append(login, args...)...)
		}
	}
	plain, err := startProgram(anyCPU, "/proc/self/exe", "role=relay", fmt.Sprintf("127.0.0.1:%d", d.plain), "")
	if err != nil {
		return nil, nil, err
	}
	secure, err := startProgram(anyCPU, "/proc/self/exe", "role=relay", fmt.Sprintf("127.0.0.1:%d", d.secure), d.file("ca.pem"))
	if err != nil {
		plain.Close()
		return nil, nil, err
	}
	port := func(p *process) int {
		_, text, _ := strings.Cut(p.address, ":")
		n, _ := strconv.Atoi(text)
		return n
	}
	return []contender{
		{"direct", outside(d.plain), 0},
		{"a relay (floor)", outside(port(plain)), plain.cmd.Process.Pid},
		{"a relay with TLS to the server", outside(port(secure)), secure.cmd.Process.Pid},
		{"chaperone run, TLS, audit on", func(ctx context.Context, args ...string) *exec.Cmd {
			return d.plugin(ctx, append([]string{"redis-benchmark", "-h", cacheHost, "-p", strconv.Itoa(d.secure)}, args...)...)
		}, 0},
	}, func() { plain.Close(); secure.Close() }, nil
}

// The sessions that sessionsScene opens, and how often it revokes them. The garbage
// collector and the memory of a sidecar differ from start to start, so there are several.
const (
	postgresSessions = 200
	redisSessions    = 1000
	sessionStarts    = 3
	sessionCuts      = 8 // of one start
)

// sessionsScene measures the memory of open sessions and how fast a revocation cuts them.
func sessionsScene(ctx context.Context, w *env) (t *table, err error) {
	d, err := w.newDatabases(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	t = &table{
		title: fmt.Sprintf("Open sessions of a plugin, revoked %d times", sessionStarts*sessionCuts),
		heads: []string{"", "sessions", "median", "90 %", "worst", "goal"},
	}
	for _, kind := range []struct {
		protocol string
		target   string
		sessions int
	}{
		{"postgres", fmt.Sprintf("%s:%d", shopHost, d.db.Addr.Port()), postgresSessions},
		{"redis", fmt.Sprintf("%s:%d", cacheHost, d.secure), redisSessions},
	} {
		var all cuttings
		for range sessionStarts {
			if err := d.cutSessions(ctx, kind.protocol, kind.target, kind.sessions, &all); err != nil {
				return nil, fmt.Errorf("%s: %w", kind.protocol, err)
			}
		}
		slices.Sort(all.memory)
		slices.Sort(all.inside)
		slices.Sort(all.outside)
		memory, n := all.memory[len(all.memory)/2], strconv.Itoa(kind.sessions)
		last := len(all.inside) - 1
		judged := verdict(memory < 64*kind.sessions)
		if memory <= 0 { // the collector has returned more than the sessions took
			judged = "not measured"
		}
		t.add(kind.protocol+": resident memory of the sidecar for a session", n, fmt.Sprintf("%.1f KiB", float64(memory)/float64(kind.sessions)), "", "",
			"below 64 KiB: "+judged)
		t.add(kind.protocol+": revocation to last session cut, in the sidecar", n, ms(all.inside[last/2]), ms(all.inside[last*9/10]), ms(all.inside[last]),
			"p99 below 20 ms: "+verdict(all.inside[last] < 20*time.Millisecond))
		t.add(kind.protocol+": command started to last session seen closed by the plugin", n, ms(all.outside[last/2]), ms(all.outside[last*9/10]), ms(all.outside[last]), "")
	}
	return t, nil
}

// cuttings are revocations with open sessions.
type cuttings struct {
	inside, outside []time.Duration
	memory          []int // KiB that the sessions of a start added
}

// cutSessions starts a plugin that holds n sessions, revokes them sessionCuts times, and
// adds the results to all.
func (d *databases) cutSessions(ctx context.Context, protocol, target string, n int, all *cuttings) (err error) {
	cmd := d.plugin(ctx, d.binary, "role=sessions", protocol, target, strconv.Itoa(n))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	again, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{cmd: cmd}
	defer p.Close()
	lines := bufio.NewScanner(out)
	next := func() (string, error) {
		if !lines.Scan() {
			return "", fmt.Errorf("the plugin has ended: %w\n%s", lines.Err(), stderr.String())
		}
		return lines.Text(), nil
	}
	if _, err := next(); err != nil { // one session is open
		return err
	}
	before := p.rss()
	for i := range sessionCuts {
		if _, err := next(); err != nil { // all are open
			return err
		}
		if i == 0 {
			all.memory = append(all.memory, p.rss()-before)
		}
		if err := d.cutOpen(ctx, n, next, all); err != nil {
			return err
		}
		if _, err := io.WriteString(again, "again\n"); err != nil {
			return err
		}
	}
	return nil
}

// cutOpen revokes once, with n sessions open, adds the result to all, and restores access.
func (d *databases) cutOpen(ctx context.Context, n int, next func() (string, error), all *cuttings) error {
	started := monotonic()
	answer, err := d.w.command(ctx, "revoke", "--config", d.file("sidecar.yaml"), "--reason", "benchmark", "--output", "json")
	if err != nil {
		return err
	}
	line, err := next() // all are closed
	if err != nil {
		return err
	}
	closed, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return err
	}
	var result struct {
		ID  string
		Cut int
		MS  float64
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return err
	}
	if result.Cut < n {
		return fmt.Errorf("%d of %d sessions were cut", result.Cut, n)
	}
	all.inside = append(all.inside, time.Duration(result.MS*float64(time.Millisecond)))
	all.outside = append(all.outside, time.Duration(closed-started))
	_, err = d.w.command(ctx, "restore", result.ID, "--config", d.file("sidecar.yaml"), "--reason", "benchmark")
	return err
}

// holdSessions is the plugin: it opens one session and prints a line, opens the rest and
// prints a line, and prints the time when the last one was closed. For each line of its
// input it opens all again.
func holdSessions(args []string) error {
	if len(args) != 3 {
		return errors.New("role sessions takes PROTOCOL ADDRESS NUMBER")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var open sync.WaitGroup
	var last atomic.Int64 // ns of CLOCK_MONOTONIC
	hold := func() error {
		conn, err := openSession(args[0], args[1])
		if err != nil {
			return err
		}
		open.Go(func() {
			_, _ = io.Copy(io.Discard, conn) // ends when the session does
			_ = conn.Close()
			for now, before := monotonic(), last.Load(); now > before && !last.CompareAndSwap(before, now); {
				before = last.Load()
			}
		})
		return nil
	}
	if err := hold(); err != nil {
		return err
	}
	fmt.Println("first")
	time.Sleep(4 * time.Second) // the memory of the start was given back, and is measured
	for again, held := bufio.NewScanner(os.Stdin), 1; ; held = 0 {
		for i := held; i < n; i++ {
			if err := hold(); err != nil {
				return fmt.Errorf("session %d: %w", i, err)
			}
		}
		time.Sleep(time.Second) // no session is busy
		fmt.Println("all")
		open.Wait()
		fmt.Println(last.Load())
		if !again.Scan() {
			return again.Err()
		}
	}
}

// openSession connects and logs in, without TLS towards the sidecar.
func openSession(protocol, address string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", address, 20*time.Second) //nolint:noctx // bounded
	if err != nil {
		return nil, err
	}
	if protocol == "redis" {
		if _, err := io.WriteString(conn, "*1\r\n$4\r\nPING\r\n"); err != nil {
			return nil, err
		}
		answer := make([]byte, len("+PONG\r\n"))
		_, err := io.ReadFull(conn, answer)
		if err == nil && string(answer) != "+PONG\r\n" {
			err = fmt.Errorf("the answer to PING is %q", answer)
		}
		return conn, err
	}
	// https://www.postgresql.org/docs/current/protocol-message-formats.html: StartupMessage.
	const parameters = "user\x00plugin\x00database\x00postgres\x00\x00"
	if _, err := conn.Write(append([]byte{0, 0, 0, byte(8 + len(parameters)), 0, 3, 0, 0}, parameters...)); err != nil {
		return nil, err
	}
	for r := bufio.NewReaderSize(conn, 16); ; {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		size := int64(head[1])<<24 | int64(head[2])<<16 | int64(head[3])<<8 | int64(head[4])
		if head[0] == 'E' {
			text := make([]byte, min(size-4, 500))
			_, err := io.ReadFull(r, text)
			return nil, errors.Join(fmt.Errorf("the session was refused: %q", text), err)
		}
		if _, err := io.CopyN(io.Discard, r, size-4); err != nil {
			return nil, err
		}
		if head[0] == 'Z' { // ReadyForQuery
			return conn, nil
		}
	}
}

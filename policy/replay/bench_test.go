package replay_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/replay"
)

// BenchmarkReplay replays a log of 100 rules for 10 hosts, and reports records a second of
// processor time, and how many times that of reading the log's lines a record takes.
func BenchmarkReplay(b *testing.B) {
	const accesses = 50_000
	g := authz.Grant{Name: "weather", Plugin: plugin, NotAfter: noon.AddDate(0, 3, 0)}
	for i := range 100 {
		g.Rules = append(g.Rules, authz.Rule{
			ID: fmt.Sprintf("rule-%d", i), Reason: "a test", To: authz.To{Hosts: []string{fmt.Sprintf("api-%d.weather.example", i/10)}},
			Methods: []string{"GET"}, Paths: []string{fmt.Sprintf("/v1/resource-%d/*", i), fmt.Sprintf("/v2/resource-%d/**", i)},
		})
	}
	in := authz.Input{Plugin: plugin, Grants: []authz.Grant{g}}
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	s := policy.Subject{Plugin: plugin, Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	var requests []authz.Request
	for i := range accesses {
		url := fmt.Sprintf("https://api-%d.weather.example/v1/resource-%d/%d", i%100/10, i%100, i%5000)
		req, err := policy.Request(plugin, policy.Words{Method: "GET", URL: url, Upgrade: ""})
		if err != nil {
			b.Fatal(err)
		}
		requests = append(requests, req)
	}
	for _, full := range []bool{true, false} {
		dir := b.TempDir()
		record(b, dir, s, requests, full)
		for _, verified := range []bool{false, true} {
			b.Run(fmt.Sprintf("paths=%s/verified=%v", map[bool]string{true: "full", false: "masked"}[full], verified), func(b *testing.B) {
				file := filepath.Join(dir, audit.DefaultFile)
				best, floor := 0.0, 0.0 // of all runs, since others use the machine too
				for b.Loop() {
					floor = max(floor, readLines(b, file))
					began := cpuTime(b)
					reader, err := accesslog.Open(accesslog.Options{Paths: []string{file}, Unverified: !verified})
					if err != nil {
						b.Fatal(err)
					}
					r, err := replay.New([]policy.Subject{s}, replay.Options{})
					if err != nil {
						b.Fatal(err)
					}
					for a, err := range reader.Accesses(context.Background()) {
						if err != nil {
							b.Fatal(err)
						}
						if err := r.Take(a); err != nil {
							b.Fatal(err)
						}
					}
					if got := r.Result().Unchanged; got != accesses {
						b.Fatalf("got %d unchanged, want %d", got, accesses)
					}
					best = max(best, float64(reader.Records())/(cpuTime(b)-began).Seconds())
				}
				b.ReportMetric(best, "records/cpu-s")
				b.ReportMetric(floor/best, "x-reading")
			})
		}
	}
}

// readLines reads the lines of a file and does no more, and returns how many it reads a
// second of processor time.
func readLines(tb testing.TB, path string) float64 {
	tb.Helper()
	began := cpuTime(tb)
	file, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	lines, all := 0, bufio.NewReaderSize(file, 128<<10)
	for ; err == nil; lines++ {
		_, err = all.ReadSlice('\n')
	}
	if !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	return float64(lines-1) / (cpuTime(tb) - began).Seconds()
}

// cpuTime returns the time that the process has used of all cores, which a loaded machine
// does not change.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

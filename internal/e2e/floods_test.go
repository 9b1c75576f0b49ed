package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Bounds of a flood: memory over that of an idle sidecar, and the time that a
// revocation takes during it, by the sidecar's own clock and beyond what an idle
// sidecar takes on the same machine at that time.
const (
	mostOverIdle = 128 << 20
	mostRevoke   = 100 * time.Millisecond
)

// TestFloods has a plugin make the sidecar hold as much as it can, in one way
// after the other: resident memory stays below a ceiling at every moment, a
// revocation takes effect as fast as ever, and the sidecar goes on.
func TestFloods(t *testing.T) {
	kinds := []string{"half-heads", "uploads-h2", "names"} // the others take minutes
	if os.Getenv("CHAPERONE_LONG") == "1" {
		kinds = append(kinds, "connections", "hellos", "handshakes", "tunnels", "requests", "downloads", "answers-heads",
			"heads-h2", "downloads-h2", "frames-h2", "resets-h2")
	}
	if only := os.Getenv("E2E_FLOODS"); only != "" {
		kinds = strings.Split(only, ",")
	}
	idle, quiet := flood(t, "nothing")
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			least := time.Hour // other programs only slow it down
			for try := 0; try < 8 && least > mostRevoke; try++ {
				if try > 0 {
					_, quiet = flood(t, "nothing")
				}
				peak, took := flood(t, kind)
				if peak > idle+mostOverIdle {
					t.Fatalf("got %d MiB resident, %d MiB more than an idle sidecar, want at most %d", peak>>20, (peak-idle)>>20, mostOverIdle>>20)
				}
				least = min(least, (took-quiet)/crowd(t))
			}
			if least > mostRevoke {
				t.Errorf("got %v for a revocation, divided by the programs for each processor, want at most %v", least, mostRevoke)
			}
		})
	}
}

// crowd returns how many threads wait for each processor, at least 1
// (proc_loadavg(5)): where ten share it all takes ten times as long.
func crowd(t *testing.T) time.Duration {
	t.Helper()
	text := testenv.MustGet(os.ReadFile("/proc/loadavg"))(t)
	first, _, _ := strings.Cut(string(text), " ")
	load := testenv.MustGet(strconv.ParseFloat(first, 64))(t)
	return time.Duration(max(1, load/float64(runtime.NumCPU())))
}

// flood returns the most memory that was resident during a flood, without that of
// the start, and how long a revocation took.
func flood(t *testing.T, kind string) (peak int64, took time.Duration) {
	e := newEnv(t, "{}")
	e.floodable(t)
	program := testenv.MustGet(goBuild(testenv.MustGet(testenv.Root())(t), "floods", "./internal/e2e/testdata/floods", "CGO_ENABLED=0"))(t)
	e.env = append(e.env, fmt.Sprintf("E2E_PLAIN_PORT=%d", e.origins.plainPort), fmt.Sprintf("E2E_SECURE_PORT=%d", e.origins.securePort))
	// The sidecar's time is measured, and other tests run on the same processors.
	b := e.startCommand(append([]string{"nice", "-n", "-15"}, e.runArgs("nice", "-n", "30", program, kind)...)...)
	for began := time.Now(); !strings.Contains(b.Output.String(), "full "); time.Sleep(10 * time.Millisecond) {
		peak = max(peak, resident(t, b.Cmd.Process.Pid))
		if time.Since(began) > 3*time.Minute {
			t.Fatalf("the flood is not full: %s", tail(b.Output.String()))
		}
	}
	var rest int64
	for began := time.Now(); time.Since(began) < time.Second; time.Sleep(10 * time.Millisecond) {
		rest = resident(t, b.Cmd.Process.Pid)
		peak = max(peak, rest)
	}
	began := time.Now()
	r := e.chaperone("revoke", "--config", e.file("sidecar.yaml"), "--reason", "a test", "--output", "json")
	var revoked struct {
		MS  float64 `json:"ms"`
		Cut int     `json:"cut"`
	}
	testenv.Must(t, json.Unmarshal([]byte(r.stdout), &revoked))
	_, said, _ := strings.Cut(b.Output.String(), "full ")
	said, _, _ = strings.Cut(said, "\n")
	took = time.Duration(revoked.MS * float64(time.Millisecond))
	t.Logf("%s: %s made, %d MiB at most, then %d; %d cut in %v, the command took %v", kind, said, peak>>20, rest>>20, revoked.Cut, took, time.Since(began))
	if kind == "nothing" {
		peak = rest
	}
	return peak, took
}

// floodable adds what floods ask for.
func (e *env) floodable(t *testing.T) {
	stop := make(chan struct{})
	e.origins.mux.HandleFunc("/open/stall", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	})
	chunk := make([]byte, 32<<10)
	var endless atomic.Int64
	e.origins.mux.HandleFunc("/open/endless", func(rw http.ResponseWriter, _ *http.Request) {
		endless.Add(1)
		for {
			if _, err := rw.Write(chunk); err != nil {
				return
			}
		}
	})
	e.origins.mux.HandleFunc("/open/head", func(rw http.ResponseWriter, r *http.Request) {
		for i := range 200 {
			rw.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
		}
		rw.WriteHeader(http.StatusOK)
		for {
			if _, err := rw.Write(chunk); err != nil {
				return
			}
		}
	})
	l := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { <-stop; _ = c.Close() }()
		}
	}()
	t.Cleanup(func() { close(stop); _ = l.Close() })
	port := l.Addr().(*net.TCPAddr).Port
	e.env = append(e.env, fmt.Sprintf("E2E_TCP_PORT=%d", port))
	e.rule(fmt.Sprintf(`  - id: tunnel
    reason: Tests
    to: {scheme: tcp, hosts: [%s], ports: [%d], addresses: [127.0.0.1/32]}
  - id: wild
    reason: Tests
    to: {hosts: ["*.wild.test.example"]}
    methods: [GET]
    paths: ["/**"]
`, originHost, port))
}

// resident returns what is resident of a process's memory, in bytes, and fails when
// it has gone (proc_pid_status(5)).
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	testenv.Must(t, err)
	_, rest, _ := strings.Cut(string(text), "\nVmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatal("the sidecar has ended")
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	testenv.Must(t, err)
	return n << 10
}

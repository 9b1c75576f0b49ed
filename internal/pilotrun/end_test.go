package pilotrun

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestInterrupt ends a pilot in its middle: there is no measurement, and nothing is left
// running or remembered.
func TestInterrupt(t *testing.T) {
	r := newRig(t)
	r.cfg.For = 10 * time.Minute
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	client := admin.Dial(Derive(r.cfg.Sidecar, r.cfg.Dir, time.Now()).Listen.Admin.Addr)
	cgroup := make(chan string, 1)
	go func() {
		defer stop()
		for ctx.Err() == nil {
			if s, err := client.Status(ctx); err == nil && s.Process != nil && s.Process.PID != 0 {
				cgroup <- s.Process.Cgroup
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		close(cgroup)
	}()
	m, err := r.run(ctx)
	if m != nil || err == nil || !strings.Contains(err.Error(), "the pilot was interrupted") {
		t.Errorf("measured %v, error %v\n%s", m, err, r.out.String())
	}
	dir := <-cgroup
	testenv.Eventually(t, "the cgroup is gone", func() (int, bool) {
		_, err := os.Stat(dir)
		return 0, dir != "" && os.IsNotExist(err)
	})
	registry := os.Getenv("CHAPERONE_REGISTRY")
	if left := testenv.MustGet(filepath.Glob(filepath.Join(registry, "states", "*")))(t); len(left) > 0 {
		t.Errorf("the state directory is still remembered: %q", left)
	}
}

// TestDerive takes from a Sidecar what starts a plugin, and nothing that a pilot could share
// with the sidecar that runs beside it.
func TestDerive(t *testing.T) {
	until := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	given := configs.Sidecar{
		Plugin: "reader", Grants: []string{"/grants"}, Guardrails: []string{"/guardrails"}, StateDir: "/var/lib/chaperone/reader", Kernel: configs.KernelOff,
		Trust: &configs.Trust{}, Envoy: &configs.Envoy{}, SPIFFEIDs: []string{"spiffe://corp/reader"}, Audit: configs.Audit{File: "/var/log/audit.jsonl", Paths: configs.AuditPathsMasked},
		Listen: configs.Listen{Metrics: configs.Address{Network: "tcp", Addr: "0.0.0.0:15090"}, ExtAuthz: configs.Address{Network: "unix", Addr: "/run/x.sock"}}, OnBadReload: configs.OnBadReloadQuarantine,
		Process: configs.Process{Env: map[string]string{"A": "b"}},
	}
	got := Derive(given, "/tmp/p", until)
	want := configs.Sidecar{
		Plugin: "reader", Grants: []string{"/tmp/p/declared.json"}, StateDir: "/tmp/p/state", Kernel: configs.KernelRequired, Mode: authz.ModeObserve, ObserveUntil: until,
		Audit: configs.Audit{File: "/tmp/p/state/audit.jsonl", Paths: configs.AuditPathsFull}, OnBadReload: configs.OnBadReloadKeep, Process: given.Process,
		Listen: configs.Listen{Proxy: configs.Address{Network: "tcp", Addr: "127.0.0.1:0"}, Admin: configs.Address{Network: "unix", Addr: "/tmp/p/state/admin.sock"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	given.Trust = nil
	if got := Derive(given, "/tmp/p", until); !slices.Equal(got.Guardrails, given.Guardrails) {
		t.Errorf("guardrails are %q", got.Guardrails)
	}
}

// TestCopyLog replaces the log of an earlier pilot as a whole.
func TestCopyLog(t *testing.T) {
	dir, to := t.TempDir(), t.TempDir()
	testenv.Must(t, os.Mkdir(filepath.Join(dir, stateFolder), 0o700))
	for _, name := range []string{filepath.Join(dir, stateFolder, "audit.jsonl"), filepath.Join(dir, stateFolder, "lock"), filepath.Join(to, "audit.jsonl"), filepath.Join(to, "audit.jsonl.1"), filepath.Join(to, "notes")} {
		testenv.Must(t, os.WriteFile(name, []byte(name), 0o600))
	}
	testenv.Must(t, CopyLog(dir, to))
	var names []string
	for _, e := range testenv.MustGet(os.ReadDir(to))(t) {
		names = append(names, e.Name())
	}
	text := string(testenv.MustGet(os.ReadFile(filepath.Join(to, "audit.jsonl")))(t))
	if !slices.Equal(names, []string{"audit.jsonl", "notes"}) || !strings.HasPrefix(text, dir) {
		t.Errorf("%q with %q", names, text)
	}
}

// TestLastRecord reads the end of a log, and none that is missing.
func TestLastRecord(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	for text, want := range map[string]uint64{"{\"seq\":1}\n{\"seq\":2}\n": 2, "{\"seq\":7}\n": 7, "{\"seq\":7}": 7, "": 0, "\n": 0, "{\"seq\":1}\nxx\n": 0} {
		testenv.Must(t, os.WriteFile(file, []byte(text), 0o600))
		if got, err := lastRecord(file); got.Seq != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v", text, got.Seq, err)
		}
	}
}

// TestEnds runs pilots whose plugin does not do as it should.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		program []string
		want    string // in the error; "" for none
	}{
		"a crash":             {[]string{"/bin/sh", "-c", "sleep 1; exit 3"}, "exit status 3"},
		"killed":              {[]string{"/bin/sh", "-c", "sleep 1; kill -KILL $$"}, "the plugin ended in the pilot"},
		"no such program":     {[]string{"/nonexistent/program"}, "the plugin ended before it was observed"},
		"done before its end": {[]string{"/bin/sh", "-c", "sleep 2"}, ""},
		"deaf to SIGTERM":     {[]string{"/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.cfg.Command, r.cfg.Profile, r.cfg.For = c.program, nil, 4*time.Second
			m, err := r.run(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || m != nil) {
				t.Errorf("the error is %v, want %q\n%s", err, c.want, r.out.String())
			}
		})
	}
}

// TestUntilCoverage ends a pilot when its accesses are estimated to be of known kinds.
func TestUntilCoverage(t *testing.T) {
	r := newRig(t)
	r.cfg.For, r.cfg.Coverage = 2*time.Minute, 0.99
	m, err := r.run(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	trace := testenv.MustGet(pilot.Traced(*m))(t)
	if took := m.Ended.Sub(m.Started); took > time.Minute || !trace.Coverage.Reached(0.99) || trace.Coverage.Accesses < 300 {
		t.Errorf("it took %s, and the coverage is %+v", took, trace.Coverage)
	}
	if trace.Coverage.Reached(0.9999) {
		t.Errorf("%d accesses prove too much: %+v", trace.Coverage.Accesses, trace.Coverage)
	}
}

// TestStall reads pressure as the kernel writes it.
func TestStall(t *testing.T) {
	dir := t.TempDir()
	const text = "some avg10=1.20 avg60=0.00 avg300=0.00 total=4521\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=17\n"
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "cpu.pressure"), []byte(text), 0o600))
	if got := stall(dir, "cpu.pressure"); got == nil || *got != (pilot.Stall{SomeUS: 4521, FullUS: 17}) {
		t.Errorf("got %+v", got)
	}
	if got := stall(dir, "io.pressure"); got != nil {
		t.Errorf("without the file: got %+v", got)
	}
}

package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envWriter); dir != "" {
		if callers, err := strconv.Atoi(os.Getenv(envCallers)); err == nil {
			os.Exit(recordUntilKilled(dir, callers))
		}
		os.Exit(writeUntilKilled(dir))
	}
	goleak.VerifyTestMain(m)
}

var at = time.Date(2026, 11, 21, 9, 30, 0, 123456000, time.UTC)

func clock() time.Time { return at }

// sample is what a gate writes for a granted request with a credential.
func sample() *authz.Record {
	return &authz.Record{
		Time: at, Kind: authz.KindDecision,
		Plugin: "weather", Door: authz.DoorProxy, Decision: "0193f6c2-7c1e-7000-8000-0123456789ab",
		Allowed: true, Reason: "granted", Grant: "weather", Rule: "read-forecast", Generation: 3,
		Method: "GET", Scheme: "https", Host: "api.weather.example", Port: 443,
		Path: "/v1/forecast/berlin", Query: "units=metric", Pattern: "/v1/forecast/*",
		Credential: "weather-key", Lease: "database/creds/ro/abc", PID: 4711, UID: 1001,
		Exe: "/usr/bin/curl", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
}

// folder is a state directory with its log.
type folder struct {
	t   testing.TB
	dir string
}

func newFolder(t testing.TB) folder { return folder{t, t.TempDir()} }

func (f folder) file() string { return filepath.Join(f.dir, "audit.jsonl") }

func (f folder) config() audit.Config { return audit.Config{StateDir: f.dir, Now: clock} }

func (f folder) open(cfg audit.Config) *audit.Log {
	f.t.Helper()
	log, err := audit.Open(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { log.Close() })
	return log
}

// write opens the log, records n samples and closes it.
func (f folder) write(cfg audit.Config, n int) {
	f.t.Helper()
	log := f.open(cfg)
	record(f.t, log, n)
	if err := log.Close(); err != nil {
		f.t.Fatal(err)
	}
}

func record(t testing.TB, log *audit.Log, n int) {
	t.Helper()
	for range n {
		if err := log.Record(sample()); err != nil {
			t.Fatal(err)
		}
	}
}

func (f folder) verify() audit.Report {
	f.t.Helper()
	report, err := audit.Verify(audit.VerifyConfig{File: f.file(), StateDir: f.dir})
	if err != nil {
		f.t.Fatal(err)
	}
	return report
}

// proved fails the test unless the log has records first to last and is proved.
func (f folder) proved(first, last uint64) audit.Report {
	f.t.Helper()
	report := f.verify()
	if report.Problem != nil {
		f.t.Errorf("problem: %v", report.Problem)
	}
	if report.First != first || report.Last != last {
		f.t.Errorf("records %d to %d, want %d to %d", report.First, report.Last, first, last)
	}
	return report
}

// disproved fails the test unless verify finds what is wrong, and names it.
func (f folder) disproved(want string) {
	f.t.Helper()
	report := f.verify()
	if report.Problem == nil {
		f.t.Errorf("no problem, want %q; notes %q", want, report.Notes)
	} else if !strings.Contains(report.Problem.String(), want) {
		f.t.Errorf("problem: %v, want %q", report.Problem, want)
	}
}

func (f folder) read() []byte {
	f.t.Helper()
	data, err := os.ReadFile(f.file())
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

func (f folder) put(data []byte) {
	f.t.Helper()
	if err := os.WriteFile(f.file(), data, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f folder) lines() []string { return strings.SplitAfter(string(f.read()), "\n") }

func (f folder) entries(q audit.Query) []audit.Entry {
	f.t.Helper()
	q.File = f.file()
	var all []audit.Entry
	for entry, err := range audit.Read(f.t.Context(), q) {
		if err != nil {
			f.t.Fatal(err)
		}
		all = append(all, entry)
	}
	return all
}

// rotated returns the names of the log's files.
func (f folder) names() []string {
	f.t.Helper()
	names, err := filepath.Glob(f.file() + "*")
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	slices.Sort(names)
	return names
}

func TestRecordIsReadBack(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.FullPaths = func() bool { return true }
	log := f.open(cfg)
	end := sample()
	end.Kind, end.Allowed, end.Reason = authz.KindEnd, false, "upstream_timeout"
	end.Address, end.Bytes, end.Latency, end.Detail = "192.0.2.7:443", 0, 1500*time.Microsecond, "no answer"
	reload := &authz.Record{
		Time: at, Kind: authz.KindReload, Plugin: "weather", Allowed: true, UID: -1, Actor: "uid:0/root",
		Files: map[string]string{"b.yaml": "bb", "a.yaml": "aa"}, Count: 1, Lost: 2,
	}
	for _, r := range []*authz.Record{sample(), end, reload, {Time: at, Kind: authz.KindProcess, Count: 3, PID: 1}} {
		if err := log.Record(r); err != nil {
			t.Fatal(err)
		}
	}
	yes, no, uid, root := true, false, 1001, 0
	base := audit.Entry{
		Time: at, Format: audit.FormatReplayable, Kind: "decision", Plugin: "weather", Door: "proxy", Decision: "0193f6c2-7c1e-7000-8000-0123456789ab",
		Allowed: &yes, Reason: "granted", Grant: "weather", Rule: "read-forecast", Generation: 3, Method: "GET",
		Scheme: "https", Host: "api.weather.example", Port: 443, Path: "/v1/forecast/berlin", Query: "units=metric",
		Credential: "weather-key", PID: 4711, UID: &uid, Exe: "/usr/bin/curl", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
	ended := base
	ended.Kind, ended.Format, ended.Allowed, ended.Reason = "end", 0, &no, "upstream_timeout"
	ended.Address, ended.LatencyUS, ended.Detail = "192.0.2.7:443", 1500, "no answer"
	want := []audit.Entry{
		base, ended,
		{Time: at, Kind: "reload", Plugin: "weather", Actor: "uid:0/root", Lost: 2, Files: map[string]string{"a.yaml": "aa", "b.yaml": "bb"}},
		{Time: at, Kind: "process", Count: 3, PID: 1, UID: &root},
	}
	got := f.entries(audit.Query{})
	prev := strings.Repeat("A", 43)
	for i := range got {
		if got[i].Seq != uint64(i+1) || got[i].Prev != prev || got[i].Lease == "database/creds/ro/abc" {
			t.Errorf("record %d: seq %d, prev %s, lease %s", i+1, got[i].Seq, got[i].Prev, got[i].Lease)
		}
		prev = got[i].Hash
		got[i].Seq, got[i].Prev, got[i].Hash, got[i].Lease, got[i].Raw = 0, "", "", "", nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got)\n%s", diff)
	}
	if line := f.lines()[1]; !strings.Contains(line, `"allowed":false`) || !strings.Contains(line, `"bytes":0,"latency_us":1500`) {
		t.Errorf("end record lacks what may be 0: %s", line)
	}
	if line := f.lines()[2]; strings.Contains(line, "allowed") || strings.Contains(line, "uid\":-1") || strings.Contains(line, "count") {
		t.Errorf("reload record has empty fields: %s", line)
	}
	f.proved(1, 4)
}

// Files may only be read by their owner: they name hosts and paths.
func TestModes(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 1)
	for _, name := range []string{"audit.jsonl", "audit.key", "audit.head"} {
		info, err := os.Stat(filepath.Join(f.dir, name))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want 0600", name, info.Mode(), err)
		}
	}
	if names, err := os.ReadDir(f.dir); err != nil || len(names) != 3 {
		t.Errorf("files = %v, %v, want no other", names, err)
	}
}

func TestRestartContinues(t *testing.T) {
	f := newFolder(t)
	for range 3 {
		f.write(f.config(), 2)
	}
	f.proved(1, 6)
	if n := len(f.lines()) - 1; n != 6 {
		t.Errorf("%d lines, want 6: a restart adds none of its own", n)
	}
}

func TestOneWriter(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	if _, err := audit.Open(f.config()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second Open = %v, want in use", err)
	}
	other := newFolder(t)
	cfg := other.config()
	cfg.File = f.file()
	if _, err := audit.Open(cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Open of the same file = %v, want in use", err)
	}
	record(t, log, 1)
	f.proved(1, 1)
}

func TestClosed(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	for range 2 {
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Record(sample()); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Record = %v, want ErrClosed", err)
	}
	if err := log.Healthy(); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Healthy = %v, want ErrClosed", err)
	}
	f.proved(0, 0)
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(f folder) error
		want    string
	}{
		{"key is missing", func(f folder) error { return os.Remove(filepath.Join(f.dir, "audit.key")) }, "audit.key is missing"},
		{"key is readable", func(f folder) error { return os.Chmod(filepath.Join(f.dir, "audit.key"), 0o640) }, "make it 0600"},
		{"key is short", func(f folder) error { return os.WriteFile(filepath.Join(f.dir, "audit.key"), []byte("abcd"), 0o600) }, "not 32 bytes"},
		{"key is a link", func(f folder) error {
			path := filepath.Join(f.dir, "audit.key")
			return errors.Join(os.Rename(path, path+"2"), os.Symlink(path+"2", path))
		}, "open audit key"},
		{"file is a folder", func(f folder) error { return errors.Join(os.Remove(f.file()), os.Mkdir(f.file(), 0o700)) }, "is a directory"},
		{"file is a link", func(f folder) error {
			return errors.Join(os.Rename(f.file(), f.file()+"2"), os.Symlink(f.file()+"2", f.file()))
		}, "symbolic link"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			f.write(f.config(), 1)
			if err := test.prepare(f); err != nil {
				t.Fatal(err)
			}
			if log, err := audit.Open(f.config()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Open = %v, want %q", err, test.want)
				log.Close()
			}
		})
	}
	for name, cfg := range map[string]audit.Config{
		"no state directory":      {},
		"missing state directory": {StateDir: "/nonexistent"},
		"device":                  {StateDir: t.TempDir(), File: "/dev/full"},
		"negative size":           {StateDir: t.TempDir(), MaxSize: -1},
	} {
		if _, err := audit.Open(cfg); err == nil {
			t.Errorf("%s: Open = nil, want an error", name)
		}
	}
}

// A key that lies there without a log may be what is left of a removed one.
func TestBeginAnewIsTold(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 3)
	if err := errors.Join(os.Remove(f.file()), os.Remove(filepath.Join(f.dir, "audit.head"))); err != nil {
		t.Fatal(err)
	}
	f.write(f.config(), 1)
	f.disproved("the log begins again with the key of an earlier one")
}

func TestKeyDoesNotPrint(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 1)
	key, err := audit.LoadKey(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(f.dir, "audit.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, value := range []any{key, &key, struct{ K audit.Key }{key}} {
			if leaks(format, value, text) {
				t.Errorf("%s prints the key", format)
			}
		}
	}
}

func TestObserve(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	var mu sync.Mutex
	seen := 0
	cfg.Observe = func(r *authz.Record) {
		mu.Lock()
		defer mu.Unlock()
		if r.Plugin == "weather" {
			seen++
		}
	}
	log := f.open(cfg)
	record(t, log, 2)
	log.Close()
	if err := log.Record(sample()); err == nil || seen != 2 {
		t.Errorf("observed %d, want 2 and not what was refused (%v)", seen, err)
	}
}

// Records that are written together are written in their order, and each is
// observed.
func TestRecordAll(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	seen := ""
	cfg.Observe = func(r *authz.Record) { seen += r.Plugin + " " }
	log := f.open(cfg)
	var records []*authz.Record
	for _, plugin := range []string{"a", "b", "c"} {
		r := sample()
		r.Plugin = plugin
		records = append(records, r)
	}
	for _, some := range [][]*authz.Record{nil, records, records[:1], records[1:]} {
		if err := log.RecordAll(some); err != nil {
			t.Fatal(err)
		}
	}
	got := ""
	for _, entry := range f.entries(audit.Query{}) {
		got += entry.Plugin + " "
	}
	if want := "a b c a b c "; got != want || seen != want {
		t.Errorf("wrote %q and observed %q, want %q", got, seen, want)
	}
	f.proved(1, 6)
	log.Close()
	if err := log.RecordAll(records); err == nil {
		t.Error("a closed log takes records")
	}
}

// Many doors write while the log is rotated, read and verified.
func TestConcurrent(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.MaxSize, cfg.Keep = 4<<10, -1
	log := f.open(cfg)
	var writers, readers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			record(t, log, 50)
			for range 25 {
				if err := log.RecordAll(samples(2)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for range 6 {
				if report := f.verify(); report.Problem != nil {
					t.Errorf("problem: %v", report.Problem)
					return
				}
				last := uint64(0)
				for _, entry := range f.entries(audit.Query{}) {
					if entry.Kind != "" && entry.Seq != last+1 {
						t.Errorf("read record %d after %d", entry.Seq, last)
						return
					}
					last = entry.Seq
				}
			}
		})
	}
	writers.Wait()
	readers.Wait()
	report := f.proved(1, log.Records())
	if log.Records() < 400 || len(report.Files) < 10 {
		t.Errorf("%d records in %d files", log.Records(), len(report.Files))
	}
	if err := log.Healthy(); err != nil {
		t.Error(err)
	}
}

// The hash can be checked with nothing but the key and HMAC.
func TestHashIsHMACOfTheLine(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 2)
	key, err := os.ReadFile(filepath.Join(f.dir, "audit.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range f.lines()[:2] {
		body, hash, _ := strings.Cut(strings.TrimSuffix(line, "\"}\n"), `,"hash":"`)
		if want := hmacOf(t, bytes.TrimSpace(key), body); hash != want {
			t.Errorf("hash = %s, want %s", hash, want)
		}
	}
}

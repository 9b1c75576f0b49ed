package audit_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// A writer that is killed at any instant leaves a log that is proved, with
// every record that Record returned for.
func TestKilledWriter(t *testing.T) {
	f := newFolder(t)
	for round := range 12 {
		last := killWriter(t, f.dir, 1+round*37)
		report := f.verify()
		if report.Problem != nil {
			t.Fatalf("round %d: problem: %v", round, report.Problem)
		}
		if report.Last < last || last == 0 {
			t.Fatalf("round %d: last record is %d, and %d was acknowledged", round, report.Last, last)
		}
	}
	f.write(f.config(), 1)
	report := f.verify()
	if report.Problem != nil || len(report.Files) < 2 {
		t.Errorf("report: %+v", report)
	}
}

// tornFolder has a log with n records, and behind them what a crash left of
// another one: its first size bytes.
func tornFolder(t *testing.T, n, size int) (f folder, whole int) {
	t.Helper()
	f = newFolder(t)
	f.write(f.config(), n)
	head := filepath.Join(f.dir, "audit.head")
	before, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	good := len(f.read())
	f.write(f.config(), 1)
	if err := os.WriteFile(head, before, 0o600); err != nil {
		t.Fatal(err)
	}
	whole = len(f.read()) - good
	f.put(f.read()[:good+min(size, whole)])
	return f, whole
}

func TestTornRecord(t *testing.T) {
	_, whole := tornFolder(t, 1, 0)
	sizes := []int{1, 2, 7, 8, 9, 40, 60, 70, 200, whole - 60, whole - 3, whole - 2}
	for _, n := range []int{0, 3} {
		for _, size := range sizes {
			f, _ := tornFolder(t, n, size)
			report := f.proved(min(1, uint64(n)), uint64(n))
			if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], fmt.Sprintf("%d bytes at the end", size)) {
				t.Errorf("%d bytes torn: notes %q", size, report.Notes)
			}
			torn := string(f.read())
			// Opened twice: the second finds it explained.
			f.write(f.config(), 0)
			f.write(f.config(), 1)
			if !strings.HasPrefix(string(f.read()), torn+"\n") {
				t.Errorf("%d bytes torn: they are not kept", size)
			}
			report = f.proved(1, uint64(n+2))
			if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], fmt.Sprintf("%d bytes are a record", size)) {
				t.Errorf("%d bytes torn: notes %q", size, report.Notes)
			}
			entry := f.entries(audit.Query{Filter: audit.Filter{Kind: "lost"}})
			if len(entry) != 1 || entry[0].TornBytes != int64(size) || entry[0].Unproved {
				t.Errorf("%d bytes torn: %+v", size, entry)
			}
		}
	}
}

// TestTornRecordCannotBeEdited: the record of the damage authenticates the torn bytes.
func TestTornRecordCannotBeEdited(t *testing.T) {
	f, _ := tornFolder(t, 2, 100)
	f.write(f.config(), 1)
	lines := f.lines()
	for _, edited := range []string{"", "x", lines[2][:50], "\n", strings.Replace(lines[2], "s", "t", 1), lines[2] + lines[2]} {
		f.put([]byte(lines[0] + lines[1] + edited + strings.Join(lines[3:], "")))
		f.disproved("record")
	}
	f.put([]byte(lines[0] + lines[1] + strings.Join(lines[3:], "")))
	f.disproved("the torn bytes that it explains are gone")
}

// Killed between the record and its newline, or between the record and the
// head, a record is whole.
func TestRecordAheadOfHead(t *testing.T) {
	_, whole := tornFolder(t, 1, 0)
	for _, size := range []int{whole - 1, whole} {
		f, _ := tornFolder(t, 3, size)
		if report := f.proved(1, 4); len(report.Notes) != 0 {
			t.Errorf("notes %q", report.Notes)
		}
		f.write(f.config(), 1)
		f.proved(1, 5)
	}
}

// TestLossIsNotMended: a record that the head names and the file lacks stays reported.
func TestLossIsNotMended(t *testing.T) {
	tests := []struct {
		name   string
		damage func(f folder) error
		want   string
		last   uint64
	}{
		{"cut", func(f folder) error { return os.Truncate(f.file(), int64(len(f.lines()[0]))) }, "records 2 to 5 are missing", 7},
		{"cut in a record", func(f folder) error { return os.Truncate(f.file(), int64(len(f.lines()[0])+100)) }, "record 2: it is not a record", 7},
		{"emptied", func(f folder) error { return os.Truncate(f.file(), 0) }, "records 1 to 5 are missing", 8},
		{"removed", func(f folder) error { return os.Remove(f.file()) }, "records 1 to 5 are missing", 8},
		{"replaced", func(f folder) error {
			return os.WriteFile(f.file(), []byte(strings.Repeat("x", len(f.read())-1)+"\n"), 0o600)
		}, "record 1: it is not a record", 7},
		{"last record edited", func(f folder) error {
			lines := f.lines()
			lines[4] = strings.Replace(lines[4], "granted", "grinted", 1)
			f.put([]byte(strings.Join(lines, "")))
			return nil
		}, "record 5: its contents", 6},
		{"last record exchanged", func(f folder) error {
			lines := f.lines()
			lines[4] = strings.Replace(lines[3], `"seq":4`, `"seq":5`, 1)
			f.put([]byte(strings.Join(lines, "")))
			return nil
		}, "record 5: its contents", 7},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			f.write(f.config(), 5)
			if err := test.damage(f); err != nil {
				t.Fatal(err)
			}
			f.write(f.config(), 1)
			f.disproved(test.want)
			if report := f.verify(); report.Last != test.last {
				t.Errorf("last record %d, want %d", report.Last, test.last)
			}
		})
	}
}

func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 1 << 16; size > 0; {
		if _, err := file.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// A full disk refuses records, and loses nothing: what was refused is counted,
// what was half written is explained, and the chain goes on.
func TestFullDisk(t *testing.T) {
	for _, where := range []string{"log", "all"} {
		t.Run(where, func(t *testing.T) {
			f := newFolder(t)
			disk := tinyDisk(t, "256k")
			cfg := f.config()
			if where == "all" {
				cfg.StateDir = disk
			}
			cfg.File = filepath.Join(disk, "audit.jsonl")
			log := f.open(cfg)
			record(t, log, 3)
			ballast := filepath.Join(disk, "ballast")
			fill(t, ballast)
			refused := 0
			var err error
			for written := 0; refused < 5; {
				if err = log.Record(sample()); err != nil {
					refused++
				} else if written++; written > 100 {
					t.Fatal("the disk does not fill up")
				}
			}
			if !strings.Contains(err.Error(), "no space left") || log.Healthy() == nil || log.Status().Error == nil || log.Status().Refused < 5 {
				t.Errorf("Record = %v, Healthy = %v, status %+v", err, log.Healthy(), log.Status())
			}
			verify := audit.VerifyConfig{File: cfg.File, StateDir: cfg.StateDir}
			report, err := audit.Verify(verify)
			if err != nil || report.Problem != nil {
				t.Errorf("on the full disk: %+v, %v", report, err)
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			if err := log.Healthy(); err != nil {
				t.Errorf("Healthy with space = %v", err)
			}
			record(t, log, 2)
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			report, err = audit.Verify(verify)
			if err != nil || report.Problem != nil {
				t.Errorf("at the end: %v, %v", report.Problem, err)
			}
			var lost []audit.Entry
			for entry, err := range audit.Read(t.Context(), audit.Query{File: cfg.File, Filter: audit.Filter{Kind: "lost"}}) {
				if err != nil {
					t.Fatal(err)
				}
				lost = append(lost, entry)
			}
			if len(lost) != 1 || lost[0].Lost != uint64(refused) || lost[0].TornBytes == 0 || !strings.Contains(lost[0].Detail, "no space left") {
				t.Errorf("%d refused, lost %+v", refused, lost)
			}
		})
	}
}

// A process that is killed on a full disk, with half a record written, goes on.
func TestRestartOnFullDisk(t *testing.T) {
	f := newFolder(t)
	disk := tinyDisk(t, "256k")
	cfg := f.config()
	cfg.File = filepath.Join(disk, "audit.jsonl")
	log := f.open(cfg)
	record(t, log, 3)
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	for log.Record(sample()) == nil {
	}
	if err := log.Close(); err == nil {
		t.Error("Close = nil, want what could not be written")
	}
	log = f.open(cfg)
	if log.Healthy() == nil || log.Record(sample()) == nil {
		t.Error("a full disk is healthy")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	record(t, log, 1)
	report, err := audit.Verify(audit.VerifyConfig{File: cfg.File, StateDir: cfg.StateDir})
	if err != nil || report.Problem != nil || len(report.Notes) != 1 {
		t.Errorf("report %+v, %v", report, err)
	}
}

// TestFileTakenAway moves, removes or truncates the file while it is written: the log
// notices within a second, continues in its place and records it.
func TestFileTakenAway(t *testing.T) {
	tests := []struct {
		name, want string
		take       func(f folder) error
		problem    string
	}{
		{"moved", "moved or removed", func(f folder) error { return os.Rename(f.file(), filepath.Join(f.dir, "elsewhere")) }, "records 1 to 2 are missing"},
		{"removed", "moved or removed", func(f folder) error { return os.Remove(f.file()) }, "records 1 to 2 are missing"},
		{"cut", "0 bytes where", func(f folder) error { return os.Truncate(f.file(), 0) }, "records 1 to 2 are missing"},
		{"added to", "bytes where", func(f folder) error { return errors.Join(os.WriteFile(f.file(), append(f.read(), "x\n"...), 0o600)) }, "record 3: it is not a record"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			log := f.open(f.config())
			record(t, log, 2)
			if err := test.take(f); err != nil {
				t.Fatal(err)
			}
			later := sample()
			later.Time = at.Add(2 * time.Second)
			for range 2 {
				if err := log.Record(later); err != nil {
					t.Fatal(err)
				}
			}
			lost := f.entries(audit.Query{Filter: audit.Filter{Kind: "lost"}})
			if len(lost) != 1 || !strings.Contains(lost[0].Detail, test.want) {
				t.Errorf("lost %+v", lost)
			}
			f.disproved(test.problem)
		})
	}
}

// envShort is set in the process that limits its files.
const envShort = "AUDIT_TEST_SHORT"

// limitFiles lets no file of this process grow beyond size bytes, until the
// function it returns is called.
func limitFiles(t *testing.T, size int64) (lift func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(size), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		signal.Reset(syscall.SIGXFSZ)
	}
}

// A write may end after any byte, once or again and again, and the process may
// be killed at that: nothing is lost, and the log is proved.
func TestShortWrites(t *testing.T) {
	if os.Getenv(envShort) == "" {
		// In a process of its own: the limit is for all files of a process, and
		// go test has one open.
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestShortWrites$")
		command.Env = append(os.Environ(), envShort+"=1")
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	for _, together := range []int{1, 3} {
		f := newFolder(t)
		log := f.open(f.config())
		if err := log.RecordAll(samples(together)); err != nil {
			t.Fatal(err)
		}
		length := int64(len(f.read()))
		for _, restart := range []bool{false, true} {
			for room := int64(0); room <= length+2; room++ {
				if near := room % (length / int64(together)); near > 3 && near < length/int64(together)-3 && room%29 != 0 {
					continue
				}
				shortWrites(t, together, room, restart)
			}
		}
	}
}

// samples returns n records to be written together.
func samples(n int) []*authz.Record {
	return slices.Repeat([]*authz.Record{sample()}, n)
}

// shortWrites writes records into a file that may grow by so many bytes, and
// then by some more, a few times.
func shortWrites(t *testing.T, together int, room int64, restart bool) {
	t.Helper()
	f := newFolder(t)
	log := f.open(f.config())
	record(t, log, 1)
	limit, acknowledged := int64(len(f.read())), 2
	for _, more := range []int64{room, 1, 0, 5, 1} {
		limit += more
		lift := limitFiles(t, limit)
		err := log.RecordAll(samples(together))
		lift()
		if err == nil {
			acknowledged += together
		}
		if report := f.verify(); report.Problem != nil {
			t.Fatalf("room for %d and more: %v", room, report.Problem)
		}
		if restart {
			// Not closed: its locks are all that ends with it.
			abandon(t, f, log)
			log = f.open(f.config())
		}
	}
	record(t, log, 1)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if report := f.verify(); report.Problem != nil {
		t.Fatalf("room for %d: %v", room, report.Problem)
	}
	told, written := 0, 0
	for _, entry := range f.entries(audit.Query{}) {
		if told += int(entry.Lost); entry.Kind == "decision" {
			written++
		}
	}
	if total := 2 + 5*together; written < acknowledged || together == 1 && written != acknowledged || !restart && written+told != total {
		t.Errorf("%d together, room for %d: %d of %d written, %d acknowledged, %d reported", together, room, written, total, acknowledged, told)
	}
}

// abandon makes the log lose its files as a killed process does: what it has
// to say is not written.
func abandon(t *testing.T, f folder, log *audit.Log) {
	t.Helper()
	info, err := os.Stat(f.file())
	if err != nil {
		t.Fatal(err)
	}
	lift := limitFiles(t, min(info.Size(), 1)) // the head need not grow
	defer lift()
	_ = log.Close() // the last notes cannot be written
}

// A head that is cut short under an open log is an error of the record that
// meets it, and not the end of the process.
func TestHeadIsCutShort(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	for range 3 {
		if err := log.Record(sample()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(f.dir, "audit.head"), 0); err != nil {
		t.Fatal(err)
	}
	if err := log.Record(sample()); err == nil {
		t.Fatal("recorded without a head")
	}
	for range 2 {
		if err := log.Record(sample()); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	f.proved(1, 7) // the refused one was written, and a note recorded the refusal
}

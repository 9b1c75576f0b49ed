package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/audit"
)

func rotating(f folder, keep int) audit.Config {
	cfg := f.config()
	cfg.MaxSize, cfg.Keep = (4<<10)*4/3, keep
	return cfg
}

func TestRotation(t *testing.T) {
	f := newFolder(t)
	f.write(rotating(f, -1), 40)
	report := f.proved(1, f.verify().Last)
	if len(report.Files) < 5 || report.Removed != 0 {
		t.Fatalf("report %+v", report)
	}
	for _, path := range report.Files {
		info, err := os.Stat(path)
		if err != nil || info.Size() > 4<<10 || info.Mode() != 0o600 {
			t.Errorf("%s: %d bytes, %v", path, info.Size(), err)
		}
	}
	rotations := f.entries(audit.Query{Filter: audit.Filter{Kind: "rotation"}})
	if len(rotations) != len(report.Files)-1 || rotations[0].First != 1 {
		t.Errorf("%d rotations of %d files: %+v", len(rotations), len(report.Files), rotations)
	}
	if n := len(f.entries(audit.Query{})); uint64(n) != report.Records || report.Records != report.Last {
		t.Errorf("%d records read, %d verified, the last is %d", n, report.Records, report.Last)
	}
}

// TestKeep distinguishes files that the limit removed from files that somebody else
// removed.
func TestKeep(t *testing.T) {
	f := newFolder(t)
	f.write(rotating(f, 3), 60)
	report := f.verify()
	if report.Problem != nil || len(report.Files) != 4 || report.First == 1 || report.Removed != report.First-1 || report.Last-report.First+1 != report.Records {
		t.Fatalf("report %+v", report)
	}
	for _, gone := range []int{0, 1, 2} {
		path := report.Files[gone]
		if err := os.Rename(path, filepath.Join(f.dir, "kept")); err != nil {
			t.Fatal(err)
		}
		f.disproved("are missing before it")
		if err := os.Rename(filepath.Join(f.dir, "kept"), path); err != nil {
			t.Fatal(err)
		}
	}
	f.proved(report.First, report.Last)

	// A missing file stays missing when the log is rotated on, until it would
	// have been removed anyway.
	if err := os.Remove(report.Files[2]); err != nil {
		t.Fatal(err)
	}
	f.write(rotating(f, 3), 8)
	f.disproved("are missing before it")
	f.write(rotating(f, 3), 60)
	if report := f.verify(); report.Problem != nil {
		t.Errorf("problem: %v", report.Problem)
	}
}

// A crash at any step of a rotation leaves what the next start goes on from.
func TestCrashInRotation(t *testing.T) {
	tests := []struct {
		name  string
		crash func(f folder) error
	}{
		{"next was made", func(f folder) error { return os.WriteFile(f.file()+".next", nil, 0o600) }},
		{"the old file was moved", func(f folder) error {
			return errors.Join(os.WriteFile(f.file()+".next", nil, 0o600), os.Rename(f.file(), f.file()+".000000000001"))
		}},
		{"the new file is in its place", func(f folder) error {
			return errors.Join(os.Rename(f.file(), f.file()+".000000000001"), os.WriteFile(f.file(), nil, 0o600))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			f.write(rotating(f, 5), 3)
			if err := test.crash(f); err != nil {
				t.Fatal(err)
			}
			f.proved(1, 3)
			f.write(rotating(f, 5), 12)
			report := f.verify()
			if report.Problem != nil || report.First != 1 || len(report.Notes) != 0 {
				t.Errorf("report %+v", report)
			}
		})
	}
}

// The old file of an interrupted rotation may end in a torn record.
func TestCrashInRotationWithTornRecord(t *testing.T) {
	f, _ := tornFolder(t, 3, 100)
	if err := os.Rename(f.file(), f.file()+".000000000001"); err != nil {
		t.Fatal(err)
	}
	f.write(rotating(f, 5), 2)
	report := f.proved(1, 7)
	if len(report.Notes) != 1 {
		t.Errorf("notes %q", report.Notes)
	}
}

// TestRotationFails: a log that cannot be rotated continues, and records it.
func TestRotationFails(t *testing.T) {
	f := newFolder(t)
	if err := os.WriteFile(f.file()+".next", []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := f.open(rotating(f, 5))
	record(t, log, 30)
	if err := log.Healthy(); err != nil {
		t.Errorf("Healthy = %v: records are written", err)
	}
	if status := log.Status(); status.Warning == nil || !strings.Contains(status.Warning.Error(), "is not empty") || status.Size < 8<<10 {
		t.Errorf("status %+v", status)
	}
	f.proved(1, 30)
	if err := os.Remove(f.file() + ".next"); err != nil {
		t.Fatal(err)
	}
	record(t, log, 5)
	if status := log.Status(); status.Warning != nil || len(f.names()) != 2 {
		t.Errorf("status %+v, files %q", status, f.names())
	}
}

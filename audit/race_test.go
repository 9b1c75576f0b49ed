package audit

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// rotatingLog returns a log that holds one record a file.
func rotatingLog(t *testing.T) (*Log, string) {
	t.Helper()
	dir := t.TempDir()
	log, err := Open(Config{StateDir: dir, MaxSize: 1, Keep: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log, filepath.Join(dir, DefaultFile)
}

func recordOne(t *testing.T, log *Log) {
	t.Helper()
	if err := log.Record(&authz.Record{Time: time.Unix(1, 0), Kind: authz.KindLimit}); err != nil {
		t.Fatal(err)
	}
}

// The current file is rotated, twice, between its listing and its opening.
func TestVerifyMeetsRotation(t *testing.T) {
	log, file := rotatingLog(t)
	recordOne(t, log)
	files, err := listFiles(file)
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	recordOne(t, log)
	recordOne(t, log)
	v := verifier{file: file, done: map[uint64]bool{}, lines: newLines(nil)}
	v.tail.hash = genesis()
	if again, err := v.walkFile(files[0]); !again || err != nil {
		t.Errorf("walkFile = %v, %v, want it to see that older files come first", again, err)
	}
	if err := v.walk(); err != nil {
		t.Fatal(err)
	}
	v.conclude()
	if v.report.Problem != nil || v.report.First != 1 || v.report.Last != log.tail.seq {
		t.Errorf("report %+v", v.report)
	}
}

// A file grows and is rotated between its end being read and its place being
// looked at.
func TestReadMeetsRotation(t *testing.T) {
	log, file := rotatingLog(t)
	log.rotateAt = 1 << 20
	recordOne(t, log)
	var got []uint64
	r := reader{query: Query{File: file, Follow: true}, lines: newLines(nil), yield: func(e Entry, err error) bool {
		got = append(got, e.Seq)
		return err == nil
	}}
	if err := r.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { r.file.Close() }()
	step := func() {
		t.Helper()
		if err := r.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	step()
	recordOne(t, log) // 2, into the same file
	log.rotateAt = 1
	recordOne(t, log) // 3 and 4, a rotation
	recordOne(t, log) // 5 and 6
	for {
		moved, err := r.advance(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !moved {
			break
		}
		step()
	}
	for i, seq := range got {
		if seq != uint64(i+1) {
			t.Fatalf("read %v", got)
		}
	}
	if uint64(len(got)) != log.tail.seq || len(got) != 6 {
		t.Errorf("read %v of %d", got, log.tail.seq)
	}
}

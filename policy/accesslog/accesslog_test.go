package accesslog_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
)

var begin = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// writeLog writes a log of n granted accesses, each with its end, and a refusal behind
// each tenth, and returns the path of its current file.
func writeLog(t *testing.T, dir string, n int, maxSize int64) string {
	t.Helper()
	now := begin
	log, err := audit.Open(audit.Config{StateDir: dir, MaxSize: maxSize, Keep: -1, FullPaths: func() bool { return true }, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		now = begin.Add(time.Duration(i) * time.Second)
		r := sample(i)
		r.Time = now
		refusal := sample(i)
		refusal.Time, refusal.Decision, refusal.Allowed, refusal.Reason = now, fmt.Sprintf("refused-%d", i), false, "path_not_granted"
		end := r
		end.Kind, end.Bytes, end.Address = authz.KindEnd, 10, "192.0.2.1:443"
		records := []*authz.Record{&r, &end}
		if i%10 == 9 {
			records = append(records, &refusal)
		}
		for _, r := range records {
			if err := log.Record(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, audit.DefaultFile)
}

func sample(i int) authz.Record {
	return authz.Record{
		Kind: authz.KindDecision, Plugin: "weather", Door: authz.DoorProxy, Decision: fmt.Sprintf("id-%d", i), Allowed: true, Reason: "granted",
		Grant: "weather", Rule: "read", Generation: 1, Method: "GET", Scheme: "https", Host: "api.weather.example", Port: 443,
		Path: fmt.Sprintf("/v1/forecast/%d", i), Pattern: "/v1/forecast/*", UID: -1, Latency: time.Millisecond,
	}
}

// read returns all accesses of paths.
func read(t *testing.T, o accesslog.Options) ([]accesslog.Access, error) {
	t.Helper()
	r, err := accesslog.Open(o)
	if err != nil {
		return nil, err
	}
	var all []accesslog.Access
	for a, err := range r.Accesses(context.Background()) {
		if err != nil {
			return all, err
		}
		all = append(all, *a)
	}
	return all, nil
}

// checkAll checks that the accesses are those that writeLog(n) wrote.
func checkAll(t *testing.T, all []accesslog.Access, n int) {
	t.Helper()
	granted, refused := 0, 0
	for _, a := range all {
		if !a.Allowed {
			refused++
			continue
		}
		if want := fmt.Sprintf("/v1/forecast/%d", granted); a.Path != want || a.Request.Destination.Path() != want {
			t.Fatalf("access %d: got path %q and request %q, want %q", granted, a.Path, a.Request.Destination.Path(), want)
		}
		if !a.Ended || a.Bytes != 10 {
			t.Errorf("access %d: got ended %v and %d bytes, want true and 10", granted, a.Ended, a.Bytes)
		}
		granted++
	}
	if granted != n || refused != n/10 {
		t.Errorf("got %d granted and %d refused accesses, want %d and %d", granted, refused, n, n/10)
	}
}

func TestReadWholeLog(t *testing.T) {
	const n = 500
	file := writeLog(t, t.TempDir(), n, 64<<10)
	rotated, _ := filepath.Glob(file + ".0*")
	if len(rotated) < 3 {
		t.Fatalf("got %d rotated files, want several", len(rotated))
	}
	for _, paths := range [][]string{{file}, {filepath.Dir(file)}, append(rotated, file), {file, filepath.Dir(file), file}} {
		all, err := read(t, accesslog.Options{Paths: paths})
		if err != nil {
			t.Fatalf("read %v: got %v, want no error", paths, err)
		}
		checkAll(t, all, n)
	}
}

func TestReadCompressed(t *testing.T) {
	const n = 500
	file := writeLog(t, t.TempDir(), n, 64<<10)
	rotated, _ := filepath.Glob(file + ".0*")
	for i, path := range rotated {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if i%2 == 0 {
			w := gzip.NewWriter(&out)
			_, _ = w.Write(data)
			_ = w.Close()
			path += ".gz"
		} else {
			w, _ := zstd.NewWriter(&out)
			_, _ = w.Write(data)
			_ = w.Close()
			path += ".zst"
		}
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(rotated[i]); err != nil {
			t.Fatal(err)
		}
	}
	all, err := read(t, accesslog.Options{Paths: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, all, n)
	compressed, _ := filepath.Glob(file + ".0*")
	if err := os.Remove(compressed[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, accesslog.Options{Paths: []string{file}}); err == nil || !strings.Contains(err.Error(), "are missing before it") {
		t.Errorf("without a file: got %v, want that records are missing", err)
	}
}

func TestReadStdin(t *testing.T) {
	data, err := os.ReadFile(writeLog(t, t.TempDir(), 50, 0))
	if err != nil {
		t.Fatal(err)
	}
	all, err := read(t, accesslog.Options{Paths: []string{"-"}, Stdin: bytes.NewReader(data)})
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, all, 50)
}

func TestReadWindow(t *testing.T) {
	file := writeLog(t, t.TempDir(), 100, 0)
	all, err := read(t, accesslog.Options{Paths: []string{file}, Since: begin.Add(20 * time.Second), Until: begin.Add(30 * time.Second), Plugin: "weather"})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 11 { // 10 and a refusal; a decision is a millisecond older than its record
		t.Errorf("got %d accesses, want 11", len(all))
	}
	if all, err = read(t, accesslog.Options{Paths: []string{file}, Plugin: "other"}); err != nil || len(all) != 0 {
		t.Errorf("got %d accesses of another plugin and %v, want none", len(all), err)
	}
}

func TestReadBadLines(t *testing.T) {
	dir := t.TempDir()
	data, err := os.ReadFile(writeLog(t, dir, 10, 0))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	join := func(parts ...[]string) string {
		var all []string
		for _, p := range parts {
			all = append(all, p...)
		}
		return strings.Join(all, "")
	}
	for name, test := range map[string]struct{ text, want string }{
		"foreign line":     {join(lines[:3], []string{"hello\n"}, lines[3:]), ":4: the line is not a record of an audit log"},
		"foreign JSON":     {join([]string{`{"level":"info","msg":"started"}` + "\n"}), ":1: the line is not a record of an audit log"},
		"foreign end":      {join(lines, []string{"hello\n"}), fmt.Sprintf(":%d: the line is not a record of an audit log", len(lines))},
		"removed record":   {join(lines[:3], lines[4:]), ":4: records 4 to 4 are missing before it"},
		"repeated record":  {join(lines[:3], lines[2:]), ":4: record 3 stands behind record 3"},
		"swapped records":  {join(lines[:2], lines[3:4], lines[2:3], lines[4:]), ":4: record 3 stands behind record 4"},
		"edited hash":      {join(lines[:2], []string{strings.Replace(lines[2], `"hash":"`, `"hash":"A`, 1)}, lines[3:]), ":4: record 4 does not name the record before it"},
		"cut last record":  {string(data[:len(data)-100]), ""},
		"no newline":       {string(data[:len(data)-1]), ""},
		"overlong line":    {strings.Repeat("x", 200<<10), ":1: the line is longer than a record can be"},
		"empty lines":      {join(lines[:3], []string{"\n\n"}, lines[3:]), ""},
		"too many of them": {join(lines[:3], []string{strings.Repeat("\n", 1000)}, lines[3:]), ":68: more than 64 lines in a row are empty"},
		"foreign file":     {strings.Repeat(strings.Repeat("x", 1000)+"\n", 1<<15), ":1: the line is not a record of an audit log"},
		"cut first record": {lines[0][:50], ":1: the line is not a record of an audit log"},
	} {
		path := filepath.Join(t.TempDir(), "copy.jsonl")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := read(t, accesslog.Options{Paths: []string{path}})
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: got %v, want no error", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), path+test.want)):
			t.Errorf("%s: got %v, want an error with %q", name, err, path+test.want)
		}
	}
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	file := writeLog(t, dir, 10, 0)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	edited := bytes.Replace(data, []byte("/v1/forecast/7"), []byte("/v1/forecast/8"), 1)
	if err := os.WriteFile(file, edited, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, accesslog.Options{Paths: []string{file}}); err == nil || !strings.Contains(err.Error(), file+":") {
		t.Errorf("got %v, want an error with the file and line", err)
	}
	if all, err := read(t, accesslog.Options{Paths: []string{file}, Unverified: true}); err != nil || len(all) != 11 {
		t.Errorf("got %d accesses and %v, want 11 without verification", len(all), err)
	}
}

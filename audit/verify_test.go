package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/audit"
)

func TestVerifyNamesTheFirstBadRecord(t *testing.T) {
	join := func(lines ...string) []byte { return []byte(strings.Join(lines, "")) }
	tests := []struct {
		name   string
		damage func(lines []string) []byte
		want   string
		links  string // the fault that is found without the key, or ""
	}{
		{"edit", func(l []string) []byte {
			l[2] = strings.Replace(l[2], "berlin", "london", 1)
			l[2] = strings.Replace(l[2], `"allowed":true`, `"allowed":false`, 1)
			return join(l...)
		}, "audit.jsonl:3: record 3: its contents", ""},
		{"edited hash", func(l []string) []byte {
			i := strings.Index(l[2], `,"hash":"`) + 9
			l[2] = l[2][:i] + strings.Repeat("A", 43) + l[2][i+43:]
			return join(l...)
		}, "record 3: its contents", "record 4: it does not name"},
		{"remove", func(l []string) []byte { return join(append(l[:2], l[3:]...)...) }, "audit.jsonl:3: record 4: record 3 is missing", "record 3 is missing"},
		{"remove first", func(l []string) []byte { return join(l[1:]...) }, "record 2: record 1 is missing", "record 1 is missing"},
		{"remove three", func(l []string) []byte { return join(append(l[:1], l[4:]...)...) }, "records 2 to 4 are missing", "records 2 to 4"},
		{"swap", func(l []string) []byte { l[1], l[2] = l[2], l[1]; return join(l...) }, "record 3: record 2 is missing before it", "record 2 is missing"},
		{"repeat", func(l []string) []byte { return join(l[0], l[1], l[1], l[2], l[3], l[4]) }, "record 2: it stands behind record 2", "stands behind"},
		{"cut at a record", func(l []string) []byte { return join(l[:4]...) }, "record 5 is missing at the end", ""},
		{"cut in a record", func(l []string) []byte { return join(append(l[:4], l[4][:40])...) }, "record 5 is missing at the end", ""},
		{"cut the last newline", func(l []string) []byte { return join(append(l[:4], l[4][:len(l[4])-1])...) }, "record 5: it does not end at byte", ""},
		{"cut all", func([]string) []byte { return nil }, "records 1 to 5 are missing", ""},
		{"garbage behind", func(l []string) []byte { return join(append(l, "x")...) }, "audit.jsonl:6: record 6: it is not a record", "not a record"},
		{"empty line", func(l []string) []byte { return join(l[0], "\n", l[1], l[2], l[3], l[4]) }, "audit.jsonl:2: record 2: it is not a record", "not a record"},
		{"forged behind", func(l []string) []byte { return join(append(l, strings.Replace(l[4], `"seq":5`, `"seq":6`, 1))...) }, "record 6: its contents", "does not name"},
		{"space", func(l []string) []byte { l[1] = " " + l[1]; return join(l...) }, "record 2: it is not a record", "not a record"},
		{"carriage returns", func(l []string) []byte { return bytes.ReplaceAll(join(l...), []byte("\n"), []byte("\r\n")) }, "record 1: it is not a record", "not a record"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			f.write(f.config(), 5)
			f.put(test.damage(f.lines()[:5]))
			f.disproved(test.want)
			report, err := audit.Verify(audit.VerifyConfig{File: f.file()})
			if err != nil || report.Keyed {
				t.Fatalf("Verify without the key: %+v, %v", report, err)
			}
			if found := fmt.Sprint(report.Problem); (test.links == "") != (report.Problem == nil) || !strings.Contains(found, test.links) {
				t.Errorf("without the key: %s, want %q", found, test.links)
			}
		})
	}
}

func TestVerifyWithoutKeySaysWhatItProves(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 2)
	report, err := audit.Verify(audit.VerifyConfig{File: f.file()})
	if err != nil || report.Problem != nil || report.Keyed || !strings.Contains(report.Proves(), "nor the end of the log") {
		t.Errorf("Verify = %+v, %v, proves %s", report, err, report.Proves())
	}
	if report := f.verify(); !strings.Contains(report.Proves(), "is missing at the end") {
		t.Errorf("proves %s", report.Proves())
	}
	f.put(bytes.Replace(f.read(), []byte("granted"), []byte("grinted"), 1))
	if report := f.verify(); !strings.HasPrefix(report.Proves(), "no record from 1 on") {
		t.Errorf("proves %s", report.Proves())
	}
}

func TestVerifyHead(t *testing.T) {
	tests := []struct {
		name   string
		damage func(path string) error
		want   string
	}{
		{"missing", os.Remove, "audit.head is missing"},
		{"empty", func(path string) error { return os.Truncate(path, 0) }, "audit.head is missing"},
		{"overwritten", func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), 512), 0o600) }, "not written with this key"},
		{"of another log", func(path string) error {
			other := t.TempDir()
			log, err := audit.Open(audit.Config{StateDir: other})
			if err != nil {
				return err
			}
			return errors.Join(log.Record(sample()), log.Close(), os.Rename(filepath.Join(other, "audit.head"), path))
		}, "not written with this key"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			f.write(f.config(), 3)
			if err := test.damage(filepath.Join(f.dir, "audit.head")); err != nil {
				t.Fatal(err)
			}
			f.disproved(test.want)
			// The log goes on, and keeps saying what happened to it.
			f.write(f.config(), 2)
			f.disproved("records may be missing before it: the end of the log could not be proved")
			if report := f.verify(); report.Last != 6 {
				t.Errorf("last record is %d, want 6", report.Last)
			}
		})
	}
	f := newFolder(t)
	if _, err := audit.Verify(audit.VerifyConfig{File: f.file(), StateDir: f.dir}); err == nil {
		t.Error("Verify without a key file = nil, want an error")
	}
	if _, err := audit.Verify(audit.VerifyConfig{File: f.file()}); err == nil {
		t.Error("Verify without a log = nil, want an error")
	}
}

// The newer slot of the head counts, whichever it is.
func TestCutIsFoundByBothSlots(t *testing.T) {
	for n := 1; n <= 4; n++ {
		f := newFolder(t)
		f.write(f.config(), n)
		f.put([]byte(strings.Join(f.lines()[:n-1], "")))
		f.disproved(fmt.Sprintf("record %d is missing at the end", n))
	}
}

// One slot of the head may be torn by a power cut: the other still holds, and
// the last record proves itself.
func TestOneTornSlotIsNoProblem(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 4)
	path := filepath.Join(f.dir, "audit.head")
	head, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(head[10:40], make([]byte, 30)) // the slot of record 4
	if err := os.WriteFile(path, head, 0o600); err != nil {
		t.Fatal(err)
	}
	f.proved(1, 4)
	f.write(f.config(), 1)
	f.proved(1, 5)
}

// TestMutationsAreFound: verify finds every mutation of a log's files.
func TestMutationsAreFound(t *testing.T) {
	const mutations = 1000
	random := rand.New(rand.NewPCG(20261121, 1))
	source, other := newFolder(t), newFolder(t)
	cfg := source.config()
	cfg.MaxSize, cfg.Keep = 8<<10, 3
	source.write(cfg, 70)
	source.proved(46, source.verify().Last)
	otherCfg := other.config()
	otherCfg.MaxSize = 8 << 10
	other.write(otherCfg, 70)

	originals, foreign := readAll(t, source), readAll(t, other)
	names := source.names()
	if len(names) != 4 {
		t.Fatalf("files = %q, want 4", names)
	}
	work := newFolder(t)
	for _, name := range []string{"audit.key", "audit.head"} {
		data, err := os.ReadFile(filepath.Join(source.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := map[string]int{}
	for i := 0; i < mutations; {
		files := map[string][]byte{}
		for name, data := range originals {
			files[name] = bytes.Clone(data)
		}
		what := mutate(random, files, names, foreign)
		if same(files, originals) {
			continue
		}
		i++
		putAll(t, work, files)
		if report := work.verify(); report.Problem == nil {
			t.Errorf("mutation %d, %s, is not found: %+v", i, what, report)
		}
		found[strings.Fields(what)[0]]++
	}
	t.Logf("found: %v", found)
	putAll(t, work, originals)
	work.proved(source.verify().First, source.verify().Last)
}

func mutate(random *rand.Rand, files map[string][]byte, names []string, foreign map[string][]byte) string {
	name := names[random.IntN(len(names))]
	data := files[name]
	at := random.IntN(len(data))
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines = lines[:len(lines)-1]
	i, j := random.IntN(len(lines)), random.IntN(len(lines))
	kind := []string{"flip", "insert", "delete", "truncate", "remove", "swap", "duplicate", "splice", "unlink", "exchange", "append", "garble", "prefix"}[random.IntN(13)]
	switch kind {
	case "flip":
		data[at] ^= 1 << random.IntN(8)
	case "insert":
		data = slices.Insert(data, at, byte(random.IntN(256)))
	case "delete":
		data = slices.Delete(data, at, at+1)
	case "truncate":
		data = data[:at]
	case "remove":
		data = bytes.Join(slices.Delete(lines, i, i+1), nil)
	case "swap":
		lines[i], lines[j] = lines[j], lines[i]
		data = bytes.Join(lines, nil)
	case "duplicate":
		data = bytes.Join(slices.Insert(lines, j, lines[i]), nil)
	case "splice": // a record with the same number from a log with another key
		for _, their := range foreign {
			for _, line := range bytes.SplitAfter(their, []byte("\n")) {
				if number, _, _ := bytes.Cut(line, []byte(",")); bytes.HasPrefix(lines[i], append(number, ',')) {
					lines[i] = line
				}
			}
		}
		data = bytes.Join(lines, nil)
	case "unlink":
		delete(files, name)
		return kind + " " + name
	case "exchange":
		other := names[random.IntN(len(names))]
		files[name], files[other] = files[other], data
		return kind + " " + name + " " + other
	case "append":
		data = append(data, byte(random.IntN(256)))
	case "garble":
		end := min(len(data), at+1+random.IntN(300))
		for k := at; k < end; k++ {
			data[k] = byte(random.IntN(256))
		}
	case "prefix":
		data = data[at:]
	}
	files[name] = data
	return fmt.Sprintf("%s in %s at %d (line %d, %d)", kind, name, at, i+1, j+1)
}

func readAll(t *testing.T, f folder) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range f.names() {
		data, err := os.ReadFile(filepath.Join(f.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = data
	}
	return files
}

func putAll(t *testing.T, f folder, files map[string][]byte) {
	t.Helper()
	for _, name := range f.names() {
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(f.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func same(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			return false
		}
	}
	return true
}

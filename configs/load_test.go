package configs

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what is got as what is wanted")

// now is when the tests' files are loaded.
var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unpack writes the files of an archive to a folder of their own, goes there,
// and returns the archive.
func unpack(t *testing.T, path string) *txtar.Archive {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range archive.Files {
		if f.Name == "want" {
			continue
		}
		full := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		// Bytes that txtar cannot hold are written in escapes.
		data := strings.NewReplacer(`<TAB>`, "\t", `<NUL>`, "\x00", `<FF>`, "\xff", `<BEL>`, "\a").Replace(string(f.Data))
		if err := os.WriteFile(full, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	return archive
}

// check loads sidecar.yaml when there is one, and else checks the folder.
func check(t *testing.T) error {
	t.Helper()
	if _, err := os.Stat("sidecar.yaml"); err == nil {
		_, err := Load("sidecar.yaml", now)
		return err
	}
	_, err := Check(now, ".")
	return err
}

// TestBad holds one archive for each way in which files can be wrong, with
// all of their errors.
func TestBad(t *testing.T) {
	paths, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(paths) < 40 {
		t.Fatalf("found %d archives, %v", len(paths), err)
	}
	for _, path := range paths {
		full, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive := unpack(t, full)
			err := check(t)
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("got %v, want Errors", err)
			}
			compareWant(t, full, archive, errs.Error()+"\n")
		})
	}
}

// compareWant compares got with the file called want of an archive, whose lines
// that end in ... leave the rest to others: the words of package authz are not
// repeated here.
func compareWant(t *testing.T, path string, archive *txtar.Archive, got string) {
	t.Helper()
	for i, f := range archive.Files {
		if f.Name != "want" {
			continue
		}
		lines := strings.Split(got, "\n")
		for j, want := range strings.Split(string(f.Data), "\n") {
			start, open := strings.CutSuffix(want, "...")
			if open && j < len(lines) && strings.HasPrefix(lines[j], start) {
				lines[j] = want
			}
		}
		got = strings.Join(lines, "\n")
		if *update {
			archive.Files[i].Data = []byte(got)
			if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
				t.Fatal(err)
			}
		} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
			t.Errorf("want (-), got (+):\n%s", diff)
		}
		return
	}
	t.Error("the archive has no file called want")
}

func TestExample(t *testing.T) {
	c, err := Load("example.yaml", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range c.Warnings {
		t.Log(w)
	}
	if len(c.Grants) != 3 || len(c.Guardrails) != 1 || c.Policy == nil {
		t.Fatalf("got %d grants, %d guardrails, policy %v", len(c.Grants), len(c.Guardrails), c.Policy)
	}
	// It shows every way to inject.
	shown := map[string]int{}
	for _, g := range c.Grants {
		for _, spec := range g.Credentials {
			v := reflect.ValueOf(spec.Inject)
			for field, value := range v.Fields() {
				if !value.IsZero() && field.Name != "Value" {
					shown[field.Name]++
				}
			}
		}
	}
	want := map[string]int{"Header": 1, "Query": 1, "Cookie": 1, "Basic": 1, "MTLS": 1, "SigV4": 1, "OAuth2": 1, "JWT": 1, "Database": 2}
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

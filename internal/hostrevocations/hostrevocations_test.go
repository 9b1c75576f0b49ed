package hostrevocations_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/hostrevocations"
)

func revocation(id, plugin string) authz.Revocation {
	return authz.Revocation{
		ID: id, Plugin: plugin, Level: authz.LevelQuarantine, Reason: "a test", Actor: "uid:0/root",
		At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *hostrevocations.Store) hostrevocations.State {
	t.Helper()
	state, err := s.Read()
	must(t, err)
	return state
}

func ids(all []authz.Revocation) []string {
	var out []string
	for _, r := range all {
		out = append(out, r.Plugin+":"+r.ID)
	}
	return out
}

func TestRevokeAndRestore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "chaperone")
	s := hostrevocations.New(dir)
	if state := read(t, s); len(state.InForce("weather")) != 0 {
		t.Fatalf("a missing file holds %v", state)
	}
	for _, r := range []authz.Revocation{revocation("all", ""), revocation("one", "weather"), revocation("other", "news")} {
		path, err := s.Revoke(r)
		must(t, err)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", path, info, err)
		}
	}
	steps := []struct {
		name    string
		restore []hostrevocations.Restoration
		weather []string
		news    []string
	}{
		{"nothing lifted", nil, []string{"weather:all", "weather:one"}, []string{"news:all", "news:other"}},
		{"for one plugin", []hostrevocations.Restoration{{ID: "all", Plugin: "weather"}}, []string{"weather:one"}, []string{"news:all", "news:other"}},
		{"another plugin's", []hostrevocations.Restoration{{ID: "other", Plugin: "weather"}}, []string{"weather:one"}, []string{"news:all", "news:other"}},
		{"an id that is not there", []hostrevocations.Restoration{{ID: "none"}}, []string{"weather:one"}, []string{"news:all", "news:other"}},
		{"for all", []hostrevocations.Restoration{{ID: "all"}, {ID: "one"}}, nil, []string{"news:other"}},
	}
	for _, step := range steps {
		must(t, s.Restore(step.restore...))
		state := read(t, hostrevocations.New(dir))
		if diff := cmp.Diff(step.weather, ids(state.InForce("weather"))); diff != "" {
			t.Errorf("%s: weather (-want +got)\n%s", step.name, diff)
		}
		if diff := cmp.Diff(step.news, ids(state.InForce("news"))); diff != "" {
			t.Errorf("%s: news (-want +got)\n%s", step.name, diff)
		}
	}
	// A sidecar that was down learns that what it kept was lifted.
	if _, lifted := read(t, s).Lifted("all", "news"); !lifted {
		t.Error("the restoration is forgotten")
	}
}

// A file that cannot be understood, or that others may write, is an error and
// never empty; and it is not overwritten.
func TestDamaged(t *testing.T) {
	valid := `{"version":1,"revocations":[],"restored":[]}`
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		wrong   bool
	}{
		"valid":                {valid, 0o600, false},
		"empty":                {"", 0o600, true},
		"cut off":              {valid[:20], 0o600, true},
		"not JSON":             {"revoked", 0o600, true},
		"two objects":          {valid + valid, 0o600, true},
		"another version":      {`{"version":2,"revocations":[]}`, 0o600, true},
		"an unknown field":     {`{"version":1,"revocation":[]}`, 0o600, true},
		"a list":               {`[]`, 0o600, true},
		"no id":                {`{"version":1,"revocations":[{"level":"halt"}]}`, 0o600, true},
		"no level":             {`{"version":1,"revocations":[{"id":"x"}]}`, 0o600, true},
		"a wrong type":         {`{"version":1,"revocations":{}}`, 0o600, true},
		"zeros":                {strings.Repeat("\x00", 100), 0o600, true},
		"writable by others":   {valid, 0o666, true},
		"writable by a group":  {valid, 0o660, true},
		"readable by everyone": {valid, 0o644, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := hostrevocations.New(dir)
			path := s.Paths()[0]
			must(t, os.WriteFile(path, []byte(c.content), 0o600))
			must(t, os.Chmod(path, c.mode))
			_, err := s.Read()
			if (err != nil) != c.wrong || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("Read = %v, want an error that names the file: %t", err, c.wrong)
			}
			if !c.wrong {
				return
			}
			if _, err := s.Revoke(revocation("x", "")); err == nil {
				t.Error("Revoke overwrites it")
			}
			if content, err := os.ReadFile(path); string(content) != c.content || err != nil {
				t.Errorf("it holds %q now, %v", content, err)
			}
		})
	}
	t.Run("a link", func(t *testing.T) {
		dir := t.TempDir()
		s := hostrevocations.New(dir)
		must(t, os.Symlink("/dev/null", s.Paths()[0]))
		if _, err := s.Read(); err == nil {
			t.Error("a link is followed")
		}
	})
}

// If the preferred folder is not writable, the next one is used, and reported.
func TestFallback(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(blocked, nil, 0o600))
	second := t.TempDir()
	s := hostrevocations.New(filepath.Join(blocked, "chaperone"), second)
	path, err := s.Revoke(revocation("x", ""))
	if path != filepath.Join(second, hostrevocations.FileName) || err == nil {
		t.Errorf("Revoke = %q, %v, want the second folder and why", path, err)
	}
	open := filepath.Join(t.TempDir(), "open")
	must(t, os.Mkdir(open, 0o700))
	must(t, os.Chmod(open, 0o777))
	if path, err := hostrevocations.New(open).Revoke(revocation("x", "")); err == nil {
		t.Errorf("Revoke = %q in a folder that everybody may write", path)
	}
}

func TestConcurrentChanges(t *testing.T) {
	s := hostrevocations.New(t.TempDir())
	var all sync.WaitGroup
	const n = 20
	for i := range n {
		all.Go(func() {
			if _, err := s.Revoke(revocation(fmt.Sprint(i), "")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := len(read(t, s).Revocations); got != n {
		t.Errorf("%d revocations, want %d", got, n)
	}
}

func TestExpiredIsRemoved(t *testing.T) {
	s := hostrevocations.New(t.TempDir())
	old := revocation("old", "")
	old.Until = time.Now().Add(-time.Hour)
	for _, r := range []authz.Revocation{old, revocation("new", "")} {
		if _, err := s.Revoke(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := ids(read(t, s).InForce("p")); !cmp.Equal(got, []string{"p:new"}) {
		t.Errorf("%v", got)
	}
}

func TestStamp(t *testing.T) {
	s := hostrevocations.New(t.TempDir())
	before := s.Stamp()
	if s.Stamp() != before {
		t.Error("the stamp changes by itself")
	}
	_, err := s.Revoke(revocation("x", ""))
	must(t, err)
	if s.Stamp() == before {
		t.Error("the stamp does not change with the file")
	}
}

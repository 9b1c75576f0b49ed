package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDynamicUsersDiffer(t *testing.T) {
	needKernel(t)
	same := Paths{Dir: t.TempDir(), ID: "same"}
	a, err := same.dynamicUser()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Release() }()
	b, err := same.dynamicUser()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Release() }()
	if a.UID == b.UID {
		t.Errorf("both are %d", a.UID)
	}
}

// TestDynamicUserIsRemembered shows that a state directory keeps its user, that no
// other gets it, and that a copy of a directory gets another one.
func TestDynamicUserIsRemembered(t *testing.T) {
	needKernel(t)
	root := t.TempDir()
	at := func(name, id string) Paths {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return Paths{Dir: t.TempDir(), State: dir, ID: id}
	}
	choose := func(p Paths) (int, func()) {
		t.Helper()
		a, err := p.dynamicUser()
		if err != nil {
			t.Fatal(err)
		}
		return a.UID, func() { _ = a.Release() }
	}
	first, end := choose(at("one", "same"))
	end()
	second, end := choose(at("two", "same"))
	end()
	elsewhere := at("elsewhere", "same")
	elsewhere.State = t.TempDir()
	third, end := choose(elsewhere)
	end()
	if first == second || first == third || second == third {
		t.Errorf("uids are shared: %d, %d, %d", first, second, third)
	}
	again, end := choose(at("one", "another"))
	if again != first {
		t.Errorf("uid %d became %d", first, again)
	}
	end()
}

func TestAccountName(t *testing.T) {
	for plugin, want := range map[string]string{
		"weather": "weather", "Team/Weather.v2": "team-weather-v2", "42": "plugin-42", "": "plugin", "überall": "plugin--berall",
		strings.Repeat("a", 40): strings.Repeat("a", 32),
	} {
		if got := loginName(plugin); got != want {
			t.Errorf("%q: %q, want %q", plugin, got, want)
		}
	}
}

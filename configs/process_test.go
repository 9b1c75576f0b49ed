package configs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestProcessFilesApart: a path to a file of the sidecar alone is found through every
// link; names that are only similar are not.
func TestProcessFilesApart(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"state", "stateful", "plugin"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"plugin/link": "../state", "alias": "plugin", "grants": "plugin"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	s := Sidecar{StateDir: filepath.Join(dir, "state"), Grants: []string{filepath.Join(dir, "grants")}}
	for path, want := range map[string]string{
		"state": "spec.stateDir", "state/sub/file": "spec.stateDir", ".": "this file", "stateful": "", "state2": "", "elsewhere": "",
		"plugin/link": "spec.stateDir", "alias/link/sub": "spec.stateDir", "plugin": "spec.grants[0]", "alias/other": "spec.grants[0]",
		"sidecar.yaml": "this file", "sidecar.yaml.d": "",
	} {
		if got := s.owns(filepath.Join(dir, "sidecar.yaml"), filepath.Join(dir, path)); got != want {
			t.Errorf("%s holds %q, not %q", path, got, want)
		}
	}
	if got := s.owns(filepath.Join(dir, "sidecar.yaml"), "/"); got == "" {
		t.Error("/ holds nothing of the sidecar's")
	}
}

// TestProcessWarnings: what a plugin would start without, or not start with.
func TestProcessWarnings(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant)
	write(t, filepath.Join(dir, "data", "here"), "")
	write(t, filepath.Join(dir, "sidecar.yaml"), minimalSidecar[:len(minimalSidecar)-2]+
		", kernel: off, process: {listen: [8080], files: {read: [data/here, data/gone], write: [data/here/../made]}}}\n")
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, w := range c.Warnings {
		fields = append(fields, w.Field)
	}
	slices.Sort(fields)
	if want := []string{"spec.process.files.read[1]", "spec.process.files.write[0]", "spec.process.listen"}; !slices.Equal(fields, want) {
		t.Errorf("warned of %v", c.Warnings)
	}
	f := c.Sidecar.Process.Files
	if want := []string{dir + "/data/here", dir + "/data/gone"}; !slices.Equal(f.Read, want) || !slices.Equal(f.Write, []string{dir + "/data/made"}) {
		t.Errorf("got %+v", f)
	}
}

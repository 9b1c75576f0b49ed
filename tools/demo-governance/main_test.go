package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestDemo runs the demo, which verifies each of its steps.
func TestDemo(t *testing.T) {
	testenv.Require(t, testenv.Program("curl"))
	dir := t.TempDir()
	testenv.Must(t, os.Chmod(filepath.Dir(dir), 0o755)) // the plugin's user runs the launcher
	for _, name := range []string{"chaperone", "chaperonectl"} {
		testenv.Must(t, testenv.BuildProgram(t.Context(), name, filepath.Join(dir, name)))
	}
	temporary := t.TempDir()
	testenv.Must(t, os.Chmod(filepath.Dir(temporary), 0o755))
	t.Setenv("TMPDIR", temporary)
	testenv.Must(t, run(t.Context(), dir))
	left := testenv.MustGet(os.ReadDir(temporary))(t)
	if len(left) > 0 {
		t.Errorf("the demo left %v", left)
	}
}

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunAccess prints one line for a script that the plugin's user cannot read.
func TestRunAccess(t *testing.T) {
	w := newEnv(t, "required", "")
	testenv.Must(t, os.Chmod(w.Dir, 0o755))
	w.Write("script.py", "print('hello')")
	r := w.Run("python3", w.File("script.py"), w.File("role-id"))
	scenario.Contains(t, r.Stderr, "chaperone: the plugin runs as uid ", " may not read "+w.File("script.py")+": it belongs to uid 0 and has mode 0600")
	if n := strings.Count(r.Stderr, "the plugin runs as uid"); n != 1 {
		t.Errorf("%d lines:\n%s", n, r.Stderr)
	}
	testenv.Must(t, os.Chmod(w.File("script.py"), 0o644))
	if r := w.Run("python3", w.File("script.py")); r.Status != 0 || strings.Contains(r.Stderr, "the plugin runs as uid") {
		t.Errorf("status %d\n%s", r.Status, r.Stderr)
	}
}

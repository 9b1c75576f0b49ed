package main

import (
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestRunAccess prints one line for a script that the plugin's user cannot read.
func TestRunAccess(t *testing.T) {
	w := newWorld(t, "required", "")
	testenv.Must(t, os.Chmod(w.dir, 0o755))
	w.write("script.py", "print('hello')")
	r := w.run("python3", w.file("script.py"), w.file("role-id"))
	contains(t, r.stderr, "chaperone: the plugin runs as uid ", " may not read "+w.file("script.py")+": it belongs to uid 0 and has mode 0600")
	if n := strings.Count(r.stderr, "the plugin runs as uid"); n != 1 {
		t.Errorf("%d lines:\n%s", n, r.stderr)
	}
	testenv.Must(t, os.Chmod(w.file("script.py"), 0o644))
	if r := w.run("python3", w.file("script.py")); r.status != 0 || strings.Contains(r.stderr, "the plugin runs as uid") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}

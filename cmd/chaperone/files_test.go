package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunFiles limits a plugin to the files that it is given: what it needs to
// run and to trust the sidecar is among them, the rest is closed.
func TestRunFiles(t *testing.T) {
	w := newEnv(t, "required", "")
	for _, dir := range []string{"given", "taken", "other"} {
		testenv.Must(t, os.Mkdir(w.File(dir), 0o777))
		testenv.Must(t, os.Chmod(w.File(dir), 0o777))
		testenv.Must(t, os.WriteFile(w.File(dir+"/text"), []byte("the text in "+dir+"\n"), 0o666))
	}
	w.spec(fmt.Sprintf("  process: {files: {read: [%s], write: [%s]}}\n", w.File("given"), w.File("taken")))
	r := w.Run("sh", "-c", fmt.Sprintf(`cd %s; cat given/text taken/text; echo new > taken/new && echo made
cat other/text; echo new > given/new; cat sidecar.yaml; curl -sS -o /dev/null -w '%%{http_code}\n' %s`, w.Dir, w.URL("/v1/forecast")))
	scenario.Contains(t, r.Stdout, "the text in given", "the text in taken", "made", "200")
	if strings.Contains(r.Stdout, "the text in other") || strings.Contains(r.Stdout, "kind: Sidecar") {
		t.Errorf("got a file that was not shared:\n%s", r.Stdout)
	}
	if _, err := os.Stat(w.File("given/new")); err == nil {
		t.Error("got a write to a file that was shared for reading, want a refusal")
	}
}

// TestRunPrivate starts no plugin whose user may read what the sidecar logs in
// to Vault with.
func TestRunPrivate(t *testing.T) {
	w := newEnv(t, "required", "")
	testenv.Must(t, os.Chmod(w.File("secret-id"), 0o644))
	r := w.Run("true")
	if r.Status != exitSidecar {
		t.Errorf("got status %d, want %d", r.Status, exitSidecar)
	}
	scenario.Contains(t, r.Stderr, w.File("secret-id"), "chmod 0600")
}

// TestSelfGranting finds a plugin that may change what it is granted.
func TestSelfGranting(t *testing.T) {
	w := newEnv(t, "required", "")
	w.Start("sleep", "60")
	if warnings := strings.Join(w.Ready().Warnings, "\n"); strings.Contains(warnings, "grant itself") {
		t.Errorf("warned of files of root's: %s", warnings)
	}
	v := newEnv(t, "required", "")
	testenv.Must(t, os.Chmod(v.File("grant.yaml"), 0o666))
	v.Start("sleep", "60")
	scenario.Contains(t, strings.Join(v.Ready().Warnings, "\n"), "the plugin may change "+v.File("grant.yaml"))
}

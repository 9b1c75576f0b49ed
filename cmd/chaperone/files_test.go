package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestRunFiles limits a plugin to the files that it is given: what it needs to
// run and to trust the sidecar is among them, the rest is closed.
func TestRunFiles(t *testing.T) {
	w := newWorld(t, "required", "")
	for _, dir := range []string{"given", "taken", "other"} {
		testenv.Must(t, os.Mkdir(w.file(dir), 0o777))
		testenv.Must(t, os.Chmod(w.file(dir), 0o777))
		testenv.Must(t, os.WriteFile(w.file(dir+"/text"), []byte("the text in "+dir+"\n"), 0o666))
	}
	w.spec(fmt.Sprintf("  process: {files: {read: [%s], write: [%s]}}\n", w.file("given"), w.file("taken")))
	r := w.run("sh", "-c", fmt.Sprintf(`cd %s; cat given/text taken/text; echo new > taken/new && echo made
cat other/text; echo new > given/new; cat sidecar.yaml; curl -sS -o /dev/null -w '%%{http_code}\n' %s`, w.dir, w.url("/v1/forecast")))
	contains(t, r.stdout, "the text in given", "the text in taken", "made", "200")
	if strings.Contains(r.stdout, "the text in other") || strings.Contains(r.stdout, "kind: Sidecar") {
		t.Errorf("got a file that was not shared:\n%s", r.stdout)
	}
	if _, err := os.Stat(w.file("given/new")); err == nil {
		t.Error("got a write to a file that was shared for reading, want a refusal")
	}
}

// TestRunPrivate starts no plugin whose user may read what the sidecar logs in
// to Vault with.
func TestRunPrivate(t *testing.T) {
	w := newWorld(t, "required", "")
	testenv.Must(t, os.Chmod(w.file("secret-id"), 0o644))
	r := w.run("true")
	if r.status != exitSidecar {
		t.Errorf("status %d, not %d", r.status, exitSidecar)
	}
	contains(t, r.stderr, w.file("secret-id"), "chmod 0600")
}

// TestSelfGranting finds a plugin that may change what it is granted.
func TestSelfGranting(t *testing.T) {
	w := newWorld(t, "required", "")
	w.start("sleep", "60")
	if warnings := strings.Join(w.ready().Warnings, "\n"); strings.Contains(warnings, "grant itself") {
		t.Errorf("warned of files of root's: %s", warnings)
	}
	v := newWorld(t, "required", "")
	testenv.Must(t, os.Chmod(v.file("grant.yaml"), 0o666))
	v.start("sleep", "60")
	contains(t, strings.Join(v.ready().Warnings, "\n"), "the plugin may change "+v.file("grant.yaml"))
}

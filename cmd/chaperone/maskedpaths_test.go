package main

import (
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// Where masked is stated, neither the log nor what is printed shows a path that is
// refused.
func TestMaskedPathsAreNotPrinted(t *testing.T) {
	w := newEnv(t, "off", "")
	spec := testenv.MustGet(os.ReadFile(w.File("sidecar.yaml")))(t)
	w.Write("sidecar.yaml", strings.Replace(string(spec), "paths: full", "paths: masked", 1))
	const secret = "T0SECRETSEGMENT9"
	script := strings.NewReplacer("BASE", strings.TrimSuffix(w.URL("/"), "/"), "SECRET", secret).Replace(
		`for path in /services/SECRET /v1/SECRET/x /SECRET /v1/forecast/SECRET%41/y; do
curl -s -o /dev/null -X DELETE "BASE$path?q=SECRET"; curl -s -o /dev/null "BASE$path"; curl -s -o /dev/null -x $http_proxy "http://hooks.other.example$path"; done; exit 0`)
	r := w.Run("bash", "-c", script)
	scenario.Contains(t, r.Stderr, "refused DELETE https://", "refused GET http://hooks.other.example/~")
	if strings.Contains(r.Stderr, secret) {
		t.Errorf("printed\n%s", r.Stderr)
	}
	if strings.Contains(w.audit(), secret) {
		t.Errorf("recorded\n%s", w.audit())
	}
}

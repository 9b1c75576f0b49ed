package main

import (
	"os/exec"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// env is an environment that runs the command of the test's own binary.
type env struct{ *scenario.Env }

func newEnv(t *testing.T, kernel, extra string) *env {
	t.Helper()
	return own(t, scenario.New(t, kernel, extra))
}

// bareEnv has a folder, and neither a Vault nor an API.
func bareEnv(t *testing.T, dir string) *env {
	t.Helper()
	return own(t, &scenario.Env{T: t, Dir: dir})
}

func own(t *testing.T, e *scenario.Env) *env {
	t.Helper()
	e.Program = testenv.MustGet(exec.LookPath("chaperone"))(t) // see TestMain
	return &env{e}
}

// another returns the environment of another sidecar with the same Vault and API.
func (e *env) another(t *testing.T, extra string) *env {
	t.Helper()
	return own(t, e.Another(t, extra))
}

package main

import (
	"context"
	"os"
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestMain runs the real commands inside the test's own binary, which is also
// the launcher of plugins.
func TestMain(m *testing.M) {
	sandbox.Launch()
	testscript.Main(cleaning{m}, map[string]func(){
		podOrigin:     runPodOrigin,
		refusesClone3: runWithoutClone3,
		sealed:        runSealed,
		"chaperone": func() {
			os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

// cleaning removes what tests share after they have run.
type cleaning struct{ tests *testing.M }

func (c cleaning) Run() int {
	testenv.DefaultSignals()
	testenv.EndWithoutDelay()
	status := c.tests.Run()
	if shippedDir != "" {
		_ = os.RemoveAll(shippedDir)
	}
	return status
}

// TestScript runs the command scripts, which need neither root nor a network.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"recordlog": recordLog},
		Setup: func(env *testscript.Env) error {
			env.Setenv("NO_COLOR", "1")
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("CHAPERONE_REGISTRY", env.WorkDir+"/registry") // not the host's
			return nil
		},
	})
}

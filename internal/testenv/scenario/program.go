package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// stage is the folder that every user may enter, for programs that are built. Main
// makes and removes it.
var stage string

// Main runs the tests of a package whose environments build the chaperone command, and
// returns the exit status.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chaperone-scenario-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the tests:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	stage = dir
	testenv.DefaultSignals()
	testenv.EndWithoutDelay()
	return m.Run()
}

// Build builds the chaperone command once, with the race detector if the test has it,
// and returns its path.
var Build = sync.OnceValues(func() (string, error) {
	if stage == "" {
		return "", errors.New("TestMain does not call scenario.Main")
	}
	path := filepath.Join(stage, "chaperone")
	return path, build(context.Background(), path)
})

// program returns the path of the chaperone command.
func (e *Env) program() (string, error) {
	if e.Program != "" {
		return e.Program, nil
	}
	return Build()
}

// CopyProgram copies the test's own binary into the folder of the environment, where
// the plugin's user may run it, and returns its path.
func (e *Env) CopyProgram(name string) string {
	e.T.Helper()
	path := e.File(name)
	data := testenv.MustGet(os.ReadFile(testenv.MustGet(os.Executable())(e.T)))(e.T)
	testenv.Must(e.T, os.WriteFile(path, data, 0o755))
	testenv.Must(e.T, errors.Join(os.Chmod(e.Dir, 0o755), os.Chmod(path, 0o755)))
	return path
}

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// stage is the folder that every user may enter, with what the tests run:
// a copy of testdata, and below bin what is built.
var stage string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		stage = dir
		err = setStage()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the tests:", err)
		return 1
	}
	return m.Run()
}

func setStage() error {
	if err := os.Chmod(stage, 0o755); err != nil {
		return err
	}
	return os.CopyFS(filepath.Join(stage, "testdata"), os.DirFS("testdata"))
}

// staged returns the path of a file of testdata that every user can read.
func staged(elem ...string) string {
	return filepath.Join(append([]string{stage, "testdata"}, elem...)...)
}

// chaperone is the command, built once.
var chaperone = sync.OnceValues(func() (string, error) {
	path := filepath.Join(stage, "bin", "chaperone")
	return path, testenv.BuildChaperone(context.Background(), path)
})

// goBuild builds a package into the stage.
func goBuild(dir, name, target string, env ...string) (string, error) {
	path := filepath.Join(stage, "bin", name)
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, target)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOWORK=off", "GOFLAGS="), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}

// goPlugin is the host and plugin of go-plugin, from the cache.
var goPlugin = sync.OnceValues(func() (string, error) {
	built, err := testenv.BuildGoPlugin(context.Background(), nil)
	if err != nil {
		return "", err
	}
	path := filepath.Join(stage, "bin", "goplugin")
	data, err := os.ReadFile(built)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, data, 0o755)
})

// nodeDir is the folder of the Node.js programs with their packages.
var nodeDir = sync.OnceValues(func() (string, error) {
	installed, err := testenv.InstallNode(context.Background(), nil)
	if err != nil {
		return "", err
	}
	return staged("node"), os.CopyFS(staged("node", "node_modules"), os.DirFS(filepath.Join(installed, "node_modules")))
})

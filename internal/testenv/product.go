package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildTags are the build tags of the product, like in the Makefile and the
// Dockerfile. Without grpcnotrace, gRPC links templates, which call methods by
// name: the linker then keeps every exported method of every type that is
// converted to an interface, and the program is 40 % larger.
const BuildTags = "grpcnotrace"

// BuildChaperone builds cmd/chaperone into the file path as it is shipped.
func BuildChaperone(ctx context.Context, path string) error {
	return BuildProgram(ctx, "chaperone", path)
}

// BuildProgram builds cmd/NAME into the file path as it is shipped: without symbols
// and the C library, and with BuildTags. GOFLAGS of the environment is ignored.
func BuildProgram(ctx context.Context, name, path string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", BuildTags, "-ldflags", "-s -w", "-o", path, "./cmd/"+name)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return nil
}

//go:build race

package scenario

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// build builds the command with the race detector, whose reports fail the command. Its
// tags are those of the tests, so that the two share the packages that they compile.
func build(ctx context.Context, path string) error {
	root, err := testenv.Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-race", "-o", path, "./cmd/chaperone")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build chaperone with the race detector: %w\n%s", err, out)
	}
	return nil
}

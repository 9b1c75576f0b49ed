package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// TestLauncherIsEarly checks that the launcher takes over before the packages are
// initialised that only the sidecar needs, most of which takes several milliseconds. One
// import too many in package launcher would have them come first.
func TestLauncherIsEarly(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Env = []string{launcher.Name}, []string{"GODEBUG=inittrace=1"}
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 125 {
		t.Fatalf("launcher without an order: got %v, want exit status 125\n%s", err, out)
	}
	if !strings.Contains(string(out), "init golang.org/x/sys/unix @") {
		t.Fatalf("the launcher runs before its own imports, or their trace is not shown:\n%s", out)
	}
	for line := range strings.Lines(string(out)) {
		for _, late := range []string{"google.golang.org/protobuf/types/", "google.golang.org/grpc ", "net/http ", "github.com/prometheus/client_golang/", "github.com/envoyproxy/"} {
			if strings.HasPrefix(line, "init "+late) {
				t.Errorf("initialised before the launcher: %s", line)
			}
		}
	}
}

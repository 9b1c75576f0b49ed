package ebpf

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// pluginName as argv[0] makes the test binary a plugin: see plugin_linux_test.go.
const pluginName = "chaperone-test-plugin"

func TestMain(m *testing.M) {
	sandbox.Launch()
	if os.Args[0] == pluginName {
		if err := plugin(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Args[0] == parentName {
		if err := runParent(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Args[0] == sidecarName {
		if err := sidecar(os.Args[1], os.Args[2], os.Args[3:]...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.DefaultSignals()
	testenv.EndWithoutDelay()
	goleak.VerifyTestMain(m)
}

// needKernel skips where the kernel provably cannot confine: without root. With
// CHAPERONE_REQUIRE=1 that is a failure.
func needKernel(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// skipUnsupported skips a test that this system cannot run, which fails where every
// test is required.
func skipUnsupported(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

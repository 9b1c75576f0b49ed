package sandbox

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestMain(m *testing.M) {
	Launch()
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

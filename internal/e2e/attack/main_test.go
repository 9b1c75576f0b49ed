package attack

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// hostileProgram is the name under which the test's own binary is the hostile plugin.
const hostileProgram = "hostile"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == hostileProgram {
		hostilePlugin()
		return
	}
	os.Exit(scenario.Main(m))
}

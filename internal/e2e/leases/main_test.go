package leases

import (
	"os"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// asPlugin is the variable that has the binary of the tests be a plugin, by the name of one.
const asPlugin = "LEASES_PLUGIN"

func TestMain(m *testing.M) {
	switch os.Getenv(asPlugin) {
	case "console":
		os.Exit(runConsole(connectPostgres))
	case "cache":
		os.Exit(runConsole(connectRedis))
	case "pool":
		os.Exit(runPool())
	}
	os.Exit(scenario.Main(m))
}

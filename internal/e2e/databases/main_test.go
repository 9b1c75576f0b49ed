package databases

import (
	"os"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

func TestMain(m *testing.M) { os.Exit(scenario.Main(m)) }

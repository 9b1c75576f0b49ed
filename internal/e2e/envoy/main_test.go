package envoy

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == streamer {
		runStreamer()
		return
	}
	os.Exit(scenario.Main(m))
}

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/testenv"

	"github.com/chaperone-proxy/chaperone/proxy/envoy"
)

// TestExitsFit puts exits into the longest folder that check allows: they fit the
// space that check reserves for them.
func TestExitsFit(t *testing.T) {
	const longest = 107 // of a socket's path (unix(7))
	spec := configs.Envoy{Dir: "/" + strings.Repeat("x", 69)}
	if path := envoy.EgressSocketPaths(spec.Exits(), []authz.Route{{}})[0]; len(path) != longest {
		t.Errorf("%s is %d bytes long", path, len(path))
	}
}

// TestEnvoyCommands has a real Envoy read what the commands print, also for the
// example, with each way to reach Envoy.
func TestEnvoyCommands(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	example := string(testenv.MustGet(os.ReadFile("../../configs/example.yaml"))(t))
	for name, envoy := range map[string]string{
		"by the proxy": "  envoy: {}\n", "listening": "  envoy: {dir: run, explicit: \"127.0.0.1:15080\", transparent: \"0.0.0.0:15006\", accessLog: /dev/null}\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := bareEnv(t, t.TempDir())
			w.Write("sidecar.yaml", strings.NewReplacer("\n  dns:\n", "\n"+envoy+"  dns:\n", "/var/lib/chaperone/weather", "state").Replace(example))
			for _, command := range []string{"bootstrap", "config"} {
				r := w.Chaperone("envoy", command, "--config", w.File("sidecar.yaml"))
				if r.Status != 0 {
					t.Fatalf("%s: %s", command, r.Stderr)
				}
				if err := testenv.ValidateEnvoy(t.Context(), []byte(r.Stdout)); err != nil {
					t.Errorf("%s: %v", command, err)
				}
			}
		})
	}
}

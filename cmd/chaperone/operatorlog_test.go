package main

import (
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestLogLevelFollowsTheSidecar(t *testing.T) {
	for name, test := range map[string]struct {
		flag   string
		fixed  bool
		stated configs.LogLevel
		logged bool
	}{
		"by default":                       {"warn", false, "", false},
		"stated":                           {"warn", false, configs.LogInfo, true},
		"the command line overrides":       {"warn", true, configs.LogInfo, false},
		"the command line overrides, both": {"info", true, configs.LogError, true},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			log := testenv.MustGet(newLogger(&out, test.flag, test.fixed))(t)
			child := log.Named("part") // made before the level is known
			log.follow(test.stated)
			child.Info("files loaded", zap.Int("n", 1))
			if logged := strings.Contains(out.String(), "files loaded"); logged != test.logged {
				t.Errorf("logged: %v, want %v", logged, test.logged)
			}
		})
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// A plugin that has requests refused for a cause outside the policy does not write
// the operator's log at its own pace, and how much was left out is logged.
func TestOperatorLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := testenv.MustGet(newLogger(&out, "warn", false))(t)
		for minute := range 2 {
			for i := range 5000 {
				log.Named("proxy").Warn("request admission failed", zap.Int("decision", i), zap.Error(errors.New("no credential")))
			}
			log.Error("audit record not written", zap.Int("minute", minute))
			log.Info("below the level")
			time.Sleep(time.Minute)
		}
		log.reportDropped()
		log.reportDropped() // has nothing more to say
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if want := 2*(sameLines+1) + 1; len(lines) != want {
			t.Errorf("%d lines, not %d", len(lines), want)
		}
		var last struct {
			Msg, Message string
			Lines        int
		}
		testenv.Must(t, json.Unmarshal([]byte(lines[len(lines)-1]), &last))
		if last.Msg != "log lines dropped" || last.Message != "request admission failed" || last.Lines != 2*(5000-sameLines) {
			t.Errorf("last line %s", lines[len(lines)-1])
		}
		if n := strings.Count(out.String(), "audit record not written"); n != 2 {
			t.Errorf("one message hides another: %d of 2", n)
		}
	})
}

// Messages are bounded too.
func TestDroppedMessagesAreBounded(t *testing.T) {
	var out bytes.Buffer
	log := testenv.MustGet(newLogger(&out, "warn", false))(t)
	for i := range 200 {
		for range 2 * sameLines {
			log.Warn(fmt.Sprint("message ", i))
		}
	}
	if len(log.dropped) > maxDropped+1 {
		t.Errorf("%d messages are counted", len(log.dropped))
	}
}

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

package sidecar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// lineLogger writes warnings and errors in lines of JSON.
func lineLogger(w io.Writer) *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(w), zap.WarnLevel))
}

// TestLogIsBounded has a plugin's requests refused for a cause outside the policy: they do
// not write the operator's log at the plugin's pace, and the number of dropped lines is logged.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log, sampler := sampleLog(lineLogger(&out))
		for minute := range 2 {
			for i := range 5000 {
				log.Named("proxy").Warn("request admission failed", zap.Int("decision", i), zap.Error(errors.New("no credential")))
			}
			log.Error("audit record not written", zap.Int("minute", minute))
			log.Info("below the level")
			time.Sleep(time.Minute)
		}
		sampler.report()
		sampler.report() // has nothing more to say
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if want := 2*(sameLines+1) + 1; len(lines) != want {
			t.Errorf("got %d lines, want %d", len(lines), want)
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

// TestDroppedMessagesAreBounded drops lines of 200 messages.
func TestDroppedMessagesAreBounded(t *testing.T) {
	var out bytes.Buffer
	log, sampler := sampleLog(lineLogger(&out))
	for i := range 200 {
		for range 2 * sameLines {
			log.Warn(fmt.Sprint("message ", i))
		}
	}
	if len(sampler.dropped) > maxDropped+1 {
		t.Errorf("%d messages are counted", len(sampler.dropped))
	}
}

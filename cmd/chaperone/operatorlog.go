package main

import (
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/chaperone-proxy/chaperone/configs"
)

const (
	// sameLines is how many lines of one message the operator's log has in a minute.
	// Many messages come at the plugin's pace, as of each request that no credential
	// is there for.
	sameLines = 30
	// maxDropped bounds the messages whose lines are counted each; others are
	// counted together.
	maxDropped = 64
)

// operatorLog is the operator's log, whose level a reload can change. Of one message
// it has some lines a minute; the others are counted.
type operatorLog struct {
	*zap.Logger
	level zap.AtomicLevel
	flag  zapcore.Level // of the command line, or the command's default
	fixed bool          // the command line states it
	whole *zap.Logger   // drops nothing

	mu      sync.Mutex
	dropped map[string]int // by message
}

// newLogger returns the operator's log: one line of JSON for each event.
func newLogger(w io.Writer, level string, fixed bool) (*operatorLog, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, usageError("--log-level: %q is not debug, info, warn or error", level)
	}
	l := &operatorLog{level: zap.NewAtomicLevelAt(parsed), flag: parsed, fixed: fixed, dropped: map[string]int{}}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	sink := zapcore.Lock(zapcore.AddSync(w))
	core := zapcore.NewCore(zapcore.NewJSONEncoder(encoder), sink, l.level)
	l.whole = zap.New(core, zap.ErrorOutput(sink))
	l.Logger = zap.New(zapcore.NewSamplerWithOptions(core, time.Minute, sameLines, 0, zapcore.SamplerHook(l.sampled)), zap.ErrorOutput(sink))
	return l, nil
}

// follow takes the level that the Sidecar states, unless the command line does.
func (l *operatorLog) follow(stated configs.LogLevel) {
	level, err := zapcore.ParseLevel(string(stated))
	if l.fixed || stated == "" || err != nil {
		level = l.flag
	}
	l.level.SetLevel(level)
}

// sampled counts a line that is dropped.
func (l *operatorLog) sampled(entry zapcore.Entry, decision zapcore.SamplingDecision) {
	if decision&zapcore.LogDropped == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	message := entry.Message
	if _, ok := l.dropped[message]; !ok && len(l.dropped) >= maxDropped {
		message = ""
	}
	l.dropped[message]++
}

// reportDropped logs how many lines of each message were dropped since it did last.
func (l *operatorLog) reportDropped() {
	l.mu.Lock()
	dropped := l.dropped
	l.dropped = map[string]int{}
	l.mu.Unlock()
	for _, message := range slices.Sorted(maps.Keys(dropped)) {
		l.whole.Warn("log lines dropped", zap.String("message", message), zap.Int("lines", dropped[message]))
	}
}

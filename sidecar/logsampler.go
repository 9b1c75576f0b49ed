package sidecar

import (
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
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

// logSampler bounds the operator's log of all parts: of one message it has some lines a
// minute; the others are counted.
type logSampler struct {
	whole *zap.Logger // drops nothing

	mu      sync.Mutex
	dropped map[string]int // by message
}

// sampleLog returns log with a bound for each message, and the count beyond it.
func sampleLog(log *zap.Logger) (*zap.Logger, *logSampler) {
	s := &logSampler{whole: log, dropped: map[string]int{}}
	return log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, sameLines, 0, zapcore.SamplerHook(s.sampled))
	})), s
}

// sampled counts a line that is dropped.
func (s *logSampler) sampled(entry zapcore.Entry, decision zapcore.SamplingDecision) {
	if decision&zapcore.LogDropped == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	message := entry.Message
	if _, ok := s.dropped[message]; !ok && len(s.dropped) >= maxDropped {
		message = ""
	}
	s.dropped[message]++
}

// report logs how many lines of each message were dropped since it did last.
func (s *logSampler) report() {
	s.mu.Lock()
	dropped := s.dropped
	s.dropped = map[string]int{}
	s.mu.Unlock()
	for _, message := range slices.Sorted(maps.Keys(dropped)) {
		s.whole.Warn("log lines dropped", zap.String("message", message), zap.Int("lines", dropped[message]))
	}
}

package main

import (
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/chaperone-proxy/chaperone/configs"
)

// operatorLog is the operator's log, whose level a reload can change.
type operatorLog struct {
	*zap.Logger
	level zap.AtomicLevel
	flag  zapcore.Level // of the command line, or the command's default
	fixed bool          // the command line states it
}

// newLogger returns the operator's log: one line of JSON for each event.
func newLogger(w io.Writer, level string, fixed bool) (*operatorLog, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, usageError("--log-level: %q is not debug, info, warn or error", level)
	}
	l := &operatorLog{level: zap.NewAtomicLevelAt(parsed), flag: parsed, fixed: fixed}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	sink := zapcore.Lock(zapcore.AddSync(w))
	l.Logger = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), sink, l.level), zap.ErrorOutput(sink))
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

package main

import (
	"bytes"
	"io"
	"log"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/grpclog" //nolint:depguard // its logger is set for the process, and nothing is spoken here

	"github.com/chaperone-proxy/chaperone/internal/asyncwriter"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// lastWords bounds how long the process waits at its end for standard error,
// which may be read by nobody.
const lastWords = time.Second

// outliveStderr keeps a command that runs for long independent of whoever reads
// its standard output and error: when the reader ends, no SIGPIPE ends the
// command, and when it does not read, nothing waits for it.
func (c *cli) outliveStderr() {
	// Notified, and not ignored: a program started later would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if c.queue != nil {
		return
	}
	c.screen.w = c.stderr.Destination()
	c.queue = asyncwriter.New(&c.screen)
	c.stderr = printable.NewWriter(c.queue)
	muteLibraries()
}

// muteLibraries discards the libraries' own output. net/http prints bytes that an
// upstream sends after its answer, which may contain the injected credential, without
// a setting to prevent it (golang/go, net/http.persistConn.readLoopPeekFailLocked);
// gRPC prints to standard error as its environment selects. The plugin or an upstream
// chooses these bytes. Relevant failures are errors, which the sidecar logs.
func muteLibraries() {
	log.SetOutput(io.Discard) // log/slog's default writes there too
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
}

// flush gives what was printed last a moment to be written.
func (c *cli) flush() {
	if c.queue != nil {
		c.queue.Flush(lastWords)
	}
}

// screen writes lines to a terminal that may be in raw mode, in which a line
// feed does not return to the first column.
type screen struct {
	w   io.Writer
	raw atomic.Bool
}

func (s *screen) Write(p []byte) (int, error) {
	text := p
	if s.raw.Load() {
		text = bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))
	}
	if _, err := s.w.Write(text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// stderrDropped returns how many messages standard error lost.
func (c *cli) stderrDropped() uint64 { return c.queue.Dropped() }

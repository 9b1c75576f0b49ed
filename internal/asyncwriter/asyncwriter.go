// Package asyncwriter has a bounded queue in front of a writer that may block or
// fail, as standard error does: its reader may be slow, stopped or gone.
package asyncwriter

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Size is how many bytes wait at most: some thousand lines.
const Size = 256 << 10

// Writer is an [io.Writer] that never waits. A goroutine of its own writes what
// was queued. When the queue is full, or the destination fails, whole writes are
// dropped and counted; as soon as something can be written again, a line reports
// how many were dropped.
type Writer struct {
	write func([]byte) error

	mu      sync.Mutex
	queue   bytes.Buffer
	unnoted uint64 // drops that no line has reported
	writing bool   // the goroutine has taken something
	work    chan struct{}
	idle    *sync.Cond
	dropped atomic.Uint64
}

// New returns a Writer in front of destination. Its goroutine lives as long as
// the process: it may hang in a write.
func New(destination io.Writer) *Writer {
	w := &Writer{work: make(chan struct{}, 1)}
	w.write = func(p []byte) error {
		_, err := destination.Write(p)
		return err
	}
	w.idle = sync.NewCond(&w.mu)
	go w.run()
	return w
}

// Write queues p, or drops it whole. It never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue.Len()+len(p) > Size {
		w.drop(1)
		return len(p), nil
	}
	w.queue.Write(p)
	select {
	case w.work <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Sync does nothing: [Writer.Flush] waits. zap syncs after each error.
func (w *Writer) Sync() error { return nil }

// drop counts writes that are lost. The caller holds the lock.
func (w *Writer) drop(n uint64) {
	w.unnoted += n
	w.dropped.Add(n)
}

// Dropped returns how many writes were dropped.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Flush waits until everything queued is written, at most for the given time.
// It reports whether that succeeded.
func (w *Writer) Flush(most time.Duration) bool {
	expired := false
	timer := time.AfterFunc(most, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		expired = true
		w.idle.Broadcast()
	})
	defer timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for (w.writing || w.queue.Len() > 0) && !expired {
		w.idle.Wait()
	}
	return !w.writing && w.queue.Len() == 0
}

func (w *Writer) run() {
	for range w.work {
		for w.step() {
		}
	}
}

// step writes what is queued, and reports whether there was something.
func (w *Writer) step() bool {
	w.mu.Lock()
	text := bytes.Clone(w.queue.Bytes())
	w.queue.Reset()
	noted := w.unnoted
	if len(text) == 0 {
		w.mu.Unlock()
		return false
	}
	w.writing = true
	w.mu.Unlock()
	err := w.write(text)
	if err == nil && noted > 0 {
		err = w.write(fmt.Appendf(nil, "chaperone: %d messages were dropped here: standard error was not read\n", noted))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = false
	if err != nil {
		w.drop(uint64(bytes.Count(text, []byte("\n"))))
	} else {
		w.unnoted -= noted
	}
	if w.queue.Len() == 0 {
		w.idle.Broadcast()
	}
	return true
}

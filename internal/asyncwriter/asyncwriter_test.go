package asyncwriter_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/asyncwriter"
)

// slow blocks while it is held.
type slow struct {
	hold sync.Mutex
	mu   sync.Mutex
	buf  bytes.Buffer
	err  error
}

func (s *slow) Write(p []byte) (int, error) {
	s.hold.Lock()
	defer s.hold.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.buf.Write(p)
}

func (s *slow) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func TestWritesInOrder(t *testing.T) {
	var out slow
	w := asyncwriter.New(&out)
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(w, "line %d\n", i)
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if !w.Flush(time.Minute) {
		t.Fatal("not flushed")
	}
	if out.text() != want.String() || w.Dropped() != 0 {
		t.Errorf("%d dropped, wrote %d bytes of %d", w.Dropped(), len(out.text()), want.Len())
	}
}

// A destination that hangs delays nobody, and the drops are counted and
// reported as soon as it goes on.
func TestHangs(t *testing.T) {
	var out slow
	w := asyncwriter.New(&out)
	out.hold.Lock()
	line := strings.Repeat("x", 999) + "\n"
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 * asyncwriter.Size / len(line) {
			_, _ = w.Write([]byte(line))
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a write waits for the destination")
	}
	if w.Flush(20 * time.Millisecond) {
		t.Error("flushed to a destination that hangs")
	}
	dropped := w.Dropped()
	if dropped == 0 {
		t.Fatal("got no dropped line, want some")
	}
	out.hold.Unlock()
	if !w.Flush(time.Minute) {
		t.Fatal("not flushed")
	}
	if want := fmt.Sprintf("chaperone: %d messages were dropped here", dropped); !strings.Contains(out.text(), want) {
		t.Errorf("%q is missing", want)
	}
}

// A destination that fails for some time is used again.
func TestFails(t *testing.T) {
	out := slow{err: errors.New("broken pipe")}
	w := asyncwriter.New(&out)
	fmt.Fprint(w, "lost\nlost\n")
	if !w.Flush(time.Minute) {
		t.Fatal("not flushed")
	}
	if w.Dropped() != 2 {
		t.Errorf("%d dropped, not 2", w.Dropped())
	}
	out.mu.Lock()
	out.err = nil
	out.mu.Unlock()
	fmt.Fprint(w, "kept\n")
	if !w.Flush(time.Minute) || !strings.Contains(out.text(), "kept\nchaperone: 2 messages were dropped here") {
		t.Errorf("wrote %q", out.text())
	}
}

// A pipe that is full and never read is as any other destination that hangs.
func TestFullPipe(t *testing.T) {
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer pipe.Close()
	w := asyncwriter.New(pipe)
	for range asyncwriter.Size {
		fmt.Fprintln(w, "a line")
	}
	if w.Dropped() == 0 || w.Flush(10*time.Millisecond) {
		t.Errorf("%d dropped", w.Dropped())
	}
}

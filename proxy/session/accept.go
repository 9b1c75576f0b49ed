package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// acceptAgain is how long accepting pauses when the process has no descriptor left.
const acceptAgain = 50 * time.Millisecond

// Accept calls take with each connection of a listener until the listener is closed or
// ctx ends, and returns nil then. take must not block.
func Accept(ctx context.Context, l net.Listener, log *zap.Logger, take func(net.Conn)) error {
	for {
		raw, err := l.Accept()
		switch {
		case err == nil:
			take(raw)
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil //nolint:nilerr // closing the listener is how accepting ends
		case IsTemporary(err):
			// Without a free descriptor open connections go on, and accepting resumes.
			log.Warn("connection not accepted", zap.Error(err))
			select {
			case <-ctx.Done():
			case <-time.After(acceptAgain):
			}
		default:
			return err
		}
	}
}

// IsTemporary reports whether accepting may work again later.
func IsTemporary(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ECONNABORTED)
}

// Inflight counts goroutines that may still write a record. Unlike a sync.WaitGroup it
// may be entered while others wait.
type Inflight struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // set by whoever waits
}

// Enter counts a goroutine that begins.
func (t *Inflight) Enter() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

// Leave counts a goroutine that ends.
func (t *Inflight) Leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// Wait returns when the count is 0.
func (t *Inflight) Wait() {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	none := t.none
	t.mu.Unlock()
	<-none
}

// TooManyConnections is the detail of a refusal that stands for n connections.
func TooManyConnections(limit, n int) string {
	return fmt.Sprintf("%d connections are open; %d more were refused", limit, n)
}

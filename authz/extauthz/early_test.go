package extauthz

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestEarly ends a context a tenth before its caller's deadline, whoever asks
// for what of it first.
func TestEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		caller, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		ctx, cancel := withEarlyDeadline(caller)
		if at, ok := ctx.Deadline(); !ok || at.Sub(begun) != 9*time.Second {
			t.Errorf("ends at %v, %t", at, ok)
		}
		time.Sleep(time.Second)
		if ctx.Err() != nil {
			t.Error(ctx.Err())
		}
		<-ctx.Done()
		if got := time.Since(begun); got != 9*time.Second || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("ended after %v: %v", got, ctx.Err())
		}
		cancel()

		again, cancel := withEarlyDeadline(caller)
		child, stopChild := context.WithCancel(again)
		defer stopChild()
		stop() // the caller gives up
		<-child.Done()
		if !errors.Is(again.Err(), context.Canceled) {
			t.Error(again.Err())
		}
		cancel()
		if ctx, cancel := withEarlyDeadline(t.Context()); ctx != t.Context() {
			t.Error("a deadline where the caller has none")
		} else {
			cancel()
		}
	})
}

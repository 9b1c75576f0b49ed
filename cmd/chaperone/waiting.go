package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
)

// waiter passes signals to the plugin until it has ended.
type waiter struct {
	s      *sidecar
	p      plugin
	served chan error // how the sidecar ended

	asked    bool        // a signal has asked the plugin to end
	deadline *time.Timer // when a plugin that cannot act on it is killed
}

// ending is how CMD ended.
type ending struct {
	status int
	err    error
}

// waitPlugin forwards signals until CMD has ended. A sidecar that ends first
// ends CMD too: nothing that it does would work any more.
func (s *sidecar) waitPlugin(ctx context.Context, p plugin, signals <-chan os.Signal, served chan error) (int, error) {
	w := &waiter{s: s, p: p, served: served, deadline: time.NewTimer(0)}
	w.deadline.Stop()
	ended := make(chan ending, 1)
	go func() {
		status, err := p.Wait()
		ended <- ending{status, err}
	}()
	watched := served
	for {
		select {
		case e := <-ended:
			return w.ended(e)
		case err := <-watched:
			served <- err // for the caller, which waits for the sidecar's end
			watched = nil
			s.opts.log.Error("sidecar failed, plugin killed", zap.Error(err))
			w.kill()
		case sig := <-signals:
			w.signal(ctx, sig)
		case <-w.deadline.C:
			w.overdue()
		}
	}
}

// ended records the end of CMD and returns the status of run.
func (w *waiter) ended(e ending) (int, error) {
	s := w.s
	s.process.Store(nil)
	s.record(&authz.Record{Kind: authz.KindProcess, UID: s.pluginUID(), Detail: fmt.Sprintf("ended with status %d", e.status)})
	if r, halted := s.halted(); halted {
		return exitSidecar, fmt.Errorf("%s was halted: %s\n  chaperone restore %s --config %s --reason TEXT", s.plugin, r.Reason, r.ID, s.config.Load().Path)
	}
	return e.status, e.err
}

func (w *waiter) signal(ctx context.Context, sig os.Signal) {
	switch sig {
	case syscall.SIGHUP:
		_, _ = w.s.reload(ctx, "SIGHUP") // a refusal is recorded and logged there
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		w.end(sig)
	default:
		_ = w.p.Signal(sig) // it may have ended
	}
}

// end passes on a signal that asks the plugin to end. One that a limit has
// stopped cannot act on it, and continuing it would exceed the limit: it is
// killed at once where the limit does not recover within spec.drain, or when it
// is asked again, and otherwise when spec.drain is over.
func (w *waiter) end(sig os.Signal) {
	_ = w.p.Signal(sig) // it may have ended
	again := w.asked
	w.asked = true
	drain := time.Duration(w.s.config.Load().Sidecar.Drain)
	name, until, stopped := w.s.limits.stopped()
	switch {
	case stopped && (again || until.IsZero() || time.Until(until) > drain):
		w.killStopped(name, sig)
	case !again:
		w.deadline.Reset(drain)
	}
}

// overdue kills a plugin that was asked to end spec.drain ago and is stopped by
// a limit now. One that runs ends when it wants to.
func (w *waiter) overdue() {
	if name, _, stopped := w.s.limits.stopped(); stopped {
		w.killStopped(name, nil)
	}
}

func (w *waiter) killStopped(limit string, sig os.Signal) {
	cause := "it was asked to end, and spec.drain is over"
	if number, ok := sig.(syscall.Signal); ok {
		cause = "it cannot act on " + unix.SignalName(number)
	}
	w.s.act("the plugin is stopped by limit "+limit+" and is killed: "+cause, "")
	w.kill()
}

// kill ends the plugin, which may have ended already, whatever state it is in.
func (w *waiter) kill() {
	if err := w.s.killPlugin(); err != nil {
		w.s.opts.log.Error("plugin not killed", zap.Error(err))
	}
	_ = w.p.Signal(syscall.SIGKILL) // as above
}

// act prints what was done to the plugin, and with what remedy; beside a plugin
// that somebody else started it goes to the operator's log.
func (s *sidecar) act(what, remedy string) {
	if s.opts.acted != nil {
		s.opts.acted(what, remedy)
		return
	}
	s.opts.log.Warn("limit enforced", zap.String("detail", what), zap.String("remedy", remedy))
}

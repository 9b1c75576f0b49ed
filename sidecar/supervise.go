package sidecar

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

// supervisor passes signals to the plugin until it has ended.
type supervisor struct {
	s         *Sidecar
	p         process
	terminals *terminals
	signals   chan os.Signal
	served    chan error            // how the sidecar ended
	stops     <-chan syscall.Signal // see [ebpf.Process.Stops]; nil: nobody sees that the plugin stops

	asked    bool        // a signal has asked the plugin to end
	hungUp   bool        // the terminal is gone
	deadline *time.Timer // when a plugin that cannot act on it is killed
}

// exit is how CMD ended.
type exit struct {
	status int
	err    error
}

// wait forwards signals until CMD has ended. A sidecar that ends first ends CMD
// too: nothing that it does would work any more.
func (w *supervisor) wait(ctx context.Context) (int, error) {
	w.deadline = time.NewTimer(0)
	w.deadline.Stop()
	if seen, ok := w.p.(interface{ Stops() <-chan syscall.Signal }); ok {
		w.stops = seen.Stops()
	}
	ended := make(chan exit, 1)
	go func() {
		status, err := w.p.Wait()
		ended <- exit{status, err}
	}()
	watched := w.served
	for {
		select {
		case e := <-ended:
			return w.ended(ctx, e)
		case err := <-watched:
			w.served <- err // for the caller, which waits for the sidecar's end
			watched = nil
			w.s.cfg.Log.Error("sidecar failed", zap.Error(err), zap.String("effect", "plugin killed"))
			w.kill()
		case sig := <-w.signals:
			w.signal(ctx, sig)
		case sig := <-w.stops:
			w.stopped(sig)
		case key := <-w.terminals.typed:
			w.typed(key)
		case <-w.terminals.gone:
			w.hangUp()
		case <-w.deadline.C:
			w.overdue()
		}
	}
}

// ended records the end of CMD and returns the status of run.
func (w *supervisor) ended(ctx context.Context, e exit) (int, error) {
	s := w.s
	s.telemetry.flushKernel(ctx)
	s.journal.flushCounts(true)
	s.journal.record(&authz.Record{Kind: authz.KindProcess, UID: s.confinement.UID(), Detail: fmt.Sprintf("ended with status %d", e.status)})
	if r, halted := s.policy.halted(); halted {
		return 0, fmt.Errorf("%s was halted: %s\n  chaperone restore %s --config %s --reason TEXT", s.name, r.Reason, r.ID, s.policy.config.Load().Path)
	}
	return e.status, e.err
}

// flushPatience is how long the end of a plugin waits for what the kernel has still
// to report of it.
const flushPatience = time.Second

// flushKernel records what the kernel half has to report of a plugin that has ended.
func (t *KernelTelemetry) flushKernel(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushPatience)
	defer cancel()
	t.cfg.Confinement().Flush(ctx)
	t.recordSuppressed(time.Now(), true)
	t.recordProbes(time.Now(), true)
}

func (w *supervisor) signal(ctx context.Context, sig os.Signal) {
	_, _, limited := w.s.telemetry.limits.stopped()
	switch sig {
	case syscall.SIGHUP:
		if w.terminals.hungUp() {
			w.hangUp()
			return
		}
		_, _ = w.s.policy.Reload(ctx, "SIGHUP") // a refusal is recorded and logged there
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		w.end(sig)
	case syscall.SIGTSTP:
		if w.stops != nil && !limited {
			_ = w.p.Signal(sig) // it may have ended; if it stops, that is reported
			return
		}
		w.suspend()
	case syscall.SIGCONT:
		if w.terminals.relay != nil {
			w.terminals.relay.Continued()
		}
		if !limited { // one that a limit stopped is continued by the limit
			_ = w.p.Signal(sig) // it may have ended
		}
	case syscall.SIGWINCH:
		// A new size is reported by the kernel.
		if w.terminals.relay == nil || !w.terminals.relay.Resize() {
			_ = w.p.Signal(sig) // it may have ended
		}
	default:
		_ = w.p.Signal(sig) // it may have ended
	}
}

// limitPatience is how long after a plugin was stopped it may be reported that a
// limit has done it.
const limitPatience = 300 * time.Millisecond

// stopped follows a plugin that has stopped: this job of the person's shell stops
// with it. One that a limit has stopped goes on by itself.
func (w *supervisor) stopped(sig syscall.Signal) {
	if sig == syscall.SIGTTIN || sig == syscall.SIGTTOU { // it uses its terminal, and goes on
		w.terminals.relay.Activate()
		return
	}
	if sig == syscall.SIGSTOP {
		time.Sleep(limitPatience)
		if _, _, limited := w.s.telemetry.limits.stopped(); limited {
			return
		}
	}
	w.suspend()
}

// typed acts on a key that the plugin cannot act on: a limit has stopped it, or it
// leads its session, so that the kernel does not stop it by SIGTSTP.
func (w *supervisor) typed(key typedSignal) {
	_, _, limited := w.s.telemetry.limits.stopped()
	switch {
	case (limited || !key.sent) && key.sig != syscall.SIGTSTP:
		w.end(key.sig)
	case !key.sent:
		w.suspend()
	case limited, key.sig == syscall.SIGTSTP && w.stops == nil && key.group == w.p.PID():
		w.suspend()
	}
}

// suspend stops the plugin and this process until the person's shell continues
// the job.
func (w *supervisor) suspend() {
	_, _, limited := w.s.telemetry.limits.stopped()
	if !limited {
		_ = w.p.Signal(syscall.SIGSTOP) // it may have ended
	}
	if err := w.terminals.suspend(); err != nil {
		w.s.cfg.Log.Error("sidecar not stopped with the plugin", zap.Error(err))
	}
	if w.stops != nil {
		select {
		case <-w.stops: // by this function
		default:
		}
	}
	if !limited {
		_ = w.p.Signal(syscall.SIGCONT) // it may have ended
	}
}

// hangUp ends the plugin, whose terminal is gone, as the kernel ends the jobs of
// a terminal that hangs up. One that is still there when spec.drain is over is
// killed.
func (w *supervisor) hangUp() {
	if w.hungUp {
		return
	}
	w.hungUp, w.asked = true, true
	_ = w.p.Signal(syscall.SIGHUP) // it may have ended
	if _, _, limited := w.s.telemetry.limits.stopped(); limited {
		w.kill()
		return
	}
	_ = w.p.Signal(syscall.SIGCONT) // it may be stopped
	w.deadline.Reset(time.Duration(w.s.policy.config.Load().Sidecar.Drain))
}

// end passes on a signal that asks the plugin to end. One that a limit has
// stopped cannot act on it, and continuing it would exceed the limit: it is
// killed at once where the limit does not recover within spec.drain, or when it
// is asked again, and otherwise when spec.drain is over.
func (w *supervisor) end(sig os.Signal) {
	_ = w.p.Signal(sig) // it may have ended
	again := w.asked
	w.asked = true
	drain := time.Duration(w.s.policy.config.Load().Sidecar.Drain)
	name, until, stopped := w.s.telemetry.limits.stopped()
	switch {
	case stopped && (again || until.IsZero() || time.Until(until) > drain):
		w.killStopped(name, sig)
	case !again:
		w.deadline.Reset(drain)
	}
}

// overdue kills a plugin that was asked to end spec.drain ago and is stopped by
// a limit now. One that runs ends when it wants to.
func (w *supervisor) overdue() {
	if w.hungUp {
		w.kill()
		return
	}
	if name, _, stopped := w.s.telemetry.limits.stopped(); stopped {
		w.killStopped(name, nil)
	}
}

func (w *supervisor) killStopped(limit string, sig os.Signal) {
	cause := "it was asked to end, and spec.drain is over"
	if number, ok := sig.(syscall.Signal); ok {
		cause = "it cannot act on " + unix.SignalName(number)
	}
	w.s.telemetry.reportAction("the plugin is stopped by limit "+limit+" and is killed: "+cause, "")
	w.kill()
}

// kill ends the plugin, which may have ended already, whatever state it is in.
func (w *supervisor) kill() {
	if err := w.s.confinement.Kill(); err != nil {
		w.s.cfg.Log.Error("plugin not killed", zap.Error(err))
	}
	_ = w.p.Signal(syscall.SIGKILL) // as above
}

// reportAction prints what was done to the plugin, and with what remedy; beside a plugin
// that somebody else started it goes to the operator's log.
func (t *KernelTelemetry) reportAction(what, remedy string) {
	if t.cfg.Acted != nil {
		t.cfg.Acted(what, remedy)
		return
	}
	t.cfg.Log.Warn("limit enforced", zap.String("detail", what), zap.String("remedy", remedy))
}

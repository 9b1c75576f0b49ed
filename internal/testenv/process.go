package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a child that ends with this process, however this one ends.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *tail
	done chan struct{} // closed when the child has been waited for
	err  error         // of Wait; read it after done
	stop syscall.Signal
}

// startProcess starts cmd. stop is the signal that makes it end in good order;
// it is also the one it gets from the kernel when this process dies.
func startProcess(cmd *exec.Cmd, stop syscall.Signal) (*process, error) {
	p := &process{name: cmd.Path, cmd: cmd, log: &tail{}, done: make(chan struct{}), stop: stop}
	cmd.Stderr = p.log
	if cmd.Stdout == nil {
		cmd.Stdout = p.log
	}
	cmd.WaitDelay = 5 * time.Second
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for the program at the terminal, which then closes us
	cmd.SysProcAttr.Pdeathsig = stop

	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that started the child ends
		// (prctl(2), PR_SET_PDEATHSIG), so that thread must stay until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// signal sends sig to the child.
func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// pause stops the child and returns when every thread of it has stopped: the
// signal is sent at once, and acted on by each thread in its own time.
func (p *process) pause() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(startLimit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stopped, err := p.stopped()
		if err != nil {
			return fmt.Errorf("pause %s: %w", p.name, err)
		}
		if stopped {
			return nil
		}
	}
	return fmt.Errorf("pause %s: it goes on", p.name)
}

// stopped reports whether every thread is in state T (proc(5), /proc/PID/stat).
func (p *process) stopped() (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		return false, errors.Join(err, errors.New("it is gone"))
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return false, err
		}
		after := stat[bytes.LastIndexByte(stat, ')')+1:] // a name may hold anything
		if !bytes.HasPrefix(after, []byte(" T")) {
			return false, nil
		}
	}
	return true, nil
}

// kill ends the child at once, as a crash would, and waits for it.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// close ends the child in good order, also when it is paused, and kills it
// when it does not end within a minute.
func (p *process) close() error {
	if err := p.cmd.Process.Signal(p.stop); errors.Is(err, os.ErrProcessDone) {
		<-p.done
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("continue %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(time.Minute):
	}
	return errors.Join(fmt.Errorf("%s did not end on %v", p.name, p.stop), p.kill())
}

// until calls ready every 20 ms until it returns nil, the child ends or the
// time is up; the error then has the child's output.
func (p *process) until(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	var last error // the last one that is not just the time being up
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended (%w), having printed:\n%s", p.name, p.err, p.log)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w, having printed:\n%s", p.name, last, p.log)
		case <-ticks.C:
		}
	}
}

// tail keeps the last few KiB that were written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - tailSize; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}

package scenario

import (
	"bytes"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Buffer is the output of a process so far. It may be read while the process writes.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends to the output.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns the output so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Process is a command that runs in the background. It ends with its test.
type Process struct {
	Cmd    *exec.Cmd
	Output Buffer
	Ended  chan struct{} // closed when it has ended

	t *testing.T
}

// StartProcess starts a command, which ends with the test.
func StartProcess(t *testing.T, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Ended: make(chan struct{}), t: t}
	cmd.Stdout, cmd.Stderr = &p.Output, &p.Output
	cmd.WaitDelay = time.Second // a plugin that outlives its sidecar keeps the pipe open
	testenv.Must(t, cmd.Start())
	go func() { _ = cmd.Wait(); close(p.Ended) }() // the test looks at its status
	t.Cleanup(p.Stop)
	return p
}

// Wait waits for the end and returns the exit status.
func (p *Process) Wait() int {
	p.t.Helper()
	select {
	case <-p.Ended:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(testenv.Patience):
		p.t.Fatalf("got the command running after %s, want its end:\n%s", testenv.Patience, p.Output.String())
		return 0
	}
}

// Stop ends the command as a user would, and by SIGKILL, which fails the test, when it
// goes on.
func (p *Process) Stop() {
	_ = p.Cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.Ended:
	case <-time.After(testenv.Patience):
		p.t.Errorf("got the command running %s after SIGTERM, want its end:\n%s", testenv.Patience, p.Output.String())
		p.Kill()
	}
}

// Kill ends the command by SIGKILL.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended
	<-p.Ended
}

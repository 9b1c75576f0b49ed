package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// watch is how often a relay in the background looks whether it is in the
	// foreground: no signal reports that of a job that was not stopped.
	watch = 250 * time.Millisecond
	// drainPause is how long the last output may make no progress.
	drainPause = time.Second
)

// Config is the two sides of a [Relay] and its callbacks.
type Config struct {
	// Operator is the terminal of the person. The relay closes it.
	Operator *Operator
	// Master is the pseudoterminal of the program. The relay closes it.
	Master *os.File
	// Wait keeps the relay from reading before [Relay.Activate], and the terminal's
	// output modes as they are: others of a pipeline may read the terminal, and write
	// to it.
	Wait bool
	// Raw reports that the terminal has become raw, or is no longer.
	Raw func(raw bool)
	// Typed reports that a character was typed that has the pseudoterminal send
	// SIGINT, SIGQUIT or SIGTSTP, and the process group that was in its foreground
	// then (0: none). It was passed on. sent is false where the program has had the
	// pseudoterminal not send it, although it reads whole lines: then the caller has
	// to send the signal. A program that reads each character (in raw mode, as
	// editors and ssh) acts on it itself. It must not block.
	Typed func(sig syscall.Signal, group int, sent bool)
	// Gone reports that the terminal was hung up. It must not block.
	Gone func()
}

// Relay passes on what is typed and written between two terminals. The person's
// is in raw mode and read only while this process is in its foreground, so that
// the program has what is typed for it, and nothing that is typed for others.
type Relay struct {
	config Config
	wake   [2]int        // a pipe that ends a poll
	keys   *unix.Termios // of the person's terminal before it was raw

	mu        sync.Mutex
	active    bool
	suspended bool
	closed    bool
	saved     *term.State // while the terminal is raw

	reading  chan struct{} // closed when reading has ended
	writing  chan struct{}
	progress atomic.Uint64 // of what is written
	raw      atomic.Bool   // output is not processed
}

// Start starts a relay.
func Start(config Config) (*Relay, error) {
	r := &Relay{config: config, active: !config.Wait, reading: make(chan struct{}), writing: make(chan struct{})}
	if err := unix.Pipe2(r.wake[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("relay terminal: %w", err)
	}
	r.keys, _ = unix.IoctlGetTermios(config.Operator.fd, unix.TCGETS) // nil: it is gone
	r.Resize()
	_ = blockingJobSignals(func() error { r.prepare(); return nil }) // before anything is written
	go r.write()
	go r.read()
	return r, nil
}

// Resize passes the size on. It reports whether that changed, in which case the
// kernel sends SIGWINCH to the program.
func (r *Relay) Resize() bool {
	size, err := unix.IoctlGetWinsize(r.config.Operator.fd, unix.TIOCGWINSZ)
	if err != nil {
		return false
	}
	changed := false
	_, err = control(r.config.Master, func(fd int) (int, error) {
		old, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err != nil || *old == *size {
			return 0, err
		}
		changed = true
		return 0, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size)
	})
	return changed && err == nil
}

// Activate begins to read, if [Config.Wait] has kept the relay from it.
func (r *Relay) Activate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active = true
	r.poke()
}

// Suspend gives the terminal back, calls stop, which is to stop the process until
// the terminal's shell continues it, and takes the terminal again.
func (r *Relay) Suspend(stop func()) {
	r.mu.Lock()
	r.suspended = true
	r.cook()
	r.mu.Unlock()
	stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspended = false
	r.poke()
}

// Continued is called when the process may have been stopped and continued by
// another one: the terminal may be another job's, or have other modes.
func (r *Relay) Continued() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.saved != nil && !r.suspended && r.config.Operator.foreground() {
		if _, err := r.config.Operator.makeRaw(r.config.Wait); err != nil {
			r.saved = nil // the reader tries again
		}
	}
	r.poke()
}

// foregroundGroup returns the process group that the pseudoterminal sends
// signals to, or 0.
func (r *Relay) foregroundGroup() int {
	group, err := control(r.config.Master, func(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.TIOCGPGRP) })
	if err != nil {
		return 0
	}
	return group
}

// Close writes what the program has written last and gives the terminal back.
// The program has ended.
func (r *Relay) Close() error {
	for last, done := r.progress.Load(), false; !done; {
		select {
		case <-r.writing:
			done = true
		case <-time.After(drainPause):
			now := r.progress.Load()
			done = now == last
			last = now
		}
	}
	r.mu.Lock()
	r.closed = true
	r.cook()
	r.poke()
	r.mu.Unlock()
	err := r.config.Master.Close()
	<-r.reading
	select {
	case <-r.writing:
		err = errors.Join(err, r.config.Operator.Close(), unix.Close(r.wake[0]), unix.Close(r.wake[1]))
	case <-time.After(drainPause):
		// A write hangs that the terminal does not take. It keeps its descriptors,
		// which end with the process.
	}
	if err != nil {
		return fmt.Errorf("end relay of terminal: %w", err)
	}
	return nil
}

// setRaw notes whether what is written is shown as it is.
func (r *Relay) setRaw(raw bool) {
	r.raw.Store(raw)
	r.config.Raw(raw)
}

// poke has the reader look again.
func (r *Relay) poke() { _, _ = unix.Write(r.wake[1], []byte{0}) } // a full pipe wakes it as well

// cook restores the terminal's modes, unless they are another job's by now. The
// caller holds the lock.
func (r *Relay) cook() {
	if r.saved == nil {
		return
	}
	if r.config.Operator.foreground() {
		_ = blockingJobSignals(func() error { return r.config.Operator.restore(r.saved) }) // fails if it is gone
	}
	r.saved = nil
	r.setRaw(false)
}

// write writes what the program writes until its terminal is closed. When the
// person's terminal is gone it is dropped.
func (r *Relay) write() {
	defer close(r.writing)
	blockJobSignals()
	buffer := make([]byte, 32<<10)
	var failed error
	for {
		n, err := r.config.Master.Read(buffer)
		for chunk := range slices.Chunk(buffer[:n], 1<<10) {
			if !r.raw.Load() { // the terminal makes \r\n of \n, as the other one has done
				chunk = bytes.ReplaceAll(chunk, []byte("\r\n"), []byte("\n"))
			}
			if failed == nil {
				failed = r.config.Operator.write(chunk)
			}
			r.progress.Add(1)
		}
		if err != nil {
			return // EIO: no process has the slave open any more
		}
	}
}

// read reads what is typed until the relay is closed or the terminal is gone.
func (r *Relay) read() {
	defer close(r.reading)
	blockJobSignals()
	buffer := make([]byte, 1024)
	for {
		reads, closed := r.prepare()
		if closed {
			return
		}
		hungUp, ready := r.poll(reads)
		if hungUp {
			r.config.Gone()
			return
		}
		if !ready {
			continue
		}
		n := r.take(buffer)
		if n == 0 {
			continue
		}
		// Before it is passed on: the group that it stops is then in the foreground.
		keys, group := r.signals(buffer[:n]), r.foregroundGroup()
		if _, err := r.config.Master.Write(buffer[:n]); err != nil {
			return // the program has ended
		}
		for _, k := range keys {
			r.config.Typed(k.sig, group, k.sent)
		}
	}
}

// prepare makes the terminal raw if it is to be read now.
func (r *Relay) prepare() (reads, closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return false, true
	case !r.active || r.suspended:
		return false, false
	case !r.config.Operator.foreground():
		if r.saved != nil { // another job's by now, with its modes
			r.saved = nil
			r.setRaw(false)
		}
		return false, false
	case r.saved == nil:
		state, err := r.config.Operator.makeRaw(r.config.Wait)
		if err != nil {
			return false, false
		}
		r.saved = state
		r.setRaw(!r.config.Wait)
	}
	return true, false
}

// poll waits until something is typed, if that is to be read, or until the relay
// is to look again.
func (r *Relay) poll(reads bool) (hungUp, ready bool) {
	fds := []unix.PollFd{{Fd: int32(r.config.Operator.fd)}, {Fd: int32(r.wake[0]), Events: unix.POLLIN}}
	wait := int(watch.Milliseconds())
	if reads {
		fds[0].Events, wait = unix.POLLIN, -1
	}
	if _, err := unix.Poll(fds, wait); err != nil {
		return false, false // EINTR
	}
	if fds[1].Revents != 0 {
		var drained [64]byte
		_, _ = unix.Read(r.wake[0], drained[:]) // further bytes wake it again
	}
	const lost = unix.POLLHUP | unix.POLLERR | unix.POLLNVAL
	return fds[0].Revents&lost != 0, reads && fds[0].Revents&unix.POLLIN != 0
}

// take reads what was typed, while it is this process's. The kernel refuses a
// read in the background with EIO, since SIGTTIN is blocked here.
func (r *Relay) take(buffer []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.saved == nil || r.closed || !r.config.Operator.foreground() {
		return 0
	}
	n, err := unix.Read(r.config.Operator.fd, buffer)
	if err != nil {
		return 0 // the next poll reports whether it is gone
	}
	return n
}

// key is a character that stands for a signal.
type key struct {
	sig  syscall.Signal
	sent bool // the pseudoterminal sends it
}

// signals returns the signals that characters stand for: those that the
// pseudoterminal sends as it is set, and while it collects lines those that the
// person's terminal would have sent as it was.
func (r *Relay) signals(typed []byte) []key {
	var modes *unix.Termios
	_, err := control(r.config.Master, func(fd int) (_ int, err error) {
		modes, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return 0, err
	})
	if err != nil {
		return nil
	}
	var out []key
	for _, c := range typed {
		if sig := signalOf(modes, c); sig != 0 {
			out = append(out, key{sig, true})
		} else if sig := signalOf(r.keys, c); sig != 0 && modes.Lflag&unix.ICANON != 0 {
			out = append(out, key{sig, false})
		}
	}
	return out
}

// signalOf returns the signal that a terminal sends for a character; 0 for none.
func signalOf(modes *unix.Termios, c byte) syscall.Signal {
	switch {
	case modes == nil || modes.Lflag&unix.ISIG == 0 || c == 0: // 0: a function that is switched off (_POSIX_VDISABLE)
		return 0
	case c == modes.Cc[unix.VINTR]:
		return unix.SIGINT
	case c == modes.Cc[unix.VQUIT]:
		return unix.SIGQUIT
	case c == modes.Cc[unix.VSUSP]:
		return unix.SIGTSTP
	}
	return 0
}

// jobSignals stop a process in the background that uses its terminal.
func jobSignals() *unix.Sigset_t {
	set := &unix.Sigset_t{}
	for _, sig := range []unix.Signal{unix.SIGTTIN, unix.SIGTTOU} {
		set.Val[0] |= 1 << (uint(sig) - 1)
	}
	return set
}

// blockJobSignals keeps the goroutine's thread from being stopped for its use of
// the terminal: a read in the background fails, and the rest is done. The thread
// ends with the goroutine.
func blockJobSignals() {
	runtime.LockOSThread()
	_ = unix.PthreadSigmask(unix.SIG_BLOCK, jobSignals(), nil) // never fails: the arguments are well formed
}

// blockingJobSignals calls f as in such a thread.
func blockingJobSignals(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, jobSignals(), &before); err != nil {
		return err
	}
	return errors.Join(f(), unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil))
}

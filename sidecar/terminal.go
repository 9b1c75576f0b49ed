package sidecar

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/terminal"
)

// streams puts the standard streams of run into a command. Those that are a
// terminal become one of the plugin's own. Another terminal, which the relay does
// not serve, can only be written to.
func streams(command *sandbox.Command) error {
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	operator := operatorStream()
	if operator == nil {
		return nil
	}
	command.Terminal = true
	// Others of a pipeline, as a pager, may read the terminal.
	command.Background = !terminal.Is(os.Stdin) || !terminal.Is(os.Stdout)
	for _, stream := range []**os.File{&command.Stdout, &command.Stderr} {
		if !terminal.Is(*stream) || terminal.Same(operator, *stream) {
			continue
		}
		only, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", (*stream).Fd()), os.O_WRONLY|unix.O_NOCTTY, 0)
		if err != nil {
			return fmt.Errorf("pass the second terminal to the plugin: %w", err)
		}
		*stream = only
	}
	return nil
}

// operatorStream returns the first standard stream that is a terminal; nil if
// none is.
func operatorStream() *os.File {
	for _, stream := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if terminal.Is(stream) {
			return stream
		}
	}
	return nil
}

// typedSignal is a signal that a key has the plugin's terminal send, and the
// process group of the terminal that it goes to.
type typedSignal struct {
	sig   syscall.Signal
	group int
	sent  bool // by the terminal; false: the plugin has had it not send it
}

// terminals is what run has to do with the terminal that it was started on.
type terminals struct {
	relay       *terminal.Relay    // nil: the plugin has no terminal
	controlling *terminal.Operator // of this process; nil: it has none
	immune      bool               // SIGHUP was ignored at the start, as by nohup(1)
	typed       chan typedSignal
	gone        chan struct{}
}

// openTerminals is called before SIGHUP is handled.
func openTerminals() *terminals {
	return &terminals{
		controlling: terminal.OpenControlling(), immune: signal.Ignored(syscall.SIGHUP),
		typed: make(chan typedSignal, 1), gone: make(chan struct{}, 1),
	}
}

// attach relays between the terminal of run and the plugin's, if it has one.
func (t *terminals) attach(master *os.File, background bool, raw func(bool)) error {
	if master == nil {
		return nil
	}
	stream := operatorStream()
	operator, err := terminal.OpenOperator(stream)
	if err != nil {
		return errors.Join(err, master.Close())
	}
	// A terminal that is only written to ends no session.
	ends := operator.Controlling() || stream == os.Stdin
	t.relay, err = terminal.Start(terminal.Config{
		Operator: operator, Master: master, Wait: background, Raw: raw,
		Typed: func(sig syscall.Signal, group int, sent bool) {
			select {
			case t.typed <- typedSignal{sig, group, sent}:
			default: // one that is not acted on yet asks for the same
			}
		},
		Gone: func() {
			if ends && !t.immune {
				t.gone <- struct{}{}
			}
		},
	})
	if err != nil {
		return errors.Join(err, operator.Close(), master.Close())
	}
	return nil
}

// hungUp reports whether SIGHUP came because the terminal is gone.
func (t *terminals) hungUp() bool {
	return !t.immune && t.controlling != nil && t.controlling.Gone()
}

// detach writes what the plugin has written last and restores the terminal.
func (t *terminals) detach() error {
	if t.relay == nil {
		return nil
	}
	return t.relay.Close()
}

// suspend stops this process and its job as Ctrl-Z would, and returns when it is
// continued. The terminal is given back for that time.
func (t *terminals) suspend() (err error) {
	if t.relay == nil {
		return terminal.StopJob()
	}
	t.relay.Suspend(func() { err = terminal.StopJob() })
	return err
}

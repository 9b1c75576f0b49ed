package sandbox

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
	"github.com/chaperone-proxy/chaperone/internal/terminal"
)

// terminalStreams returns which of the streams a pseudoterminal replaces, as a set
// of bits.
func (c *Command) terminalStreams() (set uint8) {
	if !c.Terminal {
		return 0
	}
	var first *os.File
	for i, file := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if !terminal.Is(file) {
			continue
		}
		if first == nil {
			first = file
		}
		if terminal.Same(first, file) {
			set |= 1 << i
		}
	}
	return set
}

// terminalSettings are those of the terminal that the streams of a set are.
func (c *Command) terminalSettings(set uint8) (terminal.Settings, error) {
	if set == 0 {
		return terminal.Settings{}, nil
	}
	return terminal.SettingsOf([]*os.File{c.Stdin, c.Stdout, c.Stderr}[launcher.StreamOf(set)])
}

// withTerminal returns the command with the slave of a new pseudoterminal as its
// streams, the master, and the number of one of these streams. Without a terminal
// there is no master.
func (c Command) withTerminal(uid int) (_ Command, master, slave *os.File, err error) {
	set := c.terminalStreams()
	if set == 0 {
		return c, nil, nil, nil
	}
	settings, err := c.terminalSettings(set)
	if err != nil {
		return c, nil, nil, err
	}
	master, slave, err = terminal.Open(terminal.Multiplexer, uid, settings)
	if err != nil {
		return c, nil, nil, err
	}
	for i, stream := range []**os.File{&c.Stdin, &c.Stdout, &c.Stderr} {
		if set&(1<<i) != 0 {
			*stream = slave
		}
	}
	return c, master, slave, nil
}

// withoutStreams returns the command without the streams that are replaced in a
// view: the terminal of the sidecar is not to be known there.
func (c Command) withoutStreams(set uint8) Command {
	for i, stream := range []**os.File{&c.Stdin, &c.Stdout, &c.Stderr} {
		if set&(1<<i) != 0 {
			*stream = nil
		}
	}
	return c
}

// Terminal returns the master of the program's pseudoterminal, which the caller
// closes; nil if it has none.
func (p *Process) Terminal() *os.File { return p.terminal }

// Stops reports the signals that stop the program. SIGTTIN and SIGTTOU say that
// it uses its terminal and was put in the foreground there for that; it goes on.
// Nil: nobody sees that it stops.
func (p *Process) Stops() <-chan syscall.Signal { return p.stops }

// Terminal is as [Process.Terminal].
func (p *RootlessProcess) Terminal() *os.File { return p.terminal }

// newMaster returns the file of a master's descriptor, which does not block.
func newMaster(fd int) *os.File {
	_ = unix.SetNonblock(fd, true) // never fails: the descriptor is open
	return os.NewFile(uintptr(fd), terminal.Multiplexer)
}

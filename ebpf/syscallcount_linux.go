package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// counterPin is the pin of the system call counter.
const counterPin = linkPrefix + "count_call"

// count attaches the system call counter or takes it off, as a limit or the
// configuration needs it. Before [Cage.Attach] it only loads it. The caller
// holds the cage's lock.
func (c *Cage) count(limited bool) error {
	if (limited || c.config.CountSyscalls) && c.wall.calls == nil {
		if err := c.wall.loadCalls(c.pins, c.group, c.group.Own); err != nil {
			return err
		}
		if c.attached {
			if err := c.wall.settle(c.pins); err != nil {
				return err
			}
		}
	}
	if !c.attached {
		return nil
	}
	return c.wall.putCounter(c.pins, limited)
}

// attachCounter puts the counter on sys_exit if what is in force needs it.
func (w *wall) attachCounter(dir string) error {
	return w.putCounter(dir, w.ledger.has(LimitSyscalls))
}

// putCounter puts the counter on sys_exit, or takes it off. With a limit it
// is pinned, so that it outlasts this process; without one it is no wall. A
// link on a tracepoint cannot be given another program: the new counter is
// attached beside the old one, and a word that both look at hands over from
// one to the other between two calls.
func (w *wall) putCounter(dir string, limited bool) error {
	pin, needed := filepath.Join(dir, counterPin), limited || w.always
	if needed && w.counter == nil {
		l, err := link.AttachTracing(link.TracingOptions{Program: w.calls.Programs["count_call"]})
		if err != nil {
			return fmt.Errorf("attach system call counter: %w", err)
		}
		w.counter = l
		if err := w.ledger.turn(func(d *wallDoor) { d.Counter = w.turn }); err != nil {
			return fmt.Errorf("attach system call counter: %w", err)
		}
	}
	if limited && w.pinned {
		return nil
	}
	if limited {
		if err := repin(w.counter, pin); err != nil {
			return fmt.Errorf("keep system call counter: %w", err)
		}
		w.pinned = true
		return nil
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detach system call counter: %w", err)
	}
	w.pinned = false
	if needed || w.counter == nil {
		return nil
	}
	err := w.counter.Close()
	w.counter = nil
	if err != nil {
		return fmt.Errorf("detach system call counter: %w", err)
	}
	return nil
}

// loadCalls loads the system call counter.
func (w *wall) loadCalls(dir string, group *sandbox.Cgroup, own bool) error {
	spec, err := w.read("system call", loadCalls, group, own)
	if err != nil {
		return err
	}
	if err := w.keepMaps(dir, spec); err != nil {
		return err
	}
	door, err := w.ledger.readDoor()
	if err != nil {
		return fmt.Errorf("set up system call counter: %w", err)
	}
	w.turn = door.Counter + 1
	err = errors.Join(spec.Variables["class_of"].Set(classTable()), spec.Variables["turn"].Set(w.turn))
	if err != nil {
		return fmt.Errorf("set up system call counter: %w", err)
	}
	w.calls, err = w.loadObject(spec)
	return explain("load system call counter", err)
}

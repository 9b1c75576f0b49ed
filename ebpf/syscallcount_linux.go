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
// configuration needs it. Before [Confinement.Attach] it only loads it. The caller
// holds the confinement's lock.
func (c *Confinement) count(limited bool) error {
	if (limited || c.config.CountSyscalls) && c.programs.calls == nil {
		if err := c.programs.loadCalls(c.pinDir, c.group, c.group.Own); err != nil {
			return err
		}
		if c.attached {
			if err := c.programs.pinMaps(c.pinDir); err != nil {
				return err
			}
		}
	}
	if !c.attached {
		return nil
	}
	return c.programs.putCounter(c.pinDir, limited)
}

// attachCounter puts the counter on sys_exit if what is in force needs it.
func (w *collection) attachCounter(dir string) error {
	// A watch that an earlier sidecar left holds until the counter does.
	return errors.Join(w.putCounter(dir, w.limits.limitsCalls()), w.stopWatch(dir))
}

// putCounter puts the counter on sys_exit, or takes it off. With a limit it
// is pinned, so that it outlasts this process; without one it is no hook. A
// link on a tracepoint cannot be given another program: the new counter is
// attached beside the old one, and a word that both look at hands over from
// one to the other between two calls.
func (w *collection) putCounter(dir string, limited bool) error {
	pin, needed := filepath.Join(dir, counterPin), limited || w.countAlways
	if needed && w.counter == nil {
		l, err := link.AttachTracing(link.TracingOptions{Program: w.calls.Programs["count_call"]})
		if err != nil {
			return fmt.Errorf("attach system call counter: %w", err)
		}
		w.counter = l
		if err := w.limits.updateControl(func(d *hooksControl) { d.Counter = w.counterTurn }); err != nil {
			return fmt.Errorf("attach system call counter: %w", err)
		}
	}
	if limited && w.counterPinned {
		return nil
	}
	if limited {
		if err := repin(w.counter, pin); err != nil {
			return fmt.Errorf("keep system call counter: %w", err)
		}
		w.counterPinned = true
		return nil
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detach system call counter: %w", err)
	}
	w.counterPinned = false
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
func (w *collection) loadCalls(dir string, group *sandbox.Cgroup, own bool) error {
	spec, err := w.read("system call", loadCalls, group, own)
	if err != nil {
		return err
	}
	if err := w.loadMaps(dir, spec); err != nil {
		return err
	}
	door, err := w.limits.readControl()
	if err != nil {
		return fmt.Errorf("set up system call counter: %w", err)
	}
	w.counterTurn = door.Counter + 1
	err = errors.Join(spec.Variables["class_of"].Set(classTable()), spec.Variables["turn"].Set(w.counterTurn))
	if err != nil {
		return fmt.Errorf("set up system call counter: %w", err)
	}
	if w.calls, err = w.loadObject(spec); err != nil {
		return explain("load system call counter", err)
	}
	return w.loadCallWatch(dir, group, own)
}

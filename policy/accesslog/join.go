package accesslog

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// maxOpen bounds the accesses whose end was not read yet. It is above what a sidecar
// holds open at once.
const maxOpen = 16 << 10

// joiner joins the two records of each access.
type joiner struct {
	r      *Reader
	yield  func(*Access, error) bool
	latest *Access // the last that is open, whose end is often the next record; nil for none
	open   map[string]*Access
	order  []string  // the ids in open, oldest first; those that have ended are left in it
	free   []*Access // to be used again
}

// readLog reads one log: its two chains in the order of their times.
func (r *Reader) readLog(ctx context.Context, l *logFiles, yield func(*Access, error) bool) (err error) {
	j := joiner{r: r, yield: yield, open: map[string]*Access{}}
	var chains []*cursor
	for _, files := range [][]logFile{l.first, l.second} {
		c := &cursor{log: l.name, files: files, stdin: r.options.Stdin, scan: newScanner(), broken: r.broken}
		defer func() { err = errors.Join(err, c.close()) }()
		switch nerr := c.next(); {
		case nerr == nil:
			chains = append(chains, c)
		case !errors.Is(nerr, io.EOF):
			return nerr
		}
	}
	for len(chains) > 0 {
		if r.records++; r.records%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		at := 0
		if len(chains) > 1 && chains[1].entry.Time.Before(chains[0].entry.Time) {
			at = 1
		}
		c := chains[at]
		if err := j.take(c.entry, c.place); err != nil {
			return err
		}
		switch nerr := c.next(); {
		case errors.Is(nerr, io.EOF):
			if c.torn != nil {
				r.notes = append(r.notes, c.torn.place.String()+": the last line is the beginning of a record, and is not counted")
			}
			chains = append(chains[:at:at], chains[at+1:]...)
		case nerr != nil:
			return nerr
		}
	}
	return j.rest()
}

// take takes one record.
func (j *joiner) take(e *audit.Entry, p Place) error {
	switch authz.Kind(e.Kind) {
	case authz.KindDecision:
		return j.decision(e, p)
	case authz.KindEnd:
		return j.end(e)
	default:
		if j.r.options.Event != nil {
			return j.r.options.Event(&Event{*e, p})
		}
		return nil
	}
}

func (j *joiner) decision(e *audit.Entry, p Place) error {
	a := j.unused()
	j.r.access(a, e, p)
	if !j.chosen(a) {
		j.free = append(j.free, a)
		return nil
	}
	if !a.Allowed {
		return j.emit(a)
	}
	previous := j.latest
	if j.latest = a; previous == nil {
		return nil
	}
	if len(j.open) >= maxOpen {
		if err := j.oldest(); err != nil {
			return err
		}
	}
	if len(j.order) >= 2*maxOpen {
		j.order = slices.DeleteFunc(j.order, func(id string) bool { return j.open[id] == nil })
	}
	j.open[previous.Decision], j.order = previous, append(j.order, previous.Decision)
	return nil
}

// unused returns an access to fill in.
func (j *joiner) unused() *Access {
	if n := len(j.free); n > 0 {
		a := j.free[n-1]
		j.free = j.free[:n-1]
		return a
	}
	return &Access{}
}

// chosen reports whether the options ask for the access.
func (j *joiner) chosen(a *Access) bool {
	o := &j.r.options
	return (o.Plugin == "" || a.Plugin == o.Plugin) && !a.Time.Before(o.Since) && (o.Until.IsZero() || a.Time.Before(o.Until))
}

// end joins the end of an access. The end of an access that was not chosen, or whose
// decision stands before the first record, is left out; so is a further end, which a data
// plane reports of an answer after the access.
func (j *joiner) end(e *audit.Entry) error {
	a := j.latest
	if a != nil && a.Decision == e.Decision {
		j.latest = nil
	} else if a = j.open[e.Decision]; a == nil {
		return nil
	} else {
		delete(j.open, e.Decision)
	}
	j.r.end(a, e)
	return j.emit(a)
}

// oldest emits the access that has been open for longest.
func (j *joiner) oldest() error {
	for len(j.order) > 0 {
		id := j.order[0]
		j.order = j.order[1:]
		if a := j.open[id]; a != nil {
			delete(j.open, id)
			return j.emit(a)
		}
	}
	return nil
}

// rest emits the accesses whose end the log does not have.
func (j *joiner) rest() error {
	for len(j.order) > 0 {
		if err := j.oldest(); err != nil {
			return err
		}
	}
	if a := j.latest; a != nil {
		j.latest = nil
		return j.emit(a)
	}
	return nil
}

func (j *joiner) emit(a *Access) error {
	if !j.yield(a, nil) {
		return errStopped
	}
	j.free = append(j.free, a)
	return nil
}

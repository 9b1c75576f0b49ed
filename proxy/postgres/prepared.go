package postgres

import "slices"

const (
	// maxNames is how many prepared statements and how many portals a connection has at most.
	maxNames = 1000
	// nameSize is how much of a name the server compares (NAMEDATALEN - 1).
	nameSize = 63
	// maxCandidates is how many contents a name may have that are kept one by one.
	maxCandidates = 4
)

// names are the prepared statements of a connection, or its portals. A message that sets a
// name may fail, or be skipped, and this is found out when its batch has been answered; until
// then a name has everything that it may have. Only one goroutine uses them.
type names struct {
	of        map[string]*named
	succeeded func(batch uint64) bool
	forgotten *content // the facts of all that was forgotten, nil for nothing
}

// named is what a name stands for, the latest last.
type named struct{ candidates []candidate }

// candidate is one thing that a name may stand for.
type candidate struct {
	content *content // nil: the name is free
	batch   uint64   // that set it
}

func newNames(succeeded func(uint64) bool) *names {
	return &names{of: map[string]*named{}, succeeded: succeeded}
}

// cut shortens a name as the server does.
func cut(name []byte) []byte { return name[:min(len(name), nameSize)] }

// set records that a message of a batch sets a name. It reports false if there are too
// many names.
func (n *names) set(name []byte, c *content, batch uint64) bool {
	e := n.of[string(cut(name))]
	if e == nil {
		if c == nil {
			return true
		}
		if len(n.of) >= maxNames && !n.sweep() {
			return false
		}
		e = &named{}
		if n.forgotten != nil {
			e.candidates = []candidate{{content: n.forgotten}}
		}
		n.of[string(cut(name))] = e
	}
	n.settle(e)
	if len(e.candidates) >= maxCandidates {
		e.candidates = []candidate{{content: union(e.candidates), batch: e.candidates[len(e.candidates)-1].batch}}
	}
	e.candidates = append(e.candidates, candidate{c, batch})
	if c == nil {
		n.drop(string(cut(name)), e)
	}
	return true
}

// settle forgets what a name stood for before the last message that is known to have set it.
func (n *names) settle(e *named) {
	for i := len(e.candidates) - 1; i > 0; i-- {
		if n.succeeded(e.candidates[i].batch) {
			e.candidates = slices.Delete(e.candidates, 0, i)
			return
		}
	}
}

// drop forgets a name if it is free.
func (n *names) drop(name string, e *named) {
	n.settle(e)
	if !slices.ContainsFunc(e.candidates, func(c candidate) bool { return c.content != nil }) {
		delete(n.of, name)
	}
}

// sweep forgets the names that are free, and reports whether there is room.
func (n *names) sweep() bool {
	for name, e := range n.of {
		n.drop(name, e)
	}
	return len(n.of) < maxNames
}

// free records that a batch frees all names.
func (n *names) free(batch uint64) {
	for name := range n.of {
		n.set([]byte(name), nil, batch)
	}
}

// forget forgets the names that were set in batches up to one. Their facts are kept together:
// a cursor WITH HOLD outlives its transaction.
func (n *names) forget(batch uint64) {
	for name, e := range n.of {
		if e.candidates[len(e.candidates)-1].batch > batch {
			continue
		}
		if n.forgotten == nil {
			n.forgotten = &content{}
		}
		for _, c := range e.candidates {
			if c.content != nil {
				n.forgotten.addFacts(c.content.facts...)
			}
		}
		delete(n.of, name)
	}
}

// get returns what a name stands for in a message of a batch, nil for a name that is not
// known. If the name was set in the same batch, it stands for that: where it was not set, the
// server skips the message.
func (n *names) get(name []byte, batch uint64) *content {
	e := n.of[string(cut(name))]
	if e == nil {
		return nil
	}
	if n.settle(e); len(e.candidates) == 1 {
		return e.candidates[0].content
	}
	if last := e.candidates[len(e.candidates)-1]; last.batch == batch {
		return last.content
	}
	return union(e.candidates)
}

// find is get, and returns everything forgotten for a name that is not known.
func (n *names) find(name []byte, batch uint64) *content {
	if c := n.get(name, batch); c != nil {
		return c
	}
	return n.forgotten
}

// behind returns what a name stands for behind the execution of c, which has a PREPARE or
// DECLARE of it. If c is the union of several, of which one is executed, the name may also
// stand for what it did before.
func (n *names) behind(c *content, use nameUse, batch uint64) *content {
	if !c.several {
		return use.content
	}
	return union([]candidate{{content: n.find([]byte(use.name), batch)}, {content: use.content}})
}

// union returns what has the facts of every candidate, nil if all are free.
func union(candidates []candidate) *content {
	var all []*content
	for _, c := range candidates {
		if c.content != nil && !slices.Contains(all, c.content) {
			all = append(all, c.content)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	u := &content{several: true}
	for _, c := range all {
		u.add(c)
	}
	return u
}

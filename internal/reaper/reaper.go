// Package reaper collects orphans.
//
// The first process of a PID namespace, which the first process of a container
// is, becomes the parent of every process whose own parent has ended, as does a
// child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER). Until it waits for them,
// those that have ended keep their ids (wait(2)), and at the end no process can
// be started any more. A program that waits for any child, however, takes the
// exit status from the part of itself that started it. So a Reaper is given the
// children that the program itself starts, and waits for all others.
package reaper

import (
	"os"
	"sync"
)

// Reaper waits for the children that this process did not start. Every child
// that it does start goes through Start and Done. A nil Reaper keeps no account
// and collects nothing.
type Reaper struct {
	mu   sync.Mutex   // held while a child is started, and while orphans are collected
	own  map[int]bool // children that somebody here waits for, by id
	poke chan struct{}
}

// New returns a Reaper that has no children. It collects nothing before Run.
func New() *Reaper {
	return &Reaper{own: make(map[int]bool), poke: make(chan struct{}, 1)}
}

// Start calls start, which starts one child, and keeps the child from being
// collected until Done.
func (r *Reaper) Start(start func() (*os.Process, error)) (*os.Process, error) {
	if r == nil {
		return start()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	process, err := start()
	if err == nil && process != nil {
		r.own[process.Pid] = true
	}
	return process, err
}

// Done forgets a child, by its id, that was waited for. From then on the id may
// be an orphan's.
func (r *Reaper) Done(pid int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	delete(r.own, pid)
	r.mu.Unlock()
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

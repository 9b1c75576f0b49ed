// Package budget bounds the memory that others can make a process hold.
//
// A [Budget] is one number of bytes for everything that a plugin or an upstream
// can make the process keep: connections, requests, bodies, decoders, windows. Each
// part is taken from it before it is held, at what it costs at most, and given back
// exactly once. When it is spent, what would need more of it is refused; nothing
// that is held already is dropped for it.
package budget

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Kind is what bytes are taken for. The zero Kind is Connection.
type Kind uint8

// The kinds.
const (
	Connection Kind = iota // a connection, with its goroutine and buffers
	Request                // a request or tunnel under way, with its head and its copy buffers
	Body                   // buffered bodies and messages until they may be forwarded
	Window                 // the part of a body that a peer may send before it is read (RFC 9113, section 5.2)
	Decoder                // windows and tables of decompression
	kinds
)

// String returns the kind as the label of a metric.
func (k Kind) String() string {
	return [...]string{"connection", "request", "body", "window", "decoder"}[k]
}

// Kinds returns all kinds.
func Kinds() []Kind { return []Kind{Connection, Request, Body, Window, Decoder} }

// ErrFull is for a budget that is used up.
var ErrFull = errors.New("the memory limit is reached")

// Budget is so many bytes, of which [Holding]s take. It is safe for concurrent use.
type Budget struct {
	limit int64

	mu      sync.Mutex
	taken   int64
	of      [kinds]int64
	refused [kinds]uint64
	given   chan struct{} // closed when something is given back; nil while nobody waits
}

// New returns a budget of so many bytes.
func New(limit int64) *Budget { return &Budget{limit: limit} }

// Limit returns the bytes that may be held in all.
func (b *Budget) Limit() int64 { return b.limit }

// Held returns the bytes that are held of a kind, and how often more was refused.
func (b *Budget) Held(kind Kind) (bytes int64, refused uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.of[kind], b.refused[kind]
}

// take takes n bytes. Without room it returns what is closed once there may be.
func (b *Budget) take(kind Kind, n int64) (full <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken+n <= b.limit {
		b.taken += n
		b.of[kind] += n
		return nil
	}
	if b.given == nil {
		b.given = make(chan struct{})
	}
	return b.given
}

func (b *Budget) give(of [kinds]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for kind, n := range of {
		b.taken -= n
		b.of[kind] -= n
	}
	if b.given != nil {
		close(b.given)
		b.given = nil
	}
}

func (b *Budget) refuse(kind Kind) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused[kind]++
	return ErrFull
}

// Hold returns a holding of the budget, which is empty.
func (b *Budget) Hold() *Holding { return &Holding{budget: b} }

// Holding is what one part of a program holds: of a connection, or a request. It
// is safe for concurrent use.
type Holding struct {
	budget *Budget

	mu    sync.Mutex
	of    [kinds]int64
	ended bool
}

// ErrEnded is for a holding that has ended.
var ErrEnded = errors.New("the memory reservation has ended")

// Take takes n more bytes, or returns [ErrFull] or [ErrEnded] and takes none.
func (h *Holding) Take(kind Kind, n int64) error {
	full, err := h.try(kind, n)
	if full != nil {
		return h.budget.refuse(kind)
	}
	return err
}

// TakeShare is [Holding.Take] that also leaves room for others: it takes nothing
// once most bytes of the kind are held in all, and counts nothing as refused.
func (h *Holding) TakeShare(kind Kind, n, most int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	if held, _ := h.budget.Held(kind); held+n > most {
		return false // two that ask at the same time may both be let in
	}
	if h.budget.take(kind, n) != nil {
		return false
	}
	h.of[kind] += n
	return true
}

// TakeWithin is [Holding.Take] that waits for others to give back, for so long at
// most or until ctx ends.
func (h *Holding) TakeWithin(ctx context.Context, patience time.Duration, kind Kind, n int64) error {
	full, err := h.try(kind, n)
	if full == nil {
		return err
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case <-full:
			if full, err = h.try(kind, n); full == nil {
				return err
			}
		case <-late.C:
			return h.budget.refuse(kind)
		case <-ctx.Done():
			return h.budget.refuse(kind)
		}
	}
}

func (h *Holding) try(kind Kind, n int64) (full <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return nil, ErrEnded
	}
	if full = h.budget.take(kind, n); full == nil {
		h.of[kind] += n
	}
	return full, nil
}

// Give gives back up to n bytes, and no more than were taken.
func (h *Holding) Give(kind Kind, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n = min(n, h.of[kind]); n <= 0 {
		return
	}
	h.of[kind] -= n
	var of [kinds]int64
	of[kind] = n
	h.budget.give(of)
}

// End returns everything. A later Take gets [ErrEnded].
func (h *Holding) End() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return
	}
	h.budget.give(h.of)
	h.of, h.ended = [kinds]int64{}, true
}

package scrub

import (
	"bytes"
	"slices"
	"sync"
)

const (
	// minNeedle is the shortest text that is searched for, in bytes: anything
	// shorter occurs by chance.
	minNeedle = 6
	// maxNeedle is the longest, in bytes. Of a longer spelling nothing is
	// searched for.
	maxNeedle = 16 << 10

	block    = 3  // bytes that are looked at together
	skipBits = 15 // of the skip table, which stays in the first-level cache
)

// Needles are secrets in all their spellings. They are immutable and safe for
// concurrent use. Nil Needles find nothing.
type Needles struct {
	all     []string
	window  int                  // the part of each needle that the search slides along: the shortest needle
	longest int                  // bytes of the longest needle
	skip    [1 << skipBits]uint8 // by block: how far the window may be moved on; 0: look closer
	ending  map[uint32][]int     // by block: the needles whose window ends with it, longest first
	rooms   sync.Pool            // of *[]byte, in which readers search
}

// room returns an empty buffer for a reader: for what it remembers, what it holds
// back, and what it asks for.
func (n *Needles) room() []byte {
	if room, ok := n.rooms.Get().(*[]byte); ok {
		return *room
	}
	return make([]byte, 0, 2*n.longest+readSize)
}

// giveBack takes a room that is not used any more, or nil.
func (n *Needles) giveBack(room []byte) {
	if room = room[:0]; cap(room) > 0 {
		n.rooms.Put(&room)
	}
}

// New returns the needles of some secrets, or nil when none is long enough to
// be searched for (6 bytes).
func New(secrets ...string) *Needles {
	n := &Needles{ending: make(map[uint32][]int)}
	seen := make(map[string]bool)
	for _, secret := range secrets {
		if len(secret) < minNeedle {
			continue
		}
		for needle := range spellings(secret) {
			if len(needle) >= minNeedle && len(needle) <= maxNeedle && !seen[needle] {
				seen[needle] = true
				n.all = append(n.all, needle)
			}
		}
	}
	if len(n.all) == 0 {
		return nil
	}
	n.index()
	return n
}

// index prepares the search.
func (n *Needles) index() {
	slices.SortFunc(n.all, func(a, b string) int { return len(b) - len(a) })
	n.longest = len(n.all[0])
	n.window = min(len(n.all[len(n.all)-1]), 255)
	for i := range n.skip {
		n.skip[i] = uint8(n.window - block + 1)
	}
	for i, needle := range n.all {
		for end := block - 1; end < n.window; end++ {
			h := hash(needle[end-2], needle[end-1], needle[end])
			n.skip[h] = min(n.skip[h], uint8(n.window-1-end))
			if end == n.window-1 {
				n.ending[h] = append(n.ending[h], i)
			}
		}
	}
}

// hash places a block in the skip table.
func hash(a, b, c byte) uint32 {
	return (uint32(a) | uint32(b)<<8 | uint32(c)<<16) * 0x9E3779B1 >> (32 - skipBits)
}

// span is a part of a text.
type span struct{ from, to int }

// find appends where needles are, in the order of their beginnings. They may
// overlap.
func find[T string | []byte](n *Needles, b T, spans []span) []span {
	for i := n.window - 1; i < len(b); {
		h := hash(b[i-2], b[i-1], b[i])
		if skip := int(n.skip[h]); skip > 0 {
			i += skip
			continue
		}
		from := i - n.window + 1
		for _, candidate := range n.ending[h] {
			if needle := n.all[candidate]; len(needle) <= len(b)-from && string(b[from:from+len(needle)]) == needle {
				spans = append(spans, span{from, from + len(needle)})
				break // the others are shorter
			}
		}
		i++
	}
	return spans
}

// In reports whether a text holds a secret.
func (n *Needles) In(text string) bool {
	if n == nil {
		return false
	}
	return len(find(n, text, nil)) > 0
}

// InBytes is [Needles.In] of bytes.
func (n *Needles) InBytes(text []byte) bool {
	if n == nil {
		return false
	}
	return len(find(n, text, nil)) > 0
}

// Blank overwrites every secret in b with asterisks and reports whether there
// was one.
func (n *Needles) Blank(b []byte) bool {
	if n == nil {
		return false
	}
	spans := find(n, b, nil)
	for _, s := range spans {
		for i := s.from; i < s.to; i++ {
			b[i] = '*'
		}
	}
	return len(spans) > 0
}

// Longest returns how many bytes the longest needle has: so much of what
// surrounds a part of a text decides whether the part holds a piece of a secret.
func (n *Needles) Longest() int {
	if n == nil {
		return 0
	}
	return n.longest
}

// A text that ends in the middle of a secret shows the rest of it. How much of
// a secret has to be there for that to be seen is a balance: who is told whether
// a text is the beginning of a secret finds the secret out piece by piece, so
// that nearly all of it has to be known before.
const (
	minClipped = 16 // bytes of a needle that may be looked for without its end
	maxMissing = 8  // bytes of it that may be missing, and an eighth at most
)

// clipped appends where b ends in a needle that lacks its end.
func (n *Needles) clipped(b []byte, spans []span) []span {
	for _, needle := range n.all {
		if len(needle) < minClipped {
			continue
		}
		for missing := 1; missing <= min(maxMissing, len(needle)/8); missing++ {
			if bytes.HasSuffix(b, []byte(needle[:len(needle)-missing])) {
				return append(spans, span{len(b) - len(needle) + missing, len(b)})
			}
		}
	}
	return spans
}

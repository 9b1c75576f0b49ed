package authz

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

// idSource makes decision ids: UUIDs of version 7 (RFC 9562, section 5.7),
// which sort by time. Random bytes are read in batches, because a system call
// for each id would cost more than the decision.
type idSource struct {
	mu    sync.Mutex
	batch [40 * 16]byte
	left  int
}

func (s *idSource) next(now time.Time) string {
	var id [16]byte
	s.mu.Lock()
	if s.left < 16 {
		_, _ = rand.Read(s.batch[:]) // never fails: see crypto/rand.Read
		s.left = len(s.batch)
	}
	copy(id[:], s.batch[len(s.batch)-s.left:])
	s.left -= 16
	s.mu.Unlock()
	return formatID(id, now)
}

// NewID returns a UUID of version 7 (RFC 9562, section 5.7), as decisions have, for
// revocations and for records that no decision stands behind.
func NewID(now time.Time) string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: see crypto/rand.Read
	return formatID(random, now)
}

// formatID writes the time and the version over 16 random bytes.
func formatID(id [16]byte, now time.Time) string {
	milli := uint64(now.UnixMilli())
	for i := range 6 {
		id[i] = byte(milli >> (40 - 8*i))
	}
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	var text [36]byte
	at := 0
	for i, width := range [...]int{4, 2, 2, 2, 6} {
		if i > 0 {
			text[at] = '-'
			at++
		}
		from := [...]int{0, 4, 6, 8, 10}[i]
		hex.Encode(text[at:], id[from:from+width])
		at += 2 * width
	}
	return string(text[:])
}

package authz

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

// idSource makes decision ids: UUIDs of version 7 (RFC 9562, section 5.7),
// which sort by time. Random bytes are read in batches, because a system call
// for each id would cost more than the decision. A caller takes a batch for
// itself, so that none waits for another.
type idSource struct{ batches sync.Pool } // of *idBatch

// idBatch is random bytes, of which the last are left.
type idBatch struct {
	random [40 * 16]byte
	left   int
}

func (s *idSource) next(now time.Time) string {
	b, ok := s.batches.Get().(*idBatch)
	if !ok {
		b = &idBatch{}
	}
	if b.left < 16 {
		_, _ = rand.Read(b.random[:]) // never fails: see crypto/rand.Read
		b.left = len(b.random)
	}
	b.left -= 16
	id := [16]byte(b.random[b.left:])
	s.batches.Put(b)
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
	hex.Encode(text[:8], id[:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:], id[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

package audit

import (
	"encoding/base64"
	"hash"
	"hash/maphash"
	"strings"
)

// Domains of masks: equal values of different kinds have different masks.
const (
	maskPath  = 'p'
	maskQuery = 'q'
	maskLease = 'l'
)

// maskMark begins every mask.
const maskMark = "~"

// maskBytes is how much of an HMAC a mask keeps: 96 bits, which is 16
// characters. Two values with one mask are not to be expected, nor is a way
// back to a value that cannot be guessed.
const maskBytes = 12

// maskLen is how long a mask is, with its mark.
const maskLen = len(maskMark) + maskBytes*4/3

// maxMasked is how many segments of a path are masked one by one; the rest is
// masked as one, so that a plugin's long path costs no more.
const maxMasked = 16

// masker makes masks. It is not safe for concurrent use.
type masker struct {
	mac  hash.Hash
	text []byte
	sum  []byte

	// A lease stands in record after record, and its mask is kept.
	lease string
	mask  []byte

	// A path stands in an access's decision and in its end.
	path, pattern string
	masked        []byte // the path as it is recorded; empty without one

	// Short segments, such as the names of resources, stand in path after path.
	seed     maphash.Seed
	segments [maskedSegments]maskedSegment
}

const (
	// maskedSegments is how many masks of segments are kept. A newer one takes the
	// place of an older one with an equal hash.
	maskedSegments = 64
	// maxSegment is how long a segment is whose mask is kept, in bytes. Longer ones
	// are rarely names.
	maxSegment = 22
)

// maskedSegment is a segment of a path and its mask.
type maskedSegment struct {
	length uint8 // 0 for none
	text   [maxSegment]byte
	mask   [maskLen]byte
}

func newMasker(mac hash.Hash) *masker { return &masker{mac: mac, seed: maphash.MakeSeed()} }

// appendLease appends the mask of a lease id.
func (m *masker) appendLease(b []byte, lease string) []byte {
	if m.lease != lease {
		m.lease, m.mask = lease, m.append(m.mask[:0], maskLease, lease)
	}
	return append(b, m.mask...)
}

// appendSegment appends the mask of a path's segment.
func (m *masker) appendSegment(b []byte, segment string) []byte {
	if len(segment) > maxSegment {
		return m.append(b, maskPath, segment)
	}
	kept := &m.segments[maphash.String(m.seed, segment)%maskedSegments]
	if string(kept.text[:kept.length]) != segment {
		m.append(kept.mask[:0], maskPath, segment)
		kept.length = uint8(copy(kept.text[:], segment))
	}
	return append(b, kept.mask[:]...)
}

// append appends the mask of value, which needs no escaping.
func (m *masker) append(b []byte, domain byte, value string) []byte {
	m.mac.Reset()
	m.text = append(append(m.text[:0], domain), value...)
	m.mac.Write(m.text)
	m.sum = m.mac.Sum(m.sum[:0])
	b = append(b, maskMark...)
	return base64.RawURLEncoding.AppendEncode(b, m.sum[:maskBytes])
}

// maskedPath writes path with every segment masked but those that the pattern
// spells out and that are the same in the path. A segment in the place of one
// of them, beyond the pattern, or without a pattern is the plugin's choice, and may be
// a secret like the match of a wildcard.
func (e *line) maskedPath(path, pattern string) {
	begin, masks := len(e.buf), 0
	path, pattern = strings.TrimPrefix(path, "/"), strings.TrimPrefix(pattern, "/")
	for more, spelled := true, true; more; {
		all := path
		var segment, want string
		segment, path, more = strings.Cut(path, "/")
		if spelled {
			want, pattern, spelled = strings.Cut(pattern, "/")
			spelled = spelled && want != "**"
		} else {
			want = ""
		}
		e.buf = append(e.buf, '/')
		switch {
		case segment == "":
		case segment == want && want != "*" && want != "**":
			if len(e.buf)-begin > maxText/2 {
				e.buf = append(e.buf, ellipsis...)
				return
			}
			e.buf = appendText(e.buf, segment, maxText/2)
		case masks == maxMasked-1 && more:
			e.buf = e.masks.append(e.buf, maskPath, all)
			return
		default:
			masks++
			e.buf = e.masks.appendSegment(e.buf, segment)
		}
	}
}

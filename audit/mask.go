package audit

import (
	"encoding/base64"
	"hash"
	"hash/maphash"
	"strings"
)

// Domains of masks: equal values of different kinds have different masks.
const (
	maskPath  = 'p' // a segment of a path
	maskName  = 'n' // the name of a query's parameter
	maskValue = 'v' // its value
	maskRest  = 'q' // the rest of a query
	maskLease = 'l'
	maskFact  = 'f' // a piece of a key's or a channel's name
	maskID    = 'k' // the ID of the key itself
)

// maskMark begins every mask.
const maskMark = "~"

// maskBytes is how much of an HMAC a mask keeps: 96 bits, which is 16
// characters. Two values with one mask are not to be expected, nor is a way
// back to a value that cannot be guessed.
const maskBytes = 12

// maskLen is how long a mask is, with its mark.
const maskLen = len(maskMark) + maskBytes*4/3

// maxMasked is how many segments of a path are masked one by one, and maxParameters how
// many parameters of a query; the rest is masked as one and marked by an ellipsis, so that
// a plugin's long path costs no more.
const (
	maxMasked     = 16
	maxParameters = 8
)

// encodedSlash follows the mask of a segment that holds it, since a rule may refuse it.
const encodedSlash = "%2F"

// IsMask reports whether a segment of a recorded path has the form of a mask.
func IsMask(segment string) bool {
	segment = strings.TrimSuffix(segment, ellipsis)
	segment = strings.TrimSuffix(segment, encodedSlash)
	if len(segment) != maskLen || segment[:len(maskMark)] != maskMark {
		return false
	}
	// A table, since branches on random letters are slow. Its words are of bytes below 64,
	// below 128, and others.
	alphabet := [4]uint64{1<<'-' | (1<<10-1)<<'0', (1<<26-1)<<('A'-64) | 1<<('_'-64) | (1<<26-1)<<('a'-64)}
	all := uint64(1)
	for i := len(maskMark); i < len(segment); i++ {
		all &= alphabet[segment[i]>>6] >> (segment[i] & 63)
	}
	return all == 1
}

// masker makes masks. It is not safe for concurrent use.
type masker struct {
	id   string // of the key
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

// maskedSegment is a segment of a path, or a name or value of a query, and its mask.
type maskedSegment struct {
	domain byte // 0 for none
	length uint8
	text   [maxSegment]byte
	mask   [maskLen]byte
}

func newMasker(mac hash.Hash) *masker {
	m := &masker{mac: mac, seed: maphash.MakeSeed()}
	m.id = string(m.append(nil, maskID, "")[len(maskMark):][:keyIDLen])
	return m
}

// keyIDLen is the length of the ID of a key: 36 bits in base64url.
const keyIDLen = 6

// appendLease appends the mask of a lease id.
func (m *masker) appendLease(b []byte, lease string) []byte {
	if m.lease != lease {
		m.lease, m.mask = lease, m.append(m.mask[:0], maskLease, lease)
	}
	return append(b, m.mask...)
}

// appendSegment appends the mask of a path's segment.
func (m *masker) appendSegment(b []byte, segment string) []byte {
	b = m.appendShort(b, maskPath, segment)
	if strings.Contains(segment, encodedSlash) {
		b = append(b, encodedSlash...)
	}
	return b
}

// appendShort appends the mask of a value, and keeps it if the value is short.
func (m *masker) appendShort(b []byte, domain byte, value string) []byte {
	if len(value) > maxSegment {
		return m.append(b, domain, value)
	}
	kept := &m.segments[(maphash.String(m.seed, value)+uint64(domain))%maskedSegments]
	if kept.domain != domain || string(kept.text[:kept.length]) != value {
		m.append(kept.mask[:0], domain, value)
		kept.domain, kept.length = domain, uint8(copy(kept.text[:], value))
	}
	return append(b, kept.mask[:]...)
}

// appendQuery appends a query of which each parameter's name and value are masked.
func (m *masker) appendQuery(b []byte, query string) []byte {
	for n := 0; ; n++ {
		if n == maxParameters {
			b = m.append(b, maskRest, query)
			return append(b, ellipsis...)
		}
		parameter, rest, more := strings.Cut(query, "&")
		name, value, valued := strings.Cut(parameter, "=")
		if name != "" {
			b = m.appendShort(b, maskName, name)
		}
		if valued {
			b = append(b, '=')
		}
		if value != "" {
			b = m.appendShort(b, maskValue, value)
		}
		if !more {
			return b
		}
		b, query = append(b, '&'), rest
	}
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
		case segment == want && want != "*" && want != "**" && !IsMask(segment):
			if len(e.buf)-begin > maxText/2 {
				e.buf = append(e.buf, ellipsis...)
				return
			}
			e.buf = appendText(e.buf, segment, maxText/2)
		case masks == maxMasked-1 && more:
			e.buf = append(e.masks.appendSegment(e.buf, all), ellipsis...)
			return
		default:
			masks++
			e.buf = e.masks.appendSegment(e.buf, segment)
		}
	}
}

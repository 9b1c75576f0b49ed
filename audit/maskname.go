package audit

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Keys and channels of Redis often hold the ids of people. Of their names, the part that a
// rule spells out stays readable. The rest is masked piece by piece, so that a log can be
// replayed under rules that name other keys: a piece ends at one of nameSeparators.

// nameSeparators end the pieces of a name.
const nameSeparators = ":/."

// isMasked reports whether a fact, as KIND:NAME, has a name that is masked.
func isMasked(fact string) bool {
	kind, _, _ := strings.Cut(fact, ":")
	return kind == string(authz.FactKey) || kind == string(authz.FactChannel)
}

// holdsMasked reports whether a record has a fact whose name is masked.
func holdsMasked(r *authz.Record) bool {
	return slices.ContainsFunc(r.Facts, isMasked)
}

// maskedFact appends a fact with its name masked from the point on that the rule's pattern,
// KIND:NAME or "", does not spell out. Every ~ in it begins a mask.
func (e *line) maskedFact(fact, pattern string) {
	kind, name, _ := strings.Cut(fact, ":")
	readable := len(kind) + 1
	if prefix, wild := strings.CutSuffix(pattern, "*"); pattern == fact || wild && strings.HasPrefix(fact, prefix) {
		readable = max(readable, min(len(fact), len(prefix)))
	}
	if at := strings.Index(name, maskMark); at >= 0 {
		readable = min(readable, len(kind)+1+at)
	}
	begin := len(e.buf)
	e.buf = appendText(e.buf, fact[:readable], maxText/4)
	if strings.HasSuffix(string(e.buf[begin:]), ellipsis) && !strings.HasSuffix(fact[:readable], ellipsis) {
		return // the part that is readable was too long
	}
	rest, wild := strings.CutSuffix(fact[readable:], "*") // all names that begin so
	if e.buf = e.masks.appendName(e.buf, rest); wild {
		e.buf = append(e.buf, '*')
	}
}

// appendName appends a name with each piece masked.
func (m *masker) appendName(b []byte, name string) []byte {
	for masks := 0; name != ""; {
		end := strings.IndexAny(name, nameSeparators)
		if end == 0 {
			b, name = append(b, name[0]), name[1:]
			continue
		}
		if masks++; masks == maxMasked && end > 0 {
			return append(m.append(b, maskFact, name), ellipsis...)
		}
		if end < 0 {
			end = len(name)
		}
		b, name = m.appendShort(b, maskFact, name[:end]), name[end:]
	}
	return b
}

// MaskName returns the mask of a piece of a key's or a channel's name.
func (k *MaskKey) MaskName(piece string) string {
	return string(k.masks.appendShort(nil, maskFact, piece))
}

// CutName cuts the first piece off the name of a key or a channel: what is before a
// separator, and the separator with the rest behind it.
func CutName(name string) (piece, rest string) {
	if end := strings.IndexAny(name, nameSeparators); end >= 0 {
		return name[:end], name[end:]
	}
	return name, ""
}

// CutMask cuts a recorded name at its first mask: what is readable, the mask, and the rest.
// The mask is "" if the name has none.
func CutMask(name string) (readable, mask, rest string) {
	at := strings.Index(name, maskMark)
	if at < 0 || len(name) < at+maskLen || !IsMask(name[at:at+maskLen]) {
		return name, "", ""
	}
	return name[:at], name[at : at+maskLen], name[at+maskLen:]
}

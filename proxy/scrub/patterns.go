package scrub

import (
	"slices"
	"strings"
	"sync"
)

const (
	// minPattern is the shortest secret that is searched for, in bytes: anything
	// shorter occurs by chance.
	minPattern = 6
	// maxPattern is the longest text that is searched for, in bytes. A longer secret
	// is searched for piece by piece, and an encoding that is longer by its beginning.
	maxPattern = MaxSecret

	block    = 3        // bytes that are looked at together
	caseless = 0x202020 // makes letters of a block small, and other bytes alike that are not
	skipBits = 15       // of the skip table, which stays in the first-level cache
)

// MaxSecret is how long a secret may be that is found in every encoding, in bytes.
// Of a longer one the first so many are; what follows is found as it is, in UTF-16
// and in base64, and where it has a long run of letters and digits.
const MaxSecret = 16 << 10

// Patterns are secrets in all their encodings. They are immutable and safe for
// concurrent use. Nil Patterns find nothing.
type Patterns struct {
	all         []pattern
	window      int                  // the part of each pattern that the search slides along: the shortest pattern
	longest     int                  // bytes of the longest encoding that is found wherever a stream is cut
	skip        [1 << skipBits]uint8 // by block: how far the window may be moved on; 0: look closer
	byLastBlock map[uint32][]int     // by block: the patterns whose window ends with it, longest first
	occurrences [256][]occurrence    // by byte: where encodings have it, which may be escaped
	buffers     sync.Pool            // of *[]byte, in which readers search
}

// pattern is a text that is searched for: a secret in one encoding, or what begins
// it.
type pattern struct {
	text     string
	folded   bool      // text is small letters, which stand for capitals too
	encoding *encoding // the encoding that the text begins, and that must follow; nil for the text alone
}

// occurrence is a place in an encoding.
type occurrence struct {
	of *encoding
	at int
}

// New returns the patterns of some secrets, or nil when none is long enough to
// be searched for (6 bytes).
func New(secrets ...string) *Patterns { return NewBeside(nil, secrets...) }

// NewBeside is [New] for secrets with parts that are not secret: an account's name
// beside a key. Pieces of a secret that lie in one of those are not searched for by
// themselves.
func NewBeside(public []string, secrets ...string) *Patterns {
	n := &Patterns{byLastBlock: make(map[uint32][]int)}
	seen := make(map[string]bool)
	for _, secret := range secrets {
		if len(secret) < minPattern || seen[secret] {
			continue
		}
		seen[secret] = true
		n.add(secret)
	}
	known := publicForms(public)
	n.all = slices.DeleteFunc(n.all, func(one pattern) bool {
		return len(one.text) < minPattern || len(one.text) > maxPattern ||
			one.encoding == nil && !seen[one.text] && slices.ContainsFunc(known, func(form string) bool { return strings.Contains(form, one.text) })
	})
	if len(n.all) == 0 {
		return nil
	}
	n.index()
	return n
}

// add adds the patterns of a secret.
func (n *Patterns) add(secret string) {
	for _, whole := range exactPatterns(secret) {
		for _, text := range split(whole.text) {
			n.all = append(n.all, pattern{text: text, folded: whole.folded})
			n.longest = max(n.longest, len(text))
		}
	}
	secret = secret[:min(len(secret), maxPattern)]
	n.longest = max(n.longest, longestEncoding(len(secret)))
	for _, s := range encodingsOf(secret) {
		n.all = append(n.all, s.patterns()...)
		if s.in != asText && s.in != asBase64 {
			continue
		}
		for at := range len(s.text) {
			c := s.text[at]
			n.occurrences[c] = append(n.occurrences[c], occurrence{s, at})
			if c == ' ' { // a form may have been escaped again
				n.occurrences['+'] = append(n.occurrences['+'], occurrence{s, at})
			}
		}
	}
}

// publicForms returns the texts in which pieces of public ones are found.
func publicForms(public []string) []string {
	var out []string
	for _, text := range public {
		little, big := utf16Of(text)
		out = append(out, text, strings.ToLower(text), little, big)
		for alignment := range 3 {
			out = append(out, base64At(text, alignment))
		}
	}
	return out
}

// split cuts a text that is too long to be searched for into pieces that are not,
// of which none is so short that it occurs by chance.
func split(text string) []string {
	var out []string
	for at := 0; at < len(text); at += maxPattern {
		end := min(at+maxPattern, len(text))
		from := at
		if at > 0 {
			from = min(at, end-minRun)
		}
		out = append(out, text[from:end])
	}
	return out
}

// index prepares the search.
func (n *Patterns) index() {
	slices.SortStableFunc(n.all, func(a, b pattern) int { return len(b.text) - len(a.text) })
	n.window = min(len(n.all[len(n.all)-1].text), 255)
	for i := range n.skip {
		n.skip[i] = uint8(n.window - block + 1)
	}
	for i, pattern := range n.all {
		for end := block - 1; end < n.window; end++ {
			h := hash(pattern.text[end-2], pattern.text[end-1], pattern.text[end])
			n.skip[h] = min(n.skip[h], uint8(n.window-1-end))
			if end == n.window-1 {
				n.byLastBlock[h] = append(n.byLastBlock[h], i)
			}
		}
	}
}

// hash places a block in the skip table, without regard to case.
func hash(a, b, c byte) uint32 {
	return ((uint32(a) | uint32(b)<<8 | uint32(c)<<16) | caseless) * 0x9E3779B1 >> (32 - skipBits)
}

// buffer returns an empty buffer for a reader: for what it remembers, what it holds
// back, and what it asks for.
func (n *Patterns) buffer() []byte {
	if room, ok := n.buffers.Get().(*[]byte); ok {
		return *room
	}
	return make([]byte, 0, 2*n.longest+readSize)
}

// ReaderSize returns how many bytes a reader that searches a stream takes to search in.
func (n *Patterns) ReaderSize() int {
	if n == nil {
		return 0
	}
	return 4*n.longest + readSize // frames take most
}

// putBuffer takes a room that is not used any more, or nil.
func (n *Patterns) putBuffer(room []byte) {
	if room = room[:0]; cap(room) > 0 {
		n.buffers.Put(&room)
	}
}

// span is a part of a text.
type span struct{ from, to int }

// find appends where secrets are. They may overlap.
func (n *Patterns) find(b []byte, spans []span) []span {
	return n.findEscaped(b, false, n.findExact(b, false, spans))
}

// findExact appends where patterns are and what they begin. With clipped
// set that may lack its end where the text ends.
func (n *Patterns) findExact(b []byte, clipped bool, spans []span) []span {
	for i := n.window - 1; i < len(b); {
		h := hash(b[i-2], b[i-1], b[i])
		if skip := int(n.skip[h]); skip > 0 {
			i += skip
			continue
		}
		from := i - n.window + 1
		for _, candidate := range n.byLastBlock[h] {
			pattern := &n.all[candidate]
			if !pattern.matches(b[from:]) {
				continue
			}
			if whole, ok := pattern.extent(b, from, clipped); ok {
				spans = append(spans, whole)
			}
		}
		i++
	}
	return spans
}

// matches reports whether a text begins with the pattern.
func (n *pattern) matches(b []byte) bool {
	if len(b) < len(n.text) {
		return false
	}
	if !n.folded {
		return string(b[:len(n.text)]) == n.text
	}
	for i := range len(n.text) {
		if lower(b[i]) != n.text[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// extent returns what is secret where a pattern is found.
func (n *pattern) extent(b []byte, from int, clipped bool) (span, bool) {
	if n.encoding != nil {
		to, ok := n.encoding.read(b, from, 0, clipped)
		return span{from, to}, ok
	}
	return span{from, from + len(n.text)}, true
}

// In reports whether a text holds a secret.
func (n *Patterns) In(text string) bool {
	var short [256]byte // most are header values
	return n.InBytes(append(short[:0], text...))
}

// InBytes is [Patterns.In] of bytes.
func (n *Patterns) InBytes(text []byte) bool {
	if n == nil {
		return false
	}
	return len(n.find(text, nil)) > 0
}

// Blank overwrites every secret in b with asterisks and reports whether there
// was one.
func (n *Patterns) Blank(b []byte) bool {
	if n == nil {
		return false
	}
	spans := n.find(b, nil)
	for _, s := range spans {
		for i := s.from; i < s.to; i++ {
			b[i] = '*'
		}
	}
	return len(spans) > 0
}

// Longest returns how many bytes the longest encoding has: so much of what
// surrounds a part of a text decides whether the part holds a piece of a secret.
func (n *Patterns) Longest() int {
	if n == nil {
		return 0
	}
	return n.longest
}

// A text can end in the middle of a secret. The part of a secret that must be there
// is a balance: a caller that learns whether a text is the beginning of a secret can
// find the secret piece by piece, so nearly all of it must be present.
const (
	minTruncated = 16 // bytes of a pattern that may be looked for without its end
	mostMissing  = 8  // bytes of it that may be missing, and an eighth at most
)

// missingAllowed returns how many bytes at the end of so many may be missing.
func missingAllowed(of int) int {
	if of < minTruncated {
		return 0
	}
	return min(mostMissing, of/8)
}

// findTruncated appends where b ends in a secret that lacks its end.
func (n *Patterns) findTruncated(b []byte, spans []span) []span {
	from := max(0, len(b)-n.longest)
	first := len(spans)
	spans = n.findEscaped(b[from:], true, n.findExact(b[from:], true, spans))
	for i := first; i < len(spans); i++ {
		spans[i].from += from
		spans[i].to += from
	}
	for i := range n.all {
		pattern := &n.all[i]
		if pattern.encoding != nil {
			continue
		}
		for missing := 1; missing <= missingAllowed(len(pattern.text)); missing++ {
			short := pattern.text[:len(pattern.text)-missing]
			if len(b) >= len(short) && lower(b[len(b)-1]) == lower(short[len(short)-1]) &&
				pattern.prefix(len(short)).matches(b[len(b)-len(short):]) {
				spans = append(spans, span{len(b) - len(short), len(b)})
				break
			}
		}
	}
	return spans
}

// prefix returns the pattern without its end.
func (n *pattern) prefix(to int) *pattern { return &pattern{text: n.text[:to], folded: n.folded} }

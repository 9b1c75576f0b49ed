package scrub

import (
	"slices"
	"strings"
	"sync"
)

const (
	// minNeedle is the shortest secret that is searched for, in bytes: anything
	// shorter occurs by chance.
	minNeedle = 6
	// maxNeedle is the longest text that is searched for, in bytes. A longer secret
	// is searched for piece by piece, and a spelling that is longer by its beginning.
	maxNeedle = MaxSecret

	block    = 3        // bytes that are looked at together
	caseless = 0x202020 // makes letters of a block small, and other bytes alike that are not
	skipBits = 15       // of the skip table, which stays in the first-level cache
)

// MaxSecret is how long a secret may be that is found in every spelling, in bytes.
// Of a longer one the first so many are; what follows is found as it is, in UTF-16
// and in base64, and where it has a long run of letters and digits.
const MaxSecret = 16 << 10

// Needles are secrets in all their spellings. They are immutable and safe for
// concurrent use. Nil Needles find nothing.
type Needles struct {
	all     []needle
	window  int                  // the part of each needle that the search slides along: the shortest needle
	longest int                  // bytes of the longest spelling that is found wherever a stream is cut
	skip    [1 << skipBits]uint8 // by block: how far the window may be moved on; 0: look closer
	ending  map[uint32][]int     // by block: the needles whose window ends with it, longest first
	escaped [256][]place         // by byte: where spellings have it, which may be escaped
	escapes string               // the bytes that escapes of these begin with
	rooms   sync.Pool            // of *[]byte, in which readers search
}

// needle is a text that is searched for: a secret in one spelling, or what begins
// it.
type needle struct {
	text   string
	folded bool      // text is small letters, which stand for capitals too
	whole  *spelling // what the text begins, and has to be there; nil for the text alone
}

// place is a place in a spelling.
type place struct {
	of *spelling
	at int
}

// New returns the needles of some secrets, or nil when none is long enough to
// be searched for (6 bytes).
func New(secrets ...string) *Needles { return NewBeside(nil, secrets...) }

// NewBeside is [New] for secrets with parts that are not secret: an account's name
// beside a key. Pieces of a secret that lie in one of those are not searched for by
// themselves.
func NewBeside(public []string, secrets ...string) *Needles {
	n := &Needles{ending: make(map[uint32][]int)}
	seen := make(map[string]bool)
	for _, secret := range secrets {
		if len(secret) < minNeedle || seen[secret] {
			continue
		}
		seen[secret] = true
		n.add(secret)
	}
	known := forms(public)
	n.all = slices.DeleteFunc(n.all, func(one needle) bool {
		return len(one.text) < minNeedle || len(one.text) > maxNeedle ||
			one.whole == nil && !seen[one.text] && slices.ContainsFunc(known, func(form string) bool { return strings.Contains(form, one.text) })
	})
	if len(n.all) == 0 {
		return nil
	}
	n.index()
	return n
}

// add adds the needles of a secret.
func (n *Needles) add(secret string) {
	for _, whole := range exact(secret) {
		for _, text := range pieces(whole.text) {
			n.all = append(n.all, needle{text: text, folded: whole.folded})
			n.longest = max(n.longest, len(text))
		}
	}
	secret = secret[:min(len(secret), maxNeedle)]
	n.longest = max(n.longest, longestSpelling(len(secret)))
	for _, s := range spellings(secret) {
		n.all = append(n.all, s.pieces()...)
		if s.in != asText && s.in != asBase64 {
			continue
		}
		for at := range len(s.text) {
			c := s.text[at]
			n.escaped[c] = append(n.escaped[c], place{s, at})
			if c == ' ' { // a form may have been escaped again
				n.escaped['+'] = append(n.escaped['+'], place{s, at})
			}
		}
	}
	if n.escapes == "" {
		n.escapes = `\%&`
	}
	if len(n.escapes) == 3 && strings.ContainsFunc(secret, func(r rune) bool { return r < ' ' || r > '~' || r == '=' }) {
		n.escapes = `\%&=` // quoted-printable escapes nothing else
	}
}

// forms returns the texts in which pieces of public ones are found.
func forms(public []string) []string {
	var out []string
	for _, text := range public {
		little, big := wide(text)
		out = append(out, text, strings.ToLower(text), little, big)
		for alignment := range 3 {
			out = append(out, base64At(text, alignment))
		}
	}
	return out
}

// pieces cuts a text that is too long to be searched for into pieces that are not,
// of which none is so short that it occurs by chance.
func pieces(text string) []string {
	var out []string
	for at := 0; at < len(text); at += maxNeedle {
		end := min(at+maxNeedle, len(text))
		from := at
		if at > 0 {
			from = min(at, end-minRun)
		}
		out = append(out, text[from:end])
	}
	return out
}

// index prepares the search.
func (n *Needles) index() {
	slices.SortStableFunc(n.all, func(a, b needle) int { return len(b.text) - len(a.text) })
	n.window = min(len(n.all[len(n.all)-1].text), 255)
	for i := range n.skip {
		n.skip[i] = uint8(n.window - block + 1)
	}
	for i, needle := range n.all {
		for end := block - 1; end < n.window; end++ {
			h := hash(needle.text[end-2], needle.text[end-1], needle.text[end])
			n.skip[h] = min(n.skip[h], uint8(n.window-1-end))
			if end == n.window-1 {
				n.ending[h] = append(n.ending[h], i)
			}
		}
	}
}

// hash places a block in the skip table, without regard to case.
func hash(a, b, c byte) uint32 {
	return ((uint32(a) | uint32(b)<<8 | uint32(c)<<16) | caseless) * 0x9E3779B1 >> (32 - skipBits)
}

// room returns an empty buffer for a reader: for what it remembers, what it holds
// back, and what it asks for.
func (n *Needles) room() []byte {
	if room, ok := n.rooms.Get().(*[]byte); ok {
		return *room
	}
	return make([]byte, 0, 2*n.longest+readSize)
}

// Room returns how many bytes a reader that searches a stream takes to search in.
func (n *Needles) Room() int {
	if n == nil {
		return 0
	}
	return 4*n.longest + readSize // frames take most
}

// giveBack takes a room that is not used any more, or nil.
func (n *Needles) giveBack(room []byte) {
	if room = room[:0]; cap(room) > 0 {
		n.rooms.Put(&room)
	}
}

// span is a part of a text.
type span struct{ from, to int }

// find appends where secrets are. They may overlap.
func (n *Needles) find(b []byte, spans []span) []span {
	return n.findEscaped(b, false, n.findPlain(b, false, spans))
}

// findPlain appends where needles are and what they begin. With clipped
// set that may lack its end where the text ends.
func (n *Needles) findPlain(b []byte, clipped bool, spans []span) []span {
	for i := n.window - 1; i < len(b); {
		h := hash(b[i-2], b[i-1], b[i])
		if skip := int(n.skip[h]); skip > 0 {
			i += skip
			continue
		}
		from := i - n.window + 1
		for _, candidate := range n.ending[h] {
			needle := &n.all[candidate]
			if !needle.in(b[from:]) {
				continue
			}
			if whole, ok := needle.around(b, from, clipped); ok {
				spans = append(spans, whole)
			}
		}
		i++
	}
	return spans
}

// in reports whether a text begins with the needle.
func (n *needle) in(b []byte) bool {
	if len(b) < len(n.text) {
		return false
	}
	if !n.folded {
		return string(b[:len(n.text)]) == n.text
	}
	for i := range len(n.text) {
		if small(b[i]) != n.text[i] {
			return false
		}
	}
	return true
}

func small(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// around returns what is secret where a needle is found.
func (n *needle) around(b []byte, from int, clipped bool) (span, bool) {
	if n.whole != nil {
		to, ok := n.whole.read(b, from, 0, clipped)
		return span{from, to}, ok
	}
	return span{from, from + len(n.text)}, true
}

// In reports whether a text holds a secret.
func (n *Needles) In(text string) bool {
	var short [256]byte // most are header values
	return n.InBytes(append(short[:0], text...))
}

// InBytes is [Needles.In] of bytes.
func (n *Needles) InBytes(text []byte) bool {
	if n == nil {
		return false
	}
	return len(n.find(text, nil)) > 0
}

// Blank overwrites every secret in b with asterisks and reports whether there
// was one.
func (n *Needles) Blank(b []byte) bool {
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

// Longest returns how many bytes the longest spelling has: so much of what
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

// mayMiss returns how many bytes at the end of so many may be missing.
func mayMiss(of int) int {
	if of < minClipped {
		return 0
	}
	return min(maxMissing, of/8)
}

// clipped appends where b ends in a secret that lacks its end.
func (n *Needles) clipped(b []byte, spans []span) []span {
	from := max(0, len(b)-n.longest)
	first := len(spans)
	spans = n.findEscaped(b[from:], true, n.findPlain(b[from:], true, spans))
	for i := first; i < len(spans); i++ {
		spans[i].from += from
		spans[i].to += from
	}
	for i := range n.all {
		needle := &n.all[i]
		if needle.whole != nil {
			continue
		}
		for missing := 1; missing <= mayMiss(len(needle.text)); missing++ {
			short := needle.text[:len(needle.text)-missing]
			if len(b) >= len(short) && small(b[len(b)-1]) == small(short[len(short)-1]) &&
				needle.clip(len(short)).in(b[len(b)-len(short):]) {
				spans = append(spans, span{len(b) - len(short), len(b)})
				break
			}
		}
	}
	return spans
}

// clip returns the needle without its end.
func (n *needle) clip(to int) *needle { return &needle{text: n.text[:to], folded: n.folded} }

package resp

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Kind states how a command changes the connection.
type Kind uint8

// The kinds of commands that a relay must look at.
const (
	Plain     Kind = iota // the connection stays as it is
	Hello                 // HELLO: protocol, user, password and name
	Auth                  // AUTH
	Select                // SELECT; the database is Reading.Database
	Multi                 // MULTI
	End                   // EXEC or DISCARD
	Subscribe             // SUBSCRIBE, UNSUBSCRIBE of several channels and their variants, which have an answer for each channel
	Quit                  // QUIT
)

// MaxKeys is how many keys a command has at most.
const MaxKeys = 10_000

// Reading is what a command does.
type Reading struct {
	Command string // lower case, with the subcommand, as in "config get"; "" if it is unknown
	Kind    Kind
	// Facts are without the current database, which [Reading.OfConnection] commands
	// do not touch. They may be more than authz.MaxFacts; each of them must be granted.
	Facts        []authz.Fact
	OfConnection bool
	Database     int // of SELECT
	// Long is that the answer may take long: the command blocks, subscribes or runs a script.
	Long bool
	// Lasts is that the effect goes on behind the answer: CLIENT TRACKING by prefixes, of which
	// the server reports every change.
	Lasts bool
	// Unreadable states why the facts are not known; "" if they are. TooLarge reports
	// that the cause is the number of keys.
	Unreadable string
	TooLarge   bool
}

// Read returns what a command does. args are its name and its arguments.
func Read(args [][]byte) Reading {
	var r Reading
	r.Read(args)
	return r
}

// Read is [Read] with the memory of r, whose facts are then those of the new command.
func (r *Reading) Read(args [][]byte) { r.ReadFirst(args, len(args)) }

// ReadFirst is Read for the first arguments of a command, of argc, for which [Complete]
// has returned true.
func (r *Reading) ReadFirst(args [][]byte, argc int) {
	*r = Reading{Facts: r.Facts[:0]}
	spec, ok := find(args)
	if !ok {
		r.unknown(args)
		return
	}
	r.Command, r.OfConnection, r.Long = spec.name, spec.connection, spec.long
	switch {
	case spec.forbidden:
		r.add(authz.FactForbidden, spec.name)
		return
	case spec.arity > 0 && argc > int(spec.arity):
		r.Unreadable = fmt.Sprintf("%s has %d arguments and not %d", spec.name, spec.arity-1, argc-1)
		return
	}
	r.add(authz.FactCommand, spec.name)
	for _, k := range spec.keys {
		r.keys(k, args, argc)
	}
	if spec.own {
		r.own(args)
	}
	switch {
	case len(r.Facts) > MaxKeys:
		r.Unreadable, r.TooLarge = fmt.Sprintf("%s has more than %d keys", spec.name, MaxKeys), true
	case r.Unreadable != "":
		r.Facts = r.Facts[:0]
	}
}

// Complete reports whether the first arguments of a command, of argc, have all its
// facts, so that the others need not be held. args has at least one.
func Complete(args [][]byte, argc int) bool {
	if len(args) >= argc {
		return true
	}
	if head, _ := find(args[:1]); head.container && len(args) == 1 {
		return false // the subcommand is missing
	}
	spec, ok := find(args)
	switch {
	case !ok:
		return true
	case spec.forbidden, spec.arity > 0 && argc > int(spec.arity):
		return true
	case spec.name == "publish", spec.name == "spublish":
		return len(args) > 1
	case spec.own:
		return false
	}
	for _, k := range spec.keys {
		if !k.within(args, argc) {
			return false
		}
	}
	return true
}

// find returns the row of a command, of a container that of the subcommand.
func find(args [][]byte) (row, bool) {
	var buf [48]byte
	name, ok := appendName(buf[:0], args[0])
	if !ok {
		return row{}, false
	}
	r, ok := lookup(string(name))
	if !ok || !r.container || len(args) == 1 {
		return r, ok && (!r.container || r.name == "command")
	}
	if name, ok = appendName(append(name, '|'), args[1]); !ok {
		return row{}, false
	}
	if r, ok = lookup(string(name)); !ok {
		return laterRow(string(name))
	}
	return r, ok
}

// appendName appends a name in lower case. It reports false for what is no name of a command.
func appendName(b, name []byte) ([]byte, bool) {
	if len(name) == 0 || len(b)+len(name) > cap(b)-1 {
		return b, false
	}
	for _, c := range name {
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return b, false
		}
		b = append(b, c)
	}
	return b, true
}

func (r *Reading) unknown(args [][]byte) {
	const most = 32
	name := args[0][:min(len(args[0]), most)]
	if spec, ok := lookup(string(bytes.ToLower(name))); ok && spec.container {
		if len(args) == 1 {
			r.Unreadable = fmt.Sprintf("command %q has no subcommand", name)
			return
		}
		r.Unreadable = fmt.Sprintf("command %q has no subcommand %q in Redis 7", name, args[1][:min(len(args[1]), most)])
		return
	}
	r.Unreadable = fmt.Sprintf("command %q is not one of Redis 7", name)
}

func (r *Reading) add(kind authz.FactKind, name string) {
	if len(r.Facts) <= MaxKeys {
		r.Facts = append(r.Facts, authz.Fact{Kind: kind, Name: name})
	}
}

// name adds a key or a channel. One that cannot be the name of a fact is stated by its
// beginning and *.
func (r *Reading) name(kind authz.FactKind, b []byte) {
	if len(b) > 0 && len(b) <= authz.MaxFactName && isText(b) {
		r.add(kind, string(b))
		return
	}
	b = b[:min(len(b), authz.MaxFactName-1)]
	for !isText(b) {
		b = b[:validText(b)]
	}
	r.add(kind, string(b)+"*")
}

func isText(b []byte) bool { return validText(b) == len(b) }

// validText returns how many bytes at the start of b are UTF-8 without NUL.
func validText(b []byte) int {
	for i := 0; i < len(b); {
		if c := b[i]; c != 0 && c < utf8.RuneSelf {
			i++
			continue
		}
		char, size := utf8.DecodeRune(b[i:])
		if b[i] == 0 || char == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(b)
}

// pattern adds keys or channels by a glob pattern: all that begin like it.
func (r *Reading) pattern(kind authz.FactKind, glob []byte) {
	i := bytes.IndexAny(glob, `*?[\`)
	if i < 0 {
		r.name(kind, glob)
		return
	}
	i = min(i, authz.MaxFactName-1)
	r.add(kind, string(glob[:validText(glob[:i])])+"*")
}

// keys adds the keys of a specification. args are the first of argc arguments, from whose
// end some specifications count.
func (r *Reading) keys(k keySpec, args [][]byte, argc int) {
	if k.kind == keyNone {
		return
	}
	first, last, step, ok := k.span(args, argc)
	if !ok {
		r.Unreadable = r.Command + " does not state how many keys it has"
		return
	}
	for i := first; i <= last && i < len(args); i += step {
		r.name(authz.FactKey, args[i])
	}
}

// span returns the arguments that are keys, of argc. It reports false if the number of
// keys is not among args or is no number.
func (k keySpec) span(args [][]byte, argc int) (first, last, step int, ok bool) {
	first, step = int(k.index), max(1, int(k.step))
	if k.kind == keyRange {
		last = first + int(k.last)
		if k.last < 0 {
			last = argc + int(k.last)
		}
		return first, last, step, true
	}
	at := first + int(k.count)
	if at >= len(args) {
		return 0, 0, 0, false
	}
	n, ok := number(args[at])
	if first += int(k.first); !ok || n < 0 || n > (argc-first+step-1)/step {
		return 0, 0, 0, false
	}
	return first, first + (n-1)*step, step, true
}

// within reports whether all keys of the specification are among args.
func (k keySpec) within(args [][]byte, argc int) bool {
	if k.kind == keyNone {
		return true
	}
	_, last, _, ok := k.span(args, argc)
	return ok && last < len(args)
}

// number reads a number as the server does: without a sign +, spaces and leading zeros.
func number(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	n, err := strconv.Atoi(string(b))
	return n, err == nil && (len(b) == 1 && b[0] == '0' || b[0] >= '1' && b[0] <= '9' || b[0] == '-')
}

// Expand returns the commands that a name in a rule stands for: a command ("get"), a
// subcommand ("config get"), a category ("@read", as the server has them, and "@all"),
// a command with subcommands ("xinfo") or one trailing *. Commands that are never
// granted are left out, and an error if nothing else is named.
func Expand(pattern string) ([]string, error) {
	var out []string
	for _, name := range commandNames() {
		r, _ := lookup(name)
		if r.stands(pattern) && !Forbidden(r.name) && (!r.container || r.name == "command") {
			out = append(out, r.name)
		}
	}
	switch {
	case len(out) > 0:
		slices.Sort(out)
		return out, nil
	case Forbidden(pattern):
		return nil, fmt.Errorf("command %q is never granted", pattern)
	}
	return nil, fmt.Errorf("command %q is not one of Redis 7; write a command in lower case as in get or \"config get\", or a category as in @read", pattern)
}

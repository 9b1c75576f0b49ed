package resp

import (
	"slices"
	"strings"
)

// row is what the server states of one command or subcommand.
type row struct {
	name      string // as in config get
	arity     int8   // number of arguments with the name; at least -arity if it is negative
	container bool   // it has subcommands
	groups    uint32 // categories, by their place in groupNames
	keys      [2]keySpec

	// The lists of lists.go and own.go have the name.
	forbidden, own, connection, long bool
}

// keySpec states where keys are. Its zero value states none.
// See https://redis.io/docs/latest/develop/reference/key-specs/.
type keySpec struct {
	kind  keyKind
	index int8 // of the argument where the search begins
	last  int8 // keyRange: the last key, from index, or from the end if it is negative
	step  int8 // from one key to the next
	count int8 // keyCount: the argument with the number of keys, from index
	first int8 // keyCount: the first key, from index
}

type keyKind uint8

const (
	keyNone  keyKind = iota
	keyRange         // from index to last
	keyCount         // as many as an argument states
)

// stands reports whether a name in a rule stands for the row's command.
func (r *row) stands(pattern string) bool {
	switch {
	case pattern == "@all":
		return true
	case pattern == "":
		return false
	case pattern[0] == '@':
		i := slices.Index(groupNames(), pattern[1:])
		return i >= 0 && r.groups&(1<<i) != 0
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(r.name, prefix)
	}
	return r.name == pattern || strings.HasPrefix(r.name, pattern+" ")
}

// isLong reports whether the command blocks, subscribes or runs a script.
func (r *row) isLong() bool {
	switch r.name {
	case "wait", "subscribe", "psubscribe", "ssubscribe", "eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro":
		return true
	}
	return r.groups&groupBlocking != 0
}

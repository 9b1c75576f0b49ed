package resp

import (
	"bytes"
	"path"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// ownReading reports whether own reads the arguments of a command, beside those that
// its specification names.
func ownReading(name string) bool {
	switch name {
	case "copy", "eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro", "script load", "function load",
		"function restore", "flushall", "flushdb", "randomkey", "keys", "scan", "sort", "sort_ro", "georadius",
		"georadiusbymember", "xread", "xreadgroup", "select", "move", "hello", "auth", "multi", "exec", "discard",
		"quit", "client tracking", "publish", "spublish", "subscribe", "psubscribe", "ssubscribe", "unsubscribe",
		"punsubscribe", "sunsubscribe", "config get", "slowlog get", "pubsub channels", "pubsub shardchannels", "pubsub numsub", "pubsub shardnumsub":
		return true
	}
	return false
}

// own adds what no specification names.
func (r *Reading) own(args [][]byte) {
	switch r.Command {
	case "sort", "sort_ro":
		r.sort(args)
	case "georadius", "georadiusbymember":
		r.georadius(args)
	case "xread", "xreadgroup":
		r.streams(args)
	case "eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro":
		r.keys(keySpec{kind: keyCount, index: 2, first: 1, step: 1}, args, len(args))
		r.add(authz.FactOpaque, r.Command)
	case "script load", "function load", "function restore":
		r.add(authz.FactOpaque, r.Command)
	case "copy":
		r.copy(args)
	case "keys", "scan":
		r.scan(args)
	case "randomkey", "flushdb":
		r.add(authz.FactKey, "*")
	case "flushall", "slowlog get": // the log has commands of all clients, with their arguments
		r.add(authz.FactKey, "*")
		r.add(authz.FactDatabase, "*")
	case "client tracking":
		r.tracking(args)
	case "config get":
		r.settings(args)
	default:
		r.connection(args)
	}
}

// connection reads commands of the connection and channels.
func (r *Reading) connection(args [][]byte) {
	switch r.Command {
	case "hello":
		r.Kind = Hello
	case "auth":
		r.Kind = Auth
	case "multi":
		r.Kind = Multi
	case "exec", "discard":
		r.Kind = End
	case "quit":
		r.Kind = Quit
	case "select":
		r.Kind = Select
		r.database(args, 1)
	case "move":
		r.keys(keySpec{kind: keyRange, index: 1}, args, len(args))
		r.database(args, 2)
	case "publish", "spublish":
		r.channels(args[1:min(len(args), 2)])
	case "subscribe", "ssubscribe":
		r.Kind = Subscribe
		r.channels(args[1:])
	case "psubscribe":
		r.Kind = Subscribe
		r.patterns(args[1:])
	case "unsubscribe", "punsubscribe", "sunsubscribe":
		if len(args) > 2 { // otherwise it has one answer at most, on a connection without a subscription
			r.Kind = Subscribe
		}
	case "pubsub numsub", "pubsub shardnumsub":
		r.channels(args[2:])
	case "pubsub channels", "pubsub shardchannels":
		if r.patterns(args[2:]); len(args) == 2 {
			r.add(authz.FactChannel, "*")
		}
	}
}

func (r *Reading) channels(names [][]byte) {
	for _, name := range names {
		r.name(authz.FactChannel, name)
	}
}

func (r *Reading) patterns(globs [][]byte) {
	for _, glob := range globs {
		r.pattern(authz.FactChannel, glob)
	}
}

// database adds the number of a database that an argument states.
func (r *Reading) database(args [][]byte, at int) {
	if at >= len(args) {
		return // the server answers that an argument is missing
	}
	n, ok := number(args[at])
	if !ok || n < 0 {
		r.Unreadable = r.Command + " does not name a database by its number"
		return
	}
	r.Database = n
	r.add(authz.FactDatabase, strconv.Itoa(n))
}

// settings reads CONFIG GET parameter [parameter ...]. Those that hold a password are never granted.
func (r *Reading) settings(args [][]byte) {
	for _, glob := range args[2:] {
		for _, name := range [...]string{"requirepass", "masterauth", "primaryauth", "tls-key-file-pass", "tls-client-key-file-pass"} {
			if mayMatch(glob, name) {
				r.Facts = append(r.Facts[:0], authz.Fact{Kind: authz.FactForbidden, Name: "config get " + name})
				return
			}
		}
	}
}

// mayMatch reports whether a glob pattern of the server may match a name in lower case.
func mayMatch(glob []byte, name string) bool {
	pattern := strings.ToLower(string(glob))
	if i := strings.IndexAny(pattern, `[\`); i >= 0 {
		pattern = pattern[:i] + "*" // classes of characters are not read
	}
	matches, err := path.Match(pattern, name)
	return matches || err != nil
}

func is(arg []byte, word string) bool {
	return len(arg) == len(word) && strings.EqualFold(string(arg), word)
}

// sort reads SORT key [BY pattern] [LIMIT offset count] [GET pattern ...] [ASC|DESC]
// [ALPHA] [STORE destination].
func (r *Reading) sort(args [][]byte) {
	r.keys(keySpec{kind: keyRange, index: 1}, args, len(args))
	for i := 2; i < len(args); i++ {
		more := len(args) - i - 1
		switch arg := args[i]; {
		case is(arg, "asc"), is(arg, "desc"), is(arg, "alpha"):
		case is(arg, "limit") && more >= 2:
			i += 2
		case is(arg, "store") && more >= 1:
			i++
			r.name(authz.FactKey, args[i])
		case is(arg, "by") && more >= 1, is(arg, "get") && more >= 1:
			i++
			// The server puts each element in the place of the first *; without one it
			// reads no key.
			if star := bytes.IndexByte(args[i], '*'); star >= 0 {
				r.pattern(authz.FactKey, args[i][:star+1])
			}
		default:
			r.Unreadable = r.Command + " has an option that is not one of Redis 7"
			return
		}
	}
}

// georadius reads the keys of the STORE and STOREDIST options, beside the first.
func (r *Reading) georadius(args [][]byte) {
	r.keys(keySpec{kind: keyRange, index: 1}, args, len(args))
	for i := 3; i+1 < len(args); i++ {
		if is(args[i], "store") || is(args[i], "storedist") {
			r.name(authz.FactKey, args[i+1])
		}
	}
}

// streams reads the keys of XREAD and XREADGROUP: the first half behind STREAMS.
func (r *Reading) streams(args [][]byte) {
	group := r.Command == "xread" // it has none
	r.Long = false
	for i := 1; i < len(args); i++ {
		switch arg := args[i]; {
		case is(arg, "block"), is(arg, "count"):
			r.Long = r.Long || is(arg, "block")
			i++
		case is(arg, "group") && !group:
			group = true
			i += 2
		case is(arg, "noack"):
		case is(arg, "streams") && group:
			rest := args[i+1:]
			if len(rest) == 0 || len(rest)%2 != 0 {
				r.Unreadable = r.Command + " does not have an id for each stream"
				return
			}
			for _, key := range rest[:len(rest)/2] {
				r.name(authz.FactKey, key)
			}
			return
		default:
			i = len(args)
		}
	}
	r.Unreadable = r.Command + " has an option that is not one of Redis 7, or no STREAMS"
}

// copy reads COPY source destination [DB number] [REPLACE].
func (r *Reading) copy(args [][]byte) {
	r.keys(keySpec{kind: keyRange, index: 1, last: 1}, args, len(args))
	for i := 3; i < len(args); i++ {
		switch {
		case is(args[i], "replace"):
		case is(args[i], "db") && i+1 < len(args):
			i++
			r.database(args, i)
		default:
			r.Unreadable = r.Command + " has an option that is not one of Redis 7"
			return
		}
	}
}

// scan reads KEYS pattern and SCAN cursor [MATCH pattern] [COUNT count] [TYPE type].
// They return the names of keys.
func (r *Reading) scan(args [][]byte) {
	if r.Command == "keys" {
		for _, glob := range args[1:] {
			r.pattern(authz.FactKey, glob)
		}
		return
	}
	var match []byte
	found := false
	for i := 2; i < len(args); i += 2 {
		switch {
		case i+1 == len(args):
			r.Unreadable = "scan has an option without a value"
			return
		case is(args[i], "match"):
			match, found = args[i+1], true
		case is(args[i], "count"), is(args[i], "type"):
		default:
			r.Unreadable = "scan has an option that is not one of Redis 7"
			return
		}
	}
	if !found {
		r.add(authz.FactKey, "*")
		return
	}
	r.pattern(authz.FactKey, match)
}

// tracking reads CLIENT TRACKING ON|OFF. The server then reports the names of keys
// that change: of those that the connection has read, or in broadcast mode of all that
// have a prefix.
func (r *Reading) tracking(args [][]byte) {
	broadcast, prefixes := false, 0
	for i := 3; i < len(args); i++ {
		switch arg := args[i]; {
		case is(arg, "redirect"):
			r.Facts = append(r.Facts[:0], authz.Fact{Kind: authz.FactForbidden, Name: "client tracking redirect"})
			return
		case is(arg, "prefix") && i+1 < len(args):
			i++
			prefixes++
			r.pattern(authz.FactKey, append(bytes.Clone(args[i]), '*'))
		case is(arg, "bcast"):
			broadcast = true
		case is(arg, "optin"), is(arg, "optout"), is(arg, "noloop"):
		default:
			r.Unreadable = "client tracking has an option that is not one of Redis 7"
			return
		}
	}
	if r.Lasts = broadcast; broadcast && prefixes == 0 {
		r.add(authz.FactKey, "*")
	}
}

package resp

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestKeysAsTheServer compares the keys of random commands with the server's COMMAND GETKEYS.
func TestKeysAsTheServer(t *testing.T) {
	server := startServer(t)
	var names []string
	for _, name := range commandNames() {
		if r, _ := lookup(name); !r.container {
			names = append(names, strings.ReplaceAll(name, "|", " "))
		}
	}
	compared := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		for range 40 {
			args := anyCommand(t, names)
			if keysAsServer(t, server, args) {
				compared[strings.ToLower(args[0])]++
			}
		}
	})
	if len(compared) < 60 {
		t.Errorf("the keys of only %d commands were compared", len(compared))
	}
}

// anyCommand draws a command with arguments that the server may take for options, counts or keys.
func anyCommand(t *rapid.T, names []string) []string {
	if rapid.IntRange(0, 2).Draw(t, "structured") == 0 {
		return structured(t)
	}
	args := strings.Fields(rapid.SampledFrom(names).Draw(t, "name"))
	r, _ := lookup(strings.Join(args, "|"))
	least := max(int(r.arity), -int(r.arity)) - len(args)
	n := least
	if r.arity < 0 {
		n += rapid.IntRange(0, 6).Draw(t, "more")
	}
	for i := range n {
		word := rapid.SampledFrom([]string{
			"k", "k", "k", "k", "1", "2", "3", "0", "STORE", "STOREDIST", "STREAMS", "BY", "GET",
			"COUNT", "BLOCK", "GROUP", "LIMIT", "NOACK", "DB", "REPLACE", "WEIGHTS", "km",
		}).Draw(t, "word")
		if word == "k" {
			word = fmt.Sprintf("key%d", i)
		}
		args = append(args, word)
	}
	if rapid.IntRange(0, 9).Draw(t, "case") == 0 {
		args[0] = strings.ToUpper(args[0])
	}
	return args
}

// structured draws a command of which own.go reads the arguments, in its grammar.
func structured(t *rapid.T) []string {
	keys := func() []string {
		return rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "STREAMS", "STORE", "GROUP", "1"}), 1, 4).Draw(t, "keys")
	}
	var args []string
	maybe := func(words ...string) {
		if rapid.Bool().Draw(t, "maybe") {
			args = append(args, words...)
		}
	}
	switch rapid.IntRange(0, 4).Draw(t, "form") {
	case 0, 1:
		if args = []string{"XREAD"}; rapid.Bool().Draw(t, "group") {
			args = append([]string{"XREADGROUP", "GROUP"}, rapid.SampledFrom([][]string{{"g", "c"}, {"STREAMS", "c"}, {"STREAMS", "STREAMS"}}).Draw(t, "names")...)
		}
		maybe("COUNT", "2")
		maybe("BLOCK", "0")
		list := keys()
		args = append(append(args, "STREAMS"), list...)
		for range list {
			args = append(args, "0")
		}
	case 2:
		args = []string{"SORT", "k"}
		maybe("LIMIT", "0", "STORE")
		maybe("BY", "STORE")
		maybe("GET", "STORE")
		maybe("STORE", "a") // for STORE STORE x the server names x, and writes STORE
		maybe("ALPHA")
	case 3:
		args = []string{"GEORADIUS", "k", "1", "1", "1", "km"}
		maybe("WITHDIST")
		maybe("STORE", keys()[0])
		maybe("STOREDIST", keys()[0])
	case 4:
		list := keys()
		name := rapid.SampledFrom([]string{"EVAL", "EVALSHA_RO", "FCALL", "ZUNIONSTORE", "SINTERCARD", "LMPOP", "BZMPOP"}).Draw(t, "counted")
		if args = []string{name}; !slices.Contains([]string{"SINTERCARD", "LMPOP"}, name) {
			args = append(args, "d")
		}
		args = append(append(args, strconv.Itoa(len(list))), list...)
		maybe("MIN", "1")
	}
	return args
}

// keysAsServer reports whether the server has found keys, which then are those of Read:
// all of them, and no other where a specification has them.
func keysAsServer(t *rapid.T, s *server, args []string) bool {
	if _, err := s.conn.Write(request(append([]string{"COMMAND", "GETKEYS"}, args...)...)); err != nil {
		t.Fatal(err)
	}
	answered, err := answer(s.r)
	if err != nil {
		t.Fatal(err)
	}
	list, ok := answered.([]any)
	if !ok {
		return false
	}
	var raw [][]byte
	for _, a := range args {
		raw = append(raw, []byte(a))
	}
	r := Read(raw)
	if r.Unreadable != "" || r.Facts[0].Kind == authz.FactForbidden {
		return false // refused
	}
	var want, got []string
	for _, key := range list {
		want = append(want, key.(string))
	}
	for _, f := range r.Facts {
		if f.Kind == authz.FactKey {
			got = append(got, f.Name)
		}
	}
	for _, key := range want {
		if !slices.Contains(got, key) && !isChannels(r.Command) {
			t.Fatalf("%s: the server has the keys %s, Read %s", strconv.Quote(strings.Join(args, " ")), want, got)
		}
	}
	if slices.Sort(want); !ownReading(r.Command) {
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Fatalf("%s: the server has the keys %s, Read %s", strconv.Quote(strings.Join(args, " ")), want, got)
		}
	}
	for n := 1; n <= len(raw); n++ {
		if !Complete(raw[:n], len(raw)) {
			continue
		}
		var part Reading
		part.ReadFirst(raw[:n], len(raw))
		for _, key := range want {
			if !slices.Contains(part.Facts, authz.Fact{Kind: authz.FactKey, Name: key}) && !isChannels(r.Command) {
				t.Fatalf("%s: complete with %d arguments, without the key %s", strconv.Quote(strings.Join(args, " ")), n, key)
			}
		}
	}
	return true
}

// isChannels reports whether the server names the channels of a command as its keys.
func isChannels(name string) bool {
	return name == "ssubscribe" || name == "spublish" || name == "sunsubscribe"
}

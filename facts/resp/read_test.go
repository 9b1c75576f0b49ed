package resp

import (
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

func words(text string) [][]byte {
	var out [][]byte
	for w := range strings.FieldsSeq(text) {
		out = append(out, []byte(strings.ReplaceAll(w, "_", " ")))
	}
	return out
}

func factsOf(r *Reading) string {
	if r.Unreadable != "" {
		return "unreadable"
	}
	var out []string
	for _, f := range r.Facts {
		out = append(out, f.String())
	}
	return strings.Join(out, " ")
}

func TestRead(t *testing.T) {
	long := strings.Repeat("k", 300)
	tests := []struct{ command, want string }{
		{"GET app:1", "command:get key:app:1"},
		{"mget a b a", "command:mget key:a key:b key:a"},
		{"MSET a 1 b 2", "command:mset key:a key:b"},
		{"SET a 1 EX 10 GET", "command:set key:a"},
		{"SET", "command:set"},
		{"GET a b", "unreadable"},
		{"FROB a", "unreadable"},
		{"CONFIG get dir", ""},
		{"CONFIG GET maxmemory* Dir", "command:config get"},
		{"CONFIG GET dir RequirePass", "forbidden:config get requirepass"},
		{"CONFIG GET *", "forbidden:config get requirepass"},
		{"CONFIG GET *auth", "forbidden:config get masterauth"},
		{"CONFIG GET [m]asterauth", "forbidden:config get requirepass"},
		{`CONFIG GET maste\rauth*`, "forbidden:config get masterauth"},
		{"CONFIG GET tls-key-file-pas?", "forbidden:config get tls-key-file-pass"},
		{"CONFIG GET", "command:config get"},
		{"SLOWLOG GET 10", "command:slowlog get key:* database:*"},
		{"SLOWLOG LEN", "command:slowlog len"},
		{"CONFIG|GET dir", "unreadable"},
		{"GET\x00 a", "unreadable"},
		{"CONFIG", "unreadable"},
		{"CONFIG FROB", "unreadable"},
		{"CONFIG SET dir /etc", "forbidden:config set"},
		{"MONITOR", "forbidden:monitor"},
		{"ACL SETUSER x", "forbidden:acl setuser"},
		{"ACL WHOAMI", "command:acl whoami"},
		{"CLIENT REPLY OFF", "forbidden:client reply"},
		{"CLUSTER SLOTS", "command:cluster slots"},
		{"CLUSTER MEET 10.0.0.1 6379", "forbidden:cluster meet"},
		{"EVAL return 0", "command:eval opaque:eval"},
		{"EVAL return 1 app:1 x", "command:eval key:app:1 opaque:eval"},
		{"EVAL return 3 app:1", "unreadable"},
		{"EVAL return x app:1", "unreadable"},
		{"FCALL f 1 app:1", "command:fcall key:app:1 opaque:fcall"},
		{"SORT app:l BY other:* GET other:*->f GET # STORE app:d", "command:sort key:app:l key:other:* key:other:* key:app:d"},
		{"SORT app:l BY nosort LIMIT 0 10 ASC ALPHA", "command:sort key:app:l"},
		{"SORT app:l FROB other:1", "unreadable"},
		{"GEORADIUS g 1 1 5 km WITHDIST STORE other:1", "command:georadius key:g key:other:1"},
		{"XREAD COUNT 2 BLOCK 0 STREAMS a b 0 0", "command:xread key:a key:b"},
		{"XREAD COUNT STREAMS STREAMS a 0", "command:xread key:a"},
		{"XREAD STREAMS a b 0", "unreadable"},
		{"XREADGROUP GROUP STREAMS STREAMS STREAMS k >", "command:xreadgroup key:k"},
		{"XREADGROUP STREAMS a b c STREAMS d 0", "unreadable"},
		{"XREADGROUP GROUP g c CLAIM 1 STREAMS k >", "unreadable"},
		{"ZUNIONSTORE d 2 a b WEIGHTS 1 2", "command:zunionstore key:d key:a key:b"},
		{"BLPOP a b 0", "command:blpop key:a key:b"},
		{"BITOP AND d a b", "command:bitop key:d key:a key:b"},
		{"COPY a b DB 3 REPLACE", "command:copy key:a key:b database:3"},
		{"MOVE a 3", "command:move key:a database:3"},
		{"SELECT 3", "command:select database:3"},
		{"SELECT x", "unreadable"},
		{"SELECT -1", "unreadable"},
		{"SCAN 0", "command:scan key:*"},
		{"SCAN 0 MATCH app:* COUNT 5", "command:scan key:app:*"},
		{"SCAN 0 MATCH a[p]p:*", "command:scan key:a*"},
		{"SCAN 0 FROB x", "unreadable"},
		{"KEYS app:?", "command:keys key:app:*"},
		{"FLUSHALL", "command:flushall key:* database:*"},
		{"RANDOMKEY", "command:randomkey key:*"},
		{"PUBLISH app.x m", "command:publish channel:app.x"},
		{"SUBSCRIBE app.x app.y", "command:subscribe channel:app.x channel:app.y"},
		{"PSUBSCRIBE app.* *", "command:psubscribe channel:app.* channel:*"},
		{"UNSUBSCRIBE x", "command:unsubscribe"},
		{"PUBSUB CHANNELS", "command:pubsub channels channel:*"},
		{"PUBSUB NUMSUB a", "command:pubsub numsub channel:a"},
		{"CLIENT TRACKING ON OPTIN", "command:client tracking"},
		{"CLIENT TRACKING ON BCAST", "command:client tracking key:*"},
		{"CLIENT TRACKING ON BCAST PREFIX app: PREFIX x", "command:client tracking key:app:* key:x*"},
		{"CLIENT TRACKING ON REDIRECT 3", "forbidden:client tracking redirect"},
		{"CLIENT SETINFO LIB-NAME x", "command:client setinfo"},
		{"WATCH a b", "command:watch key:a key:b"},
		{"GET " + long, "command:get key:" + long[:255] + "*"},
		{"GET app:\xff1", "command:get key:app:*"},
		{"GET app:\x001", "command:get key:app:*"},
		{"OBJECT ENCODING a", "command:object encoding key:a"},
		{"XGROUP CREATE s g 0", "command:xgroup create key:s"},
		{"MIGRATE h 1 k 0 5", "forbidden:migrate"},
		{"SCRIPT LOAD x", "command:script load opaque:script load"},
	}
	for _, test := range tests {
		if test.want == "" {
			test.want = "command:config get"
		}
		r := Read(words(test.command))
		if got := factsOf(&r); got != test.want {
			t.Errorf("%q: %s; want %s", test.command, got, test.want)
		}
	}
	if r := Read([][]byte{[]byte("GET"), nil}); factsOf(&r) != "command:get key:*" {
		t.Errorf("empty key: %s", factsOf(&r))
	}
}

func TestTooManyKeys(t *testing.T) {
	args := words("DEL")
	for range MaxKeys + 1 {
		args = append(args, []byte("k"))
	}
	if r := Read(args); r.Unreadable == "" || !r.TooLarge {
		t.Errorf("%d keys: %q", len(args)-1, r.Unreadable)
	}
}

func TestComplete(t *testing.T) {
	tests := []struct {
		args string
		argc int
		want bool
	}{
		{"SET k", 3, true},
		{"SET", 3, false},
		{"MSET a 1", 4, false},
		{"FROB", 9, true},
		{"CONFIG", 3, false},
		{"CONFIG SET", 4, true},
		{"CONFIG FROB", 4, true},
		{"PUBLISH c", 3, true},
		{"PUBLISH", 3, false},
		{"EVAL s", 4, false},
		{"ZADD k", 100, true},
		{"ZUNIONSTORE d 2 a b", 9, true},
		{"ZUNIONSTORE d 2 a", 9, false},
		{"ZUNIONSTORE d", 9, false},
		{"GET a", 3, true},
		{"RPUSH k", 1000, true},
		{"PING", 2, true},
		{"MONITOR", 5, true},
		{"XADD s", 9, true},
		{"SCAN 0", 4, false},
		{"XGROUP CREATE s", 5, true},
		{"XGROUP CREATE", 5, false},
		{"COMMAND", 2, false},
	}
	for _, test := range tests {
		if got := Complete(words(test.args), test.argc); got != test.want {
			t.Errorf("Complete(%q, %d) = %t", test.args, test.argc, got)
		}
	}
}

func TestExpand(t *testing.T) {
	has := func(pattern string, with, without []string) {
		t.Helper()
		got, err := Expand(pattern)
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
		for _, name := range with {
			if !slices.Contains(got, name) {
				t.Errorf("%s does not stand for %s", pattern, name)
			}
		}
		for _, name := range without {
			if slices.Contains(got, name) {
				t.Errorf("%s stands for %s", pattern, name)
			}
		}
	}
	has("get", []string{"get"}, []string{"getset", "mget"})
	has("@read", []string{"get", "mget", "scan", "xinfo stream"}, []string{"set", "eval", "getdel"})
	has("@all", []string{"get", "config get", "eval"}, []string{"monitor", "config set", "config", "acl list"})
	has("@admin", []string{"config get", "client list"}, []string{"monitor", "acl list", "shutdown"})
	has("config get", []string{"config get"}, []string{"config set"})
	has("config", []string{"config get"}, []string{"config set", "config"})
	has("xinfo", []string{"xinfo stream"}, []string{"xinfo"})
	has("command", []string{"command", "command docs"}, nil)
	has("z*", []string{"zadd"}, []string{"get"})
	for _, pattern := range []string{"monitor", "@frob", "frob", "GET", "", "acl list", "config set", "config|get"} {
		if got, err := Expand(pattern); err == nil {
			t.Errorf("%q stands for %v", pattern, got)
		}
	}
}

// TestListsAreOfCommands finds a name in a list that no command has.
func TestListsAreOfCommands(t *testing.T) {
	for _, name := range Always() {
		if _, err := Expand(name); err != nil {
			if _, ok := laterRow(strings.Replace(name, " ", "|", 1)); !ok {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestReadKeepsMemory(t *testing.T) {
	get, mget := words("GET app:1"), words("CONFIG GET dir")
	var r Reading
	r.Facts = make([]authz.Fact, 0, 16)
	if n := testing.AllocsPerRun(100, func() { r.Read(get); r.Read(mget) }); n > 1 {
		t.Errorf("%v allocations for two commands with one key", n)
	}
}

func BenchmarkRead(b *testing.B) {
	args := words("GET app:12345")
	var r Reading
	for b.Loop() {
		r.Read(args)
	}
}

// TestLastAnswer is that before an error, until the error is skipped, and no push.
func TestLastAnswer(t *testing.T) {
	var s Replies
	scan := func(b string) int {
		n, failure, err := s.Scan([]byte(b))
		if err != nil || n+failure != len(b) {
			t.Fatalf("%q: %d, %d, %v", b, n, failure, err)
		}
		return failure
	}
	scan("+OK\r\n")
	scan(">2\r\n+a\r\n+b\r\n")
	if n, failure, err := s.Scan([]byte("*1\r\n$1\r\na\r\n-ERR x\r\n")); n != 11 || failure != 0 || err != nil || !s.Top() {
		t.Errorf("an answer with another behind it: %d, %d, %v, top %t", n, failure, err, s.Top())
	}
	scan("+OK\r\n")
	if failure := scan("-ERR x\r\n"); failure == 0 {
		t.Error("the error is not reported")
	}
	if kind, ok := s.Last(); kind != '+' || !ok {
		t.Errorf("before the error: %q, %t", kind, ok)
	}
	s.Skip()
	if kind, ok := s.Last(); kind != '-' || ok || s.Answered != 4 {
		t.Errorf("behind the error: %q, %t, %d answers", kind, ok, s.Answered)
	}
	scan("+QUEUED\r\n")
	if kind, ok := s.Last(); kind != '+' || ok {
		t.Errorf("QUEUED: %q, %t", kind, ok)
	}
}

// A command of which the last argument is still missing has all its facts where it is
// complete: the keys of BLPOP end before its timeout, and are counted from the end.
func TestReadFirstHasAllFacts(t *testing.T) {
	for _, line := range []string{
		"BLPOP a b 0", "BZPOPMIN a b 0", "SET k v", "XADD s 1 f v", "ZUNIONSTORE d 2 a b WEIGHTS 1 2", "MSET a 1 b 2", "RENAME a b",
		"BITOP AND d a b", "XGROUP CREATE s g 0", "PUBLISH c m", "LMPOP 2 a b LEFT", "BLMOVE a b LEFT RIGHT 0",
	} {
		args := words(line)
		want := Read(args).Facts
		for n := 1; n <= len(args); n++ {
			var got Reading
			if !Complete(args[:n], len(args)) {
				continue
			}
			if got.ReadFirst(args[:n], len(args)); !slices.Equal(got.Facts, want) {
				t.Errorf("%s: its first %d arguments have the facts %v, all %v", line, n, got.Facts, want)
			}
		}
	}
}

// TestWaits has commands wait that may, and XREAD only with BLOCK.
func TestWaits(t *testing.T) {
	for line, want := range map[string]bool{
		"XREAD STREAMS a 0": false, "XREAD COUNT 1 STREAMS block 0": false, "XREAD COUNT 1 BLOCK 0 STREAMS a 0": true, "XREADGROUP GROUP g c STREAMS a >": false,
		"XREADGROUP GROUP g c block 0 STREAMS a >": true, "BLPOP a 0": true, "LPOP a": false, "EVAL x 0": true, "SUBSCRIBE a": true,
	} {
		var args [][]byte
		for arg := range strings.FieldsSeq(line) {
			args = append(args, []byte(arg))
		}
		if got := Read(args).Long; got != want {
			t.Errorf("%s: got %t, want %t", line, got, want)
		}
	}
}

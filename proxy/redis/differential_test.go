package redis_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// step is a command of a script.
type step struct {
	args    []string
	refused bool
}

// script draws commands that are granted, with refused ones mixed in.
func script(t *rapid.T) []step {
	key := rapid.Map(rapid.IntRange(1, 5), func(n int) string { return fmt.Sprint("app:", n) })
	value := rapid.Custom(func(t *rapid.T) string {
		size := rapid.SampledFrom([]int{0, 1, 2, 3, 10, 10, 10, 300, 5_000, 90_000, 200_000}).Draw(t, "size")
		return strings.Repeat(rapid.SampledFrom([]string{"x", "\r\n", "-MOVED 1 h:1\r\n", "$3\r\n"}).Draw(t, "text"), size)
	})
	number := rapid.Map(rapid.IntRange(-2, 5), func(n int) string { return fmt.Sprint(n) })
	var steps []step
	add := func(refused bool, args ...string) { steps = append(steps, step{args, refused}) }
	multi := false
	for range rapid.IntRange(1, 40).Draw(t, "steps") {
		a, b, v, n := key.Draw(t, "a"), key.Draw(t, "b"), value.Draw(t, "v"), number.Draw(t, "n")
		switch kind := rapid.IntRange(0, 31).Draw(t, "kind"); kind {
		case 0:
			add(false, "MULTI")
			multi = true
		case 1:
			add(false, rapid.SampledFrom([]string{"EXEC", "EXEC", "DISCARD"}).Draw(t, "end"))
			multi = false
		case 2:
			add(true, "GET", "other:"+n)
		case 3:
			add(true, "MSET", a, v, "other:1", v)
		case 4:
			add(true, rapid.SampledFrom([]string{
				"FROB", "MONITOR", "RESET", "CONFIG SET maxmemory 1", "CLIENT REPLY OFF", "DEBUG SLEEP 1",
				"EVAL return_1 0", "SUBSCRIBE other.x", "SORT app:1 BY other:*", "SCAN 0", "SELECT 9", "CLIENT KILL ID 1", "FLUSHALL",
			}).Draw(t, "refused"))
			steps[len(steps)-1].args = strings.Fields(steps[len(steps)-1].args[0])
		case 5:
			add(true, "SET", "other:1", v)
		case 6:
			add(false, "HELLO", rapid.SampledFrom([]string{"2", "3", "9"}).Draw(t, "version"))
		case 7:
			add(false, "SUBSCRIBE", "app.x")
		case 8:
			add(false, rapid.SampledFrom([]string{"UNSUBSCRIBE", "PUNSUBSCRIBE"}).Draw(t, "un"))
		case 9:
			add(false, "PUBLISH", "app.x", v)
		case 10:
			if !multi {
				add(false, "SELECT", rapid.SampledFrom([]string{"0", "1", "15"}).Draw(t, "database"))
			}
		case 11:
			add(false, "WATCH", a)
		case 12:
			add(false, "CLIENT", "SETNAME", n)
		case 13:
			add(false, "CLIENT", "GETNAME")
		case 14:
			add(false, "GET") // the server's own error
		case 15:
			add(false, "MSET", a, v, b, v)
		case 16:
			add(false, "MGET", a, b, a)
		case 17, 18, 19:
			add(false, "SET", a, v)
		case 20, 21, 22:
			add(false, "GET", a)
		case 23:
			add(false, "INCRBY", a, n)
		case 24:
			add(false, "RPUSH", a, v, n)
		case 25:
			add(false, "LRANGE", a, "0", "-1")
		case 26:
			add(false, "HSET", a, "f", v)
		case 27:
			add(false, "HGETALL", a)
		case 28:
			add(false, "ZADD", a, n, "m"+n)
		case 29:
			add(false, "ZRANGE", a, "0", "-1", "WITHSCORES")
		case 30:
			add(false, "DEL", a, b)
		case 31:
			add(false, "PING")
		}
	}
	return append(steps, step{args: []string{"DISCARD"}}, step{args: []string{"PING", "the end"}})
}

// patience is how long an answer may take: a test that fails is repeated often.
const patience = 10 * time.Second

func last(list []string) string { return strings.Join(list[max(0, len(list)-1):], "") }

// play sends a script in parts of random sizes, and returns its answers.
func play(t *rapid.T, c *client, raw string) []string {
	go func() {
		for rest := raw; rest != ""; {
			n := min(len(rest), 1+(len(rest)*7919)%4096)
			if _, err := c.conn.Write([]byte(rest[:n])); err != nil {
				return
			}
			rest = rest[n:]
		}
	}()
	var out []string
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(patience))
		text, err := readAnswer(c.in)
		if err != nil {
			t.Fatalf("after %d answers, the last of which is %.200q: %v", len(out), last(out), err)
		}
		if out = append(out, text); strings.Contains(text, "the end") {
			return out
		}
	}
}

// TestLikeDirect plays scripts directly and through the sidecar: the answers are the same
// but for those of refused commands, for which the direct connection sends a command that
// the server does not have.
func TestLikeDirect(t *testing.T) {
	first, second := serve(t), serve(t)
	rule := reader()
	rule.db = []string{"0", "1", "15"}
	w := newWorld(t, first, rule)
	connectionID := regexp.MustCompile(`\$id :\d+`)
	refusals := 0
	rapid.Check(t, func(rt *rapid.T) {
		steps := script(rt)
		var ours, theirs strings.Builder
		for _, s := range steps {
			ours.WriteString(request(s.args...))
			if s.refused {
				s.args = []string{"UNKNOWN-COMMAND"}
			}
			theirs.WriteString(request(s.args...))
		}
		flush := direct(t, first)
		flush.expect("+OK", "FLUSHALL")
		_ = flush.conn.Close()
		through, straight := w.dial(), direct(t, second)
		straight.expect("+OK", "FLUSHALL")
		got, want := play(rt, through, ours.String()), play(rt, straight, theirs.String())
		_, _ = through.conn.Close(), straight.conn.Close()
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) {
				rt.Fatalf("%d answers, want %d", len(got), len(want))
			}
			g, d := connectionID.ReplaceAllString(got[i], ""), connectionID.ReplaceAllString(want[i], "")
			if strings.HasPrefix(d, "-ERR unknown command ") && strings.Contains(d, "UNKNOWN") && strings.HasPrefix(g, "-NOPERM chaperone: ") {
				refusals++
				continue
			}
			if g != d {
				rt.Fatalf("answer %d is %.200q, want %.200q", i, g, d)
			}
		}
	})
	if refusals == 0 {
		t.Error("no command was refused")
	}
}

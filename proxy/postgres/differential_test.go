package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"pgregory.net/rapid"
)

// step is a message of a script. Its denied form, which the front refuses, has another text
// for the database itself: one that cannot be parsed.
type step struct {
	front, direct []byte
	text          string // for a report
}

func plain(m pgproto3.FrontendMessage, text string) step {
	b := encode(m)
	return step{b, b, text}
}

// unparsable is what stands for a refused text at the database itself.
const unparsable = "no_statement_begins_so"

// allowedTexts are granted, and what the server makes of them does not depend on earlier runs.
func allowedTexts() []string {
	return []string{
		"SELECT id, name FROM orders WHERE id < 6 ORDER BY id", "SELECT 1", "SELECT 1; SELECT id FROM orders WHERE id < 3 ORDER BY id", "", "-- nothing",
		"SELECT 1/0", "SELECT 1; SELECT 1/0; SELECT 2", "SELECT no_such_column FROM orders", "BEGIN", "COMMIT", "ROLLBACK", "BEGIN; SELECT 1; COMMIT",
		"SAVEPOINT a", "ROLLBACK TO SAVEPOINT a", "INSERT INTO sink VALUES (1, 'x'), (2, 'y')", "INSERT INTO sink VALUES ('no number')",
		"COPY orders TO STDOUT", "PREPARE s1 AS SELECT id FROM orders WHERE id < 4 ORDER BY id", "PREPARE s2 AS SELECT 1", "EXECUTE s1", "EXECUTE s2",
		"DEALLOCATE s1", "DEALLOCATE ALL", "DISCARD ALL", "DECLARE c1 CURSOR FOR SELECT id FROM orders ORDER BY id", "FETCH 2 FROM c1",
		"SELECT repeat('x', 20000)", "SELECT id FROM orders ORDER BY id", "SELECT 'chaperone_0000'",
	}
}

func deniedTexts() []string {
	return []string{
		"SELECT value FROM secrets", "SELECT 1; SELECT value FROM secrets", "UPDATE orders SET name = 'x'", "COPY secrets TO STDOUT", "COPY secrets FROM STDIN",
		"PREPARE s1 AS SELECT value FROM secrets", "BEGIN; SELECT value FROM secrets; COMMIT", "DECLARE c1 CURSOR FOR SELECT value FROM secrets",
		strings.Repeat(" ", 70000) + "SELECT value FROM secrets",
	}
}

const copyIn = "COPY sink FROM STDIN"

func name(t *rapid.T, label string) string {
	return rapid.SampledFrom([]string{"", "s1", "s2", "c1"}).Draw(t, label)
}

// text draws a text and reports whether it is refused.
func text(t *rapid.T) (string, bool) {
	if rapid.IntRange(0, 3).Draw(t, "refused") == 0 {
		return rapid.SampledFrom(deniedTexts()).Draw(t, "denied"), true
	}
	return rapid.SampledFrom(allowedTexts()).Draw(t, "allowed"), false
}

func queryStep(t *rapid.T) step {
	sql, denied := text(t)
	s := plain(&pgproto3.Query{String: sql}, "Query "+shorten(sql))
	if denied {
		s.direct = encode(&pgproto3.Query{String: unparsable})
	}
	return s
}

func parseStep(t *rapid.T) step {
	sql, denied := text(t)
	as := name(t, "statement")
	s := plain(&pgproto3.Parse{Name: as, Query: sql}, "Parse "+as+": "+shorten(sql))
	if denied {
		s.direct = encode(&pgproto3.Parse{Name: as, Query: unparsable})
	}
	return s
}

func shorten(s string) string {
	s = strings.TrimSpace(s)
	return s[:min(len(s), 50)]
}

// extendedStep draws a message of the extended protocol.
func extendedStep(t *rapid.T) step {
	portal, statement := name(t, "portal"), name(t, "statement")
	switch rapid.IntRange(0, 9).Draw(t, "extended") {
	case 0, 1:
		return parseStep(t)
	case 2, 3:
		return plain(&pgproto3.Bind{DestinationPortal: portal, PreparedStatement: statement}, "Bind "+portal+" of "+statement)
	case 4, 5, 6:
		rows := rapid.SampledFrom([]uint32{0, 0, 1, 2}).Draw(t, "rows")
		return plain(&pgproto3.Execute{Portal: portal, MaxRows: rows}, fmt.Sprint("Execute ", portal, " ", rows))
	case 7:
		kind := rapid.SampledFrom([]byte{'S', 'P'}).Draw(t, "kind")
		return plain(&pgproto3.Describe{ObjectType: kind, Name: statement}, "Describe "+string(kind)+statement)
	case 8:
		kind := rapid.SampledFrom([]byte{'S', 'P'}).Draw(t, "kind")
		return plain(&pgproto3.Close{ObjectType: kind, Name: statement}, "Close "+string(kind)+statement)
	}
	return plain(&pgproto3.Flush{}, "Flush")
}

func functionCall() step {
	return step{raw(msgFunctionCall, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0), encode(&pgproto3.Query{String: unparsable}), "FunctionCall"}
}

// extendedRun is Parse, Bind, Execute of one statement, as drivers send it.
func extendedRun(t *rapid.T, sql string, denied bool) []step {
	as := name(t, "statement")
	parse := plain(&pgproto3.Parse{Name: as, Query: sql}, "Parse "+as+": "+shorten(sql))
	if denied {
		parse.direct = encode(&pgproto3.Parse{Name: as, Query: unparsable})
	}
	return []step{
		parse,
		plain(&pgproto3.Bind{PreparedStatement: as}, "Bind of "+as),
		plain(&pgproto3.Describe{ObjectType: 'P'}, "Describe P"),
		plain(&pgproto3.Execute{}, "Execute"),
	}
}

func copyData(t *rapid.T) (out []step) {
	for range rapid.IntRange(0, 3).Draw(t, "rows of COPY") {
		row := rapid.SampledFrom([]string{"1\ta\n", "2\tb\n", "2\tb\n", "no number\n"}).Draw(t, "row")
		out = append(out, plain(&pgproto3.CopyData{Data: []byte(row)}, "CopyData "+row))
	}
	if rapid.Bool().Draw(t, "fails") {
		return append(out, plain(&pgproto3.CopyFail{Message: "enough"}, "CopyFail"))
	}
	return append(out, plain(&pgproto3.CopyDone{}, "CopyDone"))
}

// politeScript draws what clients send: a COPY has its data behind it, and an extended one a
// Sync before and after it, as libpq sends it. The rest is in any order.
func politeScript(t *rapid.T) (out []step) {
	sync := plain(&pgproto3.Sync{}, "Sync")
	for range rapid.IntRange(1, 12).Draw(t, "length") {
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0, 1:
			out = append(out, queryStep(t))
		case 2, 3:
			sql, denied := text(t)
			out = append(out, extendedRun(t, sql, denied)...)
			if rapid.Bool().Draw(t, "synchronised") {
				out = append(out, sync)
			}
		case 4, 5:
			out = append(out, extendedStep(t))
		case 6:
			out = append(out, sync)
		case 7:
			out = append(out, sync, plain(&pgproto3.Query{String: copyIn}, "Query "+copyIn))
			out = append(out, copyData(t)...)
		case 8:
			out = append(out, sync)
			out = append(out, extendedRun(t, copyIn, false)...)
			out = append(out, sync)
			out = append(out, copyData(t)...)
			out = append(out, sync)
		case 9:
			out = append(out, functionCall())
		}
	}
	return append(out, sync)
}

// wildScript draws messages in any order: data without a COPY, a COPY without data, a Query
// within data.
func wildScript(t *rapid.T) (out []step) {
	for range rapid.IntRange(1, 25).Draw(t, "length") {
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0, 1:
			out = append(out, queryStep(t))
		case 2, 3, 4, 5:
			out = append(out, extendedStep(t))
		case 6:
			out = append(out, plain(&pgproto3.Sync{}, "Sync"))
		case 7:
			out = append(out, plain(&pgproto3.Query{String: copyIn}, "Query "+copyIn))
		case 8:
			out = append(out, extendedRun(t, copyIn, false)...)
		case 9:
			out = append(out, copyData(t)...)
		}
	}
	return out
}

// epilogue ends whatever a script left open. Its last answer is the row "end".
func epilogue() []step {
	return []step{
		plain(&pgproto3.CopyFail{Message: "end"}, "CopyFail"), plain(&pgproto3.Sync{}, "Sync"),
		plain(&pgproto3.Query{String: "ROLLBACK"}, "ROLLBACK"), plain(&pgproto3.Query{String: "SELECT 'end'"}, "end"),
	}
}

// play sends the steps in pieces, and returns what the server answers up to the row "end".
func play(c *wire, script []byte, pieces *rand.Rand) ([]frame, error) {
	sent := make(chan error, 1)
	go func() {
		var err error
		for len(script) > 0 && err == nil {
			n := len(script)
			if pieces != nil {
				n = min(n, 1+pieces.IntN(200))
			}
			_, err = c.conn.Write(script[:n])
			script = script[n:]
			if pieces != nil && pieces.IntN(20) == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		sent <- err
	}()
	var out []frame
	last := false
	for {
		f, err := c.next()
		if err != nil {
			_ = c.conn.Close()
			return out, errors.Join(err, <-sent)
		}
		out = append(out, f)
		last = last || f.kind == msgDataRow && bytes.HasSuffix(f.body, []byte("\x00\x00\x00\x03end"))
		if last && f.kind == msgReadyForQuery {
			return out, <-sent
		}
	}
}

// same reports whether the front's answer may stand for the database's.
func same(front, direct frame) bool {
	if front.kind == msgErrorResponse && front.field('C') == statePrivilege && strings.Contains(front.field('D'), "decision ") {
		return direct.kind == msgErrorResponse && direct.field('C') == stateSyntaxError && strings.Contains(direct.field('M'), unparsable)
	}
	return front.kind == direct.kind && bytes.Equal(front.body, direct.body)
}

// differ returns the first difference, "" without one.
func differ(front, direct []frame) string {
	for i := range max(len(front), len(direct)) {
		if i >= len(front) || i >= len(direct) || !same(front[i], direct[i]) {
			return fmt.Sprintf("message %d of %d and %d differs:\nfront:  %v\ndirect: %v", i, len(front), len(direct), tail(front, i), tail(direct, i))
		}
	}
	return ""
}

func tail(frames []frame, i int) []frame {
	return frames[max(0, min(i-3, len(frames))):min(len(frames), i+4)]
}

// compare plays a script at the front and at the database.
func compare(t *rapid.T, w *world, to target, steps []step, check func(*relay)) {
	var atFront, atServer []byte
	var report strings.Builder
	for _, s := range append(steps, epilogue()...) {
		atFront, atServer = append(atFront, s.front...), append(atServer, s.direct...)
		fmt.Fprintln(&report, s.text)
	}
	seed := rapid.Uint64().Draw(t, "pieces")
	relays := make(chan *relay, 1)
	w.server.relaying = func(r *relay) { relays <- r }
	through := w.open()
	defer through.conn.Close()
	r := <-relays
	front, err := play(through, atFront, rand.New(rand.NewPCG(seed, 1)))
	server := direct(w.t, to, map[string]string{
		settingEncoding: "UTF8", settingStrings: "on", settingSearchPath: "pg_catalog, public",
	})
	defer server.conn.Close()
	straight, ended := play(server, atServer, nil)
	violates := func(f frame) bool { return f.kind == msgErrorResponse && f.field('C') == stateProtocolViolation }
	if n := slices.IndexFunc(straight, violates); ended != nil && n >= 0 {
		// A message within COPY data ends the session at the database. The front has ended
		// the COPY before it.
		straight, front, err = straight[:n], front[:min(len(front), n)], ended
	}
	if err != nil && ended != nil { // by the server; a reset may have taken its last messages
		least := min(len(front), len(straight))
		front, straight = front[:least], straight[:least]
	} else if err != nil || ended != nil {
		t.Fatalf("front: %v after %v\ndirect: %v after %v\nof the script\n%s", err, tail(front, len(front)), ended, tail(straight, len(straight)), report.String())
	}
	if d := differ(front, straight); d != "" {
		t.Fatalf("%s\nof the script\n%s", d, report.String())
	}
	if err != nil {
		return
	}
	if check != nil {
		if check(r); t.Failed() {
			t.Fatalf("of the script\n%s", report.String())
		}
	}
	for _, c := range []*wire{through, server} {
		c.send(encode(&pgproto3.Terminate{}))
		if f, err := c.next(); !errors.Is(err, io.EOF) {
			t.Fatalf("a Terminate was answered %v, %v", f, err)
		}
		_ = c.conn.Close()
	}
}

func differentialWorld(t *testing.T, newest bool) (*world, target) {
	_, to := sharedServer(t)
	if newest {
		_, to = startPostgres(t, true)
	}
	granted := readOrders()
	granted.Matcher.Facts = append(granted.Matcher.Facts, unknownNameFact())
	return newWorld(t, to, granted), to
}

// A script of statements with refused ones mixed in has the answers, at the front, that the
// database gives to the same script with texts that cannot be parsed.
func TestRefusalsKeepTheSequenceOfMessages(t *testing.T) {
	w, to := differentialWorld(t, false)
	paired := func(r *relay) {
		if !r.pipe.isIdle() {
			t.Errorf("the pairing of messages is behind or ahead: %v", describe(r.pipe))
		}
	}
	t.Run("polite", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { compare(t, w, to, politeScript(t), paired) })
	})
	t.Run("wild", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { compare(t, w, to, wildScript(t), paired) })
	})
}

func describe(p *pipeline) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out strings.Builder
	fmt.Fprintf(&out, "idle %v, skipping %v, COPY %+v", p.idle, p.skipping, p.copy)
	for b := p.head; b != nil; b = b.next {
		fmt.Fprintf(&out, "; batch %d-%d closed %q extended %d running %d", b.from, b.to, b.closed, b.extended, len(b.running))
	}
	return out.String()
}

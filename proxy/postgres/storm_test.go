package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// storming grants everything but the table of secrets.
func storming() authz.Rule {
	r := rule("storming", "verb:*", "table:public.orders", "function:*", "opaque:*", "setting:*")
	r.Matcher.Writes = true
	return r
}

// noise is messages that a server may send at any time. Each has its number.
type noise struct {
	rng  *rand.Rand
	sent int
}

const noiseName = "noise"

// some returns none, a few or many of them, of which some are larger than any buffer.
func (n *noise) some() (out []byte) {
	count := n.rng.IntN(4)
	if n.rng.IntN(30) == 0 {
		count = 300
	}
	for range count {
		n.sent++
		text := noiseName + strconv.Itoa(n.sent) + " "
		switch n.rng.IntN(3) {
		case 0:
			if n.rng.IntN(50) == 0 {
				text += strings.Repeat("x", 3*largeBuffer)
			}
			out = append(out, reply(&pgproto3.NoticeResponse{Severity: "NOTICE", Code: "00000", Message: text})...)
		case 1:
			out = append(out, reply(&pgproto3.NotificationResponse{PID: 7, Channel: "c", Payload: text})...)
		case 2:
			out = append(out, reply(&pgproto3.ParameterStatus{Name: noiseName, Value: text})...)
		}
	}
	return out
}

// numberOf returns the number of a message of noise, 0 for any other message.
func numberOf(f frame) int {
	_, after, ok := bytes.Cut(f.body, []byte(noiseName))
	if f.kind == msgParameterStatus {
		_, after, ok = bytes.Cut(after, []byte(noiseName))
	}
	if !ok || f.kind != msgNotice && f.kind != msgNotification && f.kind != msgParameterStatus {
		return 0
	}
	digits, _, _ := bytes.Cut(after, []byte(" "))
	n, _ := strconv.Atoi(string(digits))
	return n
}

// Messages that come at any time, between any two others, pass in order and change neither
// the pairing of refusals nor anything else: what is left without them is what the database
// answers.
func TestAsynchronousMessagesAnywhere(t *testing.T) {
	db, direct := sharedServer(t)
	var mu sync.Mutex
	var storm *noise
	to := startFilter(t, db, func(frame []byte) []byte {
		switch frame[0] {
		case 'R', 'K', msgParameterStatus: // of the login
			return frame
		}
		mu.Lock()
		defer mu.Unlock()
		return append(frame, storm.some()...)
	})
	granted := readOrders()
	granted.Matcher.Facts = append(granted.Matcher.Facts, unknownNameFact())
	w := newWorld(t, to, granted)
	total := 0
	rapid.Check(t, func(t *rapid.T) {
		mu.Lock()
		storm = &noise{rng: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "noise"), 1))}
		mu.Unlock()
		seen := 0
		w.aside = func(f frame) bool {
			n := numberOf(f)
			if n != 0 && n != seen+1 {
				t.Fatalf("message %d follows %d", n, seen)
			}
			seen = max(seen, n)
			return n != 0
		}
		compare(t, w, direct, politeScript(t), func(r *relay) {
			if !r.pipe.isIdle() {
				t.Errorf("the pairing of messages is behind: %v", describe(r.pipe))
			}
		})
		total += seen
	})
	if total == 0 {
		t.Error("no message came between the others")
	}
	if held, _ := w.budget.Held(budget.Body); held > 8*largeBuffer {
		t.Errorf("%d bytes are held", held)
	}
}

// numbers returns the numbers that notices and notifications of a channel have.
func (c *wire) numbers(kind byte, f frame) (int, bool) {
	if f.kind != kind {
		return 0, false
	}
	text := f.field('M')
	if kind == msgNotification {
		_, rest, _ := bytes.Cut(f.body[4:], []byte{0})
		text = string(bytes.TrimSuffix(rest, []byte{0}))
	}
	n, err := strconv.Atoi(text)
	testenv.Must(c.t, err)
	return n, true
}

// A storm of notices within statements and one of notifications between them, with refused
// statements in the midst, pass in order to a plugin that does not read for long, and take
// no memory.
func TestStormsOfNoticesAndNotifications(t *testing.T) {
	const notices, notifications, rounds = 30_000, 30_000, 20
	db, to := sharedServer(t)
	w := newWorld(t, to, storming())
	c := w.open()
	c.query("LISTEN c")
	testenv.MustGet(db.Query(t.Context(), fmt.Sprintf(`SELECT count(pg_notify('c', n::text)) FROM generate_series(1, %d) n`, notifications)))(t)
	before := heap()
	var script []byte
	for range rounds {
		script = append(script, encode(
			&pgproto3.Query{String: fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP RAISE NOTICE '%%', i; END LOOP; END $$", notices)},
			&pgproto3.Query{String: "SELECT value FROM secrets"}, &pgproto3.Parse{Query: "SELECT value FROM secrets"}, &pgproto3.Sync{},
			&pgproto3.Query{String: "SELECT 1"})...)
	}
	c.send(script)
	awaitStandstill(t, w)
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes while the plugin did not read", grown)
	}
	notified := 0
	count := map[string]int{}
	for range 4 * rounds {
		noticed := 0
		for {
			f, err := c.next()
			testenv.Must(t, err)
			if n, is := c.numbers(msgNotice, f); is {
				if noticed++; n != noticed {
					t.Fatalf("notice %d follows %d", n, noticed-1)
				}
				continue
			}
			if n, is := c.numbers(msgNotification, f); is {
				if notified++; n != notified {
					t.Fatalf("notification %d follows %d", n, notified-1)
				}
				continue
			}
			if f.kind == msgErrorResponse {
				count[f.field('C')]++
			}
			if f.kind == msgReadyForQuery {
				break
			}
		}
		count[fmt.Sprint(noticed, " notices")]++
	}
	want := map[string]int{statePrivilege: 2 * rounds, fmt.Sprint(notices, " notices"): rounds, "0 notices": 3 * rounds}
	if fmt.Sprint(count) != fmt.Sprint(want) || notified != notifications {
		t.Fatalf("%v and %d notifications, want %v and %d", count, notified, want, notifications)
	}
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// awaitStandstill waits until nothing moves to the plugin any more.
func awaitStandstill(t testing.TB, w *world) {
	last := int64(-1)
	eventually(t, "nothing moves", func() bool {
		time.Sleep(100 * time.Millisecond)
		now := w.front.Sessions()[0].Bytes
		stands := now > 0 && now == last
		last = now
		return stands
	})
}

// A session is cut in the midst of a storm without an end: a plugin that reads sees whole
// messages, then the reason, and the end of the connection. One that does not read holds
// nothing up, and the server ends.
func TestStormIsCut(t *testing.T) {
	db, to := sharedServer(t)
	for name, reads := range map[string]bool{"a plugin that reads": true, "a plugin that does not": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, to, storming())
			c := w.open()
			c.send(encode(&pgproto3.Query{String: "DO $$ BEGIN LOOP RAISE NOTICE '%', repeat('x', 3000); END LOOP; END $$"}))
			if reads {
				for range 1000 {
					if f, err := c.next(); err != nil || f.kind != msgNotice {
						t.Fatalf("answered %v, %v", f, err)
					}
				}
			} else {
				awaitStandstill(t, w)
			}
			cut := make(chan int, 1)
			go func() { cut <- w.revoke("") }()
			if reads {
				c.expectNoticesAndEnd()
			}
			if n := <-cut; n != 1 {
				t.Fatalf("%d sessions were cut, want 1", n)
			}
			eventually(t, "the session has ended", func() bool { return len(w.front.Sessions()) == 0 })
			eventually(t, "the server has ended the statement", func() bool {
				rows := testenv.MustGet(db.Query(t.Context(), "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%LOOP RAISE%' AND usename = 'v_crm'"))(t)
				return len(rows) == 0
			})
		})
	}
}

// expectNoticesAndEnd reads notices up to the reason and the end behind it.
func (c *wire) expectNoticesAndEnd() {
	c.t.Helper()
	for ended := false; ; {
		f, err := c.next()
		if err != nil && ended {
			return
		}
		if err != nil {
			c.t.Fatalf("no reason before %v", err)
		}
		fatal := f.kind == msgErrorResponse && f.field('C') == stateAdminShutdown && strings.Contains(f.field('M'), "revoked")
		if ended || f.kind != msgNotice && !fatal {
			c.t.Fatalf("answered %v", f)
		}
		ended = fatal
	}
}

// endless is a source of the same bytes, which counts them.
type endless struct {
	b    []byte
	read atomic.Int64
	stop int64
}

func (e *endless) Read(b []byte) (int, error) {
	if e.read.Load() >= e.stop {
		return 0, fmt.Errorf("%d bytes were read", e.stop)
	}
	n := copy(b, e.b[e.read.Load()%int64(len(e.b)):])
	e.read.Add(int64(n))
	return n, nil
}

// A notice whose length is that of the largest message passes in parts, as does any number
// of small ones, and no memory is kept for either.
func TestMemoryOfAsynchronousMessages(t *testing.T) {
	notice := reply(&pgproto3.NoticeResponse{Severity: "NOTICE", Message: strings.Repeat("x", 100)})
	status := reply(&pgproto3.ParameterStatus{Name: "application_name", Value: strings.Repeat("x", 8<<10)})
	large := append(binary.BigEndian.AppendUint32([]byte{msgNotice}, maxFrame-1), make([]byte, 1<<10)...)
	for name, storm := range map[string][]byte{
		"notices":       notice,
		"notifications": reply(&pgproto3.NotificationResponse{Channel: "c", Payload: strings.Repeat("x", 7999)}),
		"settings":      status,
		"one notice":    large,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelayed(&allowing{})
			before := heap()
			err := r.toPlugin(&endless{b: storm, stop: 200 << 20}, discarded)
			if err == nil || !strings.Contains(err.Error(), "were read") {
				t.Fatalf("relayed: %v", err)
			}
			if grown := int64(heap()) - int64(before); r.room.most > 2*largeBuffer || r.room.held != 0 || grown > 1<<20 {
				t.Errorf("%d bytes were taken, %d are held, the heap grew by %d", r.room.most, r.room.held, grown)
			}
		})
	}
}

// psql, which reads in the midst of a storm, prints why its session was cut: the reason is
// behind notices that it has not read yet, also behind one that was being sent, and is not lost.
// On a loaded machine psql may need more than the second that it has for megabytes of notices.
func TestStormIsCutInPsql(t *testing.T) {
	_, to := sharedServer(t)
	const runs = 6
	printed := 0
	for range runs {
		w := newWorld(t, to, storming())
		go func() {
			for len(w.front.Sessions()) == 0 || w.front.Sessions()[0].Bytes < 2<<20 {
				time.Sleep(time.Millisecond)
			}
			w.revoke("")
		}()
		out, err := w.psql("-c", "DO $$ BEGIN LOOP RAISE NOTICE '%', repeat('x', 3000); END LOOP; END $$")
		if err == nil {
			t.Fatal("psql has succeeded")
		}
		if strings.Contains(out, "FATAL:  57P01: revoked: access was revoked") {
			printed++
		} else {
			t.Logf("psql has printed no reason, and %d bytes up to %q", len(out), out[max(0, len(out)-300):])
		}
	}
	if printed < runs/2 {
		t.Errorf("psql has printed the reason in %d of %d runs", printed, runs)
	}
	t.Logf("the reason was printed in %d of %d runs", printed, runs)
}

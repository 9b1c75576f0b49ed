package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/jackc/pgx/v5/pgproto3"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
)

// counted is the memory of a test.
type counted struct {
	mu         sync.Mutex
	held, most int64
}

func (c *counted) take(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held += n
	c.most = max(c.most, c.held)
	return nil
}

func (c *counted) give(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held -= n
}

// allowing allows every statement that names no table called secrets.
type allowing struct{ ids int }

type ignored struct{}

func (*ignored) End(authz.Outcome) {}
func (*ignored) Keep() bool        { return true }

func (d *allowing) Admit(_ context.Context, facts authz.Facts) (statement, *authz.Refusal) {
	if strings.Contains(strings.Join(facts.All(), " "), "secrets") {
		return nil, d.Refuse(authz.StatementNotGranted, "no")
	}
	return &ignored{}, nil
}

func (d *allowing) Refuse(reason authz.Reason, detail string) *authz.Refusal {
	d.ids++
	return &authz.Refusal{Reason: reason, Detail: detail, Decision: fmt.Sprintf("01890000-0000-7000-8000-%012x", d.ids)}
}

// cheap allows everything, and allocates nothing.
type cheap struct{ *allowing }

func (cheap) Admit(context.Context, authz.Facts) (statement, *authz.Refusal) {
	return (*ignored)(nil), nil
}

// relayed is what the two directions make of bytes.
type relayed struct {
	pipe *pipeline
	up   *toServer
	down *toPlugin
	room counted
	lend buffers
}

func newRelayed(d decider) *relayed {
	r := &relayed{pipe: newPipeline()}
	m := marker{strings.Repeat("m", markerSecret)}
	r.up = newToServer(context.Background(), databaseName, d, newReader(false), r.pipe, m)
	r.down = &toPlugin{pipe: r.pipe, marker: m, pins: map[string]string{settingEncoding: "UTF8"}}
	return r
}

// toServer relays what a plugin sends. It ends waits for the server.
func (r *relayed) toServer(src io.Reader, dst sink) error {
	p := newPump(src, dst, &r.lend, &r.room)
	r.up.pump = p
	return p.run(r.up)
}

func (r *relayed) toPlugin(src io.Reader, dst sink) error {
	p := newPump(src, dst, &r.lend, &r.room)
	p.written = r.down.recordEnds
	return p.run(r.down)
}

func discarded([]byte, bool) error { return nil }

// frames of a plugin that need no decision, or one that was made before.
func repeatedFrames(n int) []byte {
	one := encode(
		&pgproto3.Bind{PreparedStatement: "s", Parameters: [][]byte{bytes.Repeat([]byte("x"), 100)}}, &pgproto3.Describe{ObjectType: 'P'},
		&pgproto3.Execute{}, &pgproto3.Close{ObjectType: 'P'}, &pgproto3.CopyData{Data: make([]byte, 5000)}, &pgproto3.Flush{}, &pgproto3.Sync{},
	)
	return bytes.Repeat(one, n)
}

func answers(n int) []byte {
	one := reply(
		&pgproto3.BindComplete{}, &pgproto3.NoData{}, &pgproto3.DataRow{Values: [][]byte{make([]byte, 3000), []byte("x")}},
		&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, &pgproto3.CloseComplete{}, &pgproto3.ReadyForQuery{TxStatus: 'I'},
	)
	return bytes.Repeat(one, n)
}

// turn is one side of statements that are sent one after the other: each side reads the
// same bytes again once the other has read its own.
type turn struct {
	bytes.Reader
	all        []byte
	wait, done chan struct{}
	left       int // rounds; -1 for as many as the other side has
	begun      bool
}

// Read implements [io.Reader].
func (t *turn) Read(b []byte) (int, error) {
	if t.Len() == 0 {
		if t.begun {
			t.done <- struct{}{}
		}
		if t.begun || t.left < 0 {
			if _, more := <-t.wait; !more {
				return 0, io.EOF
			}
		}
		if t.left == 0 {
			close(t.done)
			return 0, io.EOF
		}
		t.begun = true
		t.left--
		t.Reset(t.all)
	}
	return t.Reader.Read(b)
}

// relayInTurns relays n statements and their answers, each after the one before.
func relayInTurns(t testing.TB, r *relayed, n int) {
	sent, answered := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- r.toPlugin(&turn{all: answers(1), wait: sent, done: answered, left: -1}, discarded) }()
	err := r.toServer(&turn{all: repeatedFrames(1), wait: answered, done: sent, left: n}, discarded)
	if err = errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
}

func prepared(t testing.TB, d decider) *relayed {
	r := newRelayed(d)
	if err := r.toServer(bytes.NewReader(encode(&pgproto3.Parse{Name: "s", Query: "SELECT id FROM orders"}, &pgproto3.Sync{})), discarded); err != nil {
		t.Fatal(err)
	}
	if err := r.toPlugin(bytes.NewReader(reply(&pgproto3.ParseComplete{}, &pgproto3.ReadyForQuery{TxStatus: 'I'})), discarded); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRelayAllocatesNothingForAFrame(t *testing.T) {
	r := prepared(t, cheap{&allowing{}})
	allocs := func(n int) float64 { return testing.AllocsPerRun(5, func() { relayInTurns(t, r, n) }) }
	if few, many := allocs(100), allocs(1100); many > few+10 && !underRace {
		t.Fatalf("%v allocations for 100 statements, %v for 1100", few, many)
	}
}

func BenchmarkRelayFrame(b *testing.B) {
	r := prepared(b, cheap{&allowing{}})
	const frames = 7 + 6 // of a statement and of its answer
	b.ReportAllocs()
	b.SetBytes(int64(len(repeatedFrames(1))+len(answers(1))) / frames)
	relayInTurns(b, r, b.N/frames+1)
}

// paced is a source of pieces of any size. Before each read it reports how much was read.
type paced struct {
	b       []byte
	rng     *rand.Rand
	largest int
	read    int
	before  func(read int)
}

// Read implements [io.Reader].
func (p *paced) Read(b []byte) (int, error) {
	p.before(p.read)
	if p.read == len(p.b) {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.rng.IntN(p.largest))], p.b[p.read:])
	p.read += n
	return n, nil
}

// full is memory without room.
type full struct{}

func (full) take(int64) error { return budget.ErrFull }
func (full) give(int64)       {}

// Every write ends with a whole frame, unless the frame is larger than the buffer, and a frame that
// is whole does not wait for another read.
func TestWritesEndWithFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		largest := rapid.SampledFrom([]int{1, 100, smallBuffer + 100, largeBuffer, 2 * largeBuffer}).Draw(t, "largest frame")
		piece := rapid.SampledFrom([]int{1, 100, smallBuffer, largeBuffer}).Draw(t, "largest read")
		largest = min(largest, 1000*piece) // no millions of reads
		var stream []byte
		ends := []int{0}
		for range rapid.IntRange(1, 60).Draw(t, "frames") {
			stream = append(stream, reply(&pgproto3.NoticeResponse{Message: strings.Repeat("x", rng.IntN(largest))})...)
			ends = append(ends, len(stream))
		}
		next := func(at int) (begins, end int) {
			i, _ := slices.BinarySearch(ends, at)
			return ends[max(0, i-1)], ends[i]
		}
		room, fits := memory(&counted{}), largeBuffer
		if rapid.Bool().Draw(t, "no memory") {
			room, fits = full{}, smallBuffer
		}
		written := 0
		src := &paced{b: stream, rng: rng, largest: piece}
		src.before = func(read int) {
			i, found := slices.BinarySearch(ends, read)
			if !found {
				i--
			}
			if whole := ends[i]; written < whole {
				t.Fatalf("%d bytes were read and %d written, want the whole frames, %d bytes", read, written, whole)
			}
		}
		out := newPump(src, func(b []byte, whole bool) error {
			if !bytes.Equal(b, stream[written:written+len(b)]) {
				t.Fatalf("%d bytes at %d are others", len(b), written)
			}
			written += len(b)
			begin, end := next(written)
			if whole != (end == written) || !whole && end-begin <= fits {
				t.Fatalf("a write ends %d bytes within a frame of %d, as whole: %t", written-begin, end-begin, whole)
			}
			return nil
		}, new(buffers), room)
		if err := out.run(&toPlugin{pipe: newPipeline()}); err != nil || written != len(stream) {
			t.Fatalf("%d bytes of %d were written: %v", written, len(stream), err)
		}
		for n := range min(len(stream), 3*smallBuffer) {
			if _, end := next(n); endOfFrame(stream, n) != end || end > 0 && endOfFrame(stream[:end-1], n) < end {
				t.Fatalf("the frame of the byte before %d ends at %d, want %d", n, endOfFrame(stream, n), end)
			}
		}
	})
}

// A frame of any size passes in parts, and a message that is held whole takes memory as it
// comes.
func TestMemoryOfFrames(t *testing.T) {
	r := newRelayed(&allowing{})
	big := append([]byte{msgBind, 0x3f, 0xff, 0xff, 0xff, 0, 0}, make([]byte, 64)...)
	moved := int64(0)
	err := r.toServer(io.MultiReader(bytes.NewReader(big), io.LimitReader(zeros{}, 256<<20)), func(b []byte, whole bool) error {
		if moved += int64(len(b)); whole {
			return errors.New("a part of a frame was taken for a whole one")
		}
		return nil
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) || moved != int64(len(big))+256<<20 {
		t.Fatalf("%d bytes passed, %v", moved, err)
	}
	if r.room.most > largeBuffer || r.room.held != 0 {
		t.Fatalf("a Bind took %d bytes, %d are held", r.room.most, r.room.held)
	}
	r = newRelayed(&allowing{})
	claimed := []byte{msgQuery, 0, 0x0f, 0xff, 0xff, 'S', 'E'}
	if err := r.toServer(bytes.NewReader(claimed), discarded); !errors.Is(err, io.ErrUnexpectedEOF) || r.room.most > largeBuffer {
		t.Fatalf("a length alone took %d bytes, %v", r.room.most, err)
	}
	r = newRelayed(&allowing{})
	text := encode(&pgproto3.Query{String: "SELECT '" + strings.Repeat("x", maxStatement-100) + "'"})
	var out bytes.Buffer
	if err := r.toServer(bytes.NewReader(append(text, text...)), func(b []byte, _ bool) error { out.Write(b); return nil }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), append(text, text...)) || r.room.most > 4<<20 || r.room.held != 0 {
		t.Fatalf("%d bytes passed of %d, %d were taken, %d are held", out.Len(), 2*len(text), r.room.most, r.room.held)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// collect relays to the server, or to the plugin, and returns what passes.
func collect(run func(io.Reader, sink) error, src io.Reader) (string, bool) {
	var out bytes.Buffer
	err := run(src, func(b []byte, _ bool) error { out.Write(b); return nil })
	return out.String(), err == nil
}

// refusedText returns a text of messages to the server that the decider allowing refuses,
// "" without one.
func refusedText(sent string) string {
	reads := newReader(false)
	for len(sent) >= headerSize {
		kind, total, err := header([]byte(sent[:headerSize]))
		if err != nil || total > len(sent) {
			break
		}
		text := strings.TrimSuffix(sent[headerSize:total], "\x00")
		if kind == msgParse {
			_, text, _ = strings.Cut(text, "\x00")
			text, _, _ = strings.Cut(text, "\x00")
		}
		if kind == msgQuery || kind == msgParse {
			facts, err := setOf(databaseName, reads.read(text).facts)
			if err != nil || strings.Contains(strings.Join(facts.All(), " "), "secrets") {
				return text
			}
		}
		sent = sent[total:]
	}
	return ""
}

func FuzzFrames(f *testing.F) {
	f.Add(encode(&pgproto3.Query{String: "SELECT 1"}, &pgproto3.Query{String: "SELECT value FROM secrets"}, &pgproto3.Terminate{}))
	f.Add(encode(&pgproto3.Parse{Name: "s", Query: "SELECT value FROM secrets"}, &pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{}))
	f.Add(repeatedFrames(2))
	f.Add([]byte{'Q', 0, 0, 0, 3})
	f.Add(raw(msgFunctionCall, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, sent []byte) {
		at := func(src io.Reader) (string, bool) {
			r := newRelayed(&allowing{})
			out, ok := collect(r.toServer, src)
			if r.room.held != 0 || r.room.most > 4*int64(len(sent))+4*largeBuffer {
				t.Fatalf("%d bytes were taken, %d are held", r.room.most, r.room.held)
			}
			return out, ok
		}
		whole, ok := at(bytes.NewReader(sent))
		parts, okParts := at(iotest.OneByteReader(bytes.NewReader(sent)))
		if whole != parts || ok != okParts {
			t.Fatalf("in one piece %q %v, byte by byte %q %v", whole, ok, parts, okParts)
		}
		if text := refusedText(whole); text != "" {
			t.Fatalf("a refused statement passed: %q of %q", text, whole)
		}
	})
}

func FuzzBackend(f *testing.F) {
	f.Add(answers(2))
	f.Add(reply(&pgproto3.ErrorResponse{Code: stateSyntaxError, Message: "at " + marker{strings.Repeat("m", markerSecret)}.text("01890000-0000-7000-8000-000000000001")}))
	f.Add(reply(&pgproto3.CopyInResponse{}, &pgproto3.ErrorResponse{Code: "42P01"}, &pgproto3.ReadyForQuery{TxStatus: 'E'}, &pgproto3.ParameterStatus{Name: settingEncoding, Value: "UTF8"}))
	f.Fuzz(func(t *testing.T, sent []byte) {
		at := func(src io.Reader) (string, bool) {
			r := prepared(t, &allowing{})
			if err := r.toServer(bytes.NewReader(repeatedFrames(1)), discarded); err != nil {
				t.Fatal(err)
			}
			out, ok := collect(r.toPlugin, src)
			if r.room.held != 0 || r.room.most > 4*largeBuffer {
				t.Fatalf("%d bytes were taken, %d are held", r.room.most, r.room.held)
			}
			return out, ok
		}
		whole, ok := at(bytes.NewReader(sent))
		parts, okParts := at(iotest.OneByteReader(bytes.NewReader(sent)))
		if whole != parts || ok != okParts {
			t.Fatalf("in one piece %q %v, byte by byte %q %v", whole, ok, parts, okParts)
		}
	})
}

func FuzzStartup(f *testing.F) {
	f.Add(startupPacket(protocol30, "user", "x", "database", "y", "options", `-c statement_timeout=5s --lock-timeout=1\ s`))
	f.Add(startupPacket(protocol32, "_pq_.a", "x", "user", ""))
	f.Add(encode(&pgproto3.CancelRequest{ProcessID: 1, SecretKey: make([]byte, 32)}))
	f.Fuzz(func(t *testing.T, sent []byte) {
		p, err := readPacket(bytes.NewReader(sent))
		if err != nil {
			return
		}
		if len(p.body) > maxStartup {
			t.Fatalf("a packet of %d bytes was read", len(p.body))
		}
		new(cancels).find(p.body)
		s, err := readStartup(p)
		if err != nil {
			return
		}
		for name := range s.pins(true) {
			switch name {
			case "role", "session_authorization", "session_replication_role", "replication":
				t.Fatalf("the setting %s passes", name)
			}
		}
		if pins := s.pins(true); pins[settingSearchPath] != "pg_catalog, public" || pins[settingReadOnly] != "on" || pins[settingStrings] != "on" || pins[settingEncoding] != "UTF8" {
			t.Fatalf("the pins are %v", pins)
		}
	})
}

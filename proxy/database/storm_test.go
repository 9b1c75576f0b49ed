package database_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// storm is a session to which lines are written without an end, many at a time.
type storm struct {
	session *database.Session
	conn    *session.Conn
	plugin  net.Conn
	rng     *rand.Rand
	longest int // line
	largest int // write; a longer line goes in parts

	all      []byte // lines of writes that have returned or were interrupted
	expected int    // bytes of them that the plugin is to receive, -1 if the last of them ends within a line
}

// pair opens a session on a TCP connection whose two ends have small buffers.
func (w *world) pair(inTLS bool) (s *database.Session, c *session.Conn, plugin net.Conn) {
	t := w.t
	t.Helper()
	listener := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) })
	}}
	plugin = testenv.MustGet(dialer.Dial("tcp", listener.Addr().String()))(t)
	near := testenv.MustGet(listener.Accept())(t)
	testenv.Must(t, near.(*net.TCPConn).SetWriteBuffer(16<<10))
	t.Cleanup(func() { _, _ = plugin.Close(), near.Close() })
	socket := &session.Socket{Raw: near, Proved: true, Memory: w.budget.Hold(), OutOfMemory: func() {}, Forget: func(s *session.Socket) { s.Memory.End() }}
	c = session.NewConn(socket)
	to := testenv.MustGet(authz.NewDestination(authz.SchemePostgres, session.JoinHostPort(host, w.server.port), ""))(t)
	if inTLS {
		if w.around != nil {
			plugin = w.around(plugin)
		}
		inner := tls.Client(plugin, clientTLS(w, host))
		shaken := make(chan error, 1)
		go func() { shaken <- inner.Handshake() }()
		c = testenv.MustGet(w.front.AcceptTLS(t.Context(), c, to, []string{"lines"}))(t)
		testenv.Must(t, <-shaken)
		plugin = inner
	}
	facts := testenv.MustGet(authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: "shop"}))(t)
	s, refusal := w.front.Open(t.Context(), c, to, facts)
	if refusal != nil {
		t.Fatalf("refused: %+v", refusal)
	}
	return s, c, plugin
}

const lastLine = "cut revoked\n"

// run writes and reads until the session is cut, and ends it. It returns how long its end took.
func (s *storm) run() (end time.Duration) {
	s.session.Serve(func(error) { s.session.Last([]byte(lastLine)) }, func() bool { return false })
	var both sync.WaitGroup
	both.Go(func() {
		for b := make([]byte, 100); ; {
			if _, err := s.session.Read(b); err != nil {
				return
			}
		}
	})
	both.Go(func() {
		for s.write(s.lines()) == nil {
			continue
		}
	})
	both.Wait()
	begun := time.Now()
	s.session.End(authz.Outcome{})
	_ = s.conn.Close()
	return time.Since(begun)
}

// lines returns lines of a write, which are numbered by their place.
func (s *storm) lines() []byte {
	var out []byte
	for {
		line := fmt.Appendf(nil, "%d ", len(s.all)+len(out))
		line = append(append(line, bytes.Repeat([]byte("x"), s.rng.IntN(s.longest))...), '\n')
		if len(out) > 0 && len(out)+len(line) > s.largest {
			return out
		}
		out = append(out, line...)
	}
}

// write writes lines, a line that is too long in parts.
func (s *storm) write(b []byte) error {
	before := len(s.all)
	s.all = append(s.all, b...)
	for sent := 0; sent < len(b); {
		part := b[sent:min(sent+s.largest, len(b))]
		whole, end := sent+len(part) == len(b), 0
		n, err := s.session.WritePart(part, whole, func(b []byte, n int) int {
			end = n
			if n == 0 || b[n-1] != '\n' {
				end += bytes.IndexByte(append(bytes.Clone(b[n:]), '\n'), '\n') + 1
			}
			return end
		})
		if err != nil {
			switch s.expected = before + end; {
			case sent > 0 && n < len(part), end > len(part):
				s.expected = -1
			}
			return err
		}
		sent += len(part)
		s.expected = before + sent
	}
	return nil
}

// check compares what the plugin has received, and its error of reading then, with what it was to.
func (s *storm) check(t *testing.T, got []byte, err error, reads bool) {
	t.Helper()
	lines, isLast := bytes.CutSuffix(got, []byte(lastLine))
	if !bytes.HasPrefix(s.all, lines) {
		t.Fatalf("the plugin has received %d bytes that were not sent in this order: %q", len(got), got[max(0, len(got)-100):])
	}
	if isLast && (s.expected < 0 || len(lines) != s.expected) {
		t.Fatalf("the last message follows %d bytes, want %d", len(lines), s.expected)
	}
	if !isLast && reads && s.expected >= 0 {
		t.Fatalf("no last message follows %d bytes of %d; %v", len(lines), s.expected, err)
	}
}

// A session is cut at any moment while lines are written without an end. A plugin that reads, also
// one that is slow or begins late, has whole lines up to the one that was begun, and the reason; one
// that never reads has a second. A line that was in parts is not followed by the reason.
func TestCutWithinWrites(t *testing.T) {
	sizes := map[string][2]int{"short lines": {100, 32 << 10}, "long lines": {12 << 10, 32 << 10}, "one line": {30 << 10, 64 << 10}, "lines in parts": {20 << 10, 8 << 10}}
	for _, inTLS := range []bool{false, true} {
		for name, size := range sizes {
			for _, reader := range []string{"fast", "slow", "late", "never", "limited"} {
				t.Run(fmt.Sprintf("TLS %t/%s/%s", inTLS, name, reader), func(t *testing.T) {
					t.Parallel()
					rounds := 12
					if reader == "never" || reader == "limited" {
						rounds = 2
					}
					inTime := 0
					for round := range rounds {
						if cutWithinWrites(t, inTLS, size, reader, uint64(round)) {
							inTime++
						}
					}
					if inTime == 0 {
						t.Error("no session has ended within the second that a plugin has")
					}
				})
			}
		}
	}
}

// cutWithinWrites cuts a session in a storm, and reports whether the plugin had the end
// within the second that it has for that: on a busy machine it may have it later, and then
// without the reason.
func cutWithinWrites(t *testing.T, inTLS bool, size [2]int, reader string, seed uint64) (inTime bool) {
	w := newWorld(t, rule("read", "shop", "select"))
	if reader == "limited" {
		g := grant(rule("read", "shop", "select"))
		g.Rules[0].To.Ports = []uint16{w.server.port}
		g.Limits.ReceivedBytes = authz.ByteLimit{Count: 4 << 10, Period: time.Second}
		g.Limits.OnExceeded = authz.OnExceededThrottle
		w.ledger.Begin(plugin, authz.Sample{}) // as the kernel, which counts the bytes
		w.installGrant(g)
		w.ledger.Observe(w.engine.Current(), plugin, authz.Sample{}, time.Now())
	}
	s := &storm{rng: rand.New(rand.NewPCG(seed, 1)), longest: size[0], largest: size[1]}
	s.session, s.conn, s.plugin = w.pair(inTLS)
	ended := make(chan time.Duration, 1)
	go func() { ended <- s.run() }()
	isCut := make(chan struct{})
	var got []byte
	var failed error
	var reading sync.WaitGroup
	reading.Go(func() {
		if reader == "late" || reader == "never" {
			<-isCut
		}
		if reader == "never" {
			ended <- <-ended
		}
		got, failed = readAll(s.plugin, reader == "slow")
	})
	time.Sleep(time.Duration(5+seed*3) * time.Millisecond) // at any moment
	begun := time.Now()
	if n := w.revoke(""); n != 1 {
		t.Errorf("%d sessions were cut, want 1", n)
	}
	close(isCut)
	reading.Wait()
	inTime = reader == "never" || time.Since(begun) < 900*time.Millisecond
	if took := <-ended; took > 10*time.Second {
		t.Errorf("the end took %s", took)
	}
	s.check(t, got, failed, reader != "never" && inTime)
	if held, _ := w.budget.Held(budget.Body); held != 0 {
		t.Errorf("%d bytes are held", held)
	}
	return inTime
}

// readAll reads up to the end of a connection, of whatever kind it is.
func readAll(conn net.Conn, slowly bool) (all []byte, err error) {
	_ = conn.SetReadDeadline(time.Now().Add(testenv.Patience))
	for b := make([]byte, 8<<10); ; {
		n, err := conn.Read(b)
		if all = append(all, b[:n]...); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return all, err
		}
		if slowly {
			time.Sleep(time.Millisecond)
		}
	}
}

// The rest of the line that was begun, with the record that it ends in, and the reason are kept for a
// plugin that does not read. They count as its memory.
func TestCutKeepsOneMessage(t *testing.T) {
	const longest = 100
	most := map[bool]int64{false: longest + 10 + int64(len(lastLine)), true: 16<<10 + longest + 10 + int64(len(lastLine)) + 3*64}
	for inTLS, most := range most {
		t.Run(fmt.Sprintf("TLS %t", inTLS), func(t *testing.T) {
			w := newWorld(t, rule("read", "shop", "select"))
			s := &storm{rng: rand.New(rand.NewPCG(1, 1)), longest: longest, largest: 90 << 10}
			s.session, s.conn, s.plugin = w.pair(inTLS)
			ended := make(chan time.Duration, 1)
			go func() { ended <- s.run() }()
			last := int64(-1)
			testenv.Eventually(t, "a writer that waits", func() (int, bool) {
				time.Sleep(20 * time.Millisecond)
				now := w.front.Sessions()[0].Bytes
				stands := now == last
				last = now
				return 0, stands
			})
			w.revoke("")
			kept, over := int64(0), false
			for !over {
				held, _ := w.budget.Held(budget.Body)
				kept = max(kept, held)
				select {
				case <-ended:
					over = true
				case <-time.After(time.Millisecond):
				}
			}
			if kept > most { // the kernel may take more than a writer is woken for
				t.Errorf("%d bytes were kept, want at most %d", kept, most)
			}
			got, err := readAll(s.plugin, false)
			s.check(t, got, err, false)
		})
	}
}

// countedReads counts the bytes that are read.
type countedReads struct {
	net.Conn
	n int
}

// Read implements [io.Reader].
func (c *countedReads) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n += n
	return n, err
}

// Within TLS one write is one record, from the first one on: a write that is interrupted ends
// with its record.
func TestRecordsOfWrites(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	counted := new(countedReads)
	w.around = func(conn net.Conn) net.Conn {
		counted.Conn = conn
		return counted
	}
	s, c, plugin := w.pair(true)
	const size, records, overhead = 40 << 10, 3, 5 + 1 + 16 // of TLS 1.3 with an AEAD
	before := counted.n
	go func() { _, _ = s.Write(make([]byte, size)) }()
	_, err := io.ReadFull(plugin, make([]byte, size))
	testenv.Must(t, err)
	if got := counted.n - before - size; got != records*overhead {
		t.Errorf("the records of %d bytes have %d more, want %d of %d", size, got, records, overhead)
	}
	s.End(authz.Outcome{})
	testenv.Must(t, c.Close())
}

package database_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// serveLines is a protocol of lines. The plugin sends "tls" to begin TLS and "open NAME" to
// log in, and then statements "VERB TABLE", which the server answers in their order. The
// server's connection is without TLS. writers counts the writes to the plugin that have not
// returned.
func serveLines(ctx context.Context, f *database.Front, c *session.Conn, to authz.Destination, writers *atomic.Int32) {
	line, err := readLine(c)
	if err == nil && line == "tls" {
		if c, err = f.AcceptTLS(ctx, c, to, []string{"lines"}); err != nil {
			return
		}
		defer c.Close()
		line, err = readLine(c)
	}
	name, ok := strings.CutPrefix(line, "open ")
	if err != nil || !ok {
		return
	}
	facts, err := authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: name})
	if err != nil {
		f.Refuse(c, to, authz.MalformedRequest, "the name of the database is not text")
		return
	}
	s, refusal := f.Open(ctx, c, to, facts)
	if refusal != nil {
		_, _ = fmt.Fprintf(c, "refused %s\n", refusal.Reason)
		return
	}
	p := &lineProtocol{session: s, plugin: c, name: name, writers: writers}
	defer func() { s.End(authz.Outcome{}) }()
	if refusal := p.login(); refusal != nil {
		_, _ = fmt.Fprintf(c, "refused %s\n", refusal.Reason)
		return
	}
	p.relay()
}

// readLine reads a line and nothing behind it.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := []byte{0}; ; line = append(line, b[0]) {
		if _, err := r.Read(b); err != nil || b[0] == '\n' {
			return string(line), err
		}
	}
}

// lineProtocol is one session.
type lineProtocol struct {
	session *database.Session
	plugin  *session.Conn
	name    string
	writers *atomic.Int32
	server  net.Conn
	answers *bufio.Reader

	mu      sync.Mutex
	running []*database.Statement
}

func (p *lineProtocol) login() *authz.Refusal {
	for renewed := false; ; renewed = true {
		conn, refusal := p.session.Dial(p.session.Context())
		if refusal != nil {
			return refusal
		}
		p.server, p.answers = conn, bufio.NewReader(conn)
		user, password := p.session.Login()
		_, err := fmt.Fprintf(conn, "login %s %s\n", user, password.Reveal())
		answer := ""
		if err == nil {
			answer, err = p.answers.ReadString('\n')
		}
		switch {
		case err != nil:
			return p.session.Failed(err, "log in")
		case answer == "ok\n":
			return nil
		case renewed:
			return p.session.RefuseLogin(authz.CredentialUnavailable, "the server refuses the login", "")
		}
		_ = conn.Close()
		if refusal := p.session.Renew(p.session.Context()); refusal != nil {
			return refusal
		}
	}
}

// cancelServer asks the server to end what runs.
func (p *lineProtocol) cancelServer(ctx context.Context) {
	conn, err := p.session.DialAgain(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "cancel\n")
}

func (p *lineProtocol) relay() {
	p.session.OnTimeout(p.cancelServer)
	p.session.Serve(func(error) {
		if !p.plugin.Ends() { // the proxy could reset it now, which is revoked entirely
			p.session.Last([]byte("cut too late\n"))
		}
		p.session.Last([]byte("cut " + p.session.Cause().Reason.String() + "\n"))
	}, func() bool { return true })
	if p.write("ready\n") != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		for {
			line, err := p.answers.ReadString('\n')
			if err != nil {
				return
			}
			if st := p.next(); st != nil {
				st.End(authz.Outcome{Rows: 1})
			}
			if p.write(line) != nil {
				return
			}
		}
	})
	p.forward()
	_ = p.server.Close()
	back.Wait()
}

// write sends a line to the plugin.
func (p *lineProtocol) write(line string) error {
	p.writers.Add(1)
	defer p.writers.Add(-1)
	_, err := p.session.Write([]byte(line))
	return err
}

func (p *lineProtocol) next() *database.Statement {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.running) == 0 {
		return nil
	}
	st := p.running[0]
	p.running = p.running[1:]
	return st
}

// forward decides on each statement.
func (p *lineProtocol) forward() {
	in := bufio.NewReader(readerFunc(p.session.Read))
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb, table, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		facts, err := authz.NewFacts(authz.ProtocolPostgres, authz.Fact{Kind: authz.FactDatabase, Name: p.name},
			authz.Fact{Kind: authz.FactVerb, Name: verb}, authz.Fact{Kind: authz.FactTable, Name: table})
		var refusal *authz.Refusal
		if err != nil {
			refusal = p.session.Refuse(authz.StatementUnreadable, "the line is not a statement")
		} else if st, denied := p.session.Admit(p.session.Context(), facts); denied != nil {
			refusal = denied
		} else {
			p.mu.Lock()
			p.running = append(p.running, st)
			p.mu.Unlock()
		}
		if refusal != nil {
			if p.write("refused "+refusal.Reason.String()+"\n") != nil {
				return
			}
			continue
		}
		if _, err := p.session.Forward(p.server, []byte(line)); err != nil {
			return
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// lineServer is a database that speaks lines: "login USER PASSWORD", and statements, which
// it answers with "done VERB TABLE". A statement sleep is answered when a cancel arrives.
type lineServer struct {
	listener net.Listener
	port     uint16
	serving  sync.WaitGroup

	mu       sync.Mutex
	logins   []string
	seen     []string      // statements
	password string        // the only one that is accepted; "" for any
	hang     chan struct{} // if it is not nil, logins are answered when it is closed
	cancels  int
	deaf     bool          // ignores cancels
	woken    chan struct{} // closed and made again by a cancel
	open     map[net.Conn]struct{}
}

func newLineServer(t testing.TB) *lineServer {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	testenv.Must(t, err)
	number, err := strconv.ParseUint(port, 10, 16)
	testenv.Must(t, err)
	s := &lineServer{listener: listener, port: uint16(number), woken: make(chan struct{}), open: map[net.Conn]struct{}{}}
	s.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.serving.Go(func() { s.serve(conn) })
		}
	})
	return s
}

func (s *lineServer) serve(conn net.Conn) {
	s.mu.Lock()
	s.open[conn] = struct{}{}
	hang := s.hang
	s.mu.Unlock()
	defer func() {
		_ = conn.Close()
		s.mu.Lock()
		delete(s.open, conn)
		s.mu.Unlock()
	}()
	lines := make(chan string)
	s.serving.Go(func() {
		defer close(lines)
		in := bufio.NewReader(conn)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			lines <- strings.TrimSuffix(line, "\n")
		}
	})
	for line := range lines {
		var err error
		if line == "cancel" {
			s.cancel()
			return
		}
		if login, ok := strings.CutPrefix(line, "login "); ok {
			if hang != nil {
				<-hang
			}
			_, err = io.WriteString(conn, s.login(login))
		} else {
			err = s.statement(conn, lines, line)
		}
		if err != nil {
			_ = conn.Close()
			for range lines { // its reader ends
			}
			return
		}
	}
}

func (s *lineServer) login(login string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins = append(s.logins, login)
	if _, password, _ := strings.Cut(login, " "); s.password != "" && password != s.password {
		return "no\n"
	}
	return "ok\n"
}

func (s *lineServer) statement(conn net.Conn, lines <-chan string, line string) error {
	s.mu.Lock()
	s.seen = append(s.seen, line)
	woken := s.woken
	s.mu.Unlock()
	if strings.HasPrefix(line, "sleep") {
		select {
		case <-lines: // it has ended
			return io.ErrUnexpectedEOF
		case <-woken:
			_, err := io.WriteString(conn, "cancelled "+line+"\n")
			return err
		}
	}
	_, err := io.WriteString(conn, "done "+line+"\n")
	return err
}

func (s *lineServer) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancels++
	if s.deaf {
		return
	}
	close(s.woken)
	s.woken = make(chan struct{})
}

func (s *lineServer) statements() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

func (s *lineServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *lineServer) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for conn := range s.open {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

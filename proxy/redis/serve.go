package redis

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const (
	// loginTimeout is how long the TLS handshake with the server and the login may take.
	loginTimeout = 10 * time.Second
	// farewellTimeout is how long bytes of a plugin that is refused are read, so that it
	// reads the error and not a reset.
	farewellTimeout = 500 * time.Millisecond
	// drainTimeout is how long the server may take to end after the plugin has.
	drainTimeout = 10 * time.Second
)

// Serve serves one connection of the plugin to a Redis server. It does not close c's socket.
func Serve(ctx context.Context, f *database.Front, c *session.Conn, to authz.Destination) {
	first, err := c.Peek(1)
	if err != nil {
		return
	}
	const tlsHandshake = 0x16 // the type of its first record (RFC 8446, section 5.1)
	if first[0] == tlsHandshake {
		if c, err = f.AcceptTLS(ctx, c, to, nil); err != nil {
			return
		}
		if first, err = c.Peek(1); err != nil {
			return
		}
	}
	if first[0] != '*' {
		farewell(c, f.Refuse(c, to, authz.MalformedRequest, "a connection for Redis must begin with an array of bulk strings: RESP2 or RESP3, and no inline command"))
		return
	}
	number := firstDatabase(f, to)
	s, refusal := f.Open(ctx, c, to, connecting(number))
	if refusal != nil {
		farewell(c, refusal)
		return
	}
	defer s.End(authz.Outcome{})
	server, refusal := login(s, to)
	if refusal != nil {
		farewell(c, refusal)
		return
	}
	newRelay(s, c, server, number).run()
}

// connecting returns the facts of a connection to a database.
func connecting(number int) authz.Facts {
	facts, _ := authz.NewFacts(authz.ProtocolRedis, authz.Fact{Kind: authz.FactDatabase, Name: strconv.Itoa(number)})
	return facts
}

// firstDatabase returns the database that the session is opened for: 0, where every
// connection begins, unless a rule grants only others, for which the plugin sends SELECT.
func firstDatabase(f *database.Front, to authz.Destination) int {
	const most = 64 // the server has 16 by default
	for n := range most {
		if f.Grants(to, connecting(n)) {
			return n
		}
	}
	return 0
}

// farewell writes the error of a connection that is refused, and reads on for a moment:
// closing with unread bytes would be a reset, and the plugin would not read the error.
func farewell(c *session.Conn, refusal *authz.Refusal) {
	_ = c.SetWriteDeadline(time.Now().Add(farewellTimeout))
	if _, err := c.Write(errorOf(refusal)); err == nil {
		drain(c)
	}
}

// drain ends the direction to the plugin, and reads on for a moment.
func drain(c *session.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(farewellTimeout))
	if c.CloseWrite() != nil {
		return
	}
	const most = 1 << 20
	_, _ = io.CopyN(io.Discard, c, most)
}

// login connects to the server and logs in. If the server refuses the credential, which may
// have been replaced since it was leased, it is leased again once.
func login(s *database.Session, to authz.Destination) (net.Conn, *authz.Refusal) {
	for again := false; ; again = true {
		conn, refusal := s.Dial(s.Context())
		if refusal != nil {
			return nil, refusal
		}
		conn, err := authenticate(s, conn)
		switch {
		case err == nil:
			return conn, nil
		case !errors.Is(err, errCredential):
			return nil, s.Failed(err, "log in to "+to.HostPort())
		case again:
			return nil, s.RefuseLogin(authz.CredentialUnavailable, "the server at "+to.HostPort()+" refuses the leased credential twice",
				"ask the operator to check the credential of the rule against the server's users")
		}
		_ = conn.Close()
		if refusal = s.Renew(s.Context()); refusal != nil {
			return nil, refusal
		}
	}
}

// errCredential is the server's refusal of the login.
var errCredential = errors.New("the server refuses the credential")

// authenticate speaks TLS on conn and logs in. It returns the connection in either case.
func authenticate(s *database.Session, conn net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.Context(), loginTimeout)
	defer cancel()
	inner := tls.Client(conn, s.TLSConfig())
	if err := inner.HandshakeContext(ctx); err != nil {
		return conn, err
	}
	stop := context.AfterFunc(ctx, func() { _ = inner.SetDeadline(time.Unix(1, 0)) })
	err := sendLogin(s, inner)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return inner, err
}

// sendLogin sends AUTH if the rule has a credential, and reads its answer.
func sendLogin(s *database.Session, conn net.Conn) error {
	user, password := s.Login()
	if user == "" && password.Empty() {
		return nil
	}
	args := []string{"AUTH", user, password.Reveal()}
	if user == "" {
		args = []string{"AUTH", password.Reveal()}
	}
	if _, err := conn.Write(appendRequest(nil, args...)); err != nil {
		return err
	}
	const longest = 1 << 10
	r := bufio.NewReaderSize(conn, longest)
	line, err := r.ReadSlice('\n')
	switch {
	case err != nil:
		return err
	case string(line) == "+OK\r\n" && r.Buffered() == 0:
		return nil
	case line[0] == '-':
		return errCredential
	}
	return &session.RefusalError{Reason: authz.UpstreamUnreachable, Detail: "the server does not answer AUTH as Redis does"}
}

// appendRequest appends a command as an array of bulk strings.
func appendRequest[T string | []byte](b []byte, args ...T) []byte {
	b = append(strconv.AppendInt(append(b, '*'), int64(len(args)), 10), "\r\n"...)
	for _, a := range args {
		b = append(strconv.AppendInt(append(b, '$'), int64(len(a)), 10), "\r\n"...)
		b = append(append(b, a...), "\r\n"...)
	}
	return b
}

// newSecret returns the part of a relay's markers that cannot be guessed: 128 bits.
func newSecret() string { return rand.Text() }

package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/database"
)

const (
	// loginTimeout is how long a login may take, with the dial and TLS.
	loginTimeout = 20 * time.Second
	// maxLogin is how many bytes a server may send during a login, maxLoginMessage how
	// many in one message.
	maxLogin        = 256 << 10
	maxLoginMessage = 32 << 10
)

// server is a session at the database.
type server struct {
	conn     net.Conn
	reader   io.Reader         // of conn, with what the login has read ahead
	settings map[string]string // that the server reported
	pid      uint32
	key      []byte // for a cancel; nil if the server gave none
}

// loginReader limits what a login reads, and never reads beyond a message: what follows
// the login belongs to the session.
type loginReader struct {
	r    io.Reader
	head []byte // of the message, not read yet
	rest int    // of its body
	left int
}

var errLoginTooLong = errors.New("the server sends too much before the session begins")

// Read implements [io.Reader].
func (l *loginReader) Read(b []byte) (int, error) {
	if len(l.head) == 0 && l.rest == 0 {
		var head [headerSize]byte
		if _, err := io.ReadFull(l.r, head[:]); err != nil {
			return 0, err
		}
		_, total, err := header(head[:])
		if err != nil {
			return 0, err
		}
		if l.left -= total; l.left < 0 || total > maxLoginMessage {
			return 0, errLoginTooLong
		}
		l.head, l.rest = append(l.head, head[:]...), total-headerSize
	}
	if len(l.head) > 0 {
		n := copy(b, l.head)
		l.head = l.head[n:]
		return n, nil
	}
	n, err := l.r.Read(b[:min(len(b), l.rest)])
	l.rest -= n
	return n, err
}

// login logs in to the session's server. A password that the server refuses is renewed
// once: it may have been replaced since it was leased.
func login(ctx context.Context, s *database.Session, to authz.Destination, want *startup) (*server, *loginFailure) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	for renewed := false; ; renewed = true {
		up, failure := loginOnce(ctx, s, to, want)
		if failure == nil || !failure.password {
			return up, failure
		}
		if renewed {
			failure.refusal = s.RefuseLogin(authz.CredentialUnavailable, "the database refuses the leased credential, also a new one",
				"ask the operator to check the role that Vault creates")
			return nil, failure
		}
		if refusal := s.Renew(ctx); refusal != nil {
			return nil, &loginFailure{refusal: refusal}
		}
	}
}

// loginFailure is why there is no session at the server.
type loginFailure struct {
	refusal  *authz.Refusal
	password bool   // the server refuses the credential
	state    string // the SQLSTATE of the server, "" for that of the refusal
	message  string // the server's
}

func loginOnce(ctx context.Context, s *database.Session, to authz.Destination, want *startup) (*server, *loginFailure) {
	var refusal *authz.Refusal
	up := &server{}
	cfg, err := loginConfig(s, to, want, s.ReadOnly())
	if err != nil {
		return nil, &loginFailure{refusal: s.RefuseLogin(authz.NotReady, "the login could not be prepared", "ask the operator for the log of the sidecar")}
	}
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, failed := s.Dial(ctx)
		if failed != nil {
			refusal = failed
			return nil, errors.New("no connection")
		}
		return conn, nil
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		up.reader = r
		return pgproto3.NewFrontend(&loginReader{r: r, left: maxLogin}, w)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if refusal != nil {
		return nil, &loginFailure{refusal: refusal}
	}
	if err != nil {
		return nil, failureOf(s, to, err)
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, &loginFailure{refusal: s.RefuseLogin(authz.UpstreamUnreachable, "the login did not end", "")}
	}
	up.conn, up.settings, up.pid, up.key = hijacked.Conn, hijacked.ParameterStatuses, hijacked.PID, hijacked.SecretKey
	if detail := up.check(); detail != "" {
		_ = up.conn.Close()
		return nil, &loginFailure{refusal: s.RefuseLogin(authz.UpstreamUnreachable, detail, "connect to a server of PostgreSQL 13 to 18, without a pooler before it")}
	}
	return up, nil
}

// check returns why decisions could not rest on the session, "" if they can.
func (u *server) check() string {
	switch {
	case len(u.key) > maxKey:
		return "the database gave a cancel key that is too long"
	case u.settings[settingEncoding] != "UTF8":
		return "the database does not use UTF8 for the session"
	case u.settings[settingStrings] != "on":
		return "the database does not use standard_conforming_strings for the session"
	}
	return ""
}

// loginConfig returns the configuration of a login. Each field is set here: the
// environment and the files of libpq have no part in it.
func loginConfig(s *database.Session, to authz.Destination, want *startup, readOnly bool) (*pgconn.Config, error) {
	cfg, err := plainConfig()
	if err != nil {
		return nil, err
	}
	user, password := s.Login()
	cfg.Host, cfg.Port, cfg.Database, cfg.User, cfg.Password = to.Host(), to.Port(), want.database, user, password.Reveal()
	cfg.TLSConfig, cfg.Fallbacks, cfg.SSLNegotiation, cfg.SSLCertMode = s.TLSConfig(), nil, "", ""
	cfg.RuntimeParams = want.pins(readOnly)
	cfg.RequireAuth, cfg.ChannelBinding = "scram-sha-256", "prefer"
	cfg.MinProtocolVersion, cfg.MaxProtocolVersion = "3.0", "3.0"
	if want.minor == newestMinor {
		cfg.MaxProtocolVersion = "3.2"
	}
	cfg.ConnectTimeout, cfg.MaxProtocolMessageBodyLen = loginTimeout, maxLoginMessage
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	cfg.OAuthTokenProvider, cfg.ValidateConnect, cfg.AfterConnect, cfg.AfterNetConnect = nil, nil, nil, nil
	return cfg, nil
}

// plainConfig returns a configuration that rests on no variable and no file of libpq.
// pgconn makes one from a text alone, which its environment completes: so the text has
// every parameter that a variable may set.
func plainConfig() (*pgconn.Config, error) {
	text := "host=chaperone.invalid port=5432 user=none dbname=none password=none passfile='' application_name='' connect_timeout=20 " +
		"sslmode=disable sslkey='' sslcert='' sslcertmode=disable sslsni=1 sslrootcert='' sslpassword='' sslnegotiation=postgres " +
		"target_session_attrs=any timezone='' options='' min_protocol_version=3.0 max_protocol_version=3.0 channel_binding=prefer " +
		"require_auth=scram-sha-256"
	if _, set := os.LookupEnv("PGSERVICE"); !set {
		return pgconn.ParseConfig(text)
	}
	file, err := emptyService()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return pgconn.ParseConfig(fmt.Sprintf("%s servicefile=/proc/self/fd/%d service=%s", text, file.Fd(), noService))
}

// noService is a service without parameters.
const noService = "none"

// emptyService returns a service file that has it, for an environment that names a service:
// pgconn then reads one in any case.
func emptyService() (*os.File, error) {
	file, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer end.Close()
	if _, err := end.WriteString("[" + noService + "]\n"); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// failureOf returns why a login failed. The refusal is logged, and has no text of
// the server; the error of the server is for the plugin.
func failureOf(s *database.Session, to authz.Destination, err error) *loginFailure {
	var fromServer *pgconn.PgError
	if errors.As(err, &fromServer) && len(fromServer.Code) == 5 {
		failure := &loginFailure{state: fromServer.Code, message: fromServer.Message}
		if strings.HasPrefix(fromServer.Code, "28") { // invalid authorization specification, or password
			return &loginFailure{password: true}
		}
		failure.refusal = s.RefuseLogin(authz.UpstreamUnreachable, "the database at "+to.HostPort()+" refuses the session: SQLSTATE "+stateText(fromServer.Code), "")
		return failure
	}
	detail := ""
	switch text := err.Error(); {
	case strings.Contains(text, "authentication method requirement"):
		detail = "the database does not ask for SCRAM-SHA-256; no other authentication is granted"
	case strings.Contains(text, "server refused TLS"):
		detail = "the database offers no TLS"
	case strings.Contains(text, "SASL auth"), strings.Contains(text, "SCRAM"):
		detail = "the SCRAM-SHA-256 of the database is not valid"
	case errors.Is(err, errLoginTooLong), errors.Is(err, errFrame):
		detail = "the database does not speak the protocol of PostgreSQL"
	}
	if detail != "" {
		return &loginFailure{refusal: s.RefuseLogin(authz.UpstreamUnreachable, detail, "")}
	}
	return &loginFailure{refusal: s.Failed(err, "log in to "+to.HostPort())}
}

// stateText returns a SQLSTATE that a server sent, if it is one.
func stateText(code string) string {
	for _, c := range []byte(code) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return "unknown"
		}
	}
	return code
}

package database

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// SessionCost is the memory of a session besides its sockets and their TLS: two stacks,
// its admissions, and the buffers of a protocol while nothing moves.
const SessionCost = 24 << 10

// Session is one admitted session of the plugin with a database.
type Session struct {
	front     *Front
	admission *authz.Admission
	protocol  authz.Protocol
	database  string
	begun     time.Time
	plugin    *session.Conn
	entry     session.Session // in the registry
	held      *budget.Holding
	ctx       context.Context //nolint:containedctx // it ends with the session
	cancel    context.CancelCauseFunc
	up        fromPlugin
	down      toPlugin
	used      atomic.Int64 // when a byte moved, in Unix nanoseconds
	share     float64      // of the time for idle sessions to end, from 0 to 1

	mu      sync.Mutex
	hooks   hooks
	cut     cutState
	server  serverSide
	running statements
	ended   bool
}

// hooks are what a protocol does when its session ends. Nil: nothing.
type hooks struct {
	abort  func(cause error)
	idle   func() bool
	cancel func(ctx context.Context)
}

// cutState is why a session was cut.
type cutState struct {
	cause   error
	denied  authz.Reason      // of the statement that is no longer allowed; the zero Reason for the session itself
	abort   func(cause error) // of the protocol, if it served then
	busy    bool              // statements ran then, which the server is asked to end
	done    chan struct{}     // closed when the plugin's side has been ended
	late    []byte            // the last message, if a writer was under way
	unsent  bool              // the plugin has not yet received its last message
	refusal *authz.Refusal    // made once
}

// Open decides on the plugin's connection c to a database, with the facts of connecting,
// and leases the rule's credential. The session is registered when Open returns: it is
// cut when it is no longer allowed. The caller ends it. c may have been accepted by
// AcceptTLS or not; the server may be the one that sends first.
func (f *Front) Open(ctx context.Context, c *session.Conn, to authz.Destination, connect authz.Facts) (*Session, *authz.Refusal) {
	if !c.Proved {
		return nil, f.Refuse(c, to, authz.IdentityUnknown, "the kernel does not attribute the connection to a plugin")
	}
	held := f.cfg.Budget.Hold()
	if held.Take(budget.Request, SessionCost) != nil {
		return nil, f.refuseAs(c, to, session.ErrOutOfMemory())
	}
	request := authz.Request{Principal: f.cfg.Plugin, Destination: to, Facts: connect}
	admission, err := f.cfg.Gate.Admit(ctx, request, c.Source)
	if err != nil {
		f.cfg.Log.Warn("database session admission failed", zap.String("decision", admission.ID), zap.Error(err))
	}
	f.count(to.Scheme().Protocol(), verbConnect, admission.Decision.Reason)
	if admission.Refusal != nil {
		held.End()
		c.Attribution.Refused()
		f.report(*admission.Refusal, nil)
		return nil, admission.Refusal
	}
	s := f.newSession(ctx, c, admission, held)
	s.entry.Recheck, s.entry.OnCut, s.entry.AfterCut, s.entry.Generation = s.stillAllowed, s.onCut, s.afterCut, admission.Decision.Generation
	if !f.cfg.Sessions.Add(&s.entry) {
		refusal := s.refuse(f.cfg.Sessions.ReasonNow(admission), "access was revoked during the decision")
		held.End()
		s.cancel(nil)
		s.endAdmission(admission, authz.Outcome{Detail: refusal.Detail})
		return nil, refusal
	}
	c.Attribution.Begin(admission.Decision.Grant, admission.Decision.Rule)
	f.enter(s)
	return s, nil
}

func (f *Front) newSession(ctx context.Context, c *session.Conn, admission *authz.Admission, held *budget.Holding) *Session {
	s := &Session{
		front: f, admission: admission, protocol: admission.Request.Destination.Scheme().Protocol(), plugin: c, held: held,
		database: databaseOf(admission.Request.Facts), begun: f.cfg.Now(), share: randomShare(),
	}
	s.cut.done = make(chan struct{})
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.up.pace = f.cfg.Rates.Limiter(authz.LimitSentBytes, s.ctx.Done())
	s.down.pace = f.cfg.Rates.Limiter(authz.LimitReceivedBytes, s.ctx.Done())
	s.down.most = math.MaxInt
	if under := belowTLS(c); under != nil {
		under.unsent, s.down.most = &s.down.unsent, maxRecord
	}
	s.touch()
	return s
}

// databaseOf returns the database that facts name.
func databaseOf(facts authz.Facts) string {
	for _, fact := range facts.All() {
		if name, ok := strings.CutPrefix(fact, string(authz.FactDatabase)+":"); ok {
			return name
		}
	}
	return ""
}

// enter adds a registered session to those that are open.
func (f *Front) enter(s *Session) {
	f.mu.Lock()
	f.open[s] = struct{}{}
	f.mu.Unlock()
	f.watch(s, s.admission.Term())
}

// Context returns a context that ends when the session is cut, for the login and for
// whatever else waits before Serve.
func (s *Session) Context() context.Context { return s.ctx }

// Decision returns the id of the decision on the connection, which the plugin is given
// with an error.
func (s *Session) Decision() string { return s.admission.ID }

// Terms returns the terms of the rule that granted the connection.
func (s *Session) Terms() authz.Terms { return s.admission.Decision.Terms() }

// Login returns the user and the password of the leased credential; both are empty for a
// rule without a credential.
func (s *Session) Login() (user string, password authz.Secret) {
	if s.admission.Injection.Kind != authz.InjectDatabase {
		return "", authz.Secret{}
	}
	return s.admission.Injection.Name, s.admission.Injection.Value
}

// Renew replaces the credential after the server refused the login, once: the password may
// have been replaced since it was leased. The caller dials again and logs in with Login.
func (s *Session) Renew(ctx context.Context) *authz.Refusal {
	before := s.admission.Term()
	if err := s.admission.Renew(ctx); err != nil {
		s.front.cfg.Log.Warn("credential not renewed", zap.String("decision", s.admission.ID), zap.Error(err))
		return s.failed(&session.RefusalError{
			Reason: authz.CredentialUnavailable, Detail: "the server at " + s.admission.Request.Destination.HostPort() + " refuses the leased credential",
			Remedy: "ask the operator to check the credential of RULE against the server's users",
		})
	}
	if now := s.admission.Term(); now != before {
		s.front.unwatch(s, before)
		s.front.watch(s, now)
	}
	return nil
}

// TLSConfig returns the TLS settings of a connection to the server by the rule's terms:
// authorities, least version, and the name that is verified (verify-full). The session is
// cut if a policy to come demands other terms, which the connection does not meet.
func (s *Session) TLSConfig() *tls.Config {
	terms, config := s.Terms(), s.TLSConfigAgain()
	config.VerifyConnection = func(state tls.ConnectionState) error {
		s.mu.Lock()
		address := s.server.address.Addr()
		s.mu.Unlock()
		meets := upstream.VerifyStateAgain(func() tls.ConnectionState { return state }, terms)
		if !s.admission.Connected(authz.Connection{Address: address, Meets: meets, TLS: upstream.TLSVersion(state.Version)}) {
			return errNotAllowed
		}
		return nil
	}
	return config
}

// TLSConfigAgain returns the TLS settings of a connection of [Session.DialAgain]: those of
// TLSConfig, and for a session that was cut too.
func (s *Session) TLSConfigAgain() *tls.Config {
	host := s.admission.Request.Destination.Host()
	config, err := upstream.ClientTLS(s.Terms(), host)
	if err != nil { // the policy was compiled with it
		config = &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: x509.NewCertPool()} // trusts no server
	}
	return config
}

// errNotAllowed ends a connection that a policy which came during the dial does not allow.
var errNotAllowed = errors.New("the policy changed and does not allow the connection")

// Failed turns a failure of the server's side, before or after the login, into the
// refusal of the session. Its text is the system's or ours, never the server's. doing
// completes "NAME: connection refused", as in "connect to db.example:5432".
func (s *Session) Failed(err error, doing string) *authz.Refusal {
	var e *session.RefusalError
	if !errors.As(err, &e) {
		e = upstream.Unreachable(err, doing)
	}
	return s.failed(e)
}

// RefuseLogin refuses the session for a reason that became known after its admission, as a
// server that offers no TLS.
func (s *Session) RefuseLogin(reason authz.Reason, detail, remedy string) *authz.Refusal {
	return s.failed(&session.RefusalError{Reason: reason, Detail: detail, Remedy: remedy})
}

// failed refuses the admitted session, for why it was cut if it was.
func (s *Session) failed(e *session.RefusalError) *authz.Refusal {
	if refusal := s.Cause(); refusal != nil {
		return refusal
	}
	refusal := e.Refuse(s.admission)
	s.front.report(refusal, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut.refusal = &refusal
	return &refusal
}

func (s *Session) refuse(reason authz.Reason, detail string) *authz.Refusal {
	refusal := s.admission.Refuse(reason, detail)
	s.front.report(refusal, nil)
	return &refusal
}

// End ends the session: it closes the server's side, ends what still runs, and writes the
// record of the end. Address and bytes of the outcome are the session's own if they are
// not set. Calling it again has no effect. Of a session that was cut it then waits until the
// plugin has received the last message, for a second at most. The caller closes the plugin's
// side, and nothing is read from it or written to it any more.
func (s *Session) End(o authz.Outcome) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	s.running.stopTimer()
	left, wasCut := s.running.all(), s.cut.cause != nil
	conns, address := s.server.take(), s.server.address
	s.mu.Unlock()
	if wasCut {
		<-s.cut.done                    // the plugin is sent the reason before its side is closed
		s.front.cfg.Sessions.WaitPass() // and the others are, before this end is recorded
	}
	s.cancel(nil)
	for _, conn := range conns {
		_ = conn.Close() // it is gone either way
	}
	s.front.unwatch(s, s.admission.Term())
	if o.Address == "" && address.IsValid() {
		o.Address = address.String()
	}
	if o.SentBytes == 0 && o.Bytes == 0 {
		o.SentBytes, o.Bytes = s.up.bytes.Load(), s.down.bytes.Load()
	}
	detail := s.note()
	for _, st := range left {
		st.End(authz.Outcome{Address: o.Address})
	}
	if o.Detail == "" {
		o.Detail = detail
	}
	s.plugin.Attribution.End()
	s.endAdmission(s.admission, o)
	s.front.cfg.Sessions.Remove(&s.entry)
	s.held.End()
	s.front.mu.Lock()
	delete(s.front.open, s)
	s.front.mu.Unlock()
	s.finishPlugin()
}

func (s *Session) endAdmission(a *authz.Admission, o authz.Outcome) {
	if err := a.End(o); err != nil {
		s.front.cfg.Log.Error("end not recorded", zap.String("decision", a.ID), zap.Error(err))
	}
}

// touch records that a byte moved.
func (s *Session) touch() { s.used.Store(s.front.cfg.Now().UnixNano()) }

// idleFor returns how long no byte has moved.
func (s *Session) idleFor(now time.Time) time.Duration {
	return max(0, time.Duration(now.UnixNano()-s.used.Load()))
}

// info describes the session.
func (s *Session) info(now time.Time) Info {
	d, to := &s.admission.Decision, s.admission.Request.Destination
	i := Info{
		Decision: s.admission.ID, Protocol: s.protocol, Host: to.Host(), Port: to.Port(), Database: s.database,
		Grant: d.Grant, Rule: d.Rule, Credential: d.Credential, PID: s.plugin.Source.PID,
		Since: s.begun, Idle: s.idleFor(now), SentBytes: s.up.bytes.Load(), Bytes: s.down.bytes.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i.Running = s.running.n
	if first := s.running.first; first != nil {
		i.Statement, i.Idle = first.admission.ID, 0
	}
	return i
}

// serverSide is the connections to the server: of the session, and of requests that end a
// statement.
type serverSide struct {
	address netip.AddrPort
	conns   map[*serverConn]struct{}
	closed  bool // by a cut
	writes  bool // the session is not pinned read-only
}

// take removes all connections. The caller holds the session's mu.
func (v *serverSide) take() []*serverConn {
	out := make([]*serverConn, 0, len(v.conns))
	for c := range v.conns {
		out = append(out, c)
	}
	v.conns, v.closed = nil, true
	return out
}

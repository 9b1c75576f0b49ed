package database

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/session"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
)

// Serve serves one connection of the plugin to a database: it reads the protocol of
// to's scheme from c, whose peer is the plugin's, until either side ends. It does not
// close c's socket.
type Serve func(ctx context.Context, f *Front, c *session.Conn, to authz.Destination)

// Config is what a Front is made of. Plugin, Gate, Engine, Sessions, Dialer, Rates, Budget
// and Certificate are required.
type Config struct {
	Plugin   authz.Principal
	Gate     *authz.Gate
	Engine   *authz.Engine
	Sessions *session.Registry
	Dialer   *upstream.Dialer
	Rates    *session.RateLimits
	Budget   *budget.Budget
	// Certificate returns the certificate, of the plugin's authority, of a host.
	Certificate func(host string) (*tls.Certificate, error)
	// Placeholders finds placeholders of credentials. Nil: none are looked for.
	Placeholders *placeholder.Cache

	// Refused is called with every refusal after it is recorded. Nil: not called.
	Refused func(authz.Refusal)
	// Handshake is called when the plugin's side ends a TLS handshake with AcceptTLS, with
	// what it sent last. Nil: not called.
	Handshake func(c *session.Conn, to authz.Destination, tail *session.TailBytes, err error)
	// Statement is called with each decision on a statement, or on n of them that were
	// admitted together, or on a connection, whose verb is connect. Verbs are words of the
	// protocol's reader. Nil: not called.
	Statement func(protocol authz.Protocol, verb string, reason authz.Reason, n int)
	// Work counts what goes on after a session has ended. Nil: nothing counts it.
	Work *session.Inflight
	// Now is the wall clock. Nil: time.Now.
	Now func() time.Time
	// Log is the operator's log. Nil: none.
	Log *zap.Logger
}

// Front serves the plugin's connections to databases, whatever their protocol is.
type Front struct {
	cfg   Config
	verbs verbCache
	ends  chan struct{} // holds one for each request that ends a statement at a server

	mu    sync.Mutex
	open  map[*Session]struct{}
	terms map[*authz.Term]*termWatch
}

// NewFront returns a front. It starts nothing.
func NewFront(cfg Config) *Front {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Work == nil {
		cfg.Work = new(session.Inflight)
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Front{
		cfg: cfg, ends: make(chan struct{}, maxEnds),
		open: make(map[*Session]struct{}), terms: make(map[*authz.Term]*termWatch),
	}
}

// Plugin returns the principal of every session.
func (f *Front) Plugin() authz.Principal { return f.cfg.Plugin }

// Log returns the operator's log. It must not get what a plugin or a server wrote.
func (f *Front) Log() *zap.Logger { return f.cfg.Log }

// ReadOnly reports whether the session must be pinned read-only: every rule in force that
// grants its database only reads. A session that is not is cut once that is so.
func (s *Session) ReadOnly() bool {
	s.mu.Lock()
	readOnly := s.onlyReads()
	s.server.writes = !readOnly
	s.mu.Unlock()
	return readOnly
}

func (s *Session) onlyReads() bool {
	cfg := &s.front.cfg
	return cfg.Engine.Current().SessionReadOnly(cfg.Plugin, s.admission.Request.Destination, s.database, cfg.Now())
}

// Refuse refuses a connection before [Front.Open]: bytes that are not the protocol, or a
// login that cannot be for any granted database. detail is one line of our own words.
func (f *Front) Refuse(c *session.Conn, to authz.Destination, reason authz.Reason, detail string) *authz.Refusal {
	return f.refuseAs(c, to, &session.RefusalError{Reason: reason, Detail: detail})
}

func (f *Front) refuseAs(c *session.Conn, to authz.Destination, e *session.RefusalError) *authz.Refusal {
	refusal, err := f.cfg.Gate.Refuse(e.Reason, authz.Attempt{
		Principal: f.cfg.Plugin, URL: string(to.Scheme()) + "://" + to.HostPort(), Scheme: to.Scheme(), Host: to.Host(), Detail: e.Detail,
	}, c.Source)
	refusal.Remedy = cmp.Or(e.Remedy, refusal.Remedy)
	refusal.RetryAfter = max(refusal.RetryAfter, e.RetryAfter)
	c.Attribution.Refused()
	f.report(refusal, err)
	f.count(to.Scheme().Protocol(), verbConnect, e.Reason)
	return &refusal
}

// report calls Refused. err is why the refusal could not be recorded.
func (f *Front) report(r authz.Refusal, err error) {
	if err != nil {
		f.cfg.Log.Error("refusal not recorded", zap.Error(err))
	}
	if f.cfg.Refused != nil {
		f.cfg.Refused(r)
	}
}

func (f *Front) count(protocol authz.Protocol, verb string, reason authz.Reason) {
	f.countAll(protocol, verb, reason, 1)
}

// countAll counts n statements that were decided together.
func (f *Front) countAll(protocol authz.Protocol, verb string, reason authz.Reason, n int) {
	if f.cfg.Statement != nil {
		f.cfg.Statement(protocol, verb, reason, n)
	}
}

// Info describes an open session.
type Info struct {
	Decision   string // the id of the decision on the connection
	Protocol   authz.Protocol
	Host       string
	Port       uint16
	Database   string // as the plugin named it; a name that a rule grants
	Grant      string
	Rule       string // that granted the connection
	Credential string
	PID        int
	Since      time.Time
	Idle       time.Duration // since a byte moved
	Running    int           // statements
	Statement  string        // the decision's id of the statement that has run longest; "" for none
	SentBytes  int64
	Bytes      int64 // towards the plugin
}

// Sessions returns the sessions that have been admitted and have not ended, in the order in
// which they began.
func (f *Front) Sessions() []Info {
	f.mu.Lock()
	all := make([]*Session, 0, len(f.open))
	for s := range f.open {
		all = append(all, s)
	}
	f.mu.Unlock()
	slices.SortFunc(all, func(a, b *Session) int { // other sorts of pointers share its code
		return cmp.Or(a.begun.Compare(b.begun), strings.Compare(a.admission.ID, b.admission.ID))
	})
	now, out := f.cfg.Now(), make([]Info, len(all))
	for i, s := range all {
		out[i] = s.info(now)
	}
	return out
}

// Count returns how many sessions of a protocol are open.
func (f *Front) Count(protocol authz.Protocol) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.open {
		if s.protocol == protocol {
			n++
		}
	}
	return n
}

// handshakeTimeout is how long the plugin's TLS handshake may take.
const handshakeTimeout = 10 * time.Second

// errOutOfMemory is for a connection that the memory budget has no room for.
var errOutOfMemory = errors.New("the plugin's memory limit is reached")

// AcceptTLS accepts the plugin's TLS on c, with a certificate of the plugin's authority
// for to's host, and returns the layer inside. A server name that the plugin sends must be
// that host; it is refused, with a record, if it is another. alpn are the protocols of which a client
// that offers any must offer one (RFC 7301); none if it is empty. The inner layer's Conn is
// a [tls.Conn]. An error has ended c.
func (f *Front) AcceptTLS(ctx context.Context, c *session.Conn, to authz.Destination, alpn []string) (*session.Conn, error) {
	if c.Memory.Take(budget.Connection, session.TlsCost) != nil {
		c.OutOfMemory()
		_ = c.Cut()
		return nil, errOutOfMemory
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	mismatch := ""
	under := &immediate{Conn: c, socket: c.Socket}
	inner := tls.Server(under, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: alpn, SessionTicketsDisabled: true,
		DynamicRecordSizingDisabled: true, // a write of maxRecord is one record
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != "" && !to.AgreesName(hello.ServerName) {
				mismatch = hello.ServerName
				return nil, errMismatch
			}
			return f.cfg.Certificate(to.Host())
		},
	})
	err := inner.HandshakeContext(ctx)
	under.shaken.Store(true)
	if err == nil {
		return c.Over(inner), nil
	}
	switch {
	case mismatch != "":
		f.Refuse(c, to, authz.DestinationMismatch, "the server name is "+session.Quote(mismatch)+", the connection is for "+to.HostPort())
	case f.cfg.Handshake != nil:
		f.cfg.Handshake(c, to, &under.tail, err)
	}
	_ = c.Close() // the alert has been sent
	return nil, err
}

var errMismatch = errors.New("the server name is not that of the connection")

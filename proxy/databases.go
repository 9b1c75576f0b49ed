package proxy

import (
	"context"
	"io"
	"net/http"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/postgres"
	"github.com/chaperone-proxy/chaperone/proxy/redis"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// Databases are the protocols of databases that a proxy speaks.
type Databases struct {
	// Serve serve connections, by the scheme of the rules there. Nil: all protocols.
	Serve map[authz.Scheme]database.Serve
	// Texts has the texts of statements, without constants, be part of the records.
	Texts bool
	// Statement is called with each decision on a statement; see [database.Config]. It must
	// not block. Nil: not called.
	Statement func(protocol authz.Protocol, verb string, reason authz.Reason, n int)
}

// databaseProtocols returns what serves a connection to a database, by the scheme of its
// rules.
func databaseProtocols(texts bool) map[authz.Scheme]database.Serve {
	return map[authz.Scheme]database.Serve{
		authz.SchemePostgres: postgres.New(postgres.Config{Texts: texts}).Serve,
		authz.SchemeRedis:    redis.Serve,
	}
}

// newFront returns what serves the plugin's connections to databases.
func (p *Proxy) newFront() *database.Front {
	return database.NewFront(database.Config{
		Plugin: p.cfg.Plugin, Gate: p.cfg.Gate, Engine: p.cfg.Engine, Sessions: p.sessions, Dialer: p.dialer, Rates: p.rates, Budget: p.budget,
		Certificate: p.authority.leaf, Placeholders: &p.placeholders, Refused: p.cfg.Refused, Handshake: p.failedDatabaseHandshake,
		Statement: p.cfg.Databases.Statement, Work: p.inflight, Now: p.cfg.Now, Log: p.cfg.Log,
	})
}

// Databases returns the plugin's sessions with databases.
func (p *Proxy) Databases() *database.Front { return p.databases }

// databaseScheme returns the database's protocol that is spoken at a host and port, of the
// schemes that are granted there. No other is: a policy with two does not compile.
func databaseScheme(schemes []authz.Scheme) (authz.Scheme, bool) {
	for _, scheme := range schemes {
		if scheme.Database() {
			return scheme, true
		}
	}
	return "", false
}

// serveDatabase has a database's protocol serve a connection. It waits for no byte of the
// plugin, because the server may be the one that sends first; bytes that were read ahead
// are read again.
func (p *Proxy) serveDatabase(ctx context.Context, c *conn, named authz.Destination, scheme authz.Scheme) {
	defer c.Close() //nolint:errcheck // it is gone either way
	to, err := authz.NewDestination(scheme, named.HostPort(), "")
	serve := p.cfg.Databases.Serve[scheme]
	switch {
	case err != nil:
		p.drop(c, authz.MalformedRequest, err.Error())
		return
	case serve == nil:
		p.drop(c, authz.NotEnforceableHere, "the proxy does not speak "+string(scheme))
		return
	case c.refusal != nil:
		p.drop(c, c.refusal.Reason, c.refusal.Detail)
		return
	}
	c.HeadRead()
	serve(ctx, p.databases, c.Conn, to)
}

// connectDatabase serves a CONNECT to a database. It is answered before the decision,
// because clients can read the reason of a refusal in the database's protocol.
func (p *Proxy) connectDatabase(w http.ResponseWriter, r *http.Request, c *conn, named authz.Destination, scheme authz.Scheme) {
	if !p.hijack(w, c) {
		return
	}
	c.mode, c.host, c.port = tunnel, named.Host(), named.Port()
	if _, err := io.WriteString(c.Conn, established); err != nil {
		_ = c.Cut()
		return
	}
	p.serveDatabase(context.WithoutCancel(r.Context()), c, named, scheme)
}

// failedDatabaseHandshake reports that the plugin's side did not complete a handshake with
// a database's protocol.
func (p *Proxy) failedDatabaseHandshake(c *session.Conn, to authz.Destination, tail *session.TailBytes, err error) {
	p.reportHandshake(authz.Record{Scheme: string(to.Scheme()), Host: to.Host(), Port: to.Port()}, c.Source, handshakeFailure{
		err: err, alert: handshakeAlert(err, tail), when: "in the TLS handshake",
	})
}

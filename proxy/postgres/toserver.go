package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

const (
	// maxStatement is the size of a text at most, in bytes: it is held whole.
	maxStatement = 1 << 20
	// maxName is the length of a name in a message at most. The server compares 63 bytes.
	maxName = 255
	// maxShort is the size of the messages that only have names, at most.
	maxShort = headerSize + 1 + maxName + 1 + 4
)

// decider decides statements; [database.Session] does.
type decider interface {
	Admit(ctx context.Context, facts authz.Facts) (statement, *authz.Refusal)
	Refuse(reason authz.Reason, detail string) *authz.Refusal
}

// errTerminated is for the plugin's Terminate.
var errTerminated = errors.New("the plugin ended the session")

// refusalError ends a session with a refusal.
type refusalError struct{ refusal *authz.Refusal }

func (e *refusalError) Error() string { return e.refusal.Reason.String() + ": " + e.refusal.Detail }

// toServer looks at the plugin's messages. It decides those that have a text and those
// that execute one, and remembers the names of prepared statements and portals.
type toServer struct {
	ctx        context.Context //nolint:containedctx // of the one session that this serves
	database   string
	decide     decider
	reader     *reader
	pipe       *pipeline
	marker     marker
	statements *names
	portals    *names
	fresh      []fresh // of the open batch
	copying    bool    // a COPY FROM STDIN was sent, and since then only Syncs and parts of its data
	pump       *pump
	stopped    chan struct{} // closed when nothing is sent to the server any more
}

// stop ends waits for the server.
func (s *toServer) stop() { close(s.stopped) }

// fresh is a statement that a Parse admitted and that may be executed in the same batch.
type fresh struct {
	content   *content
	statement statement
	size      int // of its Parse
}

// maxFresh is how many of them are kept.
const maxFresh = 8

func newToServer(ctx context.Context, database string, d decider, r *reader, t *pipeline, m marker) *toServer {
	return &toServer{
		ctx: ctx, database: database, decide: d, reader: r, pipe: t, marker: m,
		statements: newNames(t.succeeded), portals: newNames(t.succeeded), stopped: make(chan struct{}),
	}
}

// malformed ends the session for a message that is not valid.
func (s *toServer) malformed(detail string) error {
	return &refusalError{s.decide.Refuse(authz.MalformedRequest, detail)}
}

// need implements inspector.
func (s *toServer) need(kind byte, total int) (int, error) {
	switch kind {
	case msgCopyData, msgFlush:
		return 0, nil
	case msgQuery, msgParse:
		if total > headerSize+maxStatement+maxName {
			return 0, &refusalError{s.decide.Refuse(authz.StatementTooLarge,
				fmt.Sprintf("a message has %d bytes; a statement may have %d", total, maxStatement))}
		}
		return total, nil
	case msgBind:
		return min(total, headerSize+2*(maxName+1)), nil
	case msgExecute, msgDescribe, msgClose:
		if total > maxShort {
			return 0, s.malformed("a message with a name is too long")
		}
		return total, nil
	case msgSync, msgTerminate, msgCopyDone, msgCopyFail, msgFunctionCall:
		return headerSize, nil
	}
	return 0, s.malformed(fmt.Sprintf("message type 0x%02x is not one of a client", kind))
}

// inspect implements inspector.
func (s *toServer) inspect(frame []byte, total int) ([]byte, error) {
	body := frame[headerSize:]
	if err := s.leaveCopy(frame[0]); err != nil {
		return nil, err
	}
	switch frame[0] {
	case msgQuery:
		return s.query(body, total)
	case msgParse:
		return s.parse(body, total)
	case msgBind:
		return nil, s.bind(body)
	case msgExecute:
		return s.execute(body, total)
	case msgDescribe:
		s.pipe.extend()
	case msgClose:
		return nil, s.close(body)
	case msgSync:
		return s.sync()
	case msgCopyDone, msgCopyFail:
		s.pipe.copyDone()
	case msgFunctionCall:
		if err := s.wait(); err != nil {
			return nil, err
		}
		refusal := s.decide.Refuse(authz.StatementUnreadable, "the FunctionCall message is not supported; call the function in a SELECT")
		return s.refuseQuery(refusal), nil
	case msgTerminate:
		return nil, s.terminate()
	}
	return nil, nil
}

// copyFail ends the data of a COPY before a message that is no part of them.
const copyFail = "f\x00\x00\x00\x2ethe client sent another message than data\x00"

// leaveCopy sends a CopyFail before a message that is no part of COPY data, if the server may
// read data. Such a message would fail the COPY and not be executed, and PostgreSQL 14 and
// later would end the session for it. A server that does not read data ignores a CopyFail
// (PostgreSQL 18, protocol-flow, COPY operations).
func (s *toServer) leaveCopy(kind byte) error {
	if !s.copying || kind == msgSync || kind == msgCopyDone || kind == msgCopyFail || kind == msgTerminate {
		return nil
	}
	s.copying = false
	if !s.pipe.leaveCopy() {
		return nil
	}
	return s.insert([]byte(copyFail))
}

// insert sends a message of the sidecar's own.
func (s *toServer) insert(message []byte) error {
	if err := s.pump.flush(true); err != nil {
		return err
	}
	return s.pump.dst(message, true)
}

// sync ends the open batch, unless the server reads COPY data: there it ignores a Sync, which
// is not sent then.
func (s *toServer) sync() ([]byte, error) {
	if err := s.wait(); err != nil {
		return nil, err
	}
	if s.copying {
		if err := s.await(s.pipe.copyDoubt()); err != nil {
			return nil, err
		}
		if s.pipe.copyReads() {
			return []byte{}, nil
		}
	}
	s.endBatch(msgSync)
	return nil, nil
}

// terminate passes a Terminate, and ends the direction.
func (s *toServer) terminate() error {
	s.pump.pos += headerSize
	return errTerminated
}

// endBatch ends the open batch.
func (s *toServer) endBatch(kind byte) {
	s.pipe.end(kind)
	clear(s.fresh)
	s.fresh = s.fresh[:0]
}

// query decides a Query.
func (s *toServer) query(body []byte, total int) ([]byte, error) {
	text, ok := bytes.CutSuffix(body, []byte{0})
	if !ok {
		return nil, s.malformed("a Query does not end in a NUL")
	}
	if err := s.wait(); err != nil {
		return nil, err
	}
	c := s.reader.cache.Get(text)
	if !c.empty {
		admitted, refusal := s.admit(c)
		if refusal != nil {
			return s.refuseQuery(refusal), nil
		}
		s.copying = s.copiesIn(c)
		s.pipe.begin(admitted, msgQuery, total, c, s.copying)
		if refusal := s.apply(c, s.pipe.number()); refusal != nil {
			return s.refuseQuery(refusal), nil
		}
	}
	s.endBatch(msgQuery)
	return nil, nil
}

// refuseQuery replaces a Query or FunctionCall by a Query that cannot be parsed: it too is
// answered by one ErrorResponse and one ReadyForQuery.
func (s *toServer) refuseQuery(r *authz.Refusal) []byte {
	s.pipe.refuse(*r)
	s.endBatch(msgQuery)
	return queryMessage(s.marker.text(r.Decision))
}

// wait waits while the server has too many statements to answer.
func (s *toServer) wait() error { return s.await(s.pipe.full()) }

// await waits until the server's answers have closed the channel, if there is one. It asks
// the server for the answers that it holds back until a Sync.
func (s *toServer) await(answered <-chan struct{}) error {
	if answered == nil {
		return nil
	}
	if err := s.insert([]byte{msgFlush, 0, 0, 0, 4}); err != nil {
		return err
	}
	select {
	case <-answered:
		return nil
	case <-s.stopped:
		return errEnded
	}
}

// admit decides a content on the policy in force.
func (s *toServer) admit(c *content) (statement, *authz.Refusal) {
	if c.unreadable != "" {
		return nil, s.decide.Refuse(authz.StatementUnreadable, c.unreadable)
	}
	set, err := s.setOf(c)
	if err != nil {
		return nil, s.decide.Refuse(authz.StatementUnreadable, "its facts are not a set: "+err.Error())
	}
	admitted, refusal := s.decide.Admit(s.ctx, set)
	listens := c.listens || c.executes() && slices.Contains(set.All(), listen().String())
	if refusal == nil && listens && !admitted.Keep() {
		refusal = s.decide.Refuse(authz.StatementTooLarge, "the session listens by more statements than are kept; use another connection")
		admitted.End(authz.Outcome{Detail: "not sent: " + refusal.Detail})
		return nil, refusal
	}
	return admitted, refusal
}

// setOf returns the facts of a content, with those of the prepared statements that it executes.
func (s *toServer) setOf(c *content) (authz.Facts, error) {
	if !c.executes() {
		return c.setFor(s.database)
	}
	all := append([]authz.Fact(nil), c.facts...)
	own := ownNames{of: map[string]*content{}}
	for _, use := range c.names {
		switch use.kind {
		case executes:
			found := s.statements.get([]byte(use.name), s.pipe.number())
			prepared, freed := own.find(use.name)
			if prepared == nil && (found == nil || freed) {
				all = append(all, sql.UnknownName())
			}
			for _, one := range []*content{found, prepared} {
				if one != nil {
					all = append(all, one.facts...)
				}
			}
		case fetches: // of a cursor that is not known, a function has the rights
			if found := s.portals.find([]byte(use.name), s.pipe.number()); found != nil {
				all = append(all, found.facts...)
			}
		case prepares, deallocates, deallocatesAll, declares:
			own.follow(use)
		}
	}
	return setOf(s.database, all)
}

// ownNames are the names of prepared statements that one text sets and frees itself.
type ownNames struct {
	of  map[string]*content // nil for one that was freed
	all bool                // every other name was freed
}

// follow notes what the text does with a name.
func (o *ownNames) follow(use nameUse) {
	switch use.kind {
	case prepares:
		o.of[use.name] = use.content
	case deallocates:
		o.of[use.name] = nil
	case deallocatesAll:
		clear(o.of)
		o.all = true
	case executes, declares, fetches:
	}
}

// find returns what the text has prepared by a name, nil for nothing, and whether it has
// freed the name since: only a function can have set it again.
func (o *ownNames) find(name string) (prepared *content, freed bool) {
	prepared, known := o.of[name]
	return prepared, prepared == nil && (known || o.all)
}

// copiesIn reports whether a content reads COPY data, itself or by a prepared statement.
func (s *toServer) copiesIn(c *content) bool {
	for _, use := range c.names {
		if use.kind == executes {
			if found := s.statements.get([]byte(use.name), s.pipe.number()); found != nil && found.copyIn {
				return true
			}
		}
	}
	return c.copyIn
}

// executes reports whether SQL-level EXECUTE or FETCH is in the content.
func (c *content) executes() bool {
	for _, use := range c.names {
		if use.kind == executes || use.kind == fetches {
			return true
		}
	}
	return false
}

// apply records the names that the execution of a content sets and frees.
func (s *toServer) apply(c *content, batch uint64) *authz.Refusal {
	for _, use := range c.names {
		switch use.kind {
		case prepares:
			if !s.statements.set([]byte(use.name), s.statements.behind(c, use, batch), batch) {
				return s.tooManyNames("prepared statements")
			}
		case deallocates:
			if !c.several {
				s.statements.set([]byte(use.name), nil, batch)
			}
		case deallocatesAll:
			if !c.several {
				s.statements.free(batch)
			}
		case declares:
			if !s.setPortal([]byte(use.name), s.portals.behind(c, use, batch), batch) {
				return s.tooManyNames("portals")
			}
		case executes, fetches:
		}
	}
	return nil
}

func (s *toServer) tooManyNames(what string) *authz.Refusal {
	return s.decide.Refuse(authz.StatementTooLarge, fmt.Sprintf("the session has %d %s, which is the limit; close some", maxNames, what))
}

// parse decides a Parse, and remembers its name.
func (s *toServer) parse(body []byte, total int) ([]byte, error) {
	name, rest, ok := bytes.Cut(body, []byte{0})
	text, types, whole := bytes.Cut(rest, []byte{0})
	if !ok || !whole || len(name) > maxName || len(types) < 2 || len(types) != 2+4*(int(types[0])<<8|int(types[1])) {
		return nil, s.malformed("a Parse is not one")
	}
	if err := s.wait(); err != nil {
		return nil, err
	}
	c := s.reader.cache.Get(text)
	batch := s.pipe.extend()
	var admitted statement
	var refusal *authz.Refusal
	if !c.empty {
		if admitted, refusal = s.admit(c); refusal == nil {
			s.pipe.begin(admitted, msgParse, total, c, false)
		}
	}
	if refusal == nil && !s.statements.set(name, c, batch) {
		refusal = s.tooManyNames("prepared statements")
	}
	if refusal != nil {
		s.pipe.refuse(*refusal)
		if len(name) == 0 { // the server forgets the unnamed statement before it parses
			s.statements.set(name, nil, batch)
		}
		return parseMessage(string(name), s.marker.text(refusal.Decision)), nil
	}
	if admitted != nil {
		s.addFresh(fresh{c, admitted, total})
	}
	return nil, nil
}

// addFresh keeps a statement that a Parse admitted for its execution. The oldest one ends
// if there are many.
func (s *toServer) addFresh(f fresh) {
	if len(s.fresh) == maxFresh {
		if oldest := s.fresh[0]; oldest.statement != nil && s.pipe.take(oldest.statement) {
			oldest.statement.End(authz.Outcome{SentBytes: int64(oldest.size), Statement: oldest.content.masked})
		}
		s.fresh = slices.Delete(s.fresh, 0, 1)
	}
	s.fresh = append(s.fresh, f)
}

// unknown is what a name stands for that the plugin did not set: a function may have.
func unknown() *content { return &content{facts: []authz.Fact{sql.UnknownName()}} }

// bind remembers what a portal executes.
func (s *toServer) bind(body []byte) error {
	portal, rest, ok := bytes.Cut(body, []byte{0})
	name, _, whole := bytes.Cut(rest, []byte{0})
	if !ok || !whole || len(portal) > maxName || len(name) > maxName {
		return s.malformed("a Bind has no names")
	}
	batch := s.pipe.extend()
	c := s.statements.get(name, batch)
	if c == nil {
		c = unknown()
	}
	if s.setPortal(portal, c, batch) {
		return nil
	}
	return &refusalError{s.tooManyNames("portals")}
}

// setPortal records that a message sets a portal. It reports false if there are too many.
func (s *toServer) setPortal(name []byte, c *content, batch uint64) bool {
	if s.portals.set(name, c, batch) {
		return true
	}
	s.portals.forget(s.pipe.lastIdle()) // portals end with their transaction
	return s.portals.set(name, c, batch)
}

// executeName is the name of the statement that a refused Execute is replaced by. It never
// exists.
const executeName = "chaperone_refused"

// execute decides an Execute on the policy in force.
func (s *toServer) execute(body []byte, total int) ([]byte, error) {
	portal, rest, ok := bytes.Cut(body, []byte{0})
	if !ok || len(rest) != 4 {
		return nil, s.malformed("an Execute is not one")
	}
	if err := s.wait(); err != nil {
		return nil, err
	}
	batch := s.pipe.extend()
	c := s.portals.get(portal, batch)
	if c == nil { // a cursor, which FETCH reads, or none
		c = unknown()
	}
	if c.empty {
		s.pipe.begin(nil, msgExecute, total, c, false)
		return nil, nil
	}
	admitted := s.takeFresh(c)
	var refusal *authz.Refusal
	if admitted == nil {
		admitted, refusal = s.admit(c)
	}
	if refusal == nil {
		s.copying = s.copiesIn(c)
		s.pipe.begin(admitted, msgExecute, total, c, s.copying)
		refusal = s.apply(c, batch)
	}
	if refusal != nil {
		s.pipe.refuse(*refusal)
		return parseMessage(executeName, s.marker.text(refusal.Decision)), nil
	}
	return nil, nil
}

// takeFresh returns the statement that a Parse of the same batch admitted for the content.
func (s *toServer) takeFresh(c *content) statement {
	for i, f := range s.fresh {
		if f.content == c && f.statement != nil && !c.executes() {
			s.fresh[i].statement = nil
			if s.pipe.take(f.statement) {
				return f.statement
			}
		}
	}
	return nil
}

// close forgets a prepared statement or a portal.
func (s *toServer) close(body []byte) error {
	if len(body) < 2 || body[len(body)-1] != 0 {
		return s.malformed("a Close is not one")
	}
	batch, name := s.pipe.extend(), body[1:len(body)-1]
	switch body[0] {
	case 'S':
		s.statements.set(name, nil, batch)
	case 'P':
		s.portals.set(name, nil, batch)
	}
	return nil
}

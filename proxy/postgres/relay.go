package postgres

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/budget"
	"github.com/chaperone-proxy/chaperone/proxy/database"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// relay is one session: what the plugin sends is decided and relayed to the server, and
// what the server answers to the plugin.
type relay struct {
	server    *Server
	session   *database.Session
	plugin    *session.Conn
	up        *server
	want      *startup
	canceller *canceller
	pid       uint32 // and secret: the plugin's cancel key; nil without one
	secret    []byte

	ended    atomic.Bool   // the direction from the plugin has
	patience time.Duration // how long the server may take to close then
	limited  sync.Once     // it has begun
	pipe     *pipeline
	toServer *toServer
	toPlugin *toPlugin
}

// admitter has a session decide statements.
type admitter struct{ *database.Session }

// Admit implements decider.
func (a admitter) Admit(ctx context.Context, facts authz.Facts) (statement, *authz.Refusal) {
	st, refusal := a.Session.Admit(ctx, facts)
	if refusal != nil {
		return nil, refusal
	}
	return st, nil
}

// held is the memory of a plugin's connection.
type held struct{ of *budget.Holding }

func (h held) take(n int64) error { return h.of.Take(budget.Body, n) }
func (h held) give(n int64)       { h.of.Give(budget.Body, n) }

func newRelay(v *Server, s *database.Session, c *session.Conn, up *server, want *startup) *relay {
	r := &relay{server: v, session: s, plugin: c, up: up, want: want, patience: endTimeout, pipe: newPipeline()}
	r.canceller = &canceller{session: s, server: up}
	if len(up.key) > 0 {
		r.pid, r.secret = v.cancels.add(r.canceller, want.minor)
	}
	m := newMarker()
	r.toServer = newToServer(s.Context(), want.database, admitter{s}, v.reader, r.pipe, m)
	r.toPlugin = &toPlugin{pipe: r.pipe, marker: m, pins: pinned(up.settings)}
	return r
}

// pinned returns the settings that must not change, as the server reported them. PostgreSQL
// 14 and later report whether transactions are read-only, 18 reports the search path.
func pinned(reported map[string]string) map[string]string {
	pins := map[string]string{}
	for _, name := range []string{settingEncoding, settingStrings, settingSearchPath} {
		if value, ok := reported[name]; ok {
			pins[name] = value
		}
	}
	if reported[settingReadOnly] == "on" {
		pins[settingReadOnly] = "on"
	}
	return pins
}

// close forgets the session.
func (r *relay) close() {
	if r.secret != nil {
		r.server.cancels.remove(r.pid, r.secret)
	}
}

// greet sends what a server sends before a session is ready.
func (r *relay) greet() error {
	var out []byte
	messages := make([]pgproto3.BackendMessage, 0, len(r.up.settings)+4)
	if r.want.negotiates() {
		messages = append(messages, &pgproto3.NegotiateProtocolVersion{
			NewestMinorProtocol: protocolMajor<<16 | uint32(r.want.minor), UnrecognizedOptions: r.want.unknown, // with the major version, as servers send it
		})
	}
	messages = append(messages, &pgproto3.AuthenticationOk{})
	for _, name := range slices.Sorted(maps.Keys(r.up.settings)) {
		messages = append(messages, &pgproto3.ParameterStatus{Name: name, Value: r.up.settings[name]})
	}
	if r.secret != nil {
		messages = append(messages, &pgproto3.BackendKeyData{ProcessID: r.pid, SecretKey: r.secret})
	}
	messages = append(messages, &pgproto3.ReadyForQuery{TxStatus: 'I'})
	for _, m := range messages {
		var err error
		if out, err = m.Encode(out); err != nil {
			return err
		}
	}
	_, err := r.session.Write(out)
	return err
}

// run relays until either side ends, or the session is cut.
func (r *relay) run() {
	r.session.OnTimeout(r.cancel)
	r.session.Serve(r.abort, r.pipe.isIdle)
	if r.server.relaying != nil {
		r.server.relaying(r)
	}
	if r.greet() != nil {
		return
	}
	room := held{r.plugin.Memory}
	down := newPump(r.up.reader, r.toPluginSink, &r.server.buffers, room)
	up := newPump(pluginReader{r.session}, r.toServerSink, &r.server.buffers, room)
	r.toServer.pump, down.written = up, r.written

	var ends sync.WaitGroup
	ends.Go(func() {
		r.endPlugin(down.run(r.toPlugin))
	})
	fromPlugin := up.run(r.toServer)
	r.endServer(fromPlugin)
	ends.Wait()
	r.toPlugin.recordEnds()
	for _, one := range r.pipe.endAll(r.toPlugin.received) {
		one.statement.End(one.outcome)
	}
	r.last(fromPlugin)
}

// cancel asks the server to end what the session runs. The session is cut if it goes on, and
// the server runs a statement to its end that it has read before its connection ended: for
// one that was just sent, a second request follows.
func (r *relay) cancel(ctx context.Context) {
	young := r.pipe.isYoung()
	_ = r.canceller.once(ctx)
	if !young {
		return
	}
	select {
	case <-time.After(youngStatement):
		_ = r.canceller.once(ctx)
	case <-ctx.Done():
	}
}

// pluginReader is what a plugin sends.
type pluginReader struct{ *database.Session }

func (r *relay) toPluginSink(b []byte, whole bool) error {
	_, err := r.session.WritePart(b, whole, endOfFrame)
	return err
}

func (r *relay) toServerSink(b []byte, _ bool) error {
	_, err := r.session.Forward(r.up.conn, b)
	return err
}

// endPlugin ends the direction from the plugin, as the one from the server has ended.
func (r *relay) endPlugin(err error) {
	var unexpected *unexpectedError
	var changed *pinChangedError
	switch {
	case errors.As(err, &unexpected):
		r.session.Cut(authz.UpstreamUnreachable, unexpected.detail)
	case errors.Is(err, errFrame):
		r.session.Cut(authz.UpstreamUnreachable, "the database sent a message whose length is out of range")
	case errors.As(err, &changed):
		r.session.Cut(authz.StatementUnreadable, changed.Error())
	case err == nil && !r.ended.Load() && r.session.Cause() == nil: // otherwise its last message may follow
		_ = session.CloseWriteOf(r.plugin) // a plugin that is gone has ended the direction
	}
	r.toServer.stop()
	_ = r.up.conn.Close()
	_ = r.plugin.SetReadDeadline(time.Unix(1, 0))
}

// written is called once the plugin has what the server has answered.
func (r *relay) written() {
	r.toPlugin.recordEnds()
	if r.ended.Load() && !r.pipe.owes() {
		r.limitEnd()
	}
}

// limitEnd has the relay wait for the server to close no longer than patience.
func (r *relay) limitEnd() {
	r.limited.Do(func() { _ = r.up.conn.SetReadDeadline(time.Now().Add(r.patience)) }) // a closed one has ended
}

// endServer ends the direction from the server, as the one from the plugin has ended. A plugin
// that ends without a Terminate still reads the answers to what it has sent. How long they may
// take is for the timeout of the rule; afterwards the server has nothing to do but to close.
func (r *relay) endServer(err error) {
	r.ended.Store(true) // the last message to the plugin may follow
	if err != nil && !errors.Is(err, errTerminated) {
		_ = r.up.conn.Close()
		return
	}
	if err != nil || !r.pipe.owes() {
		r.limitEnd()
	}
	if session.CloseWriteOf(r.up.conn) != nil {
		_ = r.up.conn.Close()
	}
}

// abort sends the last message of a session that is cut.
func (r *relay) abort(error) {
	if refusal := r.session.Cause(); refusal != nil {
		r.session.Last(errorMessage(severityFatal, stateAdminShutdown, refusal))
	}
}

// last sends the last message of a session that the plugin's own message ended.
func (r *relay) last(err error) {
	var refused *refusalError
	if errors.Is(err, errFrame) {
		errors.As(r.toServer.malformed("the length of a message is out of range"), &refused)
	} else if !errors.As(err, &refused) {
		return
	}
	if r.session.Last(errorMessage(severityFatal, stateOf(refused.refusal.Reason), refused.refusal)) {
		discard(r.plugin)
	}
}

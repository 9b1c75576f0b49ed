package redis

import (
	"slices"
	"strconv"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/proxy/database"
)

const (
	// maxTogether is how many facts a decision has at most. It leaves room below
	// authz.MaxFacts for the databases.
	maxTogether = 60
	// maxRunning is how many commands whose answers may take long a connection has at most.
	maxRunning = 1024
)

// batch is commands that are decided together.
type batch struct {
	commands []command
	facts    []authz.Fact // of all of them, in order
	shared   []authz.Fact // the commands and databases of all of them
	names    []authz.Fact // the keys and channels of all of them

	last []authz.Fact // the shared facts of the last batch, and the set of them
	set  authz.Facts
}

// command is a request in the buffer.
type command struct {
	from, to    int // in the buffer
	first, last int // of the batch's facts
	kind        resp.Kind
	begun       uint64 // of an EXEC, the generation of the policy at its MULTI; 0 for any other command
}

// command takes one complete request, at a place in the buffer.
func (r *relay) command(at, n int) error {
	q := &r.requests
	q.reading.Read(q.request.Args(q.in[at : at+n]))
	reading := &q.reading
	r.addDatabase(reading)
	c := command{from: at, to: at + n, kind: reading.Kind}
	switch {
	case reading.Kind == resp.Multi && !q.multi:
		q.generation = r.s.Generation()
	case reading.Command == "exec" && q.multi:
		c.begun = q.generation
	}
	switch {
	case reading.Unreadable != "", reading.Long, reading.Lasts, reading.Kind == resp.Select && (reading.Database != q.current || q.multi),
		reading.Kind == resp.Auth && q.multi, len(reading.Facts) > maxTogether:
		return r.alone(c)
	case r.running.blocked.Load() && reading.Kind != resp.Auth && reading.Kind != resp.Hello:
		return r.alone(c)
	}
	if len(q.batch.shared)+len(q.batch.names)+len(reading.Facts) > maxTogether {
		if err := r.decideBatch(); err != nil {
			return err
		}
	}
	q.batch.add(c, reading)
	r.follow(reading)
	return nil
}

// addDatabase adds the database that the command works on.
func (r *relay) addDatabase(reading *resp.Reading) {
	number := r.requests.current
	switch {
	case reading.Unreadable != "":
		return
	case reading.Kind == resp.Select && reading.Facts[0].Kind == authz.FactCommand && len(reading.Facts) > 1:
		return
	case reading.OfConnection:
		number = r.requests.opened
	}
	reading.Facts = append(reading.Facts, authz.Fact{Kind: authz.FactDatabase, Name: strconv.Itoa(number)})
}

func (b *batch) add(c command, reading *resp.Reading) {
	c.first = len(b.facts)
	b.facts = append(b.facts, reading.Facts...)
	c.last = len(b.facts)
	b.commands = append(b.commands, c)
	for _, f := range reading.Facts {
		switch {
		case isName(f):
			b.names = append(b.names, f)
		case !slices.Contains(b.shared, f):
			b.shared = append(b.shared, f)
		}
	}
}

// isName reports whether a fact is one of which a command may have many.
func isName(f authz.Fact) bool { return f.Kind == authz.FactKey || f.Kind == authz.FactChannel }

// sharedSet returns the shared facts as a set. Most batches have those of the one before.
func (b *batch) sharedSet() (authz.Facts, bool) {
	if slices.Equal(b.shared, b.last) {
		return b.set, true
	}
	set, err := authz.NewFacts(authz.ProtocolRedis, b.shared...)
	if err != nil {
		return authz.Facts{}, false
	}
	b.last, b.set = append(b.last[:0], b.shared...), set
	return set, true
}

func (b *batch) reset() {
	clear(b.facts) // they hold keys
	clear(b.names)
	b.commands, b.facts, b.shared, b.names = b.commands[:0], b.facts[:0], b.shared[:0], b.names[:0]
}

// decideBatch decides the commands of the batch and sends them: together if one rule grants
// all of them, otherwise one by one. If a decision may wait, what was admitted before it is
// sent first: otherwise it would be sent after the wait, within which its rule may be revoked.
func (r *relay) decideBatch() error {
	b := &r.requests.batch
	defer b.reset()
	waits, rest := r.s.MayWait(), b.commands
	if len(rest) > 1 {
		if set, ok := b.sharedSet(); ok && r.s.AdmitTogether(set, b.names, len(rest)) {
			for _, c := range rest {
				r.forward(c)
			}
			rest = nil
		}
	}
	for _, c := range rest {
		if waits {
			if err := r.flush(); err != nil {
				return err
			}
		}
		if refusal := r.admit(b.facts[c.first:c.last], nil); refusal != nil {
			r.refuse(refusal)
			continue
		}
		r.forward(c)
	}
	if waits {
		return r.flush()
	}
	return nil
}

// forward sends an admitted command of the batch.
func (r *relay) forward(c command) {
	switch c.kind {
	case resp.Auth:
		r.mark(marker{text: []byte("+OK\r\n")}, okName)
	case resp.Hello:
		r.hello(c)
	default:
		r.abortIfChanged(c)
		r.sent.Add(1)
		r.send(c.from, c.to)
	}
}

// abortIfChanged has an EXEC abort if the policy has changed since its MULTI: the server would run
// commands now that an earlier policy has admitted. A marker without a text makes it do so.
func (r *relay) abortIfChanged(c command) {
	if c.begun != 0 && c.begun != r.s.Generation() {
		r.s.Refuse(authz.StatementUnreadable, "the policy has changed since MULTI; send the transaction again")
		r.mark(marker{}, okName)
	}
}

// admit decides on facts, in parts if they are many: all parts must be admitted. The
// statements run on if they are kept, and otherwise end.
func (r *relay) admit(facts []authz.Fact, keep *[]*database.Statement) *authz.Refusal {
	// The command, what is opaque, and the databases are in each part.
	sorted := make([]authz.Fact, 0, len(facts))
	for _, f := range facts {
		if !isName(f) {
			sorted = append(sorted, f)
		}
	}
	common := len(sorted)
	for _, f := range facts {
		if isName(f) {
			sorted = append(sorted, f)
		}
	}
	part := make([]authz.Fact, 0, min(len(facts), maxTogether))
	for rest := sorted[common:]; ; {
		n := min(len(rest), maxTogether-common)
		part = append(append(part[:0], sorted[:common]...), rest[:n]...)
		if refusal := r.admitPart(part, keep); refusal != nil {
			return refusal
		}
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}

func (r *relay) admitPart(part []authz.Fact, keep *[]*database.Statement) *authz.Refusal {
	facts, err := authz.NewFacts(authz.ProtocolRedis, part...)
	if err != nil {
		return r.s.Refuse(authz.StatementUnreadable, "the command has a name that is no fact")
	}
	st, refusal := r.s.Admit(r.s.Context(), facts)
	switch {
	case refusal != nil:
		return refusal
	case keep != nil:
		*keep = append(*keep, st)
	default:
		st.End(authz.Outcome{})
	}
	return nil
}

// alone decides a command that cannot be decided with others, and sends it.
func (r *relay) alone(c command) error {
	if err := r.decideBatch(); err != nil {
		return err
	}
	reading := &r.requests.reading
	refusal := r.decideOne(reading, false)
	switch {
	case refusal != nil:
		r.refuse(refusal)
		return nil
	case reading.Kind == resp.Select && reading.Database != r.requests.current:
		return r.selectDatabase(c.from, c.to, reading.Database)
	}
	r.abortIfChanged(c)
	r.send(c.from, c.to)
	return nil
}

// decideOne decides a command and counts it as sent. partial is set for one of which the
// server does not have all, and runs nothing yet.
func (r *relay) decideOne(reading *resp.Reading, partial bool) *authz.Refusal {
	q := &r.requests
	waits := reading.Long || r.running.blocked.Load()
	switch {
	case reading.TooLarge:
		return r.s.Refuse(authz.StatementTooLarge, reading.Unreadable)
	case reading.Unreadable != "":
		return r.s.Refuse(authz.StatementUnreadable, reading.Unreadable)
	case q.multi && (reading.Kind == resp.Select || reading.Kind == resp.Auth):
		return r.s.Refuse(authz.StatementUnreadable, reading.Command+" within a transaction takes effect later; send it before MULTI")
	case waits && r.running.len() >= maxRunning:
		return r.s.Refuse(authz.StatementTooLarge, "the connection has 1024 commands that wait, subscribe or are behind one that waits; use another connection")
	}
	var statements []*database.Statement
	keep := &statements
	if !waits && !reading.Lasts && !partial {
		keep = nil
	}
	if refusal := r.admit(reading.Facts, keep); refusal != nil {
		for _, st := range statements {
			st.End(authz.Outcome{Detail: "not sent: other keys of the command are refused"})
		}
		return refusal
	}
	if reading.Lasts {
		refusal := r.keep(statements)
		if statements = nil; refusal != nil {
			return refusal
		}
	}
	r.follow(reading)
	sent := r.sent.Add(1)
	if waits && len(statements) > 0 {
		r.running.run(sent, statements, blocks(reading))
	} else {
		q.partial = statements
	}
	return nil
}

// blocks reports whether the server may leave what comes behind a command unread until it
// ends. A script does so too, but has all rights of the user itself.
func blocks(reading *resp.Reading) bool {
	for i := range reading.Facts {
		if reading.Facts[i].Kind == authz.FactOpaque {
			return false
		}
	}
	return reading.Long && reading.Kind == resp.Plain
}

// keep has the session decide statements again whose effect goes on, and ends them.
func (r *relay) keep(statements []*database.Statement) *authz.Refusal {
	kept := true
	for _, st := range statements {
		kept = kept && st.Keep()
		st.End(authz.Outcome{})
	}
	if kept {
		return nil
	}
	return r.s.Refuse(authz.StatementTooLarge, "the connection tracks more sets of prefixes than are kept; use another connection")
}

// follow follows how a command that is admitted changes the connection.
func (r *relay) follow(reading *resp.Reading) {
	q := &r.requests
	switch reading.Kind {
	case resp.Multi:
		q.multi = true
		r.open.Store(true)
	case resp.End:
		q.multi = false
		r.open.Store(r.running.isSubscribed())
	case resp.Subscribe:
		r.running.subscribe()
		r.open.Store(true)
	case resp.Plain, resp.Hello, resp.Auth, resp.Select, resp.Quit:
		switch reading.Command {
		case "watch":
			r.open.Store(true)
		case "unwatch":
			r.open.Store(q.multi || r.running.isSubscribed())
		}
	}
}

package authz

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Source is the origin of a request, for the audit log; the decision does not
// depend on it.
type Source struct {
	Door    Door
	PID     int    // 0 when unknown
	UID     int    // -1 when unknown
	Exe     string // "" when unknown
	TraceID string // of a W3C trace context, "" without one; see Trace
	SpanID  string // of the span that made the request, "" for none
}

// GateConfig configures a Gate. Every field but Credentials, Crossed and Persist is required.
type GateConfig struct {
	Engine      *Engine
	Ledger      *Ledger
	Recorder    Recorder
	Credentials CredentialSource // nil: rules with a credential are refused
	Now         func() time.Time // the wall clock
	Crossed     func(Crossing)   // called once when a limit is exceeded at a door; may be nil
	// Persist writes the ledger's [Ledger.Reserve] to disk and reports it to
	// [Ledger.MarkPersisted]. It is called before an access that uses more of a limit
	// than is on disk; if it fails, the access is refused. Nil persists nothing.
	Persist func() error
}

// Gate admits or refuses every access of every plugin at every door, so that the
// doors cannot diverge.
type Gate struct {
	cfg     GateConfig
	ids     idSource
	batch   BatchRecorder // the recorder if it writes several records at once, otherwise nil
	records sync.Pool     // of *accessRecords
}

// NewGate returns a gate. It starts nothing.
func NewGate(cfg GateConfig) (*Gate, error) {
	if cfg.Engine == nil || cfg.Ledger == nil || cfg.Recorder == nil || cfg.Now == nil {
		return nil, errors.New("make gate: engine, ledger, recorder and clock are required")
	}
	g := &Gate{cfg: cfg}
	g.batch, _ = cfg.Recorder.(BatchRecorder)
	return g, nil
}

// Admission is the outcome of Admit. The zero Admission is refused. The door that
// asked reads its fields; the methods are safe for concurrent use.
type Admission struct {
	ID        string    // the decision's id, a UUID of version 7
	Request   Request   // as decided; tls.originate may have changed it to https
	Source    Source    // its origin
	Decision  Decision  // the decision
	Injection Injection // the credential for the door to inject; zero without one
	Refusal   *Refusal  // set exactly when the decision denies

	gate       *Gate
	originated *Request // as the door asked it, if the rule changed it to https; otherwise nil
	started    time.Time
	session    string // of a statement: the decision's id of its session
	waited     bool   // for a limit, the disk or a credential, before its decision was final

	mu         sync.Mutex   // guards the fields below
	late       lateRefusal  // by Refuse
	resolved   []netip.Addr // by Resolved, for the record
	ended      bool
	connection Connection // that carries the access
	carried               // the credential's value, until the end of the access
}

// carried is the value of a credential that an access carries. [Admission.Renew]
// replaces it.
type carried struct {
	lease string // Vault's id, for the record
	uses  *Uses  // counts the access
	term  *Term  // the life of the value
}

// lateRefusal is the refusal of an access that had been admitted.
type lateRefusal struct {
	refused bool
	reason  Reason
	detail  string     // of RefuseMisplaced, for the record
	address netip.Addr // of RefuseAddress, for the record
}

// asked returns the request as the door asked it.
func (a *Admission) asked() Request {
	if a.originated != nil {
		return *a.originated
	}
	return a.Request
}

// releaseUses stops counting the access as a use of its credential. The caller
// holds mu, or is the only owner of the admission.
func (a *Admission) releaseUses() {
	a.uses.End()
	a.uses = nil
}

// Connection carries an admitted access to its upstream.
type Connection struct {
	// Address is the upstream's address, which [Decision.CheckAddress] granted, even
	// if a proxy is in between. It is invalid until it is known.
	Address netip.Addr
	// Meets reports whether the TLS session of the connection satisfies terms; nil
	// for a connection on which the sidecar does not speak TLS. It must be safe for
	// concurrent use.
	Meets func(terms Terms) bool
	// TLS is the version of that TLS session, as in [Terms].TLSMin; "" without one.
	TLS string
}

// check returns Granted if d, which allows the access, also allows the connection,
// otherwise the reason for which a new connection would be refused.
func (c Connection) check(d *Decision) Reason {
	if c.Address.IsValid() {
		if reason := d.CheckAddress(c.Address); reason != Granted {
			return reason
		}
	}
	if c.Meets != nil && !c.Meets(d.Terms()) {
		return UpstreamUnreachable
	}
	return Granted
}

// Connected sets the connection that carries the access, replacing an earlier
// one, and reports whether it may be used: the policy may have changed since the
// access was admitted or the connection was made. The door closes a connection that
// may not be used. From then on [Admission.StillAllowed] checks the connection too.
func (a *Admission) Connected(c Connection) bool {
	a.mu.Lock()
	a.connection = c
	a.mu.Unlock()
	if a.gate != nil && a.gate.cfg.Engine.Current().generation == a.Decision.Generation {
		return c.check(&a.Decision) == Granted
	}
	return a.StillAllowed()
}

// Admit decides, spends, fetches the credential and writes the audit record,
// in this order, and returns the outcome. If a limit on requests throttles, Admit
// first waits: until the limit has room, until ctx ends, or for at most 30
// seconds. The error is the cause of a refusal outside the policy (Vault, the
// audit file), for the operator's log; doors act on the Admission alone.
func (g *Gate) Admit(ctx context.Context, req Request, src Source) (*Admission, error) {
	a, snapshot, cause := g.admit(ctx, req, src)
	return a, g.recordDecision(a, snapshot, cause)
}

// recordDecision writes the record of a decision that has just been taken, and refuses the
// access if it cannot. It adds the error to cause.
func (g *Gate) recordDecision(a *Admission, snapshot *Snapshot, cause error) error {
	r := g.takeRecords()
	defer g.records.Put(r)
	a.decisionRecord(&r.decision)
	now := a.started
	if a.waited {
		now = g.cfg.Now()
	}
	if err := g.writeAt(now, a.started, r.pointers[:1]); err != nil {
		cause = errors.Join(cause, err)
		a.refuseUnrecorded(snapshot)
	}
	if a.Refusal != nil {
		a.releaseUses()
	}
	return cause
}

// AdmitAndEnd is Admit for a door that only answers, so that the access ends for
// it there. It calls finish for an allowed access; finish makes the answer, may
// still refuse, and returns the outcome. Decision and end are then written
// together, and finish must have no effect before: if they cannot be written,
// Refusal is set and the caller discards the answer.
func (g *Gate) AdmitAndEnd(ctx context.Context, req Request, src Source, finish func(*Admission) Outcome) (*Admission, error) {
	a, snapshot, cause := g.admit(ctx, req, src)
	r := g.takeRecords()
	defer g.records.Put(r)
	records := r.pointers[:1]
	a.decisionRecord(&r.decision)
	if a.Refusal == nil {
		a.ended = true
		outcome := finish(a)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.endRecord(&r.end, outcome)
		records = r.pointers[:]
	}
	if err := g.write(a.started, records); err != nil {
		cause = errors.Join(cause, err)
		a.refuseUnrecorded(snapshot)
	}
	if a.Refusal == nil && !a.late.refused {
		a.uses.MarkUntracked() // the data plane makes the access, and its end is not visible here
	}
	a.releaseUses()
	return a, cause
}

// admit decides, spends and fetches the credential. It returns the snapshot that
// decided, and the cause of a refusal outside the policy.
func (g *Gate) admit(ctx context.Context, req Request, src Source) (*Admission, *Snapshot, error) {
	now := g.cfg.Now()
	snapshot := g.cfg.Engine.Current()
	a := &Admission{ID: g.ids.next(now), Request: req, Source: src, gate: g, started: now}
	if a.Decision = g.decide(snapshot, req, now); a.Decision.throttled {
		a.waited = true
		snapshot = g.throttle(ctx, a)
	}
	a.originate()
	cause := g.persist(a)
	if a.Decision.Allowed() && a.Decision.Credential != "" {
		a.waited = true
		if cause = g.credential(ctx, a); cause == nil {
			snapshot, cause = a.revalidate(snapshot)
		}
	}
	if !a.Decision.Allowed() {
		a.Refusal = snapshot.refusal(req, a.Decision, a.ID, now)
	}
	return a, snapshot, cause
}

// originate changes the request to https if the winning rule speaks TLS for the plugin.
func (a *Admission) originate() {
	if rule := a.Decision.rule; rule != nil && a.Decision.Allowed() && rule.scheme != a.Request.Destination.scheme {
		asked := a.Request
		a.Request.Destination, a.originated = rule.destination(asked.Destination), &asked
	}
}

// Schemes is [Snapshot.Schemes] of the policy in force, for a door that must know
// how a host may be reached before it can build a Request.
func (g *Gate) Schemes(p Principal, to Destination) []Scheme {
	return g.cfg.Engine.Current().Schemes(p, to.host, to.port, g.cfg.Now())
}

// decide decides and spends. If a concurrent request used the last of a limit,
// decide decides again with the new usage. Usage only grows, so the loop ends:
// at the latest when the winner's limit and then the plugin's limit are used up.
func (g *Gate) decide(snapshot *Snapshot, req Request, now time.Time) Decision {
	usage := g.cfg.Ledger.Usage()
	var d Decision
	for range 3 {
		d = snapshot.Decide(req, usage, now)
		if d.limitExceeded {
			g.reportCrossings(d, now)
		}
		if !d.Allowed() {
			return d
		}
		own, shared := d.spends()
		if len(own)+len(shared) == 0 {
			return d
		}
		ok, exhausted := g.cfg.Ledger.spend(own, shared, LimitRequests, now)
		if exhausted {
			g.cfg.Engine.Bump()
		}
		if ok {
			return d
		}
	}
	d.Reason = QuotaExceeded
	return d
}

// persist writes the usage of limits by an access to disk, or refuses the access: a
// sidecar that is killed must not forget it.
func (g *Gate) persist(a *Admission) error {
	if g.cfg.Persist == nil || !a.Decision.Allowed() {
		return nil
	}
	own, shared := a.Decision.spends()
	if len(own)+len(shared) == 0 {
		return nil
	}
	now := g.cfg.Now()
	if g.cfg.Ledger.persisted(own, shared, now) {
		return nil
	}
	a.waited = true
	err := g.cfg.Persist()
	if err == nil {
		return nil
	}
	g.cfg.Ledger.refund(own, shared, now)
	a.Decision.Reason = UsageUnknown
	return fmt.Errorf("keep what is used of limits: %w", err)
}

// longestWait bounds how long Admit delays an access.
const longestWait = 30 * time.Second

// throttle delays an access until its limits allow it, and decides again after
// the delay or when the policy changes. An access that is then not made gets its
// tokens refunded. An access whose delay would exceed the deadline is refused at once.
func (g *Gate) throttle(ctx context.Context, a *Admission) *Snapshot {
	last := a.started.Add(longestWait)
	if end, ok := ctx.Deadline(); ok && end.Before(last) {
		last = end
	}
	for {
		now := g.cfg.Now()
		own, shared := a.Decision.spends()
		wait, ok, exhausted := g.cfg.Ledger.queue(own, shared, now, last.Sub(now))
		if exhausted {
			g.cfg.Engine.Bump()
		}
		if !ok {
			a.Decision.RetryAfter = max(a.Decision.RetryAfter, wait)
			return g.cfg.Engine.Current()
		}
		snapshot, d, ok := g.wait(ctx, a, wait)
		if !ok {
			g.cfg.Ledger.refund(own, shared, now)
			return snapshot
		}
		if d.Allowed() && a.Decision.ownLimitsExempt && d.rule == a.Decision.rule {
			d.observe()
			d.ownLimitsExempt = true
		}
		a.Decision = d
		ownNow, sharedNow := d.spends()
		if d.Allowed() && sameLimits(own, ownNow) && sameLimits(shared, sharedNow) {
			return snapshot
		}
		g.cfg.Ledger.refund(own, shared, now)
		if !d.Allowed() {
			return snapshot
		}
		// The policy has changed and grants the access under other limits.
		if a.Decision = g.decide(snapshot, a.asked(), g.cfg.Now()); !a.Decision.throttled {
			return snapshot
		}
	}
}

// wait waits and decides again, for a request that has been paid for. It returns
// early when the access is refused or another rule grants it, and reports false
// when ctx ends.
func (g *Gate) wait(ctx context.Context, a *Admission, wait time.Duration) (*Snapshot, Decision, bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for waited := false; ; {
		snapshot := g.cfg.Engine.Current()
		d := snapshot.Decide(a.asked(), g.cfg.Ledger.Usage().InFlight(), g.cfg.Now())
		if waited || !d.Allowed() || d.rule != a.Decision.rule {
			return snapshot, d, true
		}
		select {
		case <-ctx.Done():
			return snapshot, d, false
		case <-snapshot.Changed():
		case <-timer.C:
			waited = true
		}
	}
}

// sameLimits reports whether a and b are the same slice.
func sameLimits(a, b []limit) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// reportCrossings reports the limits on requests that have just refused an access. A
// limit of a rule or sidecar that only observes triggers no action.
func (g *Gate) reportCrossings(d Decision, now time.Time) {
	for _, c := range g.cfg.Ledger.newlyExceeded(d.rule.limits, d.plugin.limits, LimitRequests, now) {
		if d.Reason == Observed || c.Rule != "" && now.Before(d.rule.observeUntil) {
			c.Action = ""
		}
		if g.cfg.Crossed != nil {
			g.cfg.Crossed(c)
		}
	}
}

// revalidate refuses an access that was revoked while its credential was fetched,
// which may take seconds, and returns the snapshot that decided so. An access that is
// now granted with another credential is refused too; the plugin can repeat it.
func (a *Admission) revalidate(decided *Snapshot) (*Snapshot, error) {
	current := a.gate.cfg.Engine.Current()
	if current == decided {
		return current, nil
	}
	d := current.Decide(a.asked(), a.gate.cfg.Ledger.Usage().InFlight(), a.gate.cfg.Now())
	if d.Allowed() && a.sameCredential(&d) {
		return current, nil
	}
	a.Injection = Injection{}
	if !d.Allowed() {
		a.Decision = d
		return current, nil
	}
	a.Decision.Reason = CredentialUnavailable
	return current, errors.New("fetch credential: the policy changed in between")
}

// sameCredential reports whether d grants the access with the credential that it
// was admitted with, or whether it was admitted without one.
func (a *Admission) sameCredential(d *Decision) bool {
	matched := d.path != nil || d.rule != nil && d.rule.scheme.Database()
	return a.Decision.Credential == "" || matched && d.rule.credential != nil &&
		d.rule.credential.ref == a.Decision.rule.credential.ref
}

// credential fetches the winner's credential and renders it, or refuses.
func (g *Gate) credential(ctx context.Context, a *Admission) error {
	spec := a.Decision.rule.credential
	credential, err := g.lease(ctx, spec.ref)
	if err == nil && !credential.NotAfter.IsZero() && !g.cfg.Now().Before(credential.NotAfter) {
		err = errors.New("credential is past its end")
	}
	if err == nil {
		a.lease = credential.Lease
		a.Injection, err = spec.render(credential)
	}
	if err == nil {
		a.uses, a.term = credential.Uses, credential.Term
		a.uses.Begin()
		if spec.kind == InjectDatabase {
			a.uses.MarkSessions()
		}
		return nil
	}
	a.Decision.Reason, a.Injection = CredentialUnavailable, Injection{}
	var retry interface{ RetryAfter() time.Duration }
	if errors.As(err, &retry) {
		a.Decision.RetryAfter = retry.RetryAfter()
	}
	return fmt.Errorf("fetch credential %s of grant %s: %w", spec.ref.Name, spec.ref.Grant, err)
}

func (g *Gate) lease(ctx context.Context, ref CredentialRef) (Credential, error) {
	if g.cfg.Credentials == nil {
		return Credential{}, errors.New("no credential source")
	}
	return g.cfg.Credentials.Credential(ctx, ref)
}

// write writes records of an access that began at started; started is zero for
// an event without duration.
func (g *Gate) write(started time.Time, records []*Record) error {
	return g.writeAt(g.cfg.Now(), started, records)
}

// writeAt is write at a time that is known. An access that waited for nothing is
// recorded at the time at which it was decided.
func (g *Gate) writeAt(now, started time.Time, records []*Record) (err error) {
	for _, r := range records {
		if r.Time = now; !started.IsZero() {
			r.Latency = now.Sub(started)
		}
	}
	if g.batch != nil && len(records) > 1 {
		err = g.batch.RecordAll(records)
	} else {
		for _, r := range records {
			if err = g.cfg.Recorder.Record(r); err != nil {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("write audit record: %w", err)
	}
	return nil
}

// refuseUnrecorded refuses an allowed access that could not be recorded.
func (a *Admission) refuseUnrecorded(snapshot *Snapshot) {
	if !a.Decision.Allowed() {
		return
	}
	a.Decision.Reason, a.Injection = AuditUnavailable, Injection{}
	a.Refusal = snapshot.refusal(a.asked(), a.Decision, a.ID, a.started)
}

// accessRecords has the records of one access. Recorders do not keep records, so they
// are used again.
type accessRecords struct {
	decision, end Record
	pointers      [2]*Record // to them
}

func (g *Gate) takeRecords() *accessRecords {
	r, ok := g.records.Get().(*accessRecords)
	if !ok {
		r = &accessRecords{}
		r.pointers = [...]*Record{&r.decision, &r.end}
	}
	return r
}

// decisionRecord makes r the record of the decision.
func (a *Admission) decisionRecord(r *Record) {
	facts := a.Request.Facts.All()
	a.decisionRecordOf(r, facts, a.Decision.rule.patterns(facts))
}

// decisionRecordOf is decisionRecord with the texts of facts and their patterns.
func (a *Admission) decisionRecordOf(r *Record, facts, patterns []string) {
	d, dest := &a.Decision, &a.Request.Destination
	*r = Record{}
	r.Kind, r.Plugin, r.Door, r.Decision = KindDecision, string(a.Request.Principal), a.Source.Door, a.ID
	r.Allowed, r.Reason, r.Generation = d.Allowed(), d.Reason.String(), d.Generation
	r.Grant, r.Rule, r.Credential, r.Lease = d.Grant, d.Rule, d.Credential, a.lease
	r.Method, r.Scheme, r.Host, r.Port = a.Request.Action.Method, string(dest.scheme), dest.host, dest.port
	r.Path, r.Query = dest.path, dest.query
	r.PID, r.UID, r.Exe = a.Source.PID, a.Source.UID, a.Source.Exe
	r.TraceID, r.SpanID = a.Source.TraceID, a.Source.SpanID
	r.Upgrade, r.Unenforceable, r.DecidedBy = a.Request.Action.Upgrade, a.Request.Unenforceable, d.decidedBy()
	r.Session = a.session
	r.Protocol, r.Facts, r.Patterns = string(a.Request.Facts.Protocol()), facts, patterns
	if a.originated != nil {
		r.AskedScheme, r.AskedPort = string(a.originated.Destination.scheme), a.originated.Destination.port
	}
	switch {
	case d.path != nil:
		r.Pattern = d.path.text
	case a.Refusal != nil:
		r.Pattern = a.Refusal.pattern
	}
}

// decidedBy returns the state beside the policy that decided, if the reason does not
// show it.
func (d *Decision) decidedBy() StateKind {
	switch {
	case d.Reason == Observed && d.limitExceeded:
		return StateLimits
	case d.observerRevoked && d.Reason != Revoked:
		return StateRevocation
	}
	return ""
}

// maxResolved is how many addresses of a name are recorded at most. Of a name with
// more none are, since a part of them does not show how the access was decided.
const maxResolved = 16

// Resolved sets the addresses that the destination's name resolved to, for the record of
// the access's end. The caller must not change them afterwards.
func (a *Admission) Resolved(addresses []netip.Addr) {
	if len(addresses) > maxResolved {
		addresses = nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resolved = addresses
}

// Outcome is the outcome of an admitted access.
type Outcome struct {
	Address   string // the address dialled, "" without one
	SentBytes int64  // body bytes towards the upstream
	Bytes     int64  // body bytes towards the plugin
	Detail    string // one line of text: why it ended early; never a secret
	Rows      int64  // of a statement, as the server reported; 0 if it did not
	Statement string // its text with constants replaced; "" if it is unknown
}

// Refuse turns an admitted access into a refusal for a reason that became known
// later: the resolved address, the upstream. The record that End writes carries
// it. A reason that allows is treated as [NotReady]; detail replaces the refusal's
// text unless it is "".
func (a *Admission) Refuse(reason Reason, detail string) Refusal {
	return a.refuseLate(reason, detail, netip.Addr{})
}

// RefuseAddress is Refuse for an address that [Decision.CheckAddress] refused. The
// refusal names the address and the change to ask for.
func (a *Admission) RefuseAddress(addr netip.Addr) Refusal {
	return a.refuseLate(a.Decision.CheckAddress(addr), "", addr)
}

// RefuseMisplaced is Refuse for the placeholder of a credential that the plugin
// sent outside the credential's slot. The refusal and the record name the
// credential and its slot, and never contain the placeholder.
func (a *Admission) RefuseMisplaced(grant, credential string) Refusal {
	refusal := a.refuseLate(CredentialMisplaced, "", netip.Addr{})
	snapshot := &Snapshot{}
	if a.gate != nil {
		snapshot = a.gate.cfg.Engine.Current()
	}
	refusal.Detail, refusal.Remedy = snapshot.misplacedPlaceholder(a.Request.Principal, a.Decision, grant, credential)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.late.detail = refusal.Detail
	return refusal
}

func (a *Admission) refuseLate(reason Reason, detail string, addr netip.Addr) Refusal {
	if reason.Allowed() {
		reason = NotReady
	}
	snapshot, d := &Snapshot{}, a.Decision
	if a.gate != nil {
		snapshot = a.gate.cfg.Engine.Current()
	}
	d.Reason, d.address = reason, addr
	refusal := snapshot.refusal(a.asked(), d, a.ID, a.started)
	if detail != "" {
		refusal.Detail = detail
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.late.refused, a.late.reason = true, reason
	if addr.IsValid() {
		a.late.address = addr.Unmap()
	}
	return *refusal
}

// End writes the end record of an access whose decision was recorded. Calling it
// again has no effect. Its error is for the operator's log: the access has
// already been made.
func (a *Admission) End(o Outcome) error {
	if a.gate == nil {
		return errors.New("end access: it was not admitted by a gate")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return nil
	}
	a.ended = true
	a.releaseUses()
	r := a.gate.takeRecords()
	defer a.gate.records.Put(r)
	a.endRecord(&r.end, o)
	return a.gate.write(a.started, r.pointers[1:])
}

// endRecord makes r the record of the access's end. The caller holds mu.
func (a *Admission) endRecord(r *Record, o Outcome) {
	a.decisionRecordOf(r, nil, nil) // its facts are in the decision's record
	r.Kind, r.Address, r.SentBytes, r.Bytes, r.Detail = KindEnd, o.Address, o.SentBytes, o.Bytes, cmp.Or(o.Detail, a.late.detail)
	r.Resolved, r.Rows, r.Statement = a.resolved, o.Rows, o.Statement
	if a.late.refused {
		r.Allowed, r.Reason = false, a.late.reason.String()
	}
	at := cmp.Or(a.connection.Address, a.Request.Destination.Address())
	if r.Address == "" && a.late.address.IsValid() {
		r.Address, at = a.late.address.String(), a.late.address
	}
	r.Region, r.TLS = a.Decision.Region(at), a.connection.TLS
	if r.Region == "" && !at.IsValid() && r.Allowed && a.Source.Door == DoorExtAuthz {
		r.Region = a.Decision.onlyRegion() // the exit of the Envoy keeps it: the decision demands that
	}
}

// StillAllowed decides the admitted access again, as a request in flight, together
// with the connection that carries it. Doors call it when the generation has changed,
// and cut accesses for which it reports false. An access that carries a credential
// also ends when the rule that wins now would inject a different one.
func (a *Admission) StillAllowed() bool {
	if a.gate == nil || !a.Decision.Allowed() || a.refusedLate() {
		return false
	}
	snapshot := a.gate.cfg.Engine.Current()
	d := snapshot.Decide(a.asked(), a.gate.cfg.Ledger.Usage().InFlight(), a.gate.cfg.Now())
	if !d.Allowed() {
		return !d.Cuts()
	}
	return a.observedWithin(&d) || a.sameCredential(&d) && a.connected().check(&d) == Granted
}

// observedWithin reports whether d only observes a statement of a session. It has no terms
// of its own: its credential and its connection are the session's, which is decided itself.
func (a *Admission) observedWithin(d *Decision) bool { return a.session != "" && d.Reason == Observed }

// ReasonNow returns why the admitted access is no longer allowed, for the answer
// to an access that was cut. It is QuotaExceeded if nothing else denies the access.
func (a *Admission) ReasonNow() Reason {
	if a.gate == nil {
		return NotReady
	}
	d := a.gate.cfg.Engine.Current().Decide(a.Request, Usage{}, a.gate.cfg.Now())
	if !d.Allowed() {
		return d.Reason
	}
	if reason := a.connected().check(&d); reason != Granted && !a.observedWithin(&d) {
		return reason
	}
	return QuotaExceeded
}

func (a *Admission) connected() Connection {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.connection
}

func (a *Admission) refusedLate() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.late.refused
}

// Attempt describes an access that did not become a Request.
type Attempt struct {
	Principal Principal
	Method    string
	URL       string // as sent; clipped and cleaned before it is kept
	Scheme    Scheme // if the URL does not state it and it is known
	Host      string // the destination, if the URL does not state it
	HostOnly  bool   // only the host is known, as for a DNS query; URL is a guess
	Connect   bool   // a CONNECT: the record has it as the method, the refusal has no method
	Detail    string // one line of text: what is wrong
}

// destination returns what is known of the attempt's destination, in canonical
// spelling if possible.
func (a *Attempt) destination() (scheme Scheme, host string, port uint16) {
	prefix, rest, ok := strings.Cut(redactURL(a.URL), "://")
	if scheme = Scheme(strings.ToLower(prefix)); !ok {
		scheme, rest = a.Scheme, strings.TrimPrefix(prefix, "//")
	}
	if !scheme.HTTP() && scheme != SchemeTLS && scheme != SchemeTCP {
		scheme = a.Scheme
	}
	authority := rest
	if i := strings.IndexAny(rest, `/\`); i >= 0 {
		authority = rest[:i]
	}
	switch {
	case a.HostOnly:
		return "", clip(a.Host), 0
	case a.Host != "" && authority == "":
		return scheme, clip(a.Host), 0
	}
	host, port, _, err := parseAuthority(authority)
	if err != nil {
		return scheme, clip(a.Host), 0
	}
	if port == 0 {
		port = scheme.DefaultPort()
	}
	return scheme, host, port
}

// Refuse refuses an access before it is a Request: a malformed or contradictory
// request, or a caller that is not identified. It records the refusal like any
// other. A reason that allows is treated as [NotReady]. The error is for the
// operator's log.
func (g *Gate) Refuse(reason Reason, attempt Attempt, src Source) (Refusal, error) {
	if reason.Allowed() {
		reason = NotReady
	}
	id := g.ids.next(g.cfg.Now())
	refusal := Refusal{
		Reason: reason, Detail: attempt.Detail, Plugin: string(attempt.Principal), Decision: id,
		Method: clip(attempt.Method), URL: attempt.displayURL(), Remedy: remedyFor(reason),
	}
	scheme, host, port := attempt.destination()
	method := refusal.Method
	if attempt.Connect {
		method = "CONNECT"
	}
	return refusal, g.write(time.Time{}, []*Record{{
		Kind: KindDecision, Attempt: true, Plugin: refusal.Plugin, Door: src.Door, Decision: id,
		Reason: reason.String(), Generation: g.cfg.Engine.Current().generation,
		Method: method, Scheme: string(scheme), Host: host, Port: port,
		PID: src.PID, UID: src.UID, Exe: src.Exe, TraceID: src.TraceID, SpanID: src.SpanID, Detail: attempt.Detail,
	}})
}

// displayURL returns the URL for a refusal, with its scheme if that is known, also
// for a request that states its host in the Host header.
func (a *Attempt) displayURL() string {
	url := a.URL
	if a.Scheme != "" && strings.HasPrefix(url, "//") {
		url = string(a.Scheme) + ":" + url
	}
	return clip(redactURL(url))
}

// redactURL returns a URL without the parts that carry secrets: user information
// and query.
func redactURL(url string) string {
	url, _, _ = strings.Cut(url, "?")
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		scheme, rest = "", strings.TrimPrefix(url, "//")
	}
	end := strings.IndexAny(rest, `/\`)
	if end < 0 {
		end = len(rest)
	}
	if i := strings.LastIndexByte(rest[:end], '@'); i >= 0 {
		rest = rest[i+1:]
	}
	if !ok {
		return rest
	}
	return scheme + "://" + rest
}

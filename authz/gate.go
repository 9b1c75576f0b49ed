package authz

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// CredentialRef names a credential that a rule in force needs.
type CredentialRef struct {
	Plugin   string
	Grant    string
	Name     string
	Path     string        // as vault read takes it
	Lifetime time.Duration // the longest a lease may be kept in use; 0 for no ceiling
}

// Credential is a current credential. Its fields are secret.
type Credential struct {
	// Fields are those of Vault's answer, by name.
	Fields map[string]Secret
	// Generation grows each time the credential's value is replaced.
	Generation uint64
	// Lease is Vault's lease id, "" when the credential has none.
	Lease string
	// NotAfter is when the value stops being valid: the earlier of its lease's
	// and its token's end. Zero when it does not end.
	NotAfter time.Time
}

// CredentialSource leases credentials. Credential MUST return one that is
// valid now and MUST NOT return one past its NotAfter; it MUST respect ctx; it
// MUST be safe for concurrent use. Its error denies the request, and MUST NOT
// hold a secret. An error with a method RetryAfter() time.Duration tells the
// plugin when to try again.
type CredentialSource interface {
	Credential(ctx context.Context, ref CredentialRef) (Credential, error)
}

// Source says where a request came from, for the audit log and not for the
// decision.
type Source struct {
	Door    Door
	PID     int    // 0 when unknown
	UID     int    // -1 when unknown
	Exe     string // "" when unknown
	TraceID string // of a W3C trace context, "" for none
}

// GateConfig is what a Gate is made of. Every field but Credentials is required.
type GateConfig struct {
	Engine      *Engine
	Ledger      *Ledger
	Recorder    Recorder
	Credentials CredentialSource // nil: rules with a credential are refused
	Now         func() time.Time // the wall clock
	Crossed     func(Crossing)   // called once when a limit is crossed at a door; nil for nothing
}

// Gate is the only door: every access of every plugin through every door is
// admitted or refused by Admit, so that the doors cannot drift apart.
type Gate struct {
	cfg GateConfig
	ids idSource
}

// NewGate returns a gate. It starts nothing.
func NewGate(cfg GateConfig) (*Gate, error) {
	if cfg.Engine == nil || cfg.Ledger == nil || cfg.Recorder == nil || cfg.Now == nil {
		return nil, errors.New("make gate: engine, ledger, recorder and clock are required")
	}
	return &Gate{cfg: cfg}, nil
}

// Admission is the outcome of Admit. The zero Admission is refused.
type Admission struct {
	ID        string    // the decision's id, a UUID of version 7
	Request   Request   // as it was decided; originate may have made it https
	Source    Source    //
	Decision  Decision  //
	Injection Injection // what the door puts into the request; zero for none
	Refusal   *Refusal  // set exactly when the decision denies

	gate    *Gate
	started time.Time
	record  Record
}

// Admit decides, spends, fetches the credential and writes the audit record,
// and returns what came of it. query is the request's query without "?", for
// the audit log. The error explains a refusal that has a cause outside the
// policy (Vault, the audit file), for the operator's log; doors act on the
// Admission alone.
func (g *Gate) Admit(ctx context.Context, req Request, src Source) (*Admission, error) {
	now := g.cfg.Now()
	snapshot := g.cfg.Engine.Current()
	req = snapshot.originate(req, now)
	a := &Admission{ID: g.ids.next(now), Request: req, Source: src, gate: g, started: now}
	usage := g.cfg.Ledger.Usage()
	a.Decision = snapshot.Decide(req, usage, now)
	if a.Decision.Allowed() {
		a.Decision = g.spend(a.Decision, now)
	}
	var cause error
	if a.Decision.Allowed() && a.Decision.Credential != "" {
		cause = g.credential(ctx, a)
	}
	if !a.Decision.Allowed() {
		refusal := snapshot.refusal(req, a.Decision, a.ID, usage, now)
		a.Refusal = &refusal
	}
	a.fillRecord()
	if err := g.write(a, KindDecision); err != nil {
		cause = errors.Join(cause, err)
	}
	return a, cause
}

// spend takes one request from the winner's limits, or turns the decision into
// the refusal that a concurrent request has just caused.
func (g *Gate) spend(d Decision, now time.Time) Decision {
	limits := d.limits()
	if len(limits) == 0 {
		return d
	}
	over, exhausted := g.cfg.Ledger.spend(limits, LimitRequests, 1, now)
	if exhausted {
		g.cfg.Engine.Bump()
	}
	if over == nil {
		return d
	}
	g.crossed(over)
	if d.observes(now) {
		return d.observed()
	}
	d.Reason, d.RetryAfter, d.spares = QuotaExceeded, over.retryAfter, over.limit.spec.Period > 0
	return d
}

func (g *Gate) crossed(over *exceeded) {
	if over.crossing && g.cfg.Crossed != nil {
		g.cfg.Crossed(over.limit.crossing())
	}
}

func (g *Gate) credential(ctx context.Context, a *Admission) error {
	spec := a.Decision.rule.credential
	err := errors.New("no credential source")
	var credential Credential
	if g.cfg.Credentials != nil {
		credential, err = g.cfg.Credentials.Credential(ctx, spec.ref)
	}
	if err == nil && !credential.NotAfter.IsZero() && !g.cfg.Now().Before(credential.NotAfter) {
		err = errors.New("credential is past its end")
	}
	if err == nil {
		a.record.Lease = credential.Lease
		a.Injection, err = spec.render(credential)
	}
	if err == nil {
		return nil
	}
	a.Decision.Reason, a.Injection = CredentialUnavailable, Injection{}
	var retry interface{ RetryAfter() time.Duration }
	if errors.As(err, &retry) {
		a.Decision.RetryAfter = retry.RetryAfter()
	}
	return fmt.Errorf("fetch credential %s of grant %s: %w", spec.ref.Name, spec.ref.Grant, err)
}

// write records the admission. What cannot be recorded is refused.
func (g *Gate) write(a *Admission, kind Kind) error {
	a.record.Kind, a.record.Time = kind, g.cfg.Now()
	err := g.cfg.Recorder.Record(&a.record)
	if err == nil {
		return nil
	}
	if kind == KindDecision && a.Decision.Allowed() {
		a.Decision.Reason, a.Injection = AuditUnavailable, Injection{}
		refusal := g.cfg.Engine.Current().refusal(a.Request, a.Decision, a.ID, Usage{}, a.started)
		a.Refusal = &refusal
	}
	return fmt.Errorf("write audit record: %w", err)
}

func (a *Admission) fillRecord() {
	d, dest, r := a.Decision, a.Request.Destination, &a.record
	r.Plugin, r.Door, r.Decision = string(a.Request.Principal), a.Source.Door, a.ID
	r.Allowed, r.Reason, r.Generation = d.Allowed(), d.Reason.String(), d.Generation
	r.Grant, r.Rule, r.Credential = d.Grant, d.Rule, d.Credential
	r.Method, r.Scheme, r.Host, r.Port = a.Request.Action.Method, string(dest.scheme), dest.host, dest.port
	r.Path, r.Query = dest.path, dest.query
	r.PID, r.UID, r.Exe, r.TraceID = a.Source.PID, a.Source.UID, a.Source.Exe, a.Source.TraceID
	r.Pattern = d.pattern()
	if a.Refusal != nil {
		r.Pattern = a.Refusal.pattern
	}
}

// Outcome is what became of an admitted access.
type Outcome struct {
	Address   string // the address dialled, "" for none
	SentBytes int64  // body bytes towards the upstream
	Bytes     int64  // body bytes towards the plugin
	Detail    string // one line in words: why it ended early; never a secret
}

// Refuse turns an admitted access into a refusal for a reason that showed
// itself later: the resolved address, the upstream. The record written by End
// carries it.
func (a *Admission) Refuse(reason Reason, detail string) Refusal {
	a.Decision.Reason = reason
	refusal := a.gate.cfg.Engine.Current().refusal(a.Request, a.Decision, a.ID, Usage{}, a.started)
	if detail != "" {
		refusal.Detail = detail
	}
	a.Refusal = &refusal
	a.record.Allowed, a.record.Reason = false, reason.String()
	return refusal
}

// End writes the end record of an access whose decision was recorded. Its
// error is for the operator's log: the effect has been had.
func (a *Admission) End(o Outcome) error {
	r := &a.record
	r.Address, r.SentBytes, r.Bytes, r.Detail = o.Address, o.SentBytes, o.Bytes, o.Detail
	r.Latency = a.gate.cfg.Now().Sub(a.started)
	return a.gate.write(a, KindEnd)
}

// StillAllowed decides the admitted access anew, as a request in flight. Doors
// ask it when the generation has changed, and cut what it reports false for.
func (a *Admission) StillAllowed() bool {
	s := a.gate.cfg.Engine.Current()
	return !s.Decide(a.Request, a.gate.cfg.Ledger.Usage().InFlight(), a.gate.cfg.Now()).Cuts()
}

// Attempt describes an access that never became a Request.
type Attempt struct {
	Principal Principal
	Method    string
	URL       string // as it was sent; clipped and cleaned before it is kept
	Detail    string // what is wrong, in words
}

// Refuse refuses an access before it is a Request: what is malformed, what
// disagrees with itself, whose caller is not proved. The refusal is recorded
// as every other. The error is for the operator's log.
func (g *Gate) Refuse(reason Reason, attempt Attempt, src Source) (Refusal, error) {
	now := g.cfg.Now()
	id := g.ids.next(now)
	refusal := Refusal{
		Reason: reason, Detail: attempt.Detail, Plugin: string(attempt.Principal), Decision: id,
		Method: clip(attempt.Method), URL: clip(attempt.URL), Remedy: remedyFor(reason),
	}
	err := g.cfg.Recorder.Record(&Record{
		Time: now, Kind: KindDecision, Plugin: refusal.Plugin, Door: src.Door, Decision: id,
		Reason: reason.String(), Generation: g.cfg.Engine.Current().generation, Method: refusal.Method,
		PID: src.PID, UID: src.UID, Exe: src.Exe, TraceID: src.TraceID, Detail: attempt.Detail,
	})
	if err != nil {
		err = fmt.Errorf("write audit record: %w", err)
	}
	return refusal, err
}

// Connect spends one connection of the plugin's limits and returns the reason
// for refusing it, or Granted. Doors call it once for each TCP connection of
// the plugin.
func (g *Gate) Connect(principal Principal) (Reason, time.Duration) {
	now := g.cfg.Now()
	snapshot := g.cfg.Engine.Current()
	limits := snapshot.pluginLimits(principal)
	if len(limits) == 0 {
		return Granted, 0
	}
	over, exhausted := g.cfg.Ledger.spend(limits, LimitConnections, 1, now)
	if exhausted {
		g.cfg.Engine.Bump()
	}
	if over == nil {
		return Granted, 0
	}
	g.crossed(over)
	return QuotaExceeded, over.retryAfter
}

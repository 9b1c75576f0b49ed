package authz

// RecordAnswer records an answer that a data plane gave by itself. An answer before
// any decision (decision is "") is recorded like [Gate.Refuse]. An answer after a
// decision that allowed the access is recorded as a further end of it, with the
// answer's reason. It returns the resulting refusal. The error is for the operator's log.
func (g *Gate) RecordAnswer(decision string, reason Reason, attempt Attempt, src Source) (Refusal, error) {
	if decision == "" {
		return g.Refuse(reason, attempt, src)
	}
	if reason.Allowed() {
		reason = NotReady
	}
	refusal := Refusal{
		Reason: reason, Detail: attempt.Detail, Plugin: string(attempt.Principal), Decision: clip(decision),
		Method: clip(attempt.Method), URL: attempt.displayURL(), Remedy: remedyFor(reason),
	}
	scheme, host, port := attempt.destination()
	method := refusal.Method
	if attempt.Connect {
		method = "CONNECT"
	}
	return refusal, g.write(g.cfg.Now(), []*Record{{
		Kind: KindEnd, Plugin: refusal.Plugin, Door: src.Door, Decision: refusal.Decision,
		Reason: reason.String(), Generation: g.cfg.Engine.Current().generation,
		Method: method, Scheme: string(scheme), Host: host, Port: port,
		PID: src.PID, UID: src.UID, Exe: src.Exe, TraceID: src.TraceID, SpanID: src.SpanID, Detail: attempt.Detail,
	}})
}

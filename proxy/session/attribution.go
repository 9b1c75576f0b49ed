package session

import "sync"

// Attribution reports which rule the bytes on a plugin's socket are for. A nil
// attribution reports nothing.
type Attribution struct {
	cookie uint64
	report func(cookie uint64, grant, rule string)

	mu          sync.Mutex // held during a report, so that the last one is the latest
	running     int        // accesses that have begun and not ended
	grant, rule string     // of the last report; empty before the first, as the kernel has it
}

// NewAttribution returns the attribution of a peer's socket; nil where report is nil
// or the socket is not known (cookie 0).
func NewAttribution(cookie uint64, report func(cookie uint64, grant, rule string)) *Attribution {
	if report == nil || cookie == 0 {
		return nil
	}
	return &Attribution{cookie: cookie, report: report}
}

// Begin attributes the socket to the rule of an access that begins.
func (a *Attribution) Begin(grant, rule string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running++
	a.set(grant, rule)
}

// set reports a rule unless it was the last one reported: many accesses in turn on one
// socket have the same one, and a report is a system call. The caller holds mu.
func (a *Attribution) set(grant, rule string) {
	if a.grant != grant || a.rule != rule {
		a.grant, a.rule = grant, rule
		a.report(a.cookie, grant, rule)
	}
}

// Change attributes the socket to the rule of a part of an access that has begun, as of a
// statement in a session.
func (a *Attribution) Change(grant, rule string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.set(grant, rule)
}

// End ends an access. The rule stays: bytes that are still on their way belong to it,
// and so, most likely, does the head of the next request.
func (a *Attribution) End() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
}

// Refused attributes the socket to no rule, unless another access still runs.
func (a *Attribution) Refused() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running == 0 {
		a.set("", "")
	}
}

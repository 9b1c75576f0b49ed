package vault

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
)

// The states of a credential.
const (
	StateActive      = "active"      // may be used
	StateFailing     = "failing"     // may be used, but was not renewed when it was due
	StateUnavailable = "unavailable" // not available now
	StateIdle        = "idle"        // not fetched, since nothing asks for it
	StateRevoking    = "revoking"    // being revoked, not yet confirmed by Vault
	StateReplaced    = "replaced"    // kept for the accesses that carry it
)

// LeaseStatus is the state of one credential.
type LeaseStatus struct {
	Grant, Credential, Path string
	State                   string
	Lease                   string // masked; "" for a value without a lease
	Generation              uint64
	NotAfter                time.Time // zero when it does not end, or is not held
	Err                     string    // why it is failing or unavailable

	served *servedNow // until it was rendered
}

// Status is the state of a broker. It holds no secret.
type Status struct {
	LoggedIn     bool
	Method       Method
	TokenExpires time.Time // zero when it does not end, or without a token
	LoginErr     string    // why it is not logged in, or not for longer
	Leases       []LeaseStatus
	States       map[string]int    // leases by state, all states
	Errors       map[string]uint64 // failed requests by code, since the start
	LastErr      string
	LastErrAt    time.Time
	Unconfirmed  int    // leases that Vault has not yet confirmed to be revoked
	StateErr     string // why the state file cannot be written
}

// Status returns the state of the broker.
func (b *Broker) Status() Status {
	s := b.status(b.clock.now())
	for i := range s.Leases {
		l := &s.Leases[i]
		if l.served != nil && b.cfg.Renders != nil {
			if err := b.cfg.Renders(l.served.ref, l.served.credential); err != nil {
				l.State, l.Err = StateUnavailable, err.Error()
			}
		}
		l.served = nil
		s.States[l.State]++
	}
	return s
}

// servedNow is a credential that may be used.
type servedNow struct {
	ref        authz.CredentialRef
	credential authz.Credential
}

// status returns the state of the broker, but for how many leases are in which.
func (b *Broker) status(now dualTime) Status {
	s := Status{
		Method: b.cfg.Auth.Method,
		States: map[string]int{StateActive: 0, StateFailing: 0, StateUnavailable: 0, StateIdle: 0, StateRevoking: 0, StateReplaced: 0},
		Leases: b.leases.statuses(now), StateErr: text(b.store.failure()),
	}
	s.LoggedIn, s.TokenExpires, s.LoginErr = b.login.status(now)
	s.States[StateRevoking], s.States[StateReplaced] = b.revocations.states(now)
	s.Unconfirmed = s.States[StateRevoking]
	s.Errors, s.LastErr, s.LastErrAt = b.errors.status()
	return s
}

// status returns whether a token is in force, when it ends, and why the last login or
// renewal failed.
func (a *authenticator) status(now dualTime) (loggedIn bool, ends time.Time, loginErr string) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if loggedIn = a.session.usable(now); loggedIn {
		ends = a.session.end().time()
	}
	return loggedIn, ends, text(a.loginErr)
}

// statuses returns the states of the credentials, by grant and name.
func (m *leaseManager) statuses(now dualTime) []LeaseStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []LeaseStatus
	for _, e := range m.entries {
		all = append(all, e.status(now))
	}
	sortlarge.By(all, func(x, y *LeaseStatus) int {
		return strings.Compare(x.Grant+"/"+x.Credential, y.Grant+"/"+y.Credential)
	})
	return all
}

func (e *entry) status(now dualTime) LeaseStatus {
	s := LeaseStatus{Grant: e.ref.Grant, Credential: e.ref.Name, Path: e.ref.Path, Err: text(e.err)}
	usable := e.lease.usable(now)
	switch {
	case usable && e.err == nil:
		s.State = StateActive
	case usable:
		s.State = StateFailing
	case e.err != nil:
		s.State = StateUnavailable
	default:
		s.State = StateIdle
	}
	if usable {
		s.served = &servedNow{e.ref, e.lease.credential()}
		s.Generation, s.NotAfter = e.lease.generation, e.lease.usableUntil().time()
		if e.lease.id != "" {
			s.Lease = mask(e.lease.id)
		}
	}
	return s
}

func text(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, context.Canceled) {
		return "given up"
	}
	return err.Error()
}

// requestErrors counts the failed requests to Vault.
type requestErrors struct {
	now func() time.Time

	mu     sync.Mutex
	byCode map[string]uint64
	last   string
	lastAt time.Time
}

func newRequestErrors(now func() time.Time) *requestErrors {
	return &requestErrors{now: now, byCode: make(map[string]uint64)}
}

// count counts a failed request, unless the caller has ended it, as at the sidecar's end.
func (r *requestErrors) count(e *Error) {
	if e.givenUp {
		return
	}
	text := e.Error()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byCode[e.Code]++
	r.last, r.lastAt = text, r.now()
}

// note keeps an error as the last one, without counting it.
func (r *requestErrors) note(err error) {
	if e := (*Error)(nil); errors.As(err, &e) && e.givenUp {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.lastAt = err.Error(), r.now()
}

// unusable counts and returns the error of an answer that cannot be used.
func (r *requestErrors) unusable(op string, err error) error {
	e := &Error{Op: op, Code: "answer", Status: http.StatusOK, Reasons: []string{err.Error()}}
	r.count(e)
	return e
}

func (r *requestErrors) status() (byCode map[string]uint64, last string, lastAt time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.byCode), r.last, r.lastAt
}

package accesslog

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// maxOpen bounds the accesses whose end was not read yet. It is above what a sidecar
// holds open at once.
const maxOpen = 16 << 10

// joiner joins the two records of each access.
type joiner struct {
	r     *Reader
	yield func(*Access, error) bool
	open  map[string]*Access
	order []string // the ids in open, oldest first; those that have ended are left in it
}

// readLog reads one log: its two chains in the order of their times.
func (r *Reader) readLog(ctx context.Context, l *logFiles, yield func(*Access, error) bool) (err error) {
	j := joiner{r: r, yield: yield, open: map[string]*Access{}}
	var chains []*cursor
	for _, files := range [][]logFile{l.first, l.second} {
		c := &cursor{log: l.name, files: files, stdin: r.options.Stdin}
		defer func() { err = errors.Join(err, c.close()) }()
		switch nerr := c.next(); {
		case nerr == nil:
			chains = append(chains, c)
		case !errors.Is(nerr, io.EOF):
			return nerr
		}
	}
	for len(chains) > 0 {
		if r.records++; r.records%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		at := 0
		if len(chains) > 1 && chains[1].entry.Time.Before(chains[0].entry.Time) {
			at = 1
		}
		c := chains[at]
		if err := j.take(&c.entry, c.place); err != nil {
			return err
		}
		switch nerr := c.next(); {
		case errors.Is(nerr, io.EOF):
			chains = append(chains[:at:at], chains[at+1:]...)
		case nerr != nil:
			return nerr
		}
	}
	return j.rest()
}

// take takes one record.
func (j *joiner) take(e *audit.Entry, p Place) error {
	switch authz.Kind(e.Kind) {
	case authz.KindDecision:
		return j.decision(e, p)
	case authz.KindEnd:
		return j.end(e)
	default:
		if j.r.options.Event != nil {
			return j.r.options.Event(&Event{*e, p})
		}
		return nil
	}
}

func (j *joiner) decision(e *audit.Entry, p Place) error {
	a := access(e, p)
	if !j.chosen(a) {
		return nil
	}
	if !a.Allowed {
		return j.emit(a)
	}
	if len(j.open) >= maxOpen {
		if err := j.oldest(); err != nil {
			return err
		}
	}
	if len(j.order) >= 2*maxOpen {
		j.order = slices.DeleteFunc(j.order, func(id string) bool { return j.open[id] == nil })
	}
	j.open[a.Decision], j.order = a, append(j.order, a.Decision)
	return nil
}

// chosen reports whether the options ask for the access.
func (j *joiner) chosen(a *Access) bool {
	o := &j.r.options
	return (o.Plugin == "" || a.Plugin == o.Plugin) && !a.Time.Before(o.Since) && (o.Until.IsZero() || a.Time.Before(o.Until))
}

// end joins the end of an access. The end of an access that was not chosen, or whose
// decision stands before the first record, is left out; so is a further end, which a data
// plane reports of an answer after the access.
func (j *joiner) end(e *audit.Entry) error {
	a := j.open[e.Decision]
	if a == nil {
		return nil
	}
	delete(j.open, e.Decision)
	a.Ended, a.SentBytes, a.Bytes, a.Address = true, e.SentBytes, e.Bytes, e.Address
	if e.Allowed != nil && !*e.Allowed {
		a.Allowed, a.Reason = false, e.Reason
		switch e.Reason {
		case authz.AddressNotAllowed.String(), authz.GuardrailDenied.String():
		default:
			a.NotReplayable = InternalReason
		}
	}
	return j.emit(a)
}

// oldest emits the access that has been open for longest.
func (j *joiner) oldest() error {
	for len(j.order) > 0 {
		id := j.order[0]
		j.order = j.order[1:]
		if a := j.open[id]; a != nil {
			delete(j.open, id)
			return j.emit(a)
		}
	}
	return nil
}

// rest emits the accesses whose end the log does not have.
func (j *joiner) rest() error {
	for len(j.order) > 0 {
		if err := j.oldest(); err != nil {
			return err
		}
	}
	return nil
}

func (j *joiner) emit(a *Access) error {
	if !j.yield(a, nil) {
		return errStopped
	}
	return nil
}

// access returns the access of a decision's record.
func access(e *audit.Entry, p Place) *Access {
	a := &Access{
		Time: e.Time.Add(-time.Duration(e.LatencyUS) * time.Microsecond), Recorded: e.Time, Door: authz.Door(e.Door), Decision: e.Decision,
		Allowed: e.Allowed != nil && *e.Allowed, Reason: e.Reason, Decided: e.Reason, Plugin: e.Plugin, Grant: e.Grant, Rule: e.Rule, Credential: e.Credential,
		Generation: e.Generation, Method: e.Method, Scheme: e.Scheme, Host: e.Host, Port: e.Port, Path: e.Path, Query: e.Query != "", Address: e.Address,
		Count: max(e.Count, 1), Place: p, Seq: e.Seq,
	}
	if a.First = a.Time; !e.FirstTime.IsZero() {
		a.First = e.FirstTime
	}
	a.Masked = strings.Contains(e.Path, "/~") && e.Door != string(authz.DoorKernel)
	a.request()
	if a.NotReplayable == "" {
		a.NotReplayable = reasonOf(a)
	}
	return a
}

// request sets the request, if the record has one.
func (a *Access) request() {
	scheme := authz.Scheme(a.Scheme)
	switch {
	case a.Door == authz.DoorKernel:
		a.NotReplayable = KernelDecision
		return
	case a.Method == "CONNECT", a.Port == 0, a.Host == "", scheme.HTTP() != (a.Path != ""):
		a.NotReplayable = NoRequest
		return
	case strings.HasSuffix(a.Path, "…"):
		a.NotReplayable = TruncatedField
		return
	}
	to, err := authz.NewDestination(scheme, net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))), a.Path)
	if err != nil {
		a.NotReplayable = NoRequest
		return
	}
	a.Request = authz.Request{Principal: authz.Principal(a.Plugin), Destination: to}
	if scheme.HTTP() {
		if a.Request.Action, err = authz.NewAction(a.Method, ""); err != nil {
			a.Request, a.NotReplayable = authz.Request{}, NoRequest
		}
	}
}

// reasonOf returns why a record with a request cannot be decided again.
func reasonOf(a *Access) string {
	switch a.Decided {
	case authz.QuotaExceeded.String(), authz.UsageUnknown.String():
		return UsageDecision
	case authz.Revoked.String():
		return RevokedDecision
	case authz.NotReady.String(), authz.CredentialUnavailable.String(), authz.AuditUnavailable.String(),
		authz.DestinationMismatch.String(), authz.IdentityUnknown.String():
		return InternalReason
	}
	switch {
	case a.Count > 1:
		return FoldedRefusal
	case a.Masked:
		return MaskedPath
	}
	return OlderFormat
}

package pilotrun

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
)

// VerifyLog verifies the log of a pilot, whose declared access has the digest grant, with the
// key in its folder.
func VerifyLog(file, stateDir, grant string) (pilot.Log, error) {
	report, err := audit.Verify(audit.VerifyConfig{File: file, StateDir: stateDir})
	if err != nil {
		return pilot.Log{}, fmt.Errorf("verify the pilot's log: %w", err)
	}
	last, err := lastRecord(file)
	if err != nil {
		return pilot.Log{}, fmt.Errorf("read the pilot's log: %w", err)
	}
	return pilot.LogOf(report, last, grant)
}

// lastRecord returns the last record of a log that was verified. [audit.Read] would return
// that of the second log too, whose numbers are its own.
func lastRecord(file string) (audit.Entry, error) {
	f, err := os.Open(file)
	if err != nil {
		return audit.Entry{}, err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	info, err := f.Stat()
	if err != nil {
		return audit.Entry{}, err
	}
	const longest = 1 << 20 // more than a record has
	tail := make([]byte, min(info.Size(), longest))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return audit.Entry{}, err
	}
	tail = bytes.TrimSuffix(tail, []byte("\n"))
	var last audit.Entry
	if err := json.Unmarshal(tail[bytes.LastIndexByte(tail, '\n')+1:], &last); err != nil {
		return audit.Entry{}, fmt.Errorf("%s: its last line is no record: %w", file, err)
	}
	return last, nil
}

// maxOpen bounds the accesses that may be open at one time.
const maxOpen = 1 << 18

// Accesses returns the accesses of a log in which data may have left the plugin, when they
// ended. Those that never did follow at the end, without a region and a version of TLS:
// neither is known. The statements of a database's session follow the session, over whose
// connection they went: one for each rule.
func Accesses(ctx context.Context, file, plugin string) iter.Seq2[compliance.Access, error] {
	return func(yield func(compliance.Access, error) bool) {
		open := openAccesses{}
		for e, err := range audit.Read(ctx, audit.Query{File: file}) {
			if err == nil && e.Plugin != "" && e.Plugin != plugin {
				err = &pilot.OtherPluginError{Plugin: e.Plugin, Want: plugin, Place: accesslog.Place{Log: file, File: file}}
			}
			if err == nil && len(open) > maxOpen {
				err = fmt.Errorf("more than %d accesses are open at one time", maxOpen)
			}
			if err != nil {
				yield(compliance.Access{}, err)
				return
			}
			for _, a := range open.next(&e) {
				if !yield(a, nil) {
					return
				}
			}
		}
		for _, id := range slices.Sorted(maps.Keys(open)) {
			for _, a := range open[id].all() {
				if !yield(a, nil) {
					return
				}
			}
		}
	}
}

// openAccesses are accesses that have not ended, by the id of their decision.
type openAccesses map[string]openAccess

// openAccess is an access that has not ended.
type openAccess struct {
	compliance.Access
	statements map[string]compliance.Access // of a session: the first by each rule
}

// all returns the access and the statements in it, by their rules.
func (o openAccess) all() []compliance.Access {
	out := []compliance.Access{o.Access}
	for _, rule := range slices.Sorted(maps.Keys(o.statements)) {
		one := o.statements[rule]
		one.Region, one.TLS = o.Region, o.TLS
		out = append(out, one)
	}
	return out
}

// next takes the next record of the log, and returns the accesses that end with it.
func (open openAccesses) next(e *audit.Entry) []compliance.Access {
	session, inSession := open[e.Session]
	switch kind := authz.Kind(e.Kind); {
	case e.Allowed == nil:
	case kind == authz.KindDecision && (!*e.Allowed || e.Attempt || e.Port == 0):
	case kind == authz.KindDecision && inSession:
		a := accessOf(e)
		if session.statements == nil {
			session.statements = map[string]compliance.Access{}
		}
		if _, known := session.statements[a.Rule]; !known {
			session.statements[a.Rule] = a
		}
		open[e.Session] = session
	case kind == authz.KindDecision:
		open[e.Decision] = openAccess{Access: accessOf(e)}
	case kind == authz.KindEnd && !inSession:
		ended, known := open[e.Decision]
		if !known {
			ended.Access = accessOf(e)
		}
		delete(open, e.Decision)
		if ended.Region, ended.TLS = e.Region, e.TLS; reached(e) {
			return ended.all()
		}
	}
	return nil
}

// accessOf returns the access of a record.
func accessOf(e *audit.Entry) compliance.Access {
	a := compliance.Access{Decision: e.Decision, Plugin: e.Plugin, Rule: e.Rule, Scheme: authz.Scheme(e.Scheme), Host: e.Host}
	if e.Reason != authz.Granted.String() {
		a.Rule = "" // it was observed beside the rule that is nearest
	}
	return a
}

// reached reports whether an access that ended may have sent something to its destination.
// One that was refused after it was admitted has an address too, but sent nothing if the
// sidecar did not come to speak TLS there.
func reached(e *audit.Entry) bool {
	if e.SentBytes > 0 || e.Bytes > 0 || e.TLS != "" {
		return true
	}
	_, err := netip.ParseAddrPort(e.Address)
	return err == nil && (*e.Allowed || !compliance.SpeaksTLS(authz.Scheme(e.Scheme)))
}

// observed reads the accesses of the pilot's log. spans are when the load had which level.
func (r *run) observed(ctx context.Context, spans []pilot.Span) (*pilot.Observation, error) {
	o := pilot.NewObserver(r.cfg.Grant.Plugin, r.permissions(), spans)
	if !r.began.IsZero() {
		o.Started(r.began)
	}
	file := r.spec.Audit.File
	reader, err := accesslog.Open(accesslog.Options{Paths: []string{file}, StateDir: r.spec.StateDir, Event: o.Event})
	if err != nil {
		return nil, fmt.Errorf("read the pilot's log: %w", err)
	}
	for a, err := range reader.Accesses(ctx) {
		if err == nil {
			err = o.Access(a)
		}
		if err != nil {
			return nil, fmt.Errorf("read the pilot's log: %w", err)
		}
	}
	for e, err := range audit.Read(ctx, audit.Query{File: file, Filter: audit.Filter{Kind: string(authz.KindEnd)}}) {
		if err != nil {
			return nil, fmt.Errorf("read the pilot's log: %w", err)
		}
		o.End(&e)
	}
	return o.Observation(), nil
}

// permissions returns the ids of the declared permissions.
func (r *run) permissions() []string {
	var out []string
	for i := range r.cfg.Grant.Rules {
		out = append(out, r.cfg.Grant.Rules[i].ID)
	}
	return out
}

// readLog completes a measurement by what the log records.
func (r *run) readLog(ctx context.Context, m *pilot.Measurement, grant string) (err error) {
	if m.Log, err = VerifyLog(r.spec.Audit.File, r.spec.StateDir, grant); err != nil {
		return err
	}
	if m.Observed, err = r.observed(ctx, r.spans); err != nil {
		return err
	}
	if started := m.Observed.Started(); !r.ready.IsZero() && !started.IsZero() {
		ms := max(r.ready.Sub(started), 0).Milliseconds()
		m.Startup.ReadyMS = &ms
	}
	if r.samples.Len() == 0 {
		return fmt.Errorf("no sample was taken; run the pilot for longer than %s", sampleEvery)
	}
	return nil
}

// firstEstimate is how long after its start the coverage of a pilot is first estimated.
const firstEstimate = 2 * time.Second

// estimator is when the coverage is estimated next.
type estimator struct {
	next time.Time
}

// covered estimates the coverage if it is time, and reports whether it is reached. To read
// the log again takes at most a tenth of the time.
func (r *run) covered(ctx context.Context, e *estimator) bool {
	from := time.Now()
	if from.Before(e.next) {
		return false
	}
	o, err := r.observed(ctx, nil)
	const share = 10
	e.next = time.Now().Add(max(firstEstimate, share*time.Since(from)))
	if err != nil {
		return false // the end of the pilot reports what stays wrong
	}
	c := o.Coverage()
	r.say("%d accesses, %d kinds of them used once", c.Accesses, c.Once)
	return c.Reached(r.cfg.Coverage)
}

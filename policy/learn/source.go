package learn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
)

// Window is how long before and after a suspicious event accesses are left out.
const Window = time.Hour

// Source is the log to learn from, and how.
type Source struct {
	Log accesslog.Options
	// Present is the policy in force, nil without one. Accesses that it grants are left out.
	Present *policy.Subject
	Now     time.Time // at which Present decides
	// Progress is called now and then with the number of records that were read; nil: not called.
	Progress func(records uint64)
}

// progressEvery is after how many accesses Progress is called.
const progressEvery = 4096

// Found is what was read, beside the Learner.
type Found struct {
	Plugin string
	// Read are the accesses that were allowed.
	Read uint64
	// Granted are left out because Present grants them.
	Granted uint64
	// Refused were not allowed, and are left out.
	Refused uint64
	// Suspicious are left out because they were made in one of Windows.
	Suspicious uint64
	// Windows are the times from which nothing is learned.
	Windows []Interval
	// Tainted are left out because they were made to one of Hosts.
	Tainted uint64
	// Hosts are those of accesses that a guardrail refused, or that held a placeholder of a
	// credential in the wrong place. No access to them is learned.
	Hosts []string
	// Truncated are left out because their record does not hold the whole path.
	Truncated uint64
	// Notes are what limits the meaning of the log, as the reader states it.
	Notes []string
}

// Interval is a time in which something suspicious happened.
type Interval struct {
	From, Until time.Time
	// Why are the kinds of what happened, each once.
	Why []string
}

// MaskedError reports a log from which nothing can be learned, because the segments of its
// paths are masked: equal ones can be recognised, and no spelling is known.
type MaskedError struct {
	Count uint64
	First accesslog.Place
	// Full is when the first access with a readable path was made, zero without one.
	Full time.Time
}

// Error implements error.
func (e *MaskedError) Error() string {
	text := fmt.Sprintf("%s: %d allowed accesses have masked paths, whose spelling is not known; set audit: {paths: full} while observing, and learn from what is recorded then", e.First, e.Count)
	if !e.Full.IsZero() {
		text += " (--since " + e.Full.UTC().Format(time.RFC3339) + ")"
	}
	return text
}

// ErrNothing reports that there was nothing to learn.
var ErrNothing = errors.New("no access to learn from")

// Read reads the log twice: once for what is suspicious, and once for the accesses. A
// Learner that it returns with an error must not be used.
func Read(ctx context.Context, s Source) (*Learner, *Found, error) {
	if slices.Contains(s.Log.Paths, "-") {
		return nil, nil, errors.New("learning reads the log twice, which standard input does not allow; name the log's file")
	}
	r := &reading{source: s, found: &Found{Plugin: s.Log.Plugin}, learner: New(), tainted: map[string]bool{}}
	if s.Present != nil {
		var err error
		if r.present, err = policy.Enforced(s.Present.Input, s.Now); err != nil {
			return nil, nil, err
		}
	}
	if err := r.suspicions(ctx); err != nil {
		return nil, nil, err
	}
	if err := r.accesses(ctx); err != nil {
		return nil, nil, err
	}
	switch {
	case r.masked.Count > 0:
		return nil, r.found, &r.masked
	case r.found.Read == 0 && r.found.Refused > 0:
		return nil, r.found, fmt.Errorf("%w: all %d recorded accesses were refused; run the plugin with mode: observe first", ErrNothing, r.found.Refused)
	case r.found.Read == 0:
		return nil, r.found, fmt.Errorf("%w: the log has none of this plugin and time; run the plugin with mode: observe first", ErrNothing)
	case r.found.Read == r.found.Granted:
		return nil, r.found, fmt.Errorf("%w: the present grants allow all %d", ErrNothing, r.found.Read)
	case r.learned == 0:
		return nil, r.found, fmt.Errorf("%w; %s", ErrNothing, strings.Join(r.found.Lines(), "; "))
	}
	return r.learner, r.found, nil
}

// reading is one run of Read.
type reading struct {
	source  Source
	found   *Found
	learner *Learner
	present *authz.Snapshot // that observes nothing, nil without a present policy
	masked  MaskedError
	at      int // the window that was looked at last
	tainted map[string]bool
	learned uint64
	records uint64 // of the readings before this one
	n       uint64
}

// step reports progress.
func (r *reading) step(log *accesslog.Reader) {
	if r.n++; r.n%progressEvery == 0 && r.source.Progress != nil {
		r.source.Progress(r.records + log.Records())
	}
}

// maxTainted bounds the hosts of refusals that are kept.
const maxTainted = 10_000

// suspicions finds the windows from which nothing is learned.
func (r *reading) suspicions(ctx context.Context) error {
	var windows []Interval
	note := func(at time.Time, why string) {
		windows = append(windows, Interval{at.Add(-Window), at.Add(Window), []string{why}})
		const most = 1 << 16
		if len(windows) >= most {
			windows = join(windows)
		}
	}
	var plugin string
	o := r.source.Log
	o.Event = func(e *accesslog.Event) error {
		if o.Plugin != "" && e.Plugin != "" && e.Plugin != o.Plugin {
			return nil
		}
		switch kind := authz.Kind(e.Kind); kind {
		case authz.KindRevocation, authz.KindEcho, authz.KindStray:
			note(e.Time, string(kind))
		case authz.KindProcess:
			r.learner.calendar.Start = true
		default:
		}
		return nil
	}
	log, err := accesslog.Open(o)
	if err != nil {
		return err
	}
	for a, err := range log.Accesses(ctx) {
		if err != nil {
			return err
		}
		r.step(log)
		switch {
		case plugin == "":
			plugin = strings.Clone(a.Plugin)
		case plugin != a.Plugin:
			return fmt.Errorf("the log has accesses of %q and %q; name one with --plugin", plugin, a.Plugin)
		}
		switch a.Reason {
		case authz.CredentialMisplaced.String():
			note(a.First, a.Reason)
			note(a.Time, a.Reason)
			fallthrough
		case authz.GuardrailDenied.String():
			if r.tainted[strings.Clone(a.Host)] = true; len(r.tainted) > maxTainted {
				return fmt.Errorf("%s: more than %d hosts were refused by a guardrail or for a misplaced placeholder; choose a time without them by --since and --until", a.Place, maxTainted)
			}
		}
	}
	r.found.Hosts = slices.Sorted(maps.Keys(r.tainted))
	r.records = log.Records()
	r.found.Plugin, r.found.Windows, r.found.Notes = plugin, join(windows), log.Notes()
	return nil
}

// join sorts windows and joins those that overlap.
func join(windows []Interval) []Interval {
	sortlarge.By(windows, func(a, b *Interval) int { return a.From.Compare(b.From) })
	var out []Interval
	for _, w := range windows {
		if n := len(out); n > 0 && !w.From.After(out[n-1].Until) {
			if w.Until.After(out[n-1].Until) {
				out[n-1].Until = w.Until
			}
			for _, why := range w.Why {
				if !slices.Contains(out[n-1].Why, why) {
					out[n-1].Why = append(out[n-1].Why, why)
				}
			}
			continue
		}
		out = append(out, w)
	}
	return out
}

// suspicious reports whether a time is in a window. Times mostly grow.
func (r *reading) suspicious(at time.Time) bool {
	windows := r.found.Windows
	if r.at < len(windows) && at.Before(windows[r.at].From) {
		r.at = 0
	}
	for r.at < len(windows) && windows[r.at].Until.Before(at) {
		r.at++
	}
	return r.at < len(windows) && !at.Before(windows[r.at].From)
}

// accesses gives the accesses to the Learner.
func (r *reading) accesses(ctx context.Context) error {
	o := r.source.Log
	o.Unverified = true // it was verified, or read unverified, the first time
	o.Event = nil
	log, err := accesslog.Open(o)
	if err != nil {
		return err
	}
	for a, err := range log.Accesses(ctx) {
		if err != nil {
			return err
		}
		r.step(log)
		r.take(a)
	}
	return nil
}

func (r *reading) take(a *accesslog.Access) {
	f := r.found
	if !a.Allowed || a.Reason != authz.Granted.String() && a.Reason != authz.Observed.String() {
		f.Refused += uint64(a.Count)
		return
	}
	f.Read++
	switch {
	case r.tainted[a.Host]:
		f.Tainted++
	case a.Masked && r.grantedThen(a):
		f.Granted++
	case a.Masked:
		if r.masked.Count++; r.masked.Count == 1 {
			r.masked.First = a.Place
		}
	case a.Request.Destination.Host() == "":
		f.Truncated++
	case a.MaskedFacts != nil: // of several statements, more than one request can have
		parts, _ := policy.NewNames(authz.Input{}).Resolve(a.Request.Destination.Scheme().Protocol(), a.MaskedFacts, nil)
		one := *a
		for _, facts := range parts {
			one.Request.Facts = facts
			r.readable(&one)
		}
	default:
		r.readable(a)
	}
}

// grantedThen reports whether a rule that is still there granted the access.
func (r *reading) grantedThen(a *accesslog.Access) bool {
	if r.present == nil || a.Decided != authz.Granted.String() {
		return false
	}
	_, ok := r.source.Present.Position(a.Grant, a.Rule)
	return ok
}

// readable takes an access whose path is known.
func (r *reading) readable(a *accesslog.Access) {
	if r.masked.Count > 0 && r.masked.Full.IsZero() {
		r.masked.Full = a.Time
	}
	if r.present != nil {
		switch d := r.present.Decide(a.Request, authz.Usage{}, r.source.Now); {
		case d.Allowed():
			r.found.Granted++
			return
		case d.Reason == authz.GuardrailDenied:
			r.found.Tainted++
			return
		}
	}
	if r.suspicious(a.Time) {
		r.found.Suspicious++
		return
	}
	r.learned++
	r.learner.Add(Access{Request: a.Request, Time: a.Time, Credential: a.Credential})
}

// Lines returns what was left out and why, as sentences without a period.
func (f *Found) Lines() []string {
	var out []string
	add := func(n uint64, format string, args ...any) {
		if n > 0 {
			out = append(out, "Left out: "+strconv.FormatUint(n, 10)+" "+fmt.Sprintf(format, args...))
		}
	}
	add(f.Granted, "accesses that the present grants allow")
	add(f.Refused, "accesses that were refused")
	add(f.Tainted, "accesses to hosts that a guardrail refuses, or that were sent a placeholder in the wrong place%s", hosts(f.Hosts))
	add(f.Truncated, "accesses whose record does not hold the whole path")
	var windows []string
	for _, w := range f.Windows {
		const most = 5
		if len(windows) == most {
			windows = append(windows, fmt.Sprintf("and %d more", len(f.Windows)-most))
			break
		}
		windows = append(windows, fmt.Sprintf("%s to %s (%s)", w.From.UTC().Format(time.RFC3339), w.Until.UTC().Format(time.RFC3339), strings.Join(w.Why, ", ")))
	}
	add(f.Suspicious, "accesses within %v of a suspicious event: %s", Window, strings.Join(windows, "; "))
	for _, note := range f.Notes {
		out = append(out, "Log: "+note)
	}
	return out
}

// hosts lists hosts as the end of a sentence.
func hosts(names []string) string {
	const most = 5
	if len(names) == 0 {
		return ""
	}
	text := ": "
	for i, name := range names {
		if i == most {
			return text + fmt.Sprintf(" and %d more", len(names)-most)
		}
		if i > 0 {
			text += ", "
		}
		text += quote(printable.Clip(name, maxSample))
	}
	return text
}

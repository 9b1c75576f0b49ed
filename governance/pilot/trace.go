package pilot

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// Trace is the predicate of runtime-trace: the access that was observed beside the access
// that the manifest declares.
type Trace struct {
	IssuedAt  time.Time `json:"issuedAt"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
	Plugin    string    `json:"plugin"`
	Version   string    `json:"version"` // of the plugin
	Started   time.Time `json:"startedAt"`
	Ended     time.Time `json:"endedAt"`

	Declared []Use `json:"declared"` // of the manifest's permissions, in its order
	// Undeclared are accesses that no permission of the manifest allows, the most frequent
	// first; UndeclaredMore counts those to places beyond the bound of the list.
	Undeclared     []Undeclared `json:"undeclared"`
	UndeclaredMore uint64       `json:"undeclaredMore,omitempty"`
	Refused        []Refusal    `json:"refused,omitempty"` // requests that no policy could allow, by reason
	Coverage       Coverage     `json:"coverage"`
	Mediation      Mediation    `json:"mediation"`
	Lost           uint64       `json:"lost,omitempty"` // events of the kernel that could not be kept
	Log            Log          `json:"log"`
	Verdict        Verdict      `json:"verdict"` // FAILED: undeclared access; WARNED: permissions that were not used
}

// Use is the use of one permission.
type Use struct {
	Permission string    `json:"permission"`
	Uses       uint64    `json:"uses"` // 0: unused
	First      time.Time `json:"first,omitzero"`
	Last       time.Time `json:"last,omitzero"`
	Decision   string    `json:"decision,omitempty"` // id of the first one
}

// Undeclared are accesses to one place by one method.
type Undeclared struct {
	Scheme string `json:"scheme,omitempty"`
	Host   string `json:"host"`
	Port   uint16 `json:"port,omitempty"` // 0: a name that was looked up
	Method string `json:"method,omitempty"`
	Reason string `json:"reason"` // observed, or the reason of a refusal
	Count  uint64 `json:"count"`
	// Paths are some of the paths, or of the facts of statements. Decisions are ids of some.
	Paths     []string  `json:"paths,omitempty"`
	Decisions []string  `json:"decisions"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
}

// Refusal counts requests that were refused for what they are.
type Refusal struct {
	Reason   string `json:"reason"`
	Count    uint64 `json:"count"`
	Decision string `json:"decision,omitempty"` // id of the first one
}

// Coverage is the estimated share of the plugin's accesses that the pilot did not see; see
// [learn.Estimate]. It is invalid for a plugin that behaves well only while it is observed.
type Coverage struct {
	Accesses  uint64   `json:"accesses"`
	Once      uint64   `json:"once"`  // patterns that were used once
	Known     bool     `json:"known"` // there were enough accesses
	UnseenPPM int64    `json:"unseenPpm"`
	HighPPM   int64    `json:"highPpm"` // upper end of the 95 % interval
	Gaps      []string `json:"gaps,omitempty"`
}

// String returns the estimate as a phrase.
func (c Coverage) String() string {
	if !c.Known {
		return fmt.Sprintf("not known; %d accesses are too few", c.Accesses)
	}
	return fmt.Sprintf("at 95 %% confidence at most %s of accesses are of a kind that was not seen (%d accesses; %d kinds were seen once)",
		quantity(c.HighPPM, unitPPM), c.Accesses, c.Once)
}

// Reached reports whether at most 1 − share of accesses are of a kind that was not seen, at
// 95 % confidence.
func (c Coverage) Reached(share float64) bool {
	return c.Known && float64(c.HighPPM) <= (1-share)*million
}

// Log is the audit log of a pilot. Its head pins every record before it.
type Log struct {
	Records uint64 `json:"records"`
	First   uint64 `json:"first"` // number of the first record
	Last    uint64 `json:"last"`  // number of the last record
	Head    string `json:"head"`  // hash of the last record
	Grant   string `json:"grant"` // digest of the file of the declared access
}

// Bounds of a trace.
const (
	maxPlaces    = 1000
	maxPaths     = 5
	maxDecisions = 3
	maxText      = 256
)

// place is what undeclared accesses are grouped by.
type place struct {
	scheme, host string
	port         uint16
	method       string
	reason       string
}

// Observer reads the records of a pilot, in bounded memory.
type Observer struct {
	plugin string
	spans  []Span
	out    Observation
	learn  *learn.Learner
	uses   map[string]*Use
	places map[place]*Undeclared
	refuse map[string]*Refusal
	seen   bool
}

// Observation is what an Observer has read.
type Observation struct {
	accesses   uint64
	started    time.Time // of the plugin, as recorded or noted
	first      time.Time // access
	load       Load      // latencies of accesses
	files      map[string]bool
	lost       uint64
	uses       []Use
	undeclared []Undeclared
	more       uint64
	refused    []Refusal
	estimate   learn.Estimate
	gaps       []string
}

// NewObserver returns an Observer of a plugin that declares permissions, whose ids are
// those of the rules of the grant in force. spans are when the load had which level.
func NewObserver(plugin string, permissions []string, spans []Span) *Observer {
	o := &Observer{plugin: plugin, spans: spans, learn: learn.New(), uses: map[string]*Use{}, places: map[place]*Undeclared{}, refuse: map[string]*Refusal{}}
	o.out.files = map[string]bool{}
	o.out.uses = make([]Use, len(permissions))
	for i, id := range permissions {
		o.out.uses[i].Permission = id
		o.uses[id] = &o.out.uses[i]
	}
	return o
}

// Started notes when the plugin was started, for one that something else than the sidecar
// starts: no record has it.
func (o *Observer) Started(at time.Time) { o.out.started = at }

// OtherPluginError reports a log that is not of the plugin alone.
type OtherPluginError struct {
	Plugin, Want string
	Place        accesslog.Place
}

// Error implements error.
func (e *OtherPluginError) Error() string {
	return fmt.Sprintf("%s: the record is of plugin %s, and the pilot's plugin is %s; name the log of this pilot", e.Place, strconv.QuoteToASCII(printable.Clip(e.Plugin, maxText)), e.Want)
}

// Event takes a record that is no access.
func (o *Observer) Event(e *accesslog.Event) error {
	if e.Plugin != "" && e.Plugin != o.plugin {
		return &OtherPluginError{e.Plugin, o.plugin, e.Place}
	}
	switch authz.Kind(e.Kind) { //nolint:exhaustive // the other events are no part of a trace
	case authz.KindProcess:
		if e.Exe != "" && o.out.started.IsZero() {
			o.out.started = e.Time
		}
	case authz.KindReload:
		const most = 4096
		for _, sum := range e.Files {
			if len(o.out.files) < most {
				o.out.files[sum] = true
			}
		}
	case authz.KindLost:
		o.out.lost += e.Lost
	}
	return nil
}

// End takes the record of an access's end, for its latency.
func (o *Observer) End(e *audit.Entry) {
	if e.Kind != string(authz.KindEnd) || e.LatencyUS <= 0 {
		return
	}
	took := time.Duration(e.LatencyUS) * time.Microsecond
	level := levelAt(o.spans, e.Time.Add(-took))
	if level == "" && len(o.spans) > 0 {
		return // before the load, or behind it
	}
	o.out.load.Add(level, took, e.Allowed != nil && *e.Allowed)
}

// levelAt returns the level of the load at a time, "" without one.
func levelAt(spans []Span, at time.Time) Level {
	i, found := slices.BinarySearchFunc(spans, at, func(s Span, at time.Time) int { return s.From.Compare(at) })
	if !found {
		i--
	}
	if i < 0 || at.After(spans[i].Until) {
		return ""
	}
	return spans[i].Level
}

// Access takes an access.
func (o *Observer) Access(a *accesslog.Access) error {
	if a.Plugin != o.plugin {
		return &OtherPluginError{a.Plugin, o.plugin, a.Place}
	}
	o.seen = true
	count := uint64(max(a.Count, 1))
	if a.Port != 0 && a.Allowed { // not a name that was looked up
		o.out.accesses += count
		if o.out.first.IsZero() || a.First.Before(o.out.first) {
			o.out.first = a.First
		}
	}
	if a.Allowed && a.NotReplayable == "" {
		o.learn.Add(learn.Access{Request: a.Request, Time: a.Time, Credential: a.Credential})
	}
	switch a.Decided {
	case authz.Granted.String():
		o.use(a, count)
	case authz.Observed.String(), authz.NoGrant.String(), authz.DestinationNotGranted.String(), authz.MethodNotGranted.String(), authz.PathNotGranted.String(),
		authz.StatementNotGranted.String(), authz.GuardrailDenied.String(), authz.AddressNotAllowed.String():
		o.undeclared(a, count)
	default:
		o.refused(a, count)
	}
	return nil
}

func (o *Observer) use(a *accesslog.Access, count uint64) {
	u, ok := o.uses[a.Rule]
	if !ok { // a rule that is no permission of the manifest granted it
		o.undeclared(a, count)
		return
	}
	if u.Uses == 0 {
		u.First, u.Decision = a.First.UTC(), printable.Clip(a.Decision, maxText)
	}
	u.Uses += count
	u.Last = a.Time.UTC()
}

func (o *Observer) undeclared(a *accesslog.Access, count uint64) {
	key := place{printable.Clip(a.Scheme, maxText), printable.Clip(a.Host, maxText), a.Port, printable.Clip(a.Method, maxText), a.Reason}
	u, ok := o.places[key]
	if !ok {
		if len(o.places) >= maxPlaces {
			o.out.more += count
			return
		}
		u = &Undeclared{Scheme: key.scheme, Host: key.host, Port: a.Port, Method: key.method, Reason: printable.Clip(a.Reason, maxText), First: a.First.UTC()}
		o.places[key] = u
	}
	u.Count += count
	u.Last = a.Time.UTC()
	text := a.Path
	if facts := a.Request.Facts.All(); len(facts) > 0 {
		text = " " + strings.Join(facts, " ")
	}
	if path := printable.Clip(text, maxText); path != "" && len(u.Paths) < maxPaths && !slices.Contains(u.Paths, path) {
		u.Paths = append(u.Paths, path)
	}
	if len(u.Decisions) < maxDecisions {
		u.Decisions = append(u.Decisions, printable.Clip(a.Decision, maxText))
	}
}

func (o *Observer) refused(a *accesslog.Access, count uint64) {
	const most = 64 // more than there are reasons
	r, ok := o.refuse[a.Reason]
	if !ok && len(o.refuse) < most {
		r = &Refusal{Reason: printable.Clip(a.Reason, maxText), Decision: printable.Clip(a.Decision, maxText)}
		o.refuse[a.Reason] = r
	}
	if r != nil {
		r.Count += count
	}
}

// Observation returns what was read. The Observer is not used afterwards.
func (o *Observer) Observation() *Observation {
	out := &o.out
	reached := map[string]bool{}
	for key := range o.places {
		if key.port != 0 {
			reached[key.host] = true
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(o.places), comparePlaces) {
		if key.port != 0 || !reached[key.host] { // otherwise the access behind the look-up is listed
			out.undeclared = append(out.undeclared, *o.places[key])
		}
	}
	slices.SortStableFunc(out.undeclared, func(a, b Undeclared) int { return cmp.Compare(b.Count, a.Count) })
	for _, reason := range slices.Sorted(maps.Keys(o.refuse)) {
		out.refused = append(out.refused, *o.refuse[reason])
	}
	if o.seen {
		proposal := o.learn.Propose(learn.Terms{})
		out.estimate = proposal.Estimate
		proposal.Calendar.Start = !out.started.IsZero()
		out.gaps = proposal.Calendar.Gaps()
	}
	return out
}

func comparePlaces(a, b place) int {
	return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port), cmp.Compare(a.scheme, b.scheme), cmp.Compare(a.method, b.method), cmp.Compare(a.reason, b.reason))
}

// firstAccess returns how long after the plugin's start its first access was, nil if
// one of both is not known.
func (o *Observation) firstAccess() *int64 {
	if o.started.IsZero() || o.first.IsZero() {
		return nil
	}
	ms := max(o.first.Sub(o.started), 0).Milliseconds()
	return &ms
}

// Started returns when the plugin was started; the zero time if that was not recorded.
func (o *Observation) Started() time.Time { return o.started }

// Coverage returns the estimate.
func (o *Observation) Coverage() Coverage {
	e := o.estimate
	return Coverage{e.Accesses, e.Once, e.Known, ppm(e.Unseen), ppm(e.High), o.gaps}
}

func ppm(share float64) int64 { return int64(share * million) }

// Traced returns the statement of what was observed, without IssuedAt. It fails if the log
// is not that of the declared access.
func Traced(m Measurement) (Trace, error) {
	o := m.Observed
	if !o.files[hexOf(m.Log.Grant)] {
		return Trace{}, errors.New("the log records no start with the grant of the manifest's permissions; it is not the log of this pilot")
	}
	t := Trace{
		Plugin: m.Plugin, Version: m.Version, Started: m.Started.UTC(), Ended: m.Ended.UTC(), Declared: o.uses, Undeclared: o.undeclared, UndeclaredMore: o.more,
		Refused: o.refused, Coverage: o.Coverage(), Mediation: m.Samples.last.Mediation.complete(), Lost: o.lost, Log: m.Log,
	}
	if t.Undeclared == nil {
		t.Undeclared = []Undeclared{} // [] and not null
	}
	t.Verdict = t.verdict()
	return t, nil
}

func (t *Trace) verdict() Verdict {
	switch {
	case len(t.Undeclared) > 0 || t.UndeclaredMore > 0:
		return Failed
	case slices.ContainsFunc(t.Declared, func(u Use) bool { return u.Uses == 0 }):
		return Warned
	}
	return Passed
}

// The levels of findings.
const (
	LevelError = "error" // undeclared access
	LevelNote  = "note"  // a permission that was not used
)

// Finding is a difference between the declared and the observed access.
type Finding struct {
	Level string
	Text  string // one line, escaped
}

// Findings returns the differences.
func (t *Trace) Findings() []Finding {
	var out []Finding
	for _, u := range t.Undeclared {
		out = append(out, Finding{LevelError, fmt.Sprintf("undeclared: %s, %d times (%s, decision %s); declare it in the manifest with its reason, or remove it from the plugin",
			u.Target(), u.Count, printable.Text(u.Reason), printable.Text(first(u.Decisions)))})
	}
	if t.UndeclaredMore > 0 {
		out = append(out, Finding{LevelError, fmt.Sprintf("undeclared: %d accesses to more than %d places, which are not listed", t.UndeclaredMore, maxPlaces)})
	}
	for _, u := range t.Declared {
		if u.Uses == 0 {
			out = append(out, Finding{LevelNote, fmt.Sprintf("unused: permission %s; remove it, or have the load use it", printable.Text(u.Permission))})
		}
	}
	return out
}

// Target returns method, scheme, host, port and a sample path on one line, escaped.
func (u *Undeclared) Target() string {
	text := u.Host
	if u.Port != 0 {
		text = fmt.Sprintf("%s:%d", u.Host, u.Port)
	}
	if u.Scheme != "" {
		text = u.Scheme + "://" + text
	}
	if u.Method != "" {
		text = u.Method + " " + text
	}
	return printable.Text(text + first(u.Paths))
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

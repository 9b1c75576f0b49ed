package usage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
)

// Period is how long a rule has to be unused, by default: a quarter holds what is done
// once a month and once a quarter.
const Period = 90 * 24 * time.Hour

// maxSilence is how long a log may have no record, and how long before the present it may
// end. A plugin may run once a week; a log that is silent for longer is that of a sidecar
// that may not have run.
const maxSilence = 8 * 24 * time.Hour

// WildcardAtoms is how many atoms a wildcard counts as.
const WildcardAtoms = 10

// Options say what to read.
type Options struct {
	Log      accesslog.Options
	Subjects []policy.Subject
	Now      time.Time
	// Generations are the files that held the grant of Subjects which were not loaded from
	// files, the present one first; empty if they were. A rule that an earlier generation had as
	// well was granted since that one was in force.
	Generations []Generation
	// After is how long a rule has to be unused; 0 is Period.
	After time.Duration
	// Progress is called now and then with the number of records that were read; nil: not called.
	Progress func(records uint64)
}

// Generation is a file that held a grant.
type Generation struct {
	// Digest is its SHA-256 digest in hexadecimal.
	Digest string
	// Rules are the ids of the rules that the present generation has unchanged. Those of the
	// present one are not looked at.
	Rules []string
}

// progressEvery is after how many accesses Progress is called.
const progressEvery = 4096

// Report is the use of the rules of several plugins.
type Report struct {
	Plugins []Plugin `json:"plugins"`
	// Other are accesses that no rule of the policies allows today, by plugin.
	Other map[string]uint64 `json:"other,omitempty"`
	// Notes are what limits the meaning of the logs.
	Notes []string `json:"notes,omitempty"`
}

// Verdict is what a log proves of a rule, or of a value in it.
type Verdict string

// The verdicts.
const (
	Used      Verdict = "used"
	Unused    Verdict = "unused"
	NotProved Verdict = "not proved unused" // without a use in the log, which does not prove their absence
)

// Plugin is the use of one plugin's policy.
type Plugin struct {
	Plugin string `json:"plugin"`
	// Path is the file of the configuration.
	Path  string `json:"path"`
	Rules []Rule `json:"rules"`
	// OverPrivilege is the share of granted atoms that were not used, from 0 to 1.
	OverPrivilege float64 `json:"overPrivilege"`
	// Limits are those of whole grants, on requests.
	Limits []Limit `json:"limits,omitempty"`

	subject *policy.Subject
}

// Subject returns the policy.
func (p *Plugin) Subject() *policy.Subject { return p.subject }

// Rule is the use of one rule.
type Rule struct {
	Grant    string          `json:"grant"`
	ID       string          `json:"rule"`
	Position policy.Position `json:"position,omitzero"`
	Uses     uint64          `json:"uses"`
	First    time.Time       `json:"first,omitzero"`
	Last     time.Time       `json:"last,omitzero"`
	Verdict  Verdict         `json:"verdict"`
	// Why is why it is not proved that the rule, or a part of it, is unused; "" if it is proved.
	Why string `json:"why,omitempty"`
	// Values are what the rule names, each with its use.
	Values []Value `json:"values"`
	Limits []Limit `json:"limits,omitempty"`
	// UsedAs are the paths by which a rule with wildcards was used, with * for ids, as far as
	// they were recorded in full; at most 20, and MoreUsedAs reports that there were others.
	UsedAs     []string `json:"usedAs,omitempty"`
	MoreUsedAs bool     `json:"moreUsedAs,omitempty"`

	granted, used float64 // in weighted atoms
}

// Name returns GRANT/RULE.
func (r *Rule) Name() string { return r.Grant + "/" + r.ID }

// Field is a field of a rule that holds values.
type Field string

// The fields.
const (
	Hosts      Field = "hosts"
	Ports      Field = "ports"
	Methods    Field = "methods"
	Paths      Field = "paths"
	Upgrades   Field = "upgrades"
	Credential Field = "credential"
	Databases  Field = "databases"
	Verbs      Field = "statements.verbs"
	Tables     Field = "statements.tables"
	Functions  Field = "statements.functions"
	Commands   Field = "commands"
	Keys       Field = "keys"
	Channels   Field = "channels"
	Opaque     Field = "opaque"
)

// Value is one value of a rule's field.
type Value struct {
	Field Field  `json:"field"`
	Value string `json:"value"`
	Uses  uint64 `json:"uses"`
	// Different is how many different values a wildcard stood for, up to 1000.
	Different int     `json:"different,omitempty"`
	Verdict   Verdict `json:"verdict"`
	// Index is the value's place in its field, from 0.
	Index int `json:"-"`
}

// Limit is a limit on requests, beside the most that was made of it.
type Limit struct {
	Name  string `json:"name"` // GRANT or GRANT/RULE
	Limit string `json:"limit"`
	// Peak is the highest number in one period of the limit, and the number of all for a total.
	Peak uint64 `json:"peak"`
	// Ratio is Peak divided by the limit.
	Ratio float64 `json:"ratio"`
}

// Read reads the logs and returns the use of every rule.
func Read(ctx context.Context, o Options) (*Report, error) {
	if o.After == 0 {
		o.After = Period
	}
	r := &reading{options: o, other: map[string]uint64{}, logs: map[string]*logSpan{}, loaded: map[string]*loads{}}
	for i := range o.Subjects {
		s, err := newTally(&o.Subjects[i], o.Now)
		if err != nil {
			return nil, err
		}
		r.tallies = append(r.tallies, s)
	}
	// Events and times of all records prove what is missing, so that bounds of time apply to uses only.
	log := o.Log
	log.Since, log.Until = time.Time{}, time.Time{}
	log.Event = r.event
	reader, err := accesslog.Open(log)
	if err != nil {
		return nil, err
	}
	n := 0
	for a, err := range reader.Accesses(ctx) {
		if err != nil {
			return nil, err
		}
		if n++; n%progressEvery == 0 && o.Progress != nil {
			o.Progress(reader.Records())
		}
		r.take(a)
	}
	return r.report(reader.Notes())
}

// reading is one run of Read.
type reading struct {
	options Options
	tallies []*tally
	other   map[string]uint64
	logs    map[string]*logSpan
	loaded  map[string]*loads // by log
}

// logSpan is what a log covers.
type logSpan struct {
	first, last time.Time
	days        map[int64]bool // that have a record, counted from 1970
	plugins     []string
	gaps        []string // why it proves nothing, each once
}

func (r *reading) span(log, plugin string, at time.Time) *logSpan {
	s := r.logs[log]
	if s == nil {
		s = &logSpan{days: map[int64]bool{}}
		r.logs[strings.Clone(log)] = s
	}
	if s.first.IsZero() || at.Before(s.first) {
		s.first = at
	}
	s.days[at.Unix()/int64(day/time.Second)] = true
	if at.After(s.last) {
		s.last = at
	}
	const most = 1000
	if plugin != "" && !slices.Contains(s.plugins, plugin) && len(s.plugins) < most {
		s.plugins = append(s.plugins, strings.Clone(plugin))
	}
	return s
}

// event notes what a log records of itself and of the files that were in force.
func (r *reading) event(e *accesslog.Event) error {
	s := r.span(e.Log, e.Plugin, e.Time)
	switch authz.Kind(e.Kind) {
	case authz.KindLost:
		s.lose(fmt.Sprintf("records were lost at %s (%s)", e.Time.UTC().Format(time.RFC3339), e.Place))
	case authz.KindReload:
		if len(e.Files) > 0 {
			l := r.loaded[e.Log]
			if l == nil {
				l = &loads{since: map[string]time.Time{}}
				r.loaded[strings.Clone(e.Log)] = l
			}
			l.add(e.Files, r.options.Generations, e.Time)
		}
	default:
	}
	return nil
}

// day is the grain in which silence is looked for.
const day = 24 * time.Hour

// silence returns the first and the last day of the latest time without a record that is
// longer than maxSilence, if it ends after the given time. Accesses are read in the order
// in which they end, so that days are compared and not one record with the next.
func (s *logSpan) silence(after time.Time) (from, to time.Time, found bool) {
	days := slices.Sorted(maps.Keys(s.days))
	for i := len(days) - 1; i > 0; i-- {
		from, to = time.Unix(days[i-1]*int64(day/time.Second), 0), time.Unix(days[i]*int64(day/time.Second), 0)
		if !to.After(after) {
			break
		}
		if to.Sub(from) > maxSilence {
			return from, to, true
		}
	}
	return time.Time{}, time.Time{}, false
}

func (s *logSpan) lose(why string) {
	const most = 3
	if len(s.gaps) < most && !slices.Contains(s.gaps, why) {
		s.gaps = append(s.gaps, why)
	}
}

// loads are the contents of files that a log records as in force.
type loads struct {
	since map[string]time.Time // by digest: since when each load had it
	// back is since when each load had a generation of the first n+1.
	back []time.Time
}

// add notes the files of one load: those that it does not have are not in force any more.
func (l *loads) add(files map[string]string, generations []Generation, at time.Time) {
	if l.back == nil {
		l.back = make([]time.Time, len(generations))
	}
	found := false
	for i, g := range generations {
		for _, digest := range files {
			found = found || digest == g.Digest
		}
		switch {
		case !found:
			l.back[i] = time.Time{}
		case l.back[i].IsZero():
			l.back[i] = at
		}
	}
	now := map[string]time.Time{}
	for _, digest := range files {
		since, ok := l.since[digest]
		if !ok {
			since = at
		}
		now[strings.Clone(digest)] = since
	}
	l.since = now
}

// take counts one access.
func (r *reading) take(a *accesslog.Access) {
	r.span(a.Log, a.Plugin, a.Time)
	o := &r.options.Log
	// An access that was refused for want of a credential or of room was needed too.
	if !a.Allowed && a.Rule == "" || a.Time.Before(o.Since) || !o.Until.IsZero() && !a.Time.Before(o.Until) {
		return
	}
	used := false
	for _, t := range r.tallies {
		if t.subject.Plugin == a.Plugin {
			used = t.take(a) || used
		}
	}
	if !used {
		const most = 1000
		if _, known := r.other[a.Plugin]; known || len(r.other) < most {
			r.other[strings.Clone(a.Plugin)] += uint64(a.Count)
		}
	}
}

// report judges what was counted.
func (r *reading) report(notes []string) (*Report, error) {
	for log, span := range r.logs {
		for _, note := range notes {
			if why, ok := strings.CutPrefix(note, log+": "); ok {
				span.lose(why)
			}
		}
	}
	out := &Report{Notes: notes, Other: r.other}
	digests := map[string]string{}
	for _, t := range r.tallies {
		p := Plugin{Plugin: t.subject.Plugin, Path: t.subject.Path, Limits: t.grantLimits(), subject: t.subject}
		var granted, used float64
		for _, rule := range t.rules {
			proof, err := r.proof(t, rule, digests)
			if err != nil {
				return nil, err
			}
			one := rule.report(proof)
			one.UsedAs, one.MoreUsedAs = rule.usedAs(t.subject.Plugin, r.options.Now)
			one.Position, _ = t.subject.Position(one.Grant, one.ID)
			granted, used = granted+one.granted, used+one.used
			p.Rules = append(p.Rules, one)
		}
		if granted > 0 {
			p.OverPrivilege = 1 - used/granted
		}
		out.Plugins = append(out.Plugins, p)
	}
	return out, nil
}

// proof returns why the absence of uses proves nothing of a rule, or "".
func (r *reading) proof(t *tally, rule *ruleTally, digests map[string]string) (string, error) {
	var logs []string
	for name, span := range r.logs {
		if slices.Contains(span.plugins, t.subject.Plugin) {
			logs = append(logs, name)
		}
	}
	slices.Sort(logs)
	if len(logs) == 0 {
		return "no log has a record of plugin " + t.subject.Plugin, nil
	}
	file, digest, generation := t.subject.Path, "", 0
	if all := r.options.Generations; len(all) > 0 {
		digest = all[0].Digest
		for generation+1 < len(all) && slices.Contains(all[generation+1].Rules, rule.spec.ID) {
			generation++
		}
	} else {
		file = ""
	}
	if at, ok := t.subject.Position(rule.grant, rule.spec.ID); ok {
		file = at.File
	}
	if digest == "" {
		var err error
		if digest, err = digestOf(file, digests); err != nil {
			return "", err
		}
	}
	for _, name := range logs {
		if why := r.proves(name, file, digest, generation); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// proves returns why a log proves nothing of the rules in a file, or "". They are in the file as
// in those of the generations before it, as many as are given.
func (r *reading) proves(log, file, digest string, generation int) string {
	span := r.logs[log]
	if len(span.gaps) > 0 {
		return log + ": " + strings.Join(span.gaps, "; ")
	}
	days := func(d time.Duration) string {
		if d > time.Hour {
			d = d.Truncate(time.Hour)
		}
		return authz.Duration(d.Truncate(time.Second)).String()
	}
	from, to := span.first, span.last
	if since := r.options.Log.Since; since.After(from) {
		from = since
	}
	if until := r.options.Log.Until; !until.IsZero() && until.Before(to) {
		to = until
	}
	switch covered := to.Sub(from); {
	case covered < r.options.After:
		return fmt.Sprintf("%s is read for %s, from %s to %s, and %s are needed", log, days(covered), from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339), days(r.options.After))
	case r.options.Now.Sub(to) > maxSilence:
		return fmt.Sprintf("%s is read up to %s, which is more than %s ago", log, to.UTC().Format(time.RFC3339), days(maxSilence))
	}
	l := r.loaded[log]
	if l == nil || l.since[digest].IsZero() {
		return fmt.Sprintf("%s does not record that %s was loaded with its present content", log, file)
	}
	since := l.since[digest]
	if generation > 0 {
		since = l.back[generation]
	}
	if to.Sub(since) < r.options.After {
		return fmt.Sprintf("%s is in force as it is now since %s only, and %s are needed", file, since.UTC().Format(time.RFC3339), days(r.options.After))
	}
	if from, to, found := span.silence(r.options.Now.Add(-r.options.After)); found {
		return fmt.Sprintf("%s has no record from %s to %s: the sidecar may not have run", log, from.UTC().Format(time.DateOnly), to.UTC().Format(time.DateOnly))
	}
	return ""
}

// digestOf returns the SHA-256 digest of a file, in hexadecimal.
func digestOf(file string, known map[string]string) (string, error) {
	if digest, ok := known[file]; ok || file == "" {
		return digest, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, errors.Unwrap(err))
	}
	sum := sha256.Sum256(data)
	known[file] = hex.EncodeToString(sum[:])
	return known[file], nil
}

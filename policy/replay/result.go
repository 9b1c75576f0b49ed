package replay

import (
	"cmp"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
)

// Result is the result of a replay.
type Result struct {
	Accesses  int       `json:"accesses"` // counted refusals count as many
	First     time.Time `json:"first,omitzero"`
	Last      time.Time `json:"last,omitzero"`
	Unchanged int       `json:"unchanged"` // allowed by the same rule with the same credential, or refused
	// Breaks were allowed and would be refused; Widens the other way round; Changed would
	// be allowed by another rule or with another credential. The most frequent is the first.
	Breaks  []Change `json:"breaks"`
	Widens  []Change `json:"widens"`
	Changed []Change `json:"changed"`
	// OtherReason are those of the unchanged that would be refused for another reason or by
	// another rule.
	OtherReason []Change `json:"otherReason"`
	// NotReplayable has the number of accesses that could not be decided again, by reason.
	NotReplayable map[string]int `json:"notReplayable"`
	Partial       bool           `json:"partial,omitempty"` // the log was not read to its end
	Notes         []string       `json:"notes,omitempty"`
}

// Decided returns how many accesses were decided again.
func (r *Result) Decided() int {
	n := r.Accesses
	for _, count := range r.NotReplayable {
		n -= count
	}
	return n
}

// Verdict is a decision.
type Verdict struct {
	Reason     string `json:"reason"`
	Grant      string `json:"grant,omitempty"` // of the rule that decides, "" without one
	Rule       string `json:"rule,omitempty"`  // its id
	Credential string `json:"credential,omitempty"`
}

// Change counts the accesses of a plugin whose decision changes alike.
type Change struct {
	Plugin string    `json:"plugin"`
	Old    Verdict   `json:"old"`
	New    Verdict   `json:"new"`
	Count  int       `json:"count"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Sample Sample    `json:"sample"` // the first
}

// Sample is one access, as explain accepts it.
type Sample struct {
	Method    string `json:"method,omitempty"`
	URL       string `json:"url"`                 // without its query; segments may be masked
	Statement string `json:"statement,omitempty"` // of a database, with the facts of the recorded one
	Upgrade   string `json:"upgrade,omitempty"`
	Decision  string `json:"decision"` // its id
	File      string `json:"file"`
	Line      int    `json:"line"`
}

// Words returns the access in words.
func (s *Sample) Words() policy.Words {
	return policy.Words{Method: s.Method, URL: s.URL, Statement: s.Statement, Upgrade: s.Upgrade}
}

type class uint8

const (
	breaks class = iota
	widens
	changed
	otherReason
)

// changeKey is what the accesses of a change have in common.
type changeKey struct {
	class    class
	plugin   string
	old, now Verdict
}

// count takes an access into account.
func (r *Result) count(a *accesslog.Access) {
	r.Accesses += a.Count
	if r.First.IsZero() || a.First.Before(r.First) {
		r.First = a.First
	}
	if a.Time.After(r.Last) {
		r.Last = a.Time
	}
}

func (r *Replayer) compare(a *accesslog.Access, old, now answer) {
	var c class
	switch {
	case old.allowed && !now.allowed:
		c = breaks
	case !old.allowed && now.allowed:
		c = widens
	case old.Verdict == now.Verdict:
		r.result.Unchanged += a.Count
		return
	case !old.allowed:
		r.result.Unchanged += a.Count
		c = otherReason
	default:
		c = changed
	}
	key := changeKey{c, a.Plugin, old.Verdict, now.Verdict}
	found := r.changes[key]
	if found == nil {
		found = &Change{Plugin: a.Plugin, Old: old.Verdict, New: now.Verdict, First: a.Time, Sample: sample(a)}
		r.changes[key] = found
	}
	found.Count += a.Count
	found.First, found.Last = earlier(found.First, a.Time), later(found.Last, a.Time)
}

func sample(a *accesslog.Access) Sample {
	w := policy.Text(a.Request)
	if to := a.Request.Destination; to.Scheme().HTTP() { // the path is the record's, which has fewer masks than the request
		w.URL = string(to.Scheme()) + "://" + to.Authority() + a.Path
	}
	return Sample{w.Method, w.URL, w.Statement, w.Upgrade, a.Decision, a.File, a.Line}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Result returns what was taken so far.
func (r *Replayer) Result() Result {
	out := r.result
	out.Breaks, out.Widens, out.Changed, out.OtherReason = []Change{}, []Change{}, []Change{}, []Change{}
	for key, c := range r.changes {
		list := [...]*[]Change{&out.Breaks, &out.Widens, &out.Changed, &out.OtherReason}[key.class]
		*list = append(*list, *c)
	}
	for _, list := range [][]Change{out.Breaks, out.Widens, out.Changed, out.OtherReason} {
		sortlarge.By(list, func(a, b *Change) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), a.First.Compare(b.First), cmp.Compare(a.Sample.File, b.Sample.File), cmp.Compare(a.Sample.Line, b.Sample.Line))
		})
	}
	return out
}

// Total returns the number of accesses of changes.
func Total(changes []Change) (n int) {
	for _, c := range changes {
		n += c.Count
	}
	return n
}

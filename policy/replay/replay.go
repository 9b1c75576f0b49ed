// Package replay decides recorded accesses again under another policy, and reports what
// would change: accesses that were allowed and would be refused, accesses that were
// refused and would be allowed, and accesses that another rule or credential would carry.
//
// The answers are those of [authz.Snapshot.Decide] and [authz.Decision.CheckAddress].
// Masked paths are decided by the same policy, compiled with its literals masked by the
// log's key ([authz.Input.MaskPath]). An access whose record does not hold everything that
// its decision depended on is counted with the reason, and never guessed.
//
// Limits and revocations are no part of the answer: what they decided is counted as not
// replayable, and what they allowed is decided as if they had room.
package replay

import (
	"fmt"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
)

// Further reasons for which an access is not replayable, beside those of accesslog.
const (
	OtherPlugin = "other_plugin" // the configuration has no policy of the plugin
	AtExpiry    = "at_expiry"    // a part of the policy ended while the access was being decided
)

// Options are the options of a replay.
type Options struct {
	// At is the instant at which every access is decided; zero decides each at its own time.
	At time.Time
	// MaskKey is the key of masked paths; nil if it is not there.
	MaskKey *audit.MaskKey
}

// Replayer decides accesses. It is not safe for concurrent use.
type Replayer struct {
	options Options
	plugins map[string]*side
	result  Result
	changes map[changeKey]*Change
}

// New returns a replayer of the policies, of which each plugin has at most one.
func New(subjects []policy.Subject, o Options) (*Replayer, error) {
	r := &Replayer{options: o, plugins: map[string]*side{}, changes: map[changeKey]*Change{}}
	r.result.NotReplayable = map[string]int{}
	for i := range subjects {
		s := &subjects[i]
		if r.plugins[s.Plugin] != nil {
			return nil, fmt.Errorf("plugin %s has several policies; name the configuration of one", s.Plugin)
		}
		side, err := newSide(s, o.MaskKey)
		if err != nil {
			return nil, err
		}
		r.plugins[s.Plugin] = side
	}
	return r, nil
}

// side is the policy of one plugin.
type side struct {
	plain, masked *authz.Snapshot // masked is nil without a key
	ends          []time.Time     // sorted: the instants at which a part of the policy ends

	from, to time.Time // no end is after from and not after to; of the last access
}

func newSide(s *policy.Subject, key *audit.MaskKey) (*side, error) {
	out := &side{plain: s.Snapshot, ends: ends(&s.Input)}
	if key == nil {
		return out, nil
	}
	in := s.Input
	in.MaskPath = key.MaskPath
	compiled, problems := authz.Compile(in, time.Time{})
	if len(problems) > 0 {
		return nil, fmt.Errorf("compile %s with masked paths: %s: %s", s.Path, problems[0].Path, problems[0].Message)
	}
	masked := *s
	masked.Policy = compiled
	out.masked = masked.With(nil)
	return out, nil
}

// ends returns the instants at which a part of a policy ends.
func ends(in *authz.Input) []time.Time {
	all := []time.Time{in.ObserveUntil}
	for i := range in.Grants {
		g := &in.Grants[i]
		all = append(all, g.NotAfter)
		for j := range g.Rules {
			all = append(all, g.Rules[j].NotAfter, g.Rules[j].ObserveUntil)
		}
	}
	all = slices.DeleteFunc(all, time.Time.IsZero)
	slices.SortFunc(all, time.Time.Compare)
	return slices.CompactFunc(all, time.Time.Equal)
}

// steady reports whether no part of the policy ends after from and not after to.
func (s *side) steady(from, to time.Time) bool {
	if !from.Before(s.from) && to.Before(s.to) {
		return true
	}
	i, _ := slices.BinarySearchFunc(s.ends, from, func(end, from time.Time) int {
		if end.After(from) {
			return 1
		}
		return -1
	})
	s.from, s.to = from, time.Unix(1<<40, 0)
	if i < len(s.ends) {
		s.to = s.ends[i]
	}
	return to.Before(s.to)
}

// answer is what is known of the decision on an access.
type answer struct {
	allowed bool
	Verdict
}

// Take decides one access.
func (r *Replayer) Take(a *accesslog.Access) {
	r.result.count(a)
	side := r.plugins[a.Plugin]
	why := a.NotReplayable
	var now answer
	if why == "" {
		now, why = r.decide(side, a)
	}
	if why != "" {
		r.result.NotReplayable[why] += a.Count
		return
	}
	r.compare(a, was(a), now)
}

// was returns the recorded decision: that of the policy, whatever became of the access
// afterwards, unless the policy refused its address.
func was(a *accesslog.Access) answer {
	v := Verdict{Reason: a.Decided, Grant: a.Grant, Rule: a.Rule, Credential: a.Credential}
	allowed := a.Decided == authz.Granted.String() || a.Decided == authz.Observed.String()
	if allowed && a.RefusedAddress {
		allowed, v.Reason = false, a.Reason
	}
	return answer{allowed, v}
}

// decide decides an access under the new policy, or returns why it cannot.
func (r *Replayer) decide(side *side, a *accesslog.Access) (answer, string) {
	if side == nil {
		return answer{}, OtherPlugin
	}
	snapshot := side.plain
	if a.Masked {
		if snapshot = side.masked; snapshot == nil {
			return answer{}, accesslog.MaskedPath
		}
	}
	if !r.options.At.IsZero() {
		return decideAt(snapshot, a, r.options.At), ""
	}
	now := decideAt(snapshot, a, a.Time)
	// The record's time has a precision of 1 µs, and the decision may have been delayed.
	if !side.steady(a.Time.Add(-time.Microsecond), a.Recorded) {
		for _, at := range []time.Time{a.Time.Add(-time.Microsecond), a.Recorded} {
			if decideAt(snapshot, a, at) != now {
				return answer{}, AtExpiry
			}
		}
	}
	return now, ""
}

func decideAt(s *authz.Snapshot, a *accesslog.Access, at time.Time) answer {
	d := s.Decide(a.Request, authz.Usage{}, at)
	reason := d.Reason
	if d.Allowed() {
		reason = checkAddresses(&d, a)
	}
	return answer{reason.Allowed(), Verdict{Reason: reason.String(), Grant: d.Grant, Rule: d.Rule, Credential: d.Credential}}
}

// checkAddresses returns the decision's reason if it allows one of the addresses that are
// known, or if none is known; otherwise the reason for refusing the last, as the sidecar
// that tries them in turn does.
func checkAddresses(d *authz.Decision, a *accesslog.Access) authz.Reason {
	refused := d.Reason
	for _, addr := range a.Resolved {
		if refused = d.CheckAddress(addr); refused == authz.Granted {
			return d.Reason
		}
	}
	if a.Address.IsValid() && !slices.Contains(a.Resolved, a.Address) {
		if refused = d.CheckAddress(a.Address); refused == authz.Granted {
			return d.Reason
		}
	}
	return refused
}

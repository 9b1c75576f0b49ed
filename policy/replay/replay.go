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
	MaskedName  = "masked_name"  // a prefix of the policy ends where the name of a key or channel is masked
)

// Options are the options of a replay.
type Options struct {
	// At is the instant at which every access is decided; zero decides each at its own time.
	At time.Time
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
		r.plugins[s.Plugin] = &side{subject: s, masked: map[*audit.MaskKey]*authz.Snapshot{}, names: policy.NewNames(s.Input), ends: ends(&s.Input)}
	}
	return r, nil
}

// side is the policy of one plugin.
type side struct {
	subject *policy.Subject
	masked  map[*audit.MaskKey]*authz.Snapshot // the policy with its literals masked
	names   *policy.Names                      // for masked names of keys and channels
	ends    []time.Time                        // sorted: the instants at which a part of the policy ends

	from, to time.Time // no end is after from and not after to; of the last access
}

// snapshot returns the policy that decides an access: one whose paths are masked with the
// key of the access's path, or else the readable one.
func (s *side) snapshot(a *accesslog.Access) (*authz.Snapshot, error) {
	key := a.MaskKey
	if key == nil || a.MaskedFacts != nil {
		return s.subject.Snapshot, nil
	}
	if found := s.masked[key]; found != nil {
		return found, nil
	}
	in := s.subject.Input
	in.MaskPath = key.MaskPath
	compiled, problems := authz.Compile(in, never()) // it was checked when it was loaded
	if len(problems) > 0 {
		return nil, fmt.Errorf("compile %s with masked paths: %s: %s", s.subject.Path, problems[0].Path, problems[0].Message)
	}
	masked := *s.subject
	masked.Policy = compiled
	s.masked[key] = masked.With(nil)
	return s.masked[key], nil
}

// never is after every end, so that no grant is found to be valid for too long.
func never() time.Time { return time.Unix(1<<40, 0) }

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
	s.from, s.to = from, never()
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

// Take decides one access. Its error is for a policy that cannot decide masked paths.
func (r *Replayer) Take(a *accesslog.Access) error {
	r.result.count(a)
	why := a.NotReplayable
	var now answer
	if why == "" {
		var err error
		if now, why, err = r.decide(a); err != nil {
			return err
		}
	}
	if why != "" {
		r.result.NotReplayable[why] += a.Count
		return nil
	}
	r.compare(a, was(a), now)
	return nil
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
func (r *Replayer) decide(a *accesslog.Access) (now answer, why string, err error) {
	side := r.plugins[a.Plugin]
	if side == nil {
		return answer{}, OtherPlugin, nil
	}
	snapshot, err := side.snapshot(a)
	if err != nil {
		return answer{}, "", err
	}
	if a.MaskedFacts == nil {
		return r.decideOne(side, snapshot, a)
	}
	parts, ok := side.names.Resolve(a.Request.Destination.Scheme().Protocol(), a.MaskedFacts, a.MaskKey)
	switch {
	case !ok && a.Masked && a.MaskKey == nil:
		return answer{}, accesslog.MaskedPath, nil
	case !ok:
		return answer{}, MaskedName, nil
	}
	one := *a
	for i, facts := range parts { // of several statements, the first that is refused counts
		one.Request.Facts = facts
		part, why, err := r.decideOne(side, snapshot, &one)
		if why != "" || err != nil {
			return answer{}, why, err
		}
		if i == 0 || now.allowed && !part.allowed {
			now = part
		}
	}
	return now, "", nil
}

// decideOne decides one request.
func (r *Replayer) decideOne(side *side, snapshot *authz.Snapshot, a *accesslog.Access) (now answer, why string, err error) {
	if !r.options.At.IsZero() {
		return decideAt(snapshot, a, r.options.At), "", nil
	}
	// The record's time has a precision of 1 µs, and the decision may have been delayed.
	now, from := decideAt(snapshot, a, a.Time), a.Time.Add(-time.Microsecond)
	if !side.steady(from, a.Recorded) && (decideAt(snapshot, a, from) != now || decideAt(snapshot, a, a.Recorded) != now) {
		return answer{}, AtExpiry, nil
	}
	return now, "", nil
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

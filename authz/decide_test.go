package authz

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// verdict is the result of a naive evaluator.
type verdict struct {
	reason            Reason
	grant, rule, cred string
	throttled         bool
}

// naive decides as the rules are written, with a scan over all of them and
// without an index, a compiled pattern or a shortcut. Usage of a
// limit is recent.
func naive(w policyWorld, req Request) verdict {
	plugin, found := string(req.Principal), w.scan(req)
	observing := w.in.Observe && plugin == w.in.Plugin && w.now.Before(w.in.ObserveUntil)
	relaxed := func(v verdict) verdict {
		if observing {
			return verdict{reason: Observed, grant: v.grant, rule: v.rule}
		}
		return v
	}
	best, winner := found.best, found.best
	if best == nil {
		winner = found.lost
	}
	switch {
	case req.Destination.encodedSlash && !found.slash:
		return verdict{reason: MalformedRequest}
	case plugin == "":
		return verdict{reason: IdentityUnknown}
	case w.revoked(plugin, "", ""):
		return verdict{reason: Revoked}
	case !found.granted && plugin != w.in.Plugin:
		return verdict{reason: NoGrant}
	case slices.ContainsFunc(w.in.Guardrails, func(g Guardrail) bool { return slices.Contains(g.Never[0].Hosts, req.Destination.host) }):
		return verdict{reason: GuardrailDenied}
	case winner != nil && w.revoked(plugin, winner.g.Name, winner.r.ID):
		return verdict{reason: Revoked, grant: winner.g.Name, rule: winner.r.ID}
	case best == nil && found.observer == nil:
		for _, step := range []struct {
			ok     bool
			reason Reason
		}{{found.granted, NoGrant}, {found.host, DestinationNotGranted}, {found.method, MethodNotGranted}, {found.ended, PathNotGranted}, {false, GrantExpired}} {
			if !step.ok {
				return relaxed(verdict{reason: step.reason})
			}
		}
	}
	v := verdict{reason: Observed}
	if winner = found.observer; best != nil {
		winner, v = best, verdict{reason: Granted, cred: best.r.Credential}
	}
	v.grant, v.rule = winner.g.Name, winner.r.ID
	conditions := req.Unenforceable & stateConditions(winner.r) &^ ConditionOriginate
	if v.reason == Observed {
		conditions &^= ConditionCredential
	}
	if conditions != 0 {
		v.reason = NotEnforceableHere
		return v
	}
	if v.reason == Granted && w.over(winner.g, winner.r.ID, winner.r.Limits.Requests) {
		v.reason, v.cred = QuotaExceeded, ""
		if w.now.Before(winner.r.ObserveUntil) {
			v.reason = Observed
		} else {
			found.hard = found.hard || !throttles(winner.r.Limits, winner.r.Limits.Requests)
		}
	}
	if found.over {
		v.reason = QuotaExceeded
	}
	v.throttled = v.reason == QuotaExceeded && !found.hard && !found.unknown
	switch {
	case found.unknown && (observing || v.reason != QuotaExceeded):
		v.reason = UsageUnknown
	case v.reason == QuotaExceeded:
		return relaxed(v)
	}
	return v
}

// scanned is what a scan over all rules finds.
type scanned struct {
	best, observer, lost                               *naiveRule
	granted, slash, host, method, ended, unknown, over bool
	hard                                               bool // a limit refuses at once
}

// throttles reports whether a limit slows down and does not refuse.
func throttles(l Limits, one Limit) bool {
	return l.OnExceeded == OnExceededThrottle && one.Period > 0
}

func (w policyWorld) scan(req Request) (found scanned) {
	for gi := range w.in.Grants {
		g := &w.in.Grants[gi]
		if g.Plugin != string(req.Principal) {
			continue
		}
		found.granted = true
		if w.over(g, "", g.Limits.Requests) {
			found.over, found.hard = true, found.hard || !throttles(g.Limits, g.Limits.Requests)
		}
		metered := g.Limits
		metered.Requests, metered.OnExceeded = Limit{}, ""
		found.unknown = found.unknown || w.stale && metered != (Limits{}) && w.now.Before(g.NotAfter)
		if calls := g.Limits.Syscalls; !w.stale && w.now.Before(g.NotAfter) && !calls.IsZero() && w.counted >= calls.Count && !throttles(g.Limits, calls) {
			found.over, found.hard = true, true
		}
		for ri := range g.Rules {
			r := &naiveRule{g, &g.Rules[ri], req.Destination}
			if !r.exact() && !r.wild() {
				continue
			}
			found.slash = found.slash || r.r.EncodedSlash == "allow"
			if !r.at() {
				continue
			}
			found.host = true
			ended := !r.r.NotAfter.IsZero() && !w.now.Before(r.r.NotAfter) || !w.now.Before(g.NotAfter)
			revoked := w.revoked(g.Plugin, g.Name, r.r.ID)
			if !ended && w.now.Before(r.r.ObserveUntil) && !revoked && r.before(found.observer) {
				found.observer = r
			}
			if !r.method(req.Action) {
				continue
			}
			found.method = true
			if r.literal() < 0 {
				continue
			}
			found.ended = found.ended || ended
			if !ended && r.beats(found.best) {
				found.best = r
			}
			if ended && revoked && r.before(found.lost) {
				found.lost = r
			}
		}
	}
	return found
}

func (w policyWorld) revoked(plugin, grant, rule string) bool {
	return slices.ContainsFunc(w.revocations, func(v Revocation) bool {
		return v.Plugin == plugin && (v.Until.IsZero() || w.now.Before(v.Until)) && v.Rule == rule && (rule == "" || v.Grant == "" || v.Grant == grant)
	})
}

func (w policyWorld) over(g *Grant, rule string, l Limit) bool {
	return !l.IsZero() && w.now.Before(g.NotAfter) && w.used[g.Name+"/"+rule] >= l.Count
}

// naiveRule is a rule beside the destination that it is asked about.
type naiveRule struct {
	g *Grant
	r *Rule
	d Destination
}

func (n naiveRule) exact() bool { return slices.Contains(n.r.To.Hosts, n.d.host) }

func (n naiveRule) wild() bool {
	return slices.ContainsFunc(n.r.To.Hosts, func(p string) bool {
		labels := map[bool]string{true: "^.+", false: "^[^.]+"}[strings.HasPrefix(p, "**")]
		return strings.HasPrefix(p, "*") && regexp.MustCompile(labels+regexp.QuoteMeta(strings.TrimLeft(p, "*"))+"$").MatchString(n.d.host)
	})
}

func (n naiveRule) at() bool {
	return n.d.scheme == SchemeHTTPS && (slices.Contains(n.r.To.Ports, n.d.port) || n.r.To.Ports == nil && n.d.port == 443)
}

func (n naiveRule) method(a Action) bool {
	return (n.r.Methods[0] == "*" && a.Method != "TRACE" || slices.Contains(n.r.Methods, a.Method)) &&
		(a.Upgrade == "" || slices.Contains(n.r.Upgrades, a.Upgrade))
}

// literal returns the bytes of the longest pattern that matches and are no
// wildcard, or -1.
func (n naiveRule) literal() int {
	longest := -1
	for _, p := range n.r.Paths {
		expression := strings.ReplaceAll(strings.ReplaceAll(regexp.QuoteMeta(p), `\*\*`, `.*`), `\*`, `[^/]+`)
		if (!n.d.encodedSlash || n.r.EncodedSlash == "allow") && regexp.MustCompile("^"+expression+"$").MatchString(n.d.path) {
			longest = max(longest, len(strings.NewReplacer("/", "", "*", "").Replace(p)))
		}
	}
	return longest
}

func (n naiveRule) beats(other *naiveRule) bool {
	switch {
	case other == nil:
		return true
	case n.exact() != other.exact():
		return n.exact()
	case n.literal() != other.literal():
		return n.literal() > other.literal()
	}
	return n.before(other)
}

func (n naiveRule) before(other *naiveRule) bool {
	return other == nil || n.g.Name < other.g.Name || n.g.Name == other.g.Name && n.r.ID < other.r.ID
}

// policyWorld is all that a decision depends on but the request.
type policyWorld struct {
	in          Input
	revocations []Revocation
	used        map[string]uint64 // of limits on requests, by GRANT/RULE
	counted     uint64            // by the kernel, of every kind
	stale       bool              // the meter
	now         time.Time
}

func (w policyWorld) decide(t *testing.T, req Request) Decision {
	t.Helper()
	s := newSnapshot(compile(t, w.in), w.revocations, 1)
	ledger := NewLedger()
	for _, plugin := range plugins {
		for _, lim := range s.allLimits(Principal(plugin)) {
			name, used := lim.key.Value(), w.counted
			if lim.kind == LimitRequests {
				used = w.used[name.grant+"/"+name.rule]
			}
			ledger.bucket(lim.key).spend(lim.spec, used, w.now, true)
		}
		if !w.stale {
			ledger.samples[Principal(plugin)] = reading{at: w.now}
		}
	}
	return s.Decide(req, ledger.Usage(), w.now)
}

var plugins = []string{"weather", "other"}

// dice are thrown by the fuzzer's bytes; when they run out, all show 0.
type dice struct{ data []byte }

func (d *dice) n(sides int) int {
	if len(d.data) == 0 {
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return int(b) % sides
}

func (d *dice) chance(in int) bool { return d.n(in) == 1 }

// oneOf picks one; some picks a few, and at least one.
func oneOf[T any](d *dice, from ...T) T { return from[d.n(len(from))] }

func some[T comparable](d *dice, from ...T) []T {
	out := []T{oneOf(d, from...)}
	for d.chance(2) {
		if more := oneOf(d, from...); !slices.Contains(out, more) {
			out = append(out, more)
		}
	}
	return out
}

func (d *dice) time() time.Time { return noon.Add(time.Duration(d.n(5)-2) * time.Hour) }

func (d *dice) rule(id string) Rule {
	r := Rule{
		ID: id, Reason: "r", Methods: some(d, "GET", "POST", "PUT"),
		To:    To{Hosts: some(d, "a.example", "b.a.example", "*.example", "*.a.example", "**.example", "example")},
		Paths: some(d, "/", "/**", "/x", "/x/*", "/x/**", "/*/y", "/*", "/x/y", "/xx/**"),
	}
	if d.chance(6) {
		r.Methods = []string{"*"}
	}
	if d.chance(4) {
		r.To.Ports = some(d, uint16(443), 8443)
	}
	if d.chance(4) {
		r.EncodedSlash = "allow"
	}
	if d.chance(4) {
		r.Upgrades = []string{"websocket"}
	}
	if d.chance(3) {
		r.NotAfter = noon.Add(-time.Duration(d.n(2)) * time.Hour)
	}
	if d.chance(4) {
		r.Mode, r.ObserveUntil = ModeObserve, d.time()
	}
	if d.chance(3) {
		r.Limits.Requests = d.limit()
		r.Limits.OnExceeded = oneOf(d, "", OnExceededDeny, OnExceededThrottle, OnExceededThrottle, OnExceededKill)
	}
	if d.chance(4) {
		r.Timeout = Duration(time.Second)
	}
	if d.chance(3) {
		r.Credential, r.WildcardCredential = "key", strings.Contains(fmt.Sprint(r.To.Hosts), "*")
	}
	return r
}

func (d *dice) limit() Limit {
	return Limit{uint64(1 + d.n(3)), oneOf(d, 0, time.Hour)} // #nosec G115 -- no die has so many sides
}

func (d *dice) revocation() Revocation {
	v := Revocation{ID: "v", Plugin: oneOf(d, plugins...), Level: oneOf(d, LevelPause, LevelQuarantine, LevelHalt)}
	if !d.chance(3) {
		v.Grant, v.Rule = oneOf(d, "g0", "g1", "g2", ""), oneOf(d, "r0", "r1", "r2", "r3")
	}
	if d.chance(3) {
		v.Until = d.time()
	}
	return v
}

func (d *dice) world() policyWorld {
	w := policyWorld{now: noon, used: map[string]uint64{}, in: Input{Plugin: "weather", Observe: d.chance(4), ObserveUntil: d.time()}}
	for i := range 1 + d.n(3) {
		g := withKey(Grant{Name: fmt.Sprint("g", i), Plugin: oneOf(d, "weather", "weather", "weather", "other"), NotAfter: noon.Add(time.Duration(d.n(3)) * time.Hour), Rules: make([]Rule, 1)})
		g.Rules = nil
		for j := range 1 + d.n(4) {
			g.Rules = append(g.Rules, d.rule(fmt.Sprint("r", j)))
		}
		if d.chance(4) {
			g.Limits.Requests = d.limit()
			g.Limits.OnExceeded = oneOf(d, "", OnExceededThrottle, OnExceededThrottle)
		}
		if d.chance(4) {
			g.Limits.SentBytes = ByteLimit{1 << 40, time.Second}
		}
		if d.chance(4) {
			g.Limits.Syscalls = d.limit()
			g.Limits.OnExceeded = oneOf(d, OnExceededThrottle, OnExceededThrottle, OnExceededDeny, OnExceededStop)
		}
		if d.chance(6) {
			g.Limits.Connections, g.Limits.Processes = d.limit(), d.limit()
		}
		w.in.Grants = append(w.in.Grants, g)
	}
	for i := range w.in.Grants {
		for _, rule := range []string{"", "r0", "r1", "r2"} {
			w.used[w.in.Grants[i].Name+"/"+rule] = uint64(d.n(4))
		}
	}
	for range max(d.n(6)-3, 0) {
		w.revocations = append(w.revocations, d.revocation())
	}
	if d.chance(5) {
		w.in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"*"}, Never: []Never{{ID: "no", Hosts: []string{"b.a.example"}}}}}
	}
	w.stale, w.counted = d.chance(4), uint64(d.n(5)) // #nosec G115 -- no die has so many sides
	return w
}

func (d *dice) request(t *testing.T) Request {
	t.Helper()
	req := get(t, oneOf(d, "GET", "GET", "GET", "POST", "PUT", "TRACE")+" https://"+oneOf(d, "a.example", "a.example", "b.a.example", "b.a.example", "b.a.example", "c.b.a.example", "example", "elsewhere")+
		oneOf(d, "", "", "", ":8443")+oneOf(d, "/", "/x", "/x/", "/x/y", "/x/y", "/x/y/z", "/y/y", "/x%2Fy", "/xx/y"))
	if d.chance(8) {
		req.Action.Upgrade = "websocket"
	}
	req.Principal = oneOf[Principal](d, "weather", "weather", "weather", "weather", "weather", "weather", "weather", "other", "nobody", "")
	if d.chance(6) {
		req.Unenforceable = oneOf(d, ConditionTimeout, ConditionCredential, ConditionAddresses)
	}
	return req
}

// FuzzDecide compares every decision with a naive evaluator's, and checks that a
// revocation never grants.
func FuzzDecide(f *testing.F) {
	random := rand.NewChaCha8([32]byte{})
	for range 600 {
		data := make([]byte, 500)
		_, _ = random.Read(data)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		req := d.request(t)
		w := d.world()
		before := w.decide(t, req)
		got := verdict{before.Reason, before.Grant, before.Rule, before.Credential, before.throttled}
		if !before.Allowed() {
			got.cred = "" // it names whose credential was not had
		}
		want := naive(w, req)
		if !want.reason.Allowed() {
			want.cred = ""
		}
		if got != want {
			t.Fatalf("%+v\nof %+v\nin %+v\nis decided %+v, naively %+v", req, req.Destination, w, got, want)
		}
		checkTaking(t, d, w, req, before)
	})
}

// checkTaking revokes an access and checks that nothing is given by it.
func checkTaking(t *testing.T, d *dice, w policyWorld, req Request, before Decision) {
	t.Helper()
	never := func(what string, after Decision) {
		if !before.Allowed() && after.Allowed() {
			t.Fatalf("%s turned %s by %s/%s into %s by %s/%s", what, before.Reason, before.Grant, before.Rule, after.Reason, after.Grant, after.Rule)
		}
	}
	more := w
	more.revocations = append(slices.Clone(w.revocations), d.revocation())
	never("a revocation", more.decide(t, req))

	more = w
	more.used = map[string]uint64{}
	for name, used := range w.used {
		more.used[name] = used + uint64(d.n(3))
	}
	more.stale = w.stale || d.chance(2)
	never("usage", more.decide(t, req))

	more = w
	more.in.Guardrails = append(slices.Clone(w.in.Guardrails), Guardrail{
		Name: "more", Plugins: []string{oneOf(d, "*", "weather")}, Never: []Never{{ID: "no", Hosts: []string{oneOf(d, "a.example", "**.example", "elsewhere")}}},
	})
	never("a guardrail", more.decide(t, req))

	more = w
	more.in.Grants = slices.Clone(w.in.Grants)
	for i := range more.in.Grants {
		more.in.Grants[i].Rules = slices.Clone(more.in.Grants[i].Rules)
		slices.Reverse(more.in.Grants[i].Rules)
	}
	slices.Reverse(more.in.Grants)
	more.revocations = slices.Clone(w.revocations)
	slices.Reverse(more.revocations)
	if after := more.decide(t, req); after.Reason != before.Reason || after.Grant != before.Grant || after.Rule != before.Rule || after.Cuts() != before.Cuts() {
		t.Fatalf("in another order %+v is %+v", before, after)
	}

	// To remove a rule gives only where that rule decided and refused by its own
	// limits, conditions or revocation: then the next one decides.
	for i := range w.in.Grants {
		for j, r := range w.in.Grants[i].Rules {
			if w.in.Grants[i].Name == before.Grant && r.ID == before.Rule || len(w.in.Grants[i].Rules) == 1 {
				continue
			}
			more.in.Grants = slices.Clone(w.in.Grants)
			more.in.Grants[i].Rules = slices.Delete(slices.Clone(more.in.Grants[i].Rules), j, j+1)
			never("to remove a rule", more.decide(t, req))
		}
	}
}

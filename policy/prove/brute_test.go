package prove

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// bruteHosts and the like are what the brute force asks: instances of every text above,
// and texts beside them.
var (
	bruteHosts    = []string{"a.example", "b.a.example", "x.a.example", "x.y.a.example", "c.example", "example", "y.example", "other", "192.0.2.7", "2001:db8::7", "x.b.a.example", "10.0.0.1"}
	brutePaths    = []string{"/", "/a", "/a/", "/b", "/b/", "/x", "/x/", "/a/b", "/a/b/", "/a/x", "/a/x/", "/x/b", "/x/y", "/x/y/", "/a/x/y", "/a/x/y/", "/b/x", "/x/y/z", "/b/x/y/z/", "/a%2Fb", "/a/%2F", "/x%2Fy", "/a/x%2Fy", "/a/b/c%2Fd", "/b/c%2Fd"}
	bruteMethods  = []string{"GET", "POST", "TRACE", "X", "Y"}
	bruteUpgrades = []string{"", "websocket", "spdy/3.1", "other"}
	brutePorts    = []uint16{80, 443, 8443, 9000}
	bruteTimes    = []time.Time{noon, noon.Add(time.Hour), noon.Add(2 * time.Hour), noon.Add(3 * time.Hour), noon.Add(100 * time.Hour)}
)

// bruteAddresses are addresses of every kind.
var bruteAddresses = sync.OnceValue(func() (out []netip.Addr) {
	for _, text := range []string{
		"10.0.0.1", "10.1.2.3", "93.184.1.1", "93.185.1.1", "8.8.8.8", "127.0.0.1", "169.254.1.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.168.1.1",
		"2001:4860::1", "2606:4700::1", "2606:4700::5efe:a00:1", "2606:4700::5efe:808:808", "2606:4700::5efe:5db8:101", "64:ff9b::a00:1", "64:ff9b::808:808", "64:ff9b::5db8:101", "64:ff9b::a01:203",
		"2002:a00:1::1", "2002:808:808::1", "2002:a01:203::1", "fe80::1", "fe80::5efe:a00:1", "::1", "::", "::a00:1", "::ffff:0:a00:1", "fc00::1", "ff02::1",
		"2001:0:808:808::f7f7:f7f7", "2001:0:a00:1::f7f7:f7f7", "2001:0:808:808::f5ff:fffe", "2001:db8::1", "3fff::1",
	} {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
})

// grid holds every request of the brute force, by host.
var grid = sync.OnceValue(func() [][]authz.Request {
	out := make([][]authz.Request, len(bruteHosts))
	for _, scheme := range []authz.Scheme{authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP} {
		sh := shape{scheme, brutePorts, bruteMethods, bruteUpgrades, brutePaths, []authz.Facts{{}}}
		for i, host := range bruteHosts {
			out[i] = slices.AppendSeq(out[i], sh.requests("p", host, func() {}))
		}
	}
	return out
})

// difference is what a pair of decisions differs in. Findings of one difference are alike
// but for the method and the upgrade.
type difference struct {
	kind     Kind
	old, new ruleName
	reason   authz.Reason // of the old policy
	scheme   authz.Scheme
	trace    bool // the method is TRACE, which * does not grant
}

func differenceOf(kind Kind, req authz.Request, was, now ruleName, reason authz.Reason) difference {
	return difference{kind, was, now, reason, req.Destination.Scheme(), req.Action.Method == "TRACE"}
}

// brute holds what asking requests of the grid finds.
type brute struct {
	before, after *authz.Snapshot
	found         map[difference]string
	bursts        map[limitPair]bool // the pairs of rules whose limits were tried
	unlimited     string             // a request of which the new policy allows more in a row
}

// ask asks the requests at some hosts, times and doors, and of each host a part.
func (b *brute) ask(t *rapid.T, long bool) {
	stride, most := 5, 2
	if long {
		stride, most = 1, 3
	}
	var granted []int // the hosts at which the new policy may allow something
	for i, host := range bruteHosts {
		if side := newSide(b.after, "p"); len(side.at(host)) > 0 || !side.observeUntil.IsZero() {
			granted = append(granted, i)
		}
	}
	if len(granted) == 0 {
		return
	}
	most = min(most, len(granted))
	hosts := rapid.SliceOfNDistinct(rapid.SampledFrom(granted), most, most, rapid.ID).Draw(t, "hosts asked")
	times := rapid.SliceOfNDistinct(rapid.SampledFrom(bruteTimes), 2, 2, rapid.ID).Draw(t, "times asked")
	doors := rapid.SliceOfNDistinct(rapid.SampledFrom(policy.Doors()), 2, 2, rapid.ID).Draw(t, "doors asked")
	start := rapid.IntRange(0, stride-1).Draw(t, "first asked")
	for _, i := range hosts {
		requests := grid()[i]
		for j := start; j < len(requests); j += stride {
			for _, at := range times {
				for _, door := range doors {
					b.one(requests[j], at, door)
				}
			}
		}
	}
}

// one asks one request.
func (b *brute) one(req authz.Request, at time.Time, door policy.Door) {
	req.Unenforceable = door.Unenforceable
	now := b.after.Decide(req, authz.Usage{}, at)
	if !now.Allowed() {
		return
	}
	was := b.before.Decide(req, authz.Usage{}, at)
	note := func(k Kind) {
		d := differenceOf(k, req, ruleName{was.Grant, was.Rule}, ruleName{now.Grant, now.Rule}, was.Reason)
		b.found[d] = fmt.Sprintf("%s %s upgrade %q at %s, door %v: %s %s/%s, was %s %s/%s", req.Action.Method, req.Destination.URL(), req.Action.Upgrade,
			at.Format(time.TimeOnly), door, now.Reason, now.Grant, now.Rule, was.Reason, was.Grant, was.Rule)
	}
	if !was.Allowed() {
		note(KindAccess)
		return
	}
	if now.Credential != "" && credential(b.after, now) != credential(b.before, was) || longerLease(was, now) {
		note(KindCredential)
	}
	if now.Upstream(req.Destination) != was.Upstream(req.Destination) {
		note(KindUpstream)
	}
	if a, b := now.Terms(), was.Terms(); a.TLSMin < b.TLSMin || a.CA != b.CA || b.Timeout > 0 && (a.Timeout == 0 || a.Timeout > b.Timeout) {
		note(KindTerms)
	}
	addresses := bruteAddresses()
	if literal := req.Destination.Address(); literal.IsValid() {
		addresses = []netip.Addr{literal} // it is not resolved
	}
	for _, addr := range addresses {
		if now.CheckAddress(addr) == authz.Granted && was.CheckAddress(addr) != authz.Granted {
			note(KindAddress)
		}
	}
	b.tryLimits(req, at, was, now)
}

// credential returns the source and the place of a decision's credential.
func credential(s *authz.Snapshot, d authz.Decision) string {
	for _, g := range s.Input().Grants {
		for _, c := range g.Credentials {
			if g.Name == d.Grant && c.Name == d.Credential {
				return c.Vault.Path + " " + c.Inject.Describe()
			}
		}
	}
	return ""
}

func longerLease(was, now authz.Decision) bool {
	a, injects := now.CredentialRef()
	b, injected := was.CredentialRef()
	return injects && injected && b.Lifetime > 0 && (a.Lifetime == 0 || a.Lifetime > b.Lifetime)
}

// tryLimits makes the access again and again at one instant, as a door would, and compares
// how often either policy allows it.
func (b *brute) tryLimits(req authz.Request, at time.Time, was, now authz.Decision) {
	pair := limitPair{counter{was.Grant, was.Rule, ""}, counter{now.Grant, now.Rule, ""}, was.Reason, now.Reason, at.UnixNano()}
	if b.bursts[pair] || was.Reason != authz.Granted || was.Credential+now.Credential != "" {
		return
	}
	b.bursts[pair] = true
	if old, is := burst(b.before, req, at), burst(b.after, req, at); is > old {
		b.unlimited = fmt.Sprintf("%s at %s: %d in a row, were %d", policy.Format(req), at.Format(time.TimeOnly), is, old)
	}
}

// discard keeps no records.
type discard struct{}

func (discard) Record(*authz.Record) error { return nil }

// burst returns how often the access is allowed at one instant, up to 8 times.
func burst(s *authz.Snapshot, req authz.Request, at time.Time) int {
	compiled, _ := authz.Compile(s.Input(), noon)
	var engine authz.Engine
	engine.Install(compiled)
	engine.Revoke(s.Revocations()...)
	gate, err := authz.NewGate(authz.GateConfig{Engine: &engine, Ledger: authz.NewLedger(), Recorder: discard{}, Now: func() time.Time { return at }})
	if err != nil {
		panic(err)
	}
	for n := range 8 {
		admission, err := gate.Admit(context.Background(), req, authz.Source{Door: authz.DoorProxy})
		if err != nil || admission.Refusal != nil {
			return n
		}
		if err := admission.End(authz.Outcome{}); err != nil {
			panic(err)
		}
	}
	return 8
}

// TestAgreesWithBruteForce compares random pairs of policies by asking requests of a grid.
// Each difference that the grid shows must be found; each finding must be a request that
// shows its difference. CHAPERONE_LONG asks 100,000 pairs, and every request.
func TestAgreesWithBruteForce(t *testing.T) {
	pairs, long := "1500", os.Getenv("CHAPERONE_LONG") != ""
	if long {
		pairs = "100000"
	}
	if testing.Short() {
		pairs = "500"
	}
	checks := flag.Lookup("rapid.checks")
	if usual := checks.Value.String(); usual == checks.DefValue {
		if err := checks.Value.Set(pairs); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = checks.Value.Set(usual) })
	}
	wider, within := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawPair(t)
		if comparePair(t, before, after, long) {
			wider++
		} else {
			within++
		}
	})
	t.Logf("%d pairs were wider, %d within", wider, within)
}

// comparePair compares two policies by the prover and by brute force, and reports whether
// the new one is wider.
func comparePair(t *rapid.T, before, after *authz.Snapshot, long bool) bool {
	got, err := Compare(context.Background(), before, after, Options{Plugin: "p", At: noon})
	if err != nil || !got.Complete {
		t.Fatalf("Compare = %+v, %v, want a complete result", got, err)
	}
	found, limits := map[difference]bool{}, false
	for _, f := range got.Findings {
		found[differenceOf(f.Kind, f.Request, ruleName{f.Old.Grant, f.Old.Rule}, ruleName{f.New.Grant, f.New.Rule}, f.Old.Reason)] = true
		limits = limits || f.Kind == KindLimit
		checkFinding(t, before, after, f)
	}
	b := brute{before: before, after: after, found: map[difference]string{}, bursts: map[limitPair]bool{}}
	b.ask(t, long)
	for d, request := range b.found {
		if !found[d] {
			t.Errorf("no finding is %+v, want one as for %s", d, request)
		}
	}
	if b.unlimited != "" && !limits {
		t.Errorf("no finding is of a limit, want one for %s", b.unlimited)
	}
	for _, at := range bruteTimes {
		old := before.Sockets("p", at)
		for _, s := range after.Sockets("p", at) {
			wider := func(f Finding) bool { return f.Kind == KindSocket && f.Socket == s }
			if !slices.Contains(old, s) && !slices.ContainsFunc(got.Findings, wider) {
				t.Errorf("no finding is of the socket %s, want one at %s", s, at)
			}
		}
	}
	return len(got.Findings) > 0
}

// checkFinding checks that the request of a finding shows the difference.
func checkFinding(t *rapid.T, before, after *authz.Snapshot, f Finding) {
	switch f.Kind {
	case KindLimit:
		return
	case KindSocket:
		if !slices.Contains(after.Sockets("p", f.At), f.Socket) || slices.Contains(before.Sockets("p", f.At), f.Socket) {
			t.Errorf("finding %+v has a socket that both policies judge alike", f)
		}
		return
	case KindAddress:
		now, was := after.Decide(f.Request, authz.Usage{}, f.At), before.Decide(f.Request, authz.Usage{}, f.At)
		if now.CheckAddress(f.Address) != authz.Granted || was.CheckAddress(f.Address) == authz.Granted {
			t.Errorf("finding %+v has an address that both policies judge alike", f)
		}
		return
	case KindAccess, KindCredential, KindUpstream, KindTerms:
	}
	b := brute{before: before, after: after, found: map[difference]string{}, bursts: map[limitPair]bool{}}
	b.one(f.Request, f.At, f.Door)
	for d := range b.found {
		if d.kind == f.Kind {
			return
		}
	}
	t.Errorf("finding of kind %s shows nothing: %s at %s, found %v", f.Kind, policy.Format(f.Request), f.At, b.found)
}

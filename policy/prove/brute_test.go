package prove

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// texts of the random policies are few, so that rules meet often.
var (
	hostTexts    = []string{"a.example", "b.a.example", "*.a.example", "**.a.example", "*.example", "**.example", "192.0.2.7", "c.example"}
	pathTexts    = []string{"/", "/a", "/a/", "/a/*", "/a/**", "/**", "/*", "/*/b", "/a/b", "/*/*", "/a/*/**", "/b/**"}
	slashTexts   = []string{"/a%2Fb", "/a/%2F"}
	methodTexts  = []string{"GET", "POST", "TRACE", "X"}
	upgradeTexts = []string{"websocket", "spdy/3.1"}
	rangeTexts   = []string{"10.0.0.0/8", "10.1.0.0/16", "93.184.0.0/16", "2001:4860::/32", "64:ff9b::/96", "2002::/16", "fe80::/10", "::/0", "0.0.0.0/0", "2001::/32", "2606:4700::5efe:0:0/112"}
)

// bruteHosts and the like are what the brute force asks: instances of every text above,
// and texts beside them.
var (
	bruteHosts    = []string{"a.example", "b.a.example", "x.a.example", "x.y.a.example", "c.example", "example", "y.example", "other", "192.0.2.7", "x.b.a.example", "10.0.0.1"}
	brutePaths    = []string{"/", "/a", "/a/", "/b", "/b/", "/x", "/x/", "/a/b", "/a/b/", "/a/x", "/a/x/", "/x/b", "/x/y", "/x/y/", "/a/x/y", "/a/x/y/", "/b/x", "/x/y/z", "/b/x/y/z/", "/a%2Fb", "/a/%2F", "/x%2Fy", "/a/x%2Fy", "/a/b/c%2Fd", "/b/c%2Fd"}
	bruteMethods  = []string{"GET", "POST", "TRACE", "X", "Y"}
	bruteUpgrades = []string{"", "websocket", "spdy/3.1", "other"}
	brutePorts    = []uint16{80, 443, 8443, 9000}
	bruteTimes    = []time.Time{noon, noon.Add(time.Hour), noon.Add(2 * time.Hour), noon.Add(3 * time.Hour), noon.Add(100 * time.Hour)}
)

func drawTime(t *rapid.T, label string) time.Time {
	return noon.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, label)) * time.Hour)
}

func drawSome(t *rapid.T, from []string, most int, label string) []string {
	out := rapid.SliceOfNDistinct(rapid.SampledFrom(from), 1, most, rapid.ID).Draw(t, label)
	return out
}

func drawRule(t *rapid.T, id string) authz.Rule {
	r := authz.Rule{ID: id, Reason: "random", To: authz.To{Hosts: drawSome(t, hostTexts, 2, "hosts")}}
	r.To.Scheme = rapid.SampledFrom([]authz.Scheme{"", "", "", authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP}).Draw(t, "scheme")
	if r.To.Scheme == authz.SchemeTCP || rapid.IntRange(0, 3).Draw(t, "ports") == 0 {
		r.To.Ports = []uint16{rapid.SampledFrom([]uint16{8443, 443, 80}).Draw(t, "port")}
	}
	if rapid.IntRange(0, 2).Draw(t, "addresses") == 0 {
		for _, text := range drawSome(t, rangeTexts, 2, "ranges") {
			r.To.Addresses = append(r.To.Addresses, netip.MustParsePrefix(text))
		}
	}
	r.To.TLS.Min = rapid.SampledFrom([]string{"", "", "1.3"}).Draw(t, "tls")
	if r.To.Scheme == authz.SchemeTLS || r.To.Scheme == authz.SchemeTCP {
		r.To.TLS.Min = ""
		drawEnd(t, &r)
		return r
	}
	r.Methods = drawSome(t, methodTexts, 2, "methods")
	if rapid.IntRange(0, 3).Draw(t, "any") == 0 {
		r.Methods = []string{"*"}
	}
	r.Paths = drawSome(t, pathTexts, 2, "paths")
	if rapid.IntRange(0, 3).Draw(t, "slash") == 0 {
		r.EncodedSlash = "allow"
		r.Paths = append(r.Paths, drawSome(t, slashTexts, 1, "slashes")...)
	}
	if rapid.IntRange(0, 3).Draw(t, "upgrade") == 0 {
		r.Upgrades = drawSome(t, upgradeTexts, 2, "upgrades")
	}
	if r.To.Scheme == "" {
		r.To.TLS.Originate = rapid.IntRange(0, 3).Draw(t, "originate") == 0
		r.Credential = rapid.SampledFrom([]string{"", "", "one", "two", "three"}).Draw(t, "credential")
		r.WildcardCredential = r.Credential != ""
	} else {
		r.To.TLS.Min = ""
	}
	r.Timeout = authz.Duration(rapid.SampledFrom([]time.Duration{0, 0, time.Second, time.Minute}).Draw(t, "timeout"))
	drawEnd(t, &r)
	return r
}

func drawEnd(t *rapid.T, r *authz.Rule) {
	if rapid.IntRange(0, 4).Draw(t, "ends") == 0 {
		r.NotAfter = drawTime(t, "end")
	}
	if rapid.IntRange(0, 7).Draw(t, "observes") == 0 {
		r.Mode, r.ObserveUntil = authz.ModeObserve, drawTime(t, "observeUntil")
	}
}

func drawInput(t *rapid.T) authz.Input {
	in := authz.Input{Plugin: "p"}
	for i := range rapid.IntRange(0, 2).Draw(t, "grants") {
		g := authz.Grant{Name: fmt.Sprintf("g%d", i), Plugin: "p", NotAfter: noon.Add(4 * time.Hour)}
		for j := range rapid.IntRange(1, 3).Draw(t, "rules") {
			g.Rules = append(g.Rules, drawRule(t, fmt.Sprintf("r%d", j)))
		}
		for k, name := range []string{"one", "two", "three"} {
			g.Credentials = append(g.Credentials, authz.CredentialSpec{
				Name: name, Vault: authz.VaultPath{Path: fmt.Sprintf("secret/data/%d", (i+k)%3)},
				Inject: authz.Inject{Header: "Authorization", Value: "Bearer {key}"},
			})
		}
		in.Grants = append(in.Grants, g)
	}
	if rapid.IntRange(0, 2).Draw(t, "guardrails") == 0 {
		never := authz.Never{ID: "n"}
		if rapid.Bool().Draw(t, "neverHosts") {
			never.Hosts = drawSome(t, hostTexts, 1, "neverHost")
		} else {
			never.Addresses = []netip.Prefix{netip.MustParsePrefix(rapid.SampledFrom(rangeTexts).Draw(t, "neverRange"))}
		}
		in.Guardrails = []authz.Guardrail{{Name: "guard", Plugins: []string{"**"}, Never: []authz.Never{never}}}
	}
	if rapid.IntRange(0, 7).Draw(t, "observe") == 0 {
		in.Observe, in.ObserveUntil = true, drawTime(t, "sidecarObserves")
	}
	return in
}

// drawPair returns two policies: one is mostly an edit of the other, so that they differ
// in few things and each kind of difference appears alone.
func drawPair(t *rapid.T) (before, after *authz.Snapshot) {
	a := drawInput(t)
	b := drawInput(t)
	if rapid.IntRange(0, 3).Draw(t, "edits") > 0 {
		b = drawEdit(t, a)
	}
	if rapid.Bool().Draw(t, "swapped") {
		a, b = b, a
	}
	return drawSnapshot(t, a), drawSnapshot(t, b)
}

// drawEdit returns the policy with another value in one field of one rule, or without
// the rule.
func drawEdit(t *rapid.T, in authz.Input) authz.Input {
	in.Grants = slices.Clone(in.Grants)
	if len(in.Grants) == 0 {
		return in
	}
	g := &in.Grants[rapid.IntRange(0, len(in.Grants)-1).Draw(t, "edited grant")]
	g.Rules = slices.Clone(g.Rules)
	i := rapid.IntRange(0, len(g.Rules)-1).Draw(t, "edited rule")
	r, other := &g.Rules[i], drawRule(t, g.Rules[i].ID)
	if r.To.Scheme != other.To.Scheme { // the fields of a tunnel do not suit a request
		*r = other
		return in
	}
	switch rapid.IntRange(0, 9).Draw(t, "field") {
	case 0:
		r.To.Hosts = other.To.Hosts
	case 1:
		r.To.Ports = other.To.Ports
	case 2:
		r.To.Addresses = other.To.Addresses
	case 3:
		r.To.TLS = other.To.TLS
	case 4:
		r.Methods = other.Methods
	case 5:
		r.Paths, r.EncodedSlash = other.Paths, other.EncodedSlash
	case 6:
		r.Upgrades = other.Upgrades
	case 7:
		r.Credential, r.WildcardCredential = other.Credential, other.WildcardCredential
	case 8:
		r.NotAfter, r.Mode, r.ObserveUntil, r.Timeout = other.NotAfter, other.Mode, other.ObserveUntil, other.Timeout
	case 9:
		if g.Rules = slices.Delete(g.Rules, i, i+1); len(g.Rules) == 0 {
			in.Grants = nil
		}
	}
	return in
}

func drawSnapshot(t *rapid.T, in authz.Input) *authz.Snapshot {
	compiled, problems := authz.Compile(in, noon)
	if len(problems) > 0 {
		t.Skip("not a valid policy", problems)
	}
	var engine authz.Engine
	engine.Install(compiled)
	if rapid.IntRange(0, 4).Draw(t, "revoked") == 0 {
		v := authz.Revocation{ID: "v", Plugin: "p", Level: authz.LevelQuarantine}
		if rapid.IntRange(0, 3).Draw(t, "ofRule") > 0 {
			v.Grant, v.Rule = "g0", rapid.SampledFrom([]string{"r0", "r1"}).Draw(t, "revokedRule")
		}
		if rapid.Bool().Draw(t, "ends") {
			v.Until = drawTime(t, "until")
		}
		engine.Revoke(v)
	}
	return engine.Current()
}

// bruteAddresses are addresses of every kind.
func bruteAddresses() (out []netip.Addr) {
	for _, text := range []string{
		"10.0.0.1", "10.1.2.3", "93.184.1.1", "93.185.1.1", "8.8.8.8", "127.0.0.1", "169.254.1.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.168.1.1",
		"2001:4860::1", "2606:4700::1", "2606:4700::5efe:a00:1", "2606:4700::5efe:808:808", "2606:4700::5efe:5db8:101", "64:ff9b::a00:1", "64:ff9b::808:808", "64:ff9b::5db8:101", "64:ff9b::a01:203",
		"2002:a00:1::1", "2002:808:808::1", "2002:a01:203::1", "fe80::1", "fe80::5efe:a00:1", "::1", "::", "::a00:1", "::ffff:0:a00:1", "fc00::1", "ff02::1",
		"2001:0:808:808::f7f7:f7f7", "2001:0:a00:1::f7f7:f7f7", "2001:0:808:808::f5ff:fffe", "2001:db8::1", "3fff::1",
	} {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// grid holds every request of the brute force, by host.
var grid = sync.OnceValue(func() [][]authz.Request {
	out := make([][]authz.Request, len(bruteHosts))
	for _, scheme := range []authz.Scheme{authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP} {
		sh := shape{scheme, brutePorts, bruteMethods, bruteUpgrades, brutePaths, []authz.Facts{{}}}
		for i, host := range bruteHosts {
			out[i] = slices.AppendSeq(out[i], sh.requests("p", host))
		}
	}
	return out
})

// brute returns the kinds of differences that asking the requests of the grid finds, at
// some of its hosts, times and doors.
func brute(t *rapid.T, before, after *authz.Snapshot) map[Kind]string {
	found := map[Kind]string{}
	hosts := rapid.SliceOfNDistinct(rapid.IntRange(0, len(bruteHosts)-1), 3, 3, rapid.ID).Draw(t, "hosts asked")
	times := rapid.SliceOfNDistinct(rapid.SampledFrom(bruteTimes), 2, 2, rapid.ID).Draw(t, "times asked")
	doors := rapid.SliceOfNDistinct(rapid.SampledFrom(policy.Doors()), 2, 2, rapid.ID).Draw(t, "doors asked")
	for _, i := range hosts {
		for _, req := range grid()[i] {
			for _, at := range times {
				for _, door := range doors {
					bruteOne(found, before, after, req, at, door)
				}
			}
		}
	}
	return found
}

func bruteOne(found map[Kind]string, before, after *authz.Snapshot, req authz.Request, at time.Time, door policy.Door) {
	req.Unenforceable = door.Unenforceable
	now := after.Decide(req, authz.Usage{}, at)
	if !now.Allowed() {
		return
	}
	was := before.Decide(req, authz.Usage{}, at)
	note := func(k Kind) {
		found[k] = fmt.Sprintf("%s %s upgrade %q at %s, door %v: %s %s/%s, was %s %s/%s", req.Action.Method, req.Destination.URL(), req.Action.Upgrade,
			at.Format(time.TimeOnly), door, now.Reason, now.Grant, now.Rule, was.Reason, was.Grant, was.Rule)
	}
	if !was.Allowed() {
		note(KindAccess)
		return
	}
	if now.Credential != "" && path(after, now) != path(before, was) {
		note(KindCredential)
	}
	if now.Upstream(req.Destination) != was.Upstream(req.Destination) {
		note(KindUpstream)
	}
	if a, b := now.Terms(), was.Terms(); a.TLSMin < b.TLSMin || b.Timeout > 0 && (a.Timeout == 0 || a.Timeout > b.Timeout) {
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
}

// path returns the Vault path of a decision's credential.
func path(s *authz.Snapshot, d authz.Decision) string {
	for _, g := range s.Input().Grants {
		for _, c := range g.Credentials {
			if g.Name == d.Grant && c.Name == d.Credential {
				return c.Vault.Path
			}
		}
	}
	return ""
}

// TestAgreesWithBruteForce compares random pairs of policies by asking every request of
// a grid. Each difference that the grid shows must be found; each finding must be a
// request that shows its difference.
func TestAgreesWithBruteForce(t *testing.T) {
	wider, within := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawPair(t)
		got, err := Compare(context.Background(), before, after, Options{Plugin: "p", At: noon})
		if err != nil || !got.Complete {
			t.Fatalf("Compare = %+v, %v, want a complete result", got, err)
		}
		kinds := map[Kind]bool{}
		for _, f := range got.Findings {
			kinds[f.Kind] = true
			checkFinding(t, before, after, f)
		}
		for kind, request := range brute(t, before, after) {
			if !kinds[kind] {
				t.Errorf("no finding of kind %s, want one as for %s", kind, request)
			}
		}
		if len(got.Findings) > 0 {
			wider++
		} else {
			within++
		}
	})
	t.Logf("%d pairs were wider, %d within", wider, within)
}

// checkFinding checks that the request of a finding shows the difference.
func checkFinding(t *rapid.T, before, after *authz.Snapshot, f Finding) {
	if f.Kind == KindSocket || f.Kind == KindLimit {
		return
	}
	found := map[Kind]string{}
	bruteOne(found, before, after, f.Request, f.At, f.Door)
	if f.Kind == KindAddress {
		now, was := after.Decide(f.Request, authz.Usage{}, f.At), before.Decide(f.Request, authz.Usage{}, f.At)
		if now.CheckAddress(f.Address) != authz.Granted || was.CheckAddress(f.Address) == authz.Granted {
			t.Errorf("finding %+v has an address that both policies judge alike", f)
		}
		return
	}
	if _, ok := found[f.Kind]; !ok {
		t.Errorf("finding of kind %s shows nothing: %s %s at %s, found %v", f.Kind, f.Request.Action.Method, f.Request.Destination.URL(), f.At, slices.Sorted(maps.Keys(found)))
	}
}

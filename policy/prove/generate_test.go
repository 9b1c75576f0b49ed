package prove

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
)

// texts of the random policies are few, so that rules meet often.
var (
	hostTexts    = []string{"a.example", "b.a.example", "*.a.example", "**.a.example", "*.example", "**.example", "192.0.2.7", "2001:db8::7", "c.example"}
	pathTexts    = []string{"/", "/a", "/a/", "/a/*", "/a/**", "/**", "/*", "/*/b", "/a/b", "/*/*", "/a/*/**", "/b/**"}
	slashTexts   = []string{"/a%2Fb", "/a/%2F"}
	methodTexts  = []string{"GET", "POST", "HEAD", "X"}
	upgradeTexts = []string{"websocket", "spdy/3.1"}
	socketTexts  = []string{"/run/a.sock", "/run/b/c.sock", "@d"}
	rangeTexts   = []string{"10.0.0.0/8", "10.1.0.0/16", "93.184.0.0/16", "2001:4860::/32", "64:ff9b::/96", "2002::/16", "fe80::/10", "::/0", "0.0.0.0/0", "2001::/32", "2606:4700::5efe:0:0/112"}
	placeTexts   = []string{"10.0.0.0/8", "93.184.0.0/16", "93.184.1.1", "8.8.8.0/24", "2001:4860::/32", "64:ff9b::/96", "0.0.0.0/0", "::/0", "b.a.example", "a.example", "192.0.2.7"}
	// ladderTexts together hold every path of up to two segments.
	ladderTexts = []string{"/", "/*", "/*/", "/*/*", "/*/*/"}
)

func drawTime(t *rapid.T, label string) time.Time {
	return noon.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, label)) * time.Hour)
}

// one reports true in one of n cases.
func one(t *rapid.T, n int, label string) bool { return rapid.IntRange(0, n-1).Draw(t, label) == 0 }

func drawSome(t *rapid.T, from []string, most int, label string) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(from), 1, most, rapid.ID).Draw(t, label)
}

// drawPaths returns some paths; or, up to a number of segments, all of them or all but one,
// so that unions are compared with a rest.
func drawPaths(t *rapid.T) []string {
	if !one(t, 3, "ladder") {
		return drawSome(t, pathTexts, 2, "paths")
	}
	paths := slices.Clone(ladderTexts[:rapid.IntRange(1, len(ladderTexts)).Draw(t, "rungs")])
	if one(t, 2, "a rung is missing") {
		i := rapid.IntRange(0, len(paths)-1).Draw(t, "rung")
		paths = slices.Delete(paths, i, i+1)
	}
	if one(t, 2, "the rest") {
		paths = append(paths, "/*/*/**")
	}
	if len(paths) == 0 {
		return []string{"/**"}
	}
	return paths
}

func drawLimit(t *rapid.T) (l authz.Limit) {
	text := rapid.SampledFrom([]string{"2/1m", "3/1m", "2", "3", "4/2m"}).Draw(t, "limit")
	if err := l.UnmarshalText([]byte(text)); err != nil {
		panic(err)
	}
	return l
}

// drawTo returns a destination of any scheme.
func drawTo(t *rapid.T) authz.To {
	to := authz.To{Hosts: drawSome(t, hostTexts, 2, "hosts")}
	to.Scheme = rapid.SampledFrom([]authz.Scheme{"", "", "", authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP}).Draw(t, "scheme")
	if to.Scheme == authz.SchemeTCP || one(t, 4, "ports") {
		to.Ports = rapid.SliceOfNDistinct(rapid.SampledFrom([]uint16{8443, 443, 80}), 1, 2, rapid.ID).Draw(t, "port")
	}
	if one(t, 3, "addresses") {
		for _, text := range drawSome(t, rangeTexts, 2, "ranges") {
			to.Addresses = append(to.Addresses, netip.MustParsePrefix(text))
		}
	}
	if to.Scheme == "" {
		to.TLS.Min = rapid.SampledFrom([]string{"", "", "1.2", "1.3"}).Draw(t, "tls")
		to.TLS.Originate = one(t, 4, "originate")
		if one(t, 8, "authorities") {
			to.TLS.CAFile, to.TLS.CA = "ca.pem", rapid.SampledFrom([]string{"these", "those"}).Draw(t, "ca")
		}
	}
	return to
}

func drawRule(t *rapid.T, id string) authz.Rule {
	r := authz.Rule{ID: id, Reason: "random", To: drawTo(t)}
	if one(t, 3, "limited") {
		r.Limits.Requests = drawLimit(t)
	}
	drawEnd(t, &r)
	if one(t, 4, "regions") {
		r.Data.Regions = drawSome(t, []string{"eu", "us"}, 2, "region")
	}
	r.Timeout = authz.Duration(rapid.SampledFrom([]time.Duration{0, 0, time.Second, time.Minute}).Draw(t, "timeout"))
	if r.To.Scheme == authz.SchemeTLS || r.To.Scheme == authz.SchemeTCP {
		return r
	}
	r.Methods = drawSome(t, methodTexts, 2, "methods")
	if one(t, 4, "any") {
		r.Methods = []string{"*"}
	}
	r.Paths = drawPaths(t)
	if one(t, 4, "slash") {
		r.EncodedSlash = "allow"
		if one(t, 2, "literal") {
			r.Paths = append(r.Paths, drawSome(t, slashTexts, 1, "slashes")...)
		}
	}
	if one(t, 4, "upgrade") {
		r.Upgrades = drawSome(t, upgradeTexts, 2, "upgrades")
	}
	r.Credential = rapid.SampledFrom([]string{"", "", "one", "two", "three", "four"}).Draw(t, "credential")
	r.WildcardCredential = r.Credential != "" && slices.ContainsFunc(r.To.Hosts, func(h string) bool { return h[0] == '*' })
	r.Insecure = r.Credential != "" && r.To.Scheme == authz.SchemeHTTP
	return r
}

func drawEnd(t *rapid.T, r *authz.Rule) {
	if one(t, 5, "ends") {
		r.NotAfter = drawTime(t, "end")
	}
	if one(t, 8, "observes") {
		r.Mode, r.ObserveUntil = authz.ModeObserve, drawTime(t, "observeUntil")
	}
}

func drawGrant(t *rapid.T, i int) authz.Grant {
	g := authz.Grant{Name: fmt.Sprintf("g%d", i), Plugin: "p", NotAfter: noon.Add(time.Duration(rapid.IntRange(2, 4).Draw(t, "grant ends")) * time.Hour)}
	for j := range rapid.IntRange(1, 3).Draw(t, "rules") {
		g.Rules = append(g.Rules, drawRule(t, fmt.Sprintf("r%d", j)))
	}
	for k, name := range []string{"one", "two", "three"} {
		g.Credentials = append(g.Credentials, authz.CredentialSpec{
			Name: name, Vault: authz.VaultPath{Path: fmt.Sprintf("secret/data/%d", (i+k)%3)},
			Inject: authz.Inject{Header: "Authorization", Value: "Bearer {key}"},
		})
	}
	g.Credentials = append(g.Credentials, authz.CredentialSpec{ // one of the paths above in another place
		Name: "four", Vault: authz.VaultPath{Path: "secret/data/0"}, Inject: authz.Inject{Query: "key", Value: "{key}"},
	})
	if one(t, 3, "shared") {
		g.Limits.Requests = drawLimit(t)
	}
	if one(t, 4, "sockets") {
		g.Sockets = drawSome(t, socketTexts, 2, "socket")
	}
	return g
}

func drawGuardrail(t *rapid.T) authz.Guardrail {
	never := authz.Never{ID: "n"}
	switch rapid.IntRange(0, 2).Draw(t, "neverKind") {
	case 0:
		never.Hosts = drawSome(t, hostTexts, 1, "neverHost")
	case 1:
		never.Addresses = []netip.Prefix{netip.MustParsePrefix(rapid.SampledFrom(rangeTexts).Draw(t, "neverRange"))}
	case 2:
		never.Sockets = []string{rapid.SampledFrom([]string{"/run/b/**", "/run/a.sock", "@**"}).Draw(t, "neverSocket")}
	}
	g := authz.Guardrail{Name: "guard", Plugins: drawSome(t, []string{"**", "p", "other"}, 1, "guarded"), Never: []authz.Never{never}}
	g.Ceilings.CredentialLifetime = authz.Duration(rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "lifetime"))
	return g
}

// drawRegions returns a guardrail that defines regions.
func drawRegions(t *rapid.T) authz.Guardrail {
	places := func(label string) (out []authz.Place) {
		for _, text := range drawSome(t, placeTexts, 3, label) {
			out = append(out, authz.Place(text))
		}
		return out
	}
	return authz.Guardrail{Name: "places", Plugins: []string{"**"}, Regions: map[string][]authz.Place{"eu": places("eu"), "us": places("us")}}
}

func drawInput(t *rapid.T) authz.Input {
	in := authz.Input{Plugin: "p"}
	for i := range rapid.IntRange(0, 2).Draw(t, "grants") {
		in.Grants = append(in.Grants, drawGrant(t, i))
	}
	if one(t, 3, "guardrails") {
		in.Guardrails = []authz.Guardrail{drawGuardrail(t)}
	}
	in.Guardrails = append(in.Guardrails, drawRegions(t))
	if one(t, 8, "observe") {
		in.Observe, in.ObserveUntil = true, drawTime(t, "sidecarObserves")
	}
	return in
}

// drawPair returns two policies: one is mostly an edit of the other, so that they differ
// in few things and each kind of difference appears alone.
func drawPair(t *rapid.T) (before, after *authz.Snapshot) {
	a := drawInput(t)
	b := drawInput(t)
	revoked := drawRevocations(t)
	other := revoked
	switch {
	case one(t, 10, "a union"): // of all paths but for a few, compared with all
		a = authz.Input{Plugin: "p", Grants: []authz.Grant{drawGrant(t, 0)}}
		a.Grants[0].Rules = []authz.Rule{{
			ID: "r0", Reason: "random", To: authz.To{Hosts: []string{"a.example"}}, Methods: []string{"GET"}, Paths: append(slices.Clone(ladderTexts), "/*/*/**"),
		}}
		b = cloned(a)
		i := rapid.IntRange(0, len(ladderTexts)).Draw(t, "missing")
		a.Grants[0].Rules[0].Paths = slices.Delete(a.Grants[0].Rules[0].Paths, i, i+1)
		b.Grants[0].Rules[0].Paths = []string{"/**"}
	case !one(t, 4, "unlike"):
		b = drawEdit(t, a)
	}
	if one(t, 8, "revoked otherwise") {
		other = drawRevocations(t)
	}
	if rapid.Bool().Draw(t, "swapped") {
		a, b = b, a
	}
	return compiled(t, a, revoked), compiled(t, b, other)
}

// cloned returns a policy whose rules can be changed.
func cloned(in authz.Input) authz.Input {
	in.Grants = slices.Clone(in.Grants)
	for i := range in.Grants {
		in.Grants[i].Rules = slices.Clone(in.Grants[i].Rules)
	}
	return in
}

// drawEdit returns the policy with another value in one field of one rule or document.
func drawEdit(t *rapid.T, in authz.Input) authz.Input {
	in.Grants = slices.Clone(in.Grants)
	if len(in.Grants) == 0 || one(t, 8, "guardrails are edited") {
		regions := in.Guardrails[len(in.Guardrails)-1]
		if one(t, 2, "other regions") {
			regions = drawRegions(t)
		}
		in.Guardrails = []authz.Guardrail{regions}
		if one(t, 2, "guardrail") {
			in.Guardrails = append(in.Guardrails, drawGuardrail(t))
			slices.Reverse(in.Guardrails)
		}
		return in
	}
	g := &in.Grants[rapid.IntRange(0, len(in.Grants)-1).Draw(t, "edited grant")]
	if one(t, 5, "the grant is edited") {
		switch other := drawGrant(t, 0); rapid.IntRange(0, 2).Draw(t, "of the grant") {
		case 0:
			g.NotAfter = noon.Add(time.Duration(rapid.IntRange(1, 4).Draw(t, "grant ends otherwise")) * time.Hour)
		case 1:
			g.Limits = other.Limits
		case 2:
			g.Sockets = other.Sockets
		}
		return in
	}
	g.Rules = slices.Clone(g.Rules)
	i := rapid.IntRange(0, len(g.Rules)-1).Draw(t, "edited rule")
	if one(t, 8, "deleted") {
		if g.Rules = slices.Delete(g.Rules, i, i+1); len(g.Rules) == 0 {
			in.Grants = nil
		}
		return in
	}
	r, other := &g.Rules[i], drawRule(t, g.Rules[i].ID)
	if r.To.Scheme != other.To.Scheme { // the fields of a tunnel do not suit a request
		*r = other
		return in
	}
	editField(t, r, other)
	return in
}

// editField gives a rule one field of another one.
func editField(t *rapid.T, r *authz.Rule, other authz.Rule) {
	switch rapid.IntRange(0, 17).Draw(t, "field") {
	case 0:
		r.To.Hosts, r.WildcardCredential = other.To.Hosts, r.Credential != ""
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
		r.Credential, r.WildcardCredential, r.Insecure = other.Credential, other.WildcardCredential, other.Insecure
	case 8:
		if r.NotAfter, r.Mode, r.ObserveUntil = other.NotAfter, other.Mode, other.ObserveUntil; !one(t, 3, "not only observes") {
			r.NotAfter, r.Mode, r.ObserveUntil = time.Time{}, authz.ModeObserve, noon.Add(2*time.Hour)
		}
	case 9:
		r.Timeout = other.Timeout
	case 10:
		r.Limits = other.Limits
	case 11:
		if r.EncodedSlash = "allow"; len(r.Paths) == 0 {
			r.EncodedSlash = "" // a tunnel
		}
	case 17:
		r.Data.Regions = other.Data.Regions
	case 12:
		if r.ID = "s"; r.Limits == (authz.Limits{}) {
			r.Limits.Requests = drawLimit(t)
		}
	default: // a union that may lack something is compared with the rest
		if len(r.Paths) > 0 {
			r.Paths = []string{"/**"}
		}
	}
}

func drawRevocations(t *rapid.T) []authz.Revocation {
	if !one(t, 5, "revoked") {
		return nil
	}
	v := authz.Revocation{ID: "v", Plugin: "p", Level: rapid.SampledFrom([]authz.Level{authz.LevelPause, authz.LevelQuarantine}).Draw(t, "level")}
	if !one(t, 4, "of the plugin") {
		v.Grant, v.Rule = "g0", rapid.SampledFrom([]string{"r0", "r1"}).Draw(t, "revokedRule")
	}
	if rapid.Bool().Draw(t, "ends") {
		v.Until = drawTime(t, "until")
	}
	return []authz.Revocation{v}
}

// compiled puts a policy into force.
func compiled(t *rapid.T, in authz.Input, revoked []authz.Revocation) *authz.Snapshot {
	policy, problems := authz.Compile(fitted(in), noon)
	if len(problems) > 0 {
		t.Fatal("the generator made a policy that is not valid", problems)
	}
	var engine authz.Engine
	engine.Install(policy)
	engine.Revoke(revoked...)
	return engine.Current()
}

// fitted returns the policy with what drawn parts state against each other made to fit.
func fitted(in authz.Input) authz.Input {
	in = cloned(in)
	for _, g := range in.Grants {
		for i := range g.Rules {
			r := &g.Rules[i]
			if r.NotAfter.After(g.NotAfter) {
				r.NotAfter = time.Time{}
			}
			if r.To.Scheme == authz.SchemeTLS { // it matches names
				r.To.Hosts = slices.DeleteFunc(slices.Clone(r.To.Hosts), func(h string) bool { _, err := netip.ParseAddr(h); return err == nil })
				if len(r.To.Hosts) == 0 {
					r.To.Hosts = []string{"a.example"}
				}
			}
			wild := slices.ContainsFunc(r.To.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
			r.WildcardCredential = wild && r.Credential != ""
		}
	}
	return in
}

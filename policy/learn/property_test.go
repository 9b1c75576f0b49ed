package learn_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// segments are texts that a plugin may choose, those that YAML and comments could stumble
// over among them.
func segments() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{"", "v1", "users", "me", "*", "**", "~u", "null", "yes", "1e3", "0x1f", "a:b", "a,b", "%23", "%0A", "#", "!x", "&a", "'", "%22", "{x}", "-", "..", "%2F", "ünï", "\x1b[2J", "a\nb", "TODO"}),
		rapid.Map(rapid.IntRange(0, 30), func(i int) string { return fmt.Sprint(i) }),
		rapid.Map(rapid.IntRange(0, 12), func(i int) string { return fmt.Sprintf("word%c", 'a'+i) }),
		rapid.Map(rapid.IntRange(0, 12), func(i int) string { return fmt.Sprintf("0193f6c2-7d3e-7000-8000-%012x", i) }),
		rapid.String(),
	)
}

// anyAccesses draws accesses; texts that no door turns into a request are left out.
func anyAccesses(t *rapid.T) []learn.Access {
	hosts := rapid.SampledFrom([]string{"api.example", "a.tiles.example.com", "b.tiles.example.com", "xn--bcher-kva.example", "10.0.0.1", "[2001:db8::1]"})
	methods := rapid.SampledFrom([]string{"GET", "POST", "TRACE", "get", "M'!#$%&*+.^_`|~", "YES"})
	var out []learn.Access
	for i := range rapid.IntRange(1, 60).Draw(t, "n") {
		scheme := rapid.SampledFrom([]authz.Scheme{authz.SchemeHTTPS, authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP}).Draw(t, "scheme")
		authority := hosts.Draw(t, "host") + rapid.SampledFrom([]string{"", ":8443", ":9"}).Draw(t, "port")
		req := authz.Request{Principal: "weather"}
		target := ""
		var err error
		if scheme.HTTP() {
			for range rapid.IntRange(1, 5).Draw(t, "depth") {
				target += "/" + segments().Draw(t, "segment")
			}
			if req.Action, err = authz.NewAction(methods.Draw(t, "method"), rapid.SampledFrom([]string{"", "", "websocket", "spdy/3.1", "x'#"}).Draw(t, "upgrade")); err != nil {
				continue
			}
		}
		if req.Destination, err = authz.NewDestination(scheme, authority, target); err == nil {
			out = append(out, learn.Access{Request: req, Time: noon.Add(time.Duration(i) * time.Minute), Credential: rapid.SampledFrom([]string{"", "key", "a\n- b: #"}).Draw(t, "credential")})
		}
	}
	return out
}

// kept reports whether a proposal claims to be for the access.
func kept(a learn.Access, p *learn.Proposal) bool {
	if a.Request.Action.Method == "TRACE" || strings.Contains(a.Request.Destination.Path(), "*") {
		return false
	}
	return len(p.Dropped) == 0 // otherwise the access may be of what was dropped
}

// TestLearnedIsAllowed checks that every access that was learned is granted, and that no host,
// port, scheme, method or upgrade is granted that was not seen together.
func TestLearnedIsAllowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := anyAccesses(t)
		l := learn.New()
		for _, a := range all {
			l.Add(a)
		}
		p := l.Propose(terms)
		if len(p.Rules) == 0 {
			return
		}
		snapshot, problems := granted(p)
		if len(problems) > 0 {
			t.Fatalf("the proposal does not compile: %+v", problems)
		}
		type seen struct {
			scheme          authz.Scheme
			host            string
			port            uint16
			method, upgrade string
		}
		known := map[seen]bool{}
		for _, a := range all {
			to := a.Request.Destination
			if d := snapshot.Decide(a.Request, authz.Usage{}, noon); kept(a, p) && d.Reason != authz.Granted {
				t.Fatalf("%s was learned and is %v by\n%s", policy.Format(a.Request), d.Reason, summarise(p))
			}
			known[seen{to.Scheme(), to.Host(), to.Port(), a.Request.Action.Method, a.Request.Action.Upgrade}] = true
		}
		for _, r := range p.Rules {
			for _, host := range r.To.Hosts {
				if strings.Contains(host, "*") {
					t.Fatalf("a wildcard %s is granted", host)
				}
				scheme := cmp.Or(r.To.Scheme, authz.SchemeHTTPS)
				for _, port := range append(slices.Clone(r.To.Ports), scheme.DefaultPort())[:max(1, len(r.To.Ports))] {
					for _, method := range append(slices.Clone(r.Methods), "")[:max(1, len(r.Methods))] {
						if upgrade := strings.Join(r.Upgrades, " "); !known[seen{scheme, host, port, method, upgrade}] {
							t.Fatalf("%s %s://%s:%d (upgrade %q) is granted and was not seen", method, scheme, host, port, upgrade)
						}
					}
				}
			}
		}
	})
}

func granted(p *learn.Proposal) (*authz.Snapshot, []authz.Problem) {
	compiled, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{p.Grant("a test")}}, noon)
	if len(problems) > 0 {
		return nil, problems
	}
	var engine authz.Engine
	engine.Install(compiled)
	return engine.Current(), nil
}

// readsBack checks that the YAML of a proposal does not load before a person wrote the
// reasons, and loads to exactly the proposed rules afterwards.
func readsBack(t interface {
	Helper()
	Fatalf(format string, args ...any)
}, dir string, p *learn.Proposal, notes ...string,
) {
	t.Helper()
	var b strings.Builder
	if err := p.YAML(&b, notes...); err != nil {
		t.Fatalf("write: %v", err)
	}
	file := filepath.Join(dir, "grant.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatalf("write: %v", err)
	}
	_, err := policy.Load(noon, policy.Options{}, file)
	errs, ok := errors.AsType[configs.Errors](err)
	if !ok || len(errs) != len(p.Rules) {
		t.Fatalf("loading %d rules gives %v, want one error a rule\n%s", len(p.Rules), err, b.String())
	}
	for _, e := range errs {
		if !strings.Contains(e.Message, "is still TODO") {
			t.Fatalf("loading gives %v, want only errors of reasons\n%s", e, b.String())
		}
	}
	done := strings.ReplaceAll(b.String(), "    reason: TODO\n", "    reason: a test\n")
	if err := os.WriteFile(file, []byte(done), 0o600); err != nil {
		t.Fatalf("write: %v", err)
	}
	subjects, err := policy.Load(noon, policy.Options{}, file)
	if err != nil {
		t.Fatalf("loading gives %v\n%s", err, done)
	}
	got, want := subjects[0].Input.Grants, []authz.Grant{p.Grant("a test")}
	if diff := gocmp.Diff(want, got, cmpopts.IgnoreFields(authz.Grant{}, "Origin"), cmpopts.EquateEmpty(), cmpopts.EquateComparable(authz.Limit{})); diff != "" {
		t.Fatalf("loaded another grant (-want +got):\n%s\n%s", diff, done)
	}
}

// TestOutputReadsBack checks that no access makes the output anything but the learned rules.
func TestOutputReadsBack(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		l := learn.New()
		for _, a := range anyAccesses(t) {
			l.Add(a)
		}
		if p := l.Propose(terms); len(p.Rules) > 0 {
			readsBack(t, dir, p, rapid.String().Draw(t, "note"))
		}
	})
}

// FuzzOutput is TestOutputReadsBack for one path of arbitrary bytes, beside others.
func FuzzOutput(f *testing.F) {
	for _, path := range []string{"/a", "/a/%0A- id: x", "/\"/#", "/a/ü\u2028", "/%22%0a  - \"/**\""} {
		f.Add("GET", "api.example", path, "websocket", "note")
	}
	f.Fuzz(func(t *testing.T, method, host, path, upgrade, note string) {
		l := learn.New()
		for i, target := range append([]string{path, path + "/x"}, repeat(9, path+"/w%d")...) {
			req := authz.Request{Principal: "weather"}
			var err error
			if req.Action, err = authz.NewAction(method, upgrade); err != nil {
				return
			}
			if req.Destination, err = authz.NewDestination(authz.SchemeHTTPS, host, target); err == nil {
				l.Add(learn.Access{Request: req, Time: noon.Add(time.Duration(i) * time.Second), Credential: note})
			}
		}
		if p := l.Propose(terms); len(p.Rules) > 0 {
			readsBack(t, t.TempDir(), p, note)
		}
	})
}

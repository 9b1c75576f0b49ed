package manifest

import (
	"encoding/json"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// drawManifest draws a manifest of http permissions that a grant can be made of.
func drawManifest(t *rapid.T) *configs.PluginManifest {
	m := &configs.PluginManifest{Credentials: []configs.ManifestCredential{{Name: "key", Kind: configs.CredentialHeader, Purpose: "p"}, {Name: "token", Kind: configs.CredentialBearer, Purpose: "p"}}}
	n := rapid.IntRange(1, 4).Draw(t, "permissions")
	for i := range n {
		p := configs.Permission{}
		p.ID, p.Reason = "p"+string(rune('a'+i)), "a reason"
		p.To.Hosts = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a.example", "b.example", "*.example", "**.example", "x.a.example", "192.0.2.7"}), 1, 2, rapid.ID[string]).Draw(t, "hosts")
		if rapid.Bool().Draw(t, "ports") {
			p.To.Ports = []uint16{rapid.SampledFrom([]uint16{443, 8443}).Draw(t, "port")}
		}
		p.Methods = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"GET", "POST", "DELETE"}), 1, 2, rapid.ID[string]).Draw(t, "methods")
		p.Paths = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"/", "/v1/*", "/v1/**", "/v1/items", "/**", "/v2/*/x"}), 1, 2, rapid.ID[string]).Draw(t, "paths")
		if c := rapid.SampledFrom([]string{"", "key", "token"}).Draw(t, "credential"); c != "" {
			p.Credential = c
			p.WildcardCredential = slices.ContainsFunc(p.To.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
		}
		m.Permissions = append(m.Permissions, p)
	}
	return m
}

func snapshotOf(t testing.TB, m *configs.PluginManifest) *authz.Snapshot {
	t.Helper()
	g, err := Grant("p", m, assumed(m))
	if err != nil {
		t.Fatal(err)
	}
	g.NotAfter = testNow.Add(time.Hour)
	s, err := policy.Enforced(authz.Input{Plugin: "p", Grants: []authz.Grant{g}}, testNow)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asks is another reading of permissions, by which the grant is judged.
func asks(m *configs.PluginManifest, method, host string, port uint16, path string) bool {
	return slices.ContainsFunc(m.Permissions, func(p configs.Permission) bool {
		ports := p.To.Ports
		if len(ports) == 0 {
			ports = []uint16{443}
		}
		return slices.ContainsFunc(p.To.Hosts, func(h string) bool { return hostAsked(h, host) }) && slices.Contains(ports, port) &&
			slices.Contains(p.Methods, method) && slices.ContainsFunc(p.Paths, func(pattern string) bool { return pathAsked(pattern, path) })
	})
}

func hostAsked(pattern, host string) bool {
	switch {
	case strings.HasPrefix(pattern, "**."):
		return strings.HasSuffix(host, pattern[2:])
	case strings.HasPrefix(pattern, "*."):
		label, ok := strings.CutSuffix(host, pattern[1:])
		return ok && !strings.Contains(label, ".")
	}
	return pattern == host
}

func pathAsked(pattern, path string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	for i, w := range want {
		switch {
		case w == "**":
			return len(got) > i
		case i >= len(got), w == "*" && got[i] == "", w != "*" && w != got[i]:
			return false
		}
	}
	return len(want) == len(got)
}

// TestGrantIsTheManifest: a grant allows what the manifest asks for, and nothing more.
func TestGrantIsTheManifest(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := drawManifest(rt)
		whole := snapshotOf(t, m)
		for i := range m.Permissions {
			one := *m
			one.Permissions = m.Permissions[i : i+1]
			result, err := prove.Compare(t.Context(), whole, snapshotOf(t, &one), prove.Options{Plugin: "p", At: testNow})
			if err != nil || !result.Complete {
				rt.Fatalf("compare: %v %+v", err, result)
			}
			for _, f := range result.Findings {
				if f.Kind == prove.KindAccess && f.Door.Name == "proxy" { // at Envoy's, another rule may win with a credential
					rt.Errorf("permission %s is not in the grant: %s", one.Permissions[0].ID, policy.Text(f.Request))
				}
			}
		}
		nothing := policy.Empty("p", testNow)
		result, err := prove.Compare(t.Context(), nothing.Snapshot, whole, prove.Options{Plugin: "p", At: testNow})
		if err != nil {
			rt.Fatal(err)
		}
		for _, f := range result.Findings {
			d := f.Request.Destination
			if f.Kind == prove.KindAccess && !asks(m, f.Request.Action.Method, d.Host(), d.Port(), d.Path()) {
				rt.Errorf("the grant allows %s, which no permission asks for", policy.Text(f.Request))
			}
		}
		method := rapid.SampledFrom([]string{"GET", "POST", "DELETE", "PUT"}).Draw(rt, "method")
		host := rapid.SampledFrom([]string{"a.example", "b.example", "c.example", "x.a.example", "y.x.a.example", "example", "192.0.2.7", "evil.test"}).Draw(rt, "host")
		port := rapid.SampledFrom([]uint16{443, 8443, 80}).Draw(rt, "port")
		path := rapid.SampledFrom([]string{"/", "/v1", "/v1/", "/v1/items", "/v1/a/b", "/v2/a/x", "/v2//x", "/other"}).Draw(rt, "path")
		url := "https://" + net.JoinHostPort(host, map[uint16]string{443: "443", 8443: "8443", 80: "80"}[port]) + path
		req, err := policy.Request("p", policy.Words{Method: method, URL: url})
		if err != nil {
			return // no access has it
		}
		if got, want := whole.Decide(req, authz.Usage{}, testNow).Allowed(), asks(m, method, host, port, path); got != want {
			rt.Errorf("%s %s: the grant allows it: %t, the manifest asks for it: %t", method, url, got, want)
		}
	})
}

// TestGrantKeepsEveryField: what a permission states is what the rule states, in the same order, each time.
func TestGrantKeepsEveryField(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := drawManifest(rt)
		g, err := Grant("p", m, assumed(m))
		if err != nil {
			rt.Fatal(err)
		}
		if len(g.Rules) != len(m.Permissions) {
			rt.Fatalf("%d rules of %d permissions", len(g.Rules), len(m.Permissions))
		}
		for i := range g.Rules {
			if !reflect.DeepEqual(g.Rules[i], m.Permissions[i].Rule) {
				rt.Errorf("rule is %+v, the permission %+v", g.Rules[i], m.Permissions[i].Rule)
			}
		}
		again, err := Grant("p", m, assumed(m))
		a, _ := json.Marshal(g)
		if b, _ := json.Marshal(again); err != nil || string(a) != string(b) {
			rt.Errorf("two grants of one manifest differ:\n%s\n%s", a, b)
		}
	})
}

func TestGrantRefuses(t *testing.T) {
	manifest := func(change func(*configs.PluginManifest)) *configs.PluginManifest {
		m := &configs.PluginManifest{Credentials: []configs.ManifestCredential{{Name: "key", Kind: configs.CredentialBearer}}}
		m.Permissions = []configs.Permission{{Rule: authz.Rule{ID: "a", Reason: "r", To: authz.To{Hosts: []string{"a.example"}}, Methods: []string{"GET"}, Paths: []string{"/"}, Credential: "key"}}}
		change(m)
		return m
	}
	bearer := authz.CredentialSpec{Vault: authz.VaultPath{Path: "secret/a"}, Inject: authz.Inject{Header: "Authorization", Value: "Bearer {token}"}}
	basic := authz.CredentialSpec{Vault: authz.VaultPath{Path: "secret/a"}, Inject: authz.Inject{Basic: &authz.Basic{}}}
	for name, test := range map[string]struct {
		manifest *configs.PluginManifest
		sources  map[string]authz.CredentialSpec
		want     string
	}{
		"right":         {manifest(func(*configs.PluginManifest) {}), map[string]authz.CredentialSpec{"key": bearer}, ""},
		"no source":     {manifest(func(*configs.PluginManifest) {}), nil, "has no source; state it in credentials.yaml beside the manifest"},
		"another kind":  {manifest(func(*configs.PluginManifest) {}), map[string]authz.CredentialSpec{"key": basic}, "asked for as bearer, and its source injects basic"},
		"unknown kind":  {manifest(func(m *configs.PluginManifest) { m.Credentials[0].Kind = "root" }), map[string]authz.CredentialSpec{"key": bearer}, "asked for as root"},
		"not listed":    {manifest(func(m *configs.PluginManifest) { m.Credentials = nil }), map[string]authz.CredentialSpec{"key": bearer}, "does not list"},
		"another named": {manifest(func(m *configs.PluginManifest) { m.Permissions[0].Credential = "other" }), map[string]authz.CredentialSpec{"key": bearer, "other": bearer}, "does not list"},
	} {
		g, err := Grant("p", test.manifest, test.sources)
		switch {
		case test.want == "" && (err != nil || len(g.Credentials) != 1 || g.Credentials[0].Name != "key"):
			t.Errorf("%s: %v %+v", name, err, g)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
	// A source that no permission uses is not in the grant.
	m := manifest(func(m *configs.PluginManifest) { m.Permissions[0].Credential = "" })
	if g, err := Grant("p", m, map[string]authz.CredentialSpec{"key": bearer}); err != nil || len(g.Credentials) != 0 {
		t.Errorf("grant is %+v, %v", g, err)
	}
}

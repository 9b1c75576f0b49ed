package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/granttest"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// signedFiles are a Sidecar with spec.trust and what it names, in a folder.
type signedFiles struct {
	*granttest.World
	t       testing.TB
	dir     string
	digest  string // of the guardrails
	sidecar granttest.Object
	draft   *granttest.Draft
	skip    bool // the grant is not written
	at      time.Time
}

func newSignedFiles(t testing.TB) *signedFiles {
	w := granttest.New(t, now)
	f := &signedFiles{World: w, t: t, dir: t.TempDir(), at: now}
	f.digest = w.Repository(f.dir)
	f.sidecar = granttest.Object{
		"plugin": "weather", "grants": []string{"grants"}, "guardrails": []string{"guardrails"}, "stateDir": "state", "kernel": "off",
		"trust": granttest.Object{"root": "trust.yaml"},
	}
	f.draft = w.Draft(f.digest, grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: dsse.Digest([]byte("program"))})
	return f
}

func (f *signedFiles) path(name string) string { return filepath.Join(f.dir, name) }

func (f *signedFiles) trust() granttest.Object { return f.sidecar["trust"].(granttest.Object) }

func (f *signedFiles) load() (*Config, error) {
	f.t.Helper()
	if !f.skip {
		f.Write(f.path("grants/weather.dsse.json"), f.draft.Bundle())
	}
	f.Write(f.path("sidecar.yaml"), granttest.Document("Sidecar", "weather", f.sidecar))
	return Load(f.path("sidecar.yaml"), f.at)
}

// seen writes the generations that were in force.
func (f *signedFiles) seen(g Generations) {
	f.t.Helper()
	if err := os.Mkdir(f.path("state"), 0o700); err != nil {
		f.t.Fatal(err)
	}
	data, err := json.Marshal(g)
	if err == nil {
		err = os.WriteFile(f.path("state/"+GenerationsFile), data, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// rotate writes trust.2.dsse.json.
func (f *signedFiles) rotate(change func(*dsse.RootSpec)) {
	spec := f.Spec
	spec.Version++
	change(&spec)
	f.Write(f.path("trust.2.dsse.json"), f.Sign(dsse.KindTrust, spec, granttest.Root))
}

// otherKeys replaces the trust root, and what it is about, by those of somebody else.
func (f *signedFiles) otherKeys(version int64) {
	f.World = granttest.New(f.t, now)
	f.Spec.Version = version
	f.digest = f.Repository(f.dir)
	f.draft = f.Draft(f.digest, f.draft.Binding.Artifact)
}

// TestLoadSignedFollows loads trust roots that follow the one which was in force.
func TestLoadSignedFollows(t *testing.T) {
	for name, change := range map[string]func(f *signedFiles){
		"the same": func(f *signedFiles) { f.seen(Generations{Trust: 1, TrustDigest: f.Root().Digest()}) },
		"with ids of keys": func(f *signedFiles) {
			f.seen(Generations{Trust: 1, TrustDigest: f.Root().Digest()})
			f.Spec.Roles[0].Keys[0].ID = f.Key(granttest.Root).Public().KeyID()
			f.Repository(f.dir)
		},
		"rotated since": func(f *signedFiles) {
			f.seen(Generations{Trust: 1, TrustDigest: f.Root().Digest()})
			f.rotate(func(*dsse.RootSpec) {})
		},
		"version in force as trust.yaml": func(f *signedFiles) {
			f.Spec.Version = 2
			f.Repository(f.dir)
			f.seen(Generations{Trust: 2, TrustDigest: f.Root().Digest()})
		},
		"before digests were written": func(f *signedFiles) { f.seen(Generations{Trust: 1}) },
		"accepted, with a lower version": func(f *signedFiles) {
			f.otherKeys(1)
			f.seen(Generations{Trust: 7, TrustDigest: f.Root().Digest()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newSignedFiles(t)
			change(f)
			c, err := f.load()
			if err != nil {
				t.Fatal(err)
			}
			if g := c.Trust.Generations; g.Trust != c.Trust.Version || g.TrustDigest != c.Trust.RootDigest || g.TrustDigest == "" {
				t.Errorf("generations are %+v", g)
			}
		})
	}
}

// TestLoadSignedGuardrailGeneration keeps the generation of a guardrail.
func TestLoadSignedGuardrailGeneration(t *testing.T) {
	f := newSignedFiles(t)
	g := f.Guardrail()
	g["spec"].(granttest.Object)["generation"] = 4
	e := f.Sign(dsse.KindGuardrail, g, granttest.Policy)
	f.Write(f.path("guardrails/company.dsse.json"), e)
	f.draft.Binding.Guardrail = e.Digest()
	c, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Trust.Generations.Guardrails["company"]; got != (grantcheck.HighWater{Generation: 4, Digest: e.Digest()}) {
		t.Errorf("guardrails are %v", c.Trust.Generations.Guardrails)
	}
}

func TestLoadSigned(t *testing.T) {
	f := newSignedFiles(t)
	c, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Grants) != 1 || len(c.Guardrails) != 1 || len(c.Warnings) != 0 {
		t.Fatalf("grants %v, guardrails %v, warnings %v", c.Grants, c.Guardrails, c.Warnings)
	}
	g := c.Trust.Grants[0]
	want := Generations{Trust: 1, Time: now, Grants: map[string]grantcheck.HighWater{"weather": {Generation: 1, Digest: g.Digest}}}
	if c.Trust.Root != "corp" || !maps.Equal(c.Trust.Generations.Grants, want.Grants) || c.Trust.Generations.Trust != 1 || !c.Trust.Generations.Time.Equal(now) {
		t.Errorf("trusted %+v, want generations %+v", c.Trust, want)
	}
	if !g.RenewBefore.Equal(f.draft.NotAfter.Add(-ExpiryNotice)) {
		t.Errorf("to be renewed at %s", g.RenewBefore)
	}
}

// badFiles is a change that a sidecar with spec.trust refuses, and a part of the reason.
type badFiles struct {
	change func(*signedFiles)
	want   string
}

// unsigned returns the grant as it is written without a signature.
func (f *signedFiles) unsigned() granttest.Object {
	spec := maps.Clone(f.draft.Spec)
	spec["plugin"], spec["notAfter"] = "weather", f.draft.NotAfter
	return granttest.Document("PluginGrant", "weather", spec)
}

func badSignatures() map[string]badFiles {
	return map[string]badFiles{
		"no trust":             {func(f *signedFiles) { delete(f.sidecar, "trust") }, "weather.dsse.json: is signed, and no spec.trust"},
		"no trust root":        {func(f *signedFiles) { f.trust()["root"] = "other.yaml" }, "spec.trust.root: " /* path */},
		"trust root of a kind": {func(f *signedFiles) { f.Write(f.path("trust.yaml"), f.Guardrail()) }, "write TrustRoot"},
		"trust root that is no root": {func(f *signedFiles) {
			f.Spec.Roles = f.Spec.Roles[1:]
			f.Write(f.path("trust.yaml"), f.TrustRoot())
		}, "could never be rotated"},
		"unsigned grant":        {func(f *signedFiles) { f.skip = true; f.Write(f.path("grants/weather.yaml"), f.unsigned()) }, "weather.yaml:5:11: metadata.name: is not signed"},
		"unsigned grant beside": {func(f *signedFiles) { f.Write(f.path("grants/a.yaml"), f.unsigned()) }, "is not signed"},
		"migration is over": {func(f *signedFiles) {
			f.skip, f.trust()["unsignedUntil"] = true, now
			f.Write(f.path("grants/weather.yaml"), f.unsigned())
		}, "is not signed"},
		"unsigned guardrail": {func(f *signedFiles) {
			f.Write(f.path("guardrails/more.yaml"), granttest.Document("PluginGuardrail", "more", granttest.Object{"plugins": []string{"**"}}))
		}, "more.yaml:5:11: metadata.name: is not signed"},
		"guardrail deleted":    {func(f *signedFiles) { f.must(os.Remove(f.path("guardrails/company.dsse.json"))) }, "holds no *.yaml"},
		"guardrails not named": {func(f *signedFiles) { delete(f.sidecar, "guardrails") }, "weather.dsse.json: spec.binding.guardrail: no signed guardrail applies to plugin weather"},
		"guardrail replaced": {func(f *signedFiles) {
			g := f.Guardrail()
			g["metadata"] = granttest.Object{"name": "company", "labels": granttest.Object{"edition": "2"}}
			f.Write(f.path("guardrails/company.dsse.json"), f.Sign(dsse.KindGuardrail, g, granttest.Policy))
		}, "they were replaced, added or removed since the review"},
		"guardrail added": {func(f *signedFiles) {
			f.Write(f.path("guardrails/more.dsse.json"), f.Sign(dsse.KindGuardrail, granttest.Document("PluginGuardrail", "more", granttest.Object{"plugins": []string{"weather"}}), granttest.Policy))
		}, "they were replaced, added or removed since the review"},
		"guardrail signed by release": {func(f *signedFiles) {
			f.Write(f.path("guardrails/company.dsse.json"), f.Sign(dsse.KindGuardrail, f.Guardrail(), granttest.Release))
		}, "company.dsse.json: verify guardrail: too few identities signed: 0 of 1 of role policy"},
		"grant signed as guardrail": {func(f *signedFiles) {
			f.Write(f.path("guardrails/company.dsse.json"), f.Sign(dsse.KindGuardrail, f.draft.Document(), granttest.Policy))
		}, "a signed guardrail holds a PluginGuardrail"},
		"approval among the grants": {func(f *signedFiles) {
			f.Write(f.path("grants/a.dsse.json"), f.draft.Bundle().Approvals[0])
		}, "neither a signed grant nor a signed guardrail"},
		"guardrail without approvals": {func(f *signedFiles) {
			g := f.Guardrail()
			delete(g["spec"].(granttest.Object), "approvals")
			e := f.Sign(dsse.KindGuardrail, g, granttest.Policy)
			f.Write(f.path("guardrails/company.dsse.json"), e)
			f.draft.Binding.Guardrail = e.Digest()
		}, "no guardrail states who approves"},
		"approval removed": {func(f *signedFiles) { f.draft.Decisions = nil }, "weather.dsse.json: band low needs approvals by 1 more of role security"},
		"field of a grant": {func(f *signedFiles) { f.draft.Spec["sudo"] = true }, "weather.dsse.json: spec.sudo: is not a field here"},
		"beyond a ceiling": {func(f *signedFiles) {
			f.ceilings(granttest.Object{"methods": []string{"HEAD"}})
		}, "weather.dsse.json: spec.rules[0].methods[0]: GET is not among [HEAD], the ceiling of guardrail company ("},
		"other image": {func(f *signedFiles) {
			f.trust()["artifact"] = granttest.Object{"kind": "image", "digest": dsse.Digest([]byte("other"))}
		}, "is to be started is image"},
		"artifact file": {func(f *signedFiles) {
			f.trust()["artifact"] = granttest.Object{"kind": "file", "digest": dsse.Digest([]byte("program"))}
		}, "spec.trust.artifact.kind"},
		"artifact latest": {func(f *signedFiles) { f.trust()["artifact"] = granttest.Object{"kind": "image", "digest": "latest"} }, "spec.trust.artifact.digest"},
	}
}

func badGenerationsAndModes() map[string]badFiles {
	return map[string]badFiles{
		"lower generation": {func(f *signedFiles) {
			f.seen(Generations{Trust: 1, Grants: map[string]grantcheck.HighWater{"weather": {Generation: 4, Digest: f.digest}}})
		}, "spec.binding.generation: is 1, and generation 4 was in force"},
		"generations not JSON": {func(f *signedFiles) {
			f.seen(Generations{})
			f.must(os.WriteFile(f.path("state/"+GenerationsFile), []byte("{"), 0o600))
		}, "put it back from a backup"},
		"trust removed": {func(f *signedFiles) {
			f.seen(Generations{Trust: 2})
			delete(f.sidecar, "trust")
			f.skip = true
			f.Write(f.path("grants/weather.yaml"), f.unsigned())
			f.Write(f.path("guardrails/company.yaml"), f.Guardrail())
			f.must(os.Remove(f.path("guardrails/company.dsse.json")))
		}, "spec.trust: is missing, and trust root version 2 was in force"},
		"unsigned grant after a signed one": {func(f *signedFiles) {
			f.seen(Generations{Trust: 1, Grants: map[string]grantcheck.HighWater{"weather": {Generation: 1, Digest: f.digest}}})
			f.skip, f.trust()["unsignedUntil"] = true, now.Add(time.Hour)
			f.Write(f.path("grants/weather.yaml"), f.unsigned())
		}, "weather.yaml:5:11: metadata.name: is not signed, and a signed grant of this name was in force, generation 1"},
		"preloaded code": {func(f *signedFiles) {
			f.sidecar["process"] = granttest.Object{"env": granttest.Object{"LD_PRELOAD": "/tmp/other.so"}}
		}, "spec.process.env.LD_PRELOAD"},
		"rotation removed": {func(f *signedFiles) { f.seen(Generations{Trust: 2}) }, "version 2 of the trust root was in force"},
		"rotation by another key": {func(f *signedFiles) {
			spec := f.Spec
			spec.Version = 2
			f.Write(f.path("trust.2.dsse.json"), f.Sign(dsse.KindTrust, spec, granttest.Policy))
		}, "trust.2.dsse.json: rotate trust root"},
		"rotation skips one": {func(f *signedFiles) { f.rotate(func(s *dsse.RootSpec) { s.Version = 3 }) }, "2 follows 1"},
		"rotation revokes release": {func(f *signedFiles) {
			f.rotate(func(s *dsse.RootSpec) {
				s.Roles = append([]dsse.RoleSpec{}, s.Roles...)
				last := &s.Roles[len(s.Roles)-1]
				last.Keys = []dsse.KeySpec{s.Roles[0].Keys[0]}
				s.Revoked = []string{f.Key(granttest.Release).Public().KeyID()}
			})
		}, "revoked keys do not count"},
		"authority without a digest": {func(f *signedFiles) { f.authority("ca.pem") }, "ca.pem has digest sha256:"},
		"authority exchanged": {func(f *signedFiles) {
			f.bind(f.authority("ca.pem"))
			f.authority("ca.pem")
		}, "spec.binding.authorities does not have for this file; put back"},
		"authority of another rule": {func(f *signedFiles) {
			f.bind(f.authority("ca.pem"))
			f.authority("other.pem")
		}, "other.pem has digest sha256:"},
		"authority of a token request": {func(f *signedFiles) {
			f.authority("ca.pem")
			delete(f.rule()["to"].(granttest.Object), "tls")
			f.rule()["credential"] = "key"
			f.draft.Spec["credentials"] = []granttest.Object{{
				"name": "key", "vault": granttest.Object{"path": "secret/data/weather"},
				"inject": granttest.Object{"oauth2": granttest.Object{"tokenURL": "https://login.example/token", "caFile": "ca.pem"}},
			}}
		}, "inject.oauth2.caFile"},
		"mode switched to observe": {func(f *signedFiles) { f.observe() }, "spec.mode: observe is not signed"},
		"signed mode is enforce": {func(f *signedFiles) {
			f.signSidecar(func(granttest.Object) {})
			f.observe()
		}, "the mode that is signed in"},
		"observes longer": {func(f *signedFiles) {
			f.signSidecar(func(s granttest.Object) { s["mode"], s["observeUntil"] = "observe", now.Add(30*time.Minute) })
			f.observe()
		}, "spec.observeUntil: is later than"},
		"signed mode of another sidecar": {func(f *signedFiles) {
			f.signSidecar(func(s granttest.Object) {
				s["plugin"], s["mode"], s["observeUntil"] = "stocks", "observe", now.Add(48*time.Hour)
			})
			f.observe()
		}, "for plugin \"stocks\""},
		"sidecar signed by the author": {func(f *signedFiles) {
			f.trust()["sidecar"] = "sidecar.dsse.json"
			f.Write(f.path("sidecar.dsse.json"), f.Sign(dsse.KindSidecar, granttest.Document("Sidecar", "weather", f.sidecar), granttest.Author))
		}, "0 of 1 of role policy"},
		"exemption from a never-list": {func(f *signedFiles) {
			f.exempt("never.metadata", granttest.Object{})
			f.ceilings(granttest.Object{"methods": []string{"HEAD"}})
		}, "GET is not among"},
		"exemption of another rule": {func(f *signedFiles) {
			f.exempt("ceilings.methods", granttest.Object{"methods": []string{"GET"}}, "other")
			f.ceilings(granttest.Object{"methods": []string{"HEAD"}})
		}, "GET is not among"},
		"exemption with an unknown field": {func(f *signedFiles) {
			f.exempt("ceilings.methods", granttest.Object{"methods": []string{"GET"}, "unless": "weekends"})
			f.ceilings(granttest.Object{"methods": []string{"HEAD"}})
		}, "unless"},
		"exemption that allows another limit": {func(f *signedFiles) {
			f.draft.Spec["limits"] = granttest.Object{"requests": "100/1h"}
			f.exempt("ceilings.limits.requests", granttest.Object{"limits": granttest.Object{"sentBytes": "1KiB"}}, "")
			f.ceilings(granttest.Object{"limits": granttest.Object{"requests": "10/1h"}})
		}, "requests"},
		"exemption that allows less": {func(f *signedFiles) {
			f.exempt("ceilings.methods", granttest.Object{"methods": []string{"POST"}})
			f.ceilings(granttest.Object{"methods": []string{"HEAD"}})
		}, "GET is not among"},
	}
}

// badAnchors are older policies and generations, and other trust roots, whose signatures are right.
func badAnchors() map[string]badFiles {
	return map[string]badFiles{
		"below the least generation": {func(f *signedFiles) {
			f.trust()["minGenerations"] = granttest.Object{"weather": 2}
		}, "spec.binding.generation: is 1, and 2 is the lowest that the Sidecar allows"},
		"below the signed least generation": {func(f *signedFiles) {
			f.signSidecar(func(s granttest.Object) {
				s["trust"] = granttest.Object{"root": "trust.yaml", "minGenerations": granttest.Object{"weather": 2}}
			})
			f.trust()["minGenerations"] = granttest.Object{"weather": 1}
		}, "spec.binding.generation: is 1, and 2 is the lowest that the Sidecar allows"},
		"least generation of no name": {func(f *signedFiles) { f.trust()["minGenerations"] = granttest.Object{"Weather!": 2} }, "spec.trust.minGenerations: \"Weather!\""},
		"least generation of 0":       {func(f *signedFiles) { f.trust()["minGenerations"] = granttest.Object{"weather": 0} }, "a generation from 1"},
		"older guardrail": {func(f *signedFiles) {
			f.seen(Generations{Trust: 1, Guardrails: map[string]grantcheck.HighWater{"company": {Generation: 3, Digest: f.digest}}})
		}, "spec.generation: guardrail company is generation 0, and generation 3 was in force"},
		"policy that is not bound": {func(f *signedFiles) {
			f.draft.Binding.Policy = []grantcheck.PolicyRef{{Kind: dsse.KindGuardrail, Name: "company", Digest: f.digest, Generation: 9}}
		}, "spec.binding.policy: is not of the guardrails"},
		"other keys, same version": {func(f *signedFiles) {
			f.seen(Generations{Trust: 1, TrustDigest: f.Root().Digest()})
			f.otherKeys(1)
		}, "does not follow version 1 that was in force"},
		"other keys, later version": {func(f *signedFiles) {
			f.seen(Generations{Trust: 1, TrustDigest: f.Root().Digest()})
			f.otherKeys(2)
		}, "statedir accept --trust-root sha256:"},
		"other keys, rotated": {func(f *signedFiles) {
			f.seen(Generations{Trust: 2, TrustDigest: f.Root().Digest()})
			f.otherKeys(1)
			f.rotate(func(*dsse.RootSpec) {})
		}, "does not follow version 2"},
	}
}

// TestLoadSignedRefuses has what a sidecar with spec.trust refuses; what is wrong with a
// grant by itself is tested with grantcheck.Check.
func TestLoadSignedRefuses(t *testing.T) {
	tests := badSignatures()
	maps.Copy(tests, badGenerationsAndModes())
	maps.Copy(tests, badAnchors())
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := newSignedFiles(t)
			test.change(f)
			c, err := f.load()
			if err == nil {
				t.Fatalf("it was loaded: %+v", c.Trust)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
	t.Logf("%d bad inputs", len(tests))
}

func (f *signedFiles) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// ceilings has the guardrail state ceilings, and binds the grant to it.
func (f *signedFiles) ceilings(c granttest.Object) {
	g := f.Guardrail()
	g["spec"].(granttest.Object)["ceilings"] = c
	e := f.Sign(dsse.KindGuardrail, g, granttest.Policy)
	f.Write(f.path("guardrails/company.dsse.json"), e)
	f.draft.Binding.Guardrail = e.Digest()
}

func (f *signedFiles) rule() granttest.Object { return f.draft.Spec["rules"].([]granttest.Object)[0] }

// authority writes a file of authorities beside the grant, names it in the rule and returns
// what a grant is bound to.
func (f *signedFiles) authority(name string) grantcheck.Authority {
	ca, err := testenv.NewCA("authority")
	f.must(err)
	f.must(os.MkdirAll(f.path("grants"), 0o700))
	f.must(ca.WriteFile(f.path("grants/" + name)))
	f.rule()["to"].(granttest.Object)["tls"] = granttest.Object{"caFile": name}
	data, err := os.ReadFile(f.path("grants/" + name))
	f.must(err)
	return grantcheck.Authority{File: name, Digest: dsse.Digest(data)}
}

func (f *signedFiles) bind(a grantcheck.Authority) {
	f.draft.Binding.Authorities = append(f.draft.Binding.Authorities, a)
}

// TestLoadSignedAuthority loads a grant whose authorities are those that it is bound to.
func TestLoadSignedAuthority(t *testing.T) {
	f := newSignedFiles(t)
	f.bind(f.authority("ca.pem"))
	if c, err := f.load(); err != nil || !strings.Contains(c.Grants[0].Rules[0].To.TLS.CA, "CERTIFICATE") {
		t.Errorf("%v, %+v", err, c)
	}
}

func (f *signedFiles) observe() {
	f.sidecar["mode"], f.sidecar["observeUntil"] = "observe", now.Add(time.Hour)
}

func (f *signedFiles) signSidecar(change func(spec granttest.Object)) {
	f.trust()["sidecar"] = "sidecar.dsse.json"
	spec := maps.Clone(f.sidecar)
	change(spec)
	f.Write(f.path("sidecar.dsse.json"), f.Sign(dsse.KindSidecar, granttest.Document("Sidecar", "weather", spec), granttest.Policy))
}

// exempt adds an exemption for rule read to the grant, or for another one.
func (f *signedFiles) exempt(from string, allow granttest.Object, rule ...string) {
	scope := granttest.Object{"plugin": "weather", "permission": "read"}
	if len(rule) > 0 {
		scope["permission"] = rule[0]
	}
	e := f.Sign(dsse.KindExemption, granttest.Document("GrantExemption", "ex-1", granttest.Object{
		"guardrailRule": from, "scope": scope, "allow": allow, "owner": "payments", "ticket": "SEC-1", "justification": "Until the upgrade.",
		"notAfter": now.Add(time.Hour), "maxUses": 3,
	}), granttest.Policy)
	f.draft.Exemptions = append(f.draft.Exemptions, e)
	f.draft.Binding.Exemptions = append(f.draft.Binding.Exemptions, grantcheck.Ref{Name: "ex-1", Digest: e.Digest()})
}

func TestLoadSignedMode(t *testing.T) {
	f := newSignedFiles(t)
	f.signSidecar(func(s granttest.Object) { s["mode"], s["observeUntil"] = "observe", now.Add(48*time.Hour) })
	if c, err := f.load(); err != nil || c.Sidecar.Mode != authz.ModeEnforce {
		t.Errorf("a sidecar that enforces: %v", err)
	}
	f.observe()
	if c, err := f.load(); err != nil || c.Sidecar.Mode != authz.ModeObserve {
		t.Errorf("a sidecar that observes as is signed: %v", err)
	}
}

// TestLoadSignedBesideText has the text from which a document was signed in its folder, as in
// a repository: it counts for nothing, whatever it states by now.
func TestLoadSignedBesideText(t *testing.T) {
	f := newSignedFiles(t)
	wider := f.unsigned()
	wider["spec"].(granttest.Object)["notAfter"] = f.draft.NotAfter.Add(time.Hour)
	f.Write(f.path("grants/weather.yaml"), wider)
	guardrail := f.Guardrail()
	guardrail["spec"].(granttest.Object)["ceilings"] = granttest.Object{"methods": []string{"TRACE"}}
	f.Write(f.path("guardrails/company.yaml"), guardrail)
	c, err := f.load()
	if err != nil || len(c.Grants) != 1 || len(c.Trust.Grants) != 1 || !c.Grants[0].NotAfter.Equal(f.draft.NotAfter) {
		t.Fatalf("%v, %+v", err, c)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	if _, err := Check(now, f.path("guardrails")); err != nil {
		t.Errorf("check of the folder: %v", err)
	}
}

// TestLoadMigration follows grants from unsigned to signed: access is never dropped.
func TestLoadMigration(t *testing.T) {
	f := newSignedFiles(t)
	f.skip, f.trust()["unsignedUntil"] = true, now.Add(24*time.Hour)
	f.Write(f.path("grants/weather.yaml"), f.unsigned())
	c, err := f.load()
	if err != nil || len(c.Grants) != 1 || len(c.Trust.Grants) != 0 || !strings.Contains(c.Warnings.Error(), "is not signed; it is no longer loaded from") {
		t.Fatalf("before it is signed: %v, %v", err, c)
	}
	f.skip = false
	c, err = f.load()
	if err != nil || len(c.Grants) != 1 || len(c.Trust.Grants) != 1 || !strings.Contains(c.Warnings.Error(), "replaces it") {
		t.Fatalf("once it is signed: %v, %v", err, c)
	}
}

// TestLoadOtherPlugin does not use the signed grant of another plugin.
func TestLoadOtherPlugin(t *testing.T) {
	f := newSignedFiles(t)
	f.draft.Submission.Plugin = "stocks"
	c, err := f.load()
	if err != nil || len(c.Grants) != 0 || !strings.Contains(c.Warnings.Error(), "this sidecar does not serve") {
		t.Errorf("%v, %+v", err, c)
	}
}

func TestLoadRotation(t *testing.T) {
	f := newSignedFiles(t)
	f.rotate(func(*dsse.RootSpec) {})
	c, err := f.load()
	if err != nil || c.Trust.Version != 2 || c.Trust.Generations.Trust != 2 {
		t.Errorf("rotated: %v, %+v", err, c)
	}
}

// TestLoadEnded loads grants whose time is over: the sidecar starts, and refuses what
// they state. A clock that is set back does not revive them.
func TestLoadEnded(t *testing.T) {
	after := now.Add(31 * 24 * time.Hour)
	for name, change := range map[string]func(*signedFiles){
		"after its end":      func(f *signedFiles) { f.at = after },
		"clock set back":     func(f *signedFiles) { f.seen(Generations{Time: after}) },
		"approval has ended": func(f *signedFiles) { f.draft.Decisions[0].ExpiresAt = now.Add(-time.Second) },
	} {
		f := newSignedFiles(t)
		change(f)
		c, err := f.load()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(c.Expired) != 1 || c.Grants[0].NotAfter.After(now.Add(30*24*time.Hour)) {
			t.Errorf("%s: expired %v, grant ends at %s", name, c.Expired, c.Grants[0].NotAfter)
		}
		if name == "clock set back" && !c.Trust.Generations.Time.Equal(after) {
			t.Errorf("%s: latest time is %s", name, c.Trust.Generations.Time)
		}
	}
}

// TestLoadExemption loads a grant beyond a ceiling, for as long as its exemption lasts.
func TestLoadExemption(t *testing.T) {
	for name, from := range map[string]struct {
		ceiling string
		allow   granttest.Object
		stated  granttest.Object
	}{
		"methods": {"ceilings.methods", granttest.Object{"methods": []string{"GET"}}, granttest.Object{"methods": []string{"HEAD"}}},
		"tls":     {"ceilings.tlsMin", granttest.Object{"tlsMin": "1.2"}, granttest.Object{"tlsMin": "1.3"}},
		"schemes": {"ceilings.schemes", granttest.Object{"schemes": []string{"https"}}, granttest.Object{"schemes": []string{"tls"}}},
	} {
		f := newSignedFiles(t)
		f.exempt(from.ceiling, from.allow)
		f.ceilings(from.stated)
		c, err := f.load()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := f.decide(c, now, 0); err != nil {
			t.Errorf("%s: in force: %v", name, err)
		}
		if err := f.decide(c, now.Add(time.Hour), 0); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%s: after its end: %v", name, err)
		}
		if err := f.decide(c, now, 3); err == nil || !strings.Contains(err.Error(), "quota") {
			t.Errorf("%s: after its uses: %v", name, err)
		}
	}
}

// TestLoadCredentialLifetimeExemption loads a token beyond a ceiling.
func TestLoadCredentialLifetimeExemption(t *testing.T) {
	f := newSignedFiles(t)
	f.draft.Spec["credentials"] = []granttest.Object{{"name": "token", "vault": granttest.Object{"path": "transit/sign/weather"}, "inject": granttest.Object{
		"jwt": granttest.Object{"algorithm": "RS256", "issuer": "weather", "audience": "api", "lifetime": "1h"},
	}}}
	f.draft.Spec["rules"].([]granttest.Object)[0]["credential"] = "token"
	f.sidecar["vault"] = granttest.Object{"address": "https://vault.example:8200", "auth": granttest.Object{"method": "token", "tokenFile": "token"}}
	f.must(os.WriteFile(f.path("token"), []byte("s.token"), 0o600))
	f.ceilings(granttest.Object{"credentialLifetime": "15m"})
	if _, err := f.load(); err == nil || !strings.Contains(err.Error(), "is more than the 15m") {
		t.Errorf("without an exemption: %v", err)
	}
	f.exempt("ceilings.credentialLifetime", granttest.Object{"credentialLifetime": "1h"})
	c, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.decide(c, now, 0); err != nil {
		t.Errorf("in force: %v", err)
	}
	if err := f.decide(c, now.Add(time.Hour), 0); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after its end: %v", err)
	}
}

// decide asks for GET https://api.weather.example/ after a number of accesses.
func (f *signedFiles) decide(c *Config, at time.Time, uses uint64) error {
	engine, ledger := &authz.Engine{}, authz.NewLedger()
	engine.Install(c.Policy)
	ledger.Restore(authz.State{Totals: []authz.Total{{Plugin: "weather", Grant: "exemption:ex-1", Kind: "requests", Used: uses}}}, at)
	to, err := authz.NewDestination(authz.SchemeHTTPS, "api.weather.example", "/")
	f.must(err)
	action, err := authz.NewAction("GET", "")
	f.must(err)
	d := engine.Current().Decide(authz.Request{Principal: "weather", Destination: to, Action: action}, ledger.Usage(), at)
	if !d.Allowed() {
		return errors.New(d.Reason.String())
	}
	return nil
}

// TestWarnOnceOfText checks that a warning of a document and of its text is given once, with the
// line of the text, and that one which the text alone has, or no longer has, is given too.
func TestWarnOnceOfText(t *testing.T) {
	f := newSignedFiles(t)
	guardrail := f.Guardrail()
	approvals := guardrail["spec"].(granttest.Object)["approvals"].(granttest.Object)
	approvals["low"] = granttest.Object{"roles": []string{}}
	e := f.Sign(dsse.KindGuardrail, guardrail, granttest.Policy)
	f.Write(f.path("guardrails/company.dsse.json"), e)
	f.digest = e.Digest()
	f.draft = f.Draft(f.digest, f.draft.Binding.Artifact)
	f.Write(f.path("guardrails/company.yaml"), guardrail)
	warned := func() (files []string) {
		c, err := f.load()
		f.must(err)
		checked, err := Check(now, f.path("guardrails"))
		f.must(err)
		for _, w := range slices.Concat(c.Warnings, checked.Warnings) {
			if w.Field == "spec.approvals.low.roles" {
				files = append(files, fmt.Sprintf("%s:%t", filepath.Base(w.File), w.Line > 0))
			}
		}
		return files
	}
	if got := warned(); !slices.Equal(got, []string{"company.yaml:true", "company.yaml:true"}) {
		t.Errorf("warnings of %v", got)
	}
	approvals["low"] = granttest.Object{"roles": []granttest.Object{{"name": "security", "min": 1}}}
	f.Write(f.path("guardrails/company.yaml"), guardrail)
	if got := warned(); !slices.Equal(got, []string{"company.dsse.json:false", "company.dsse.json:false"}) {
		t.Errorf("warnings of %v after the text was changed", got)
	}
}

// TestCheckSigned checks signed files without the Sidecar that trusts them.
func TestCheckSigned(t *testing.T) {
	f := newSignedFiles(t)
	_, err := f.load()
	f.must(err)
	checked, err := Check(now, f.path("grants"))
	if err != nil || !strings.Contains(checked.Warnings.Error(), "its signatures are not verified here") {
		t.Errorf("grants alone: %v, %v", err, checked.Warnings)
	}
	checked, err = Check(now, f.dir, f.path("grants"), f.path("guardrails"))
	if err != nil || len(checked.Warnings) != 0 {
		t.Errorf("with the Sidecar: %v, %v", err, checked.Warnings)
	}
}

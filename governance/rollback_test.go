package governance

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// TestGrantPutBack: somebody who may write files removes the grant in force, or puts an older
// one back, so that the next grant would follow it.
func TestGrantPutBack(t *testing.T) {
	f := newFixture(t)
	issue := func() []byte {
		f.compose()
		f.approve("security", "bo@corp", nil)
		f.approve("compliance", "cy@corp", nil)
		_, e, err := f.evaluate()
		f.check(err)
		copied, err := e.GenerationFile()
		f.check(err)
		f.issued()
		f.put(copied, f.files[GrantFile("weather")].Data)
		return f.files[GrantFile("weather")].Data
	}
	first := issue()
	f.now = f.now.Add(2 * grantcheck.MaxAhead)
	issue()
	f.now = f.now.Add(2 * grantcheck.MaxAhead)
	f.next()
	for name, test := range map[string]struct {
		change func(f *fixture)
		want   string
	}{
		"in force": {func(*fixture) {}, ""},
		"removed":  {func(f *fixture) { delete(f.files, GrantFile("weather")) }, "grants/weather.dsse.json is missing, and generation 2 was issued (plugins/weather/1.4.0/issued/2.dsse.json)"},
		"older":    {func(f *fixture) { f.put(GrantFile("weather"), first) }, "grants/weather.dsse.json is generation 1, and generation 2 was issued"},
		"older under another number": {func(f *fixture) {
			f.put(GrantFile("weather"), first)
			f.put(requestDir+"/issued/9.dsse.json", first)
		}, "generation 2 was issued"},
		"copy that does not verify": {func(f *fixture) { f.put(requestDir+"/issued/3.dsse.json", []byte("{}")) }, ""},
	} {
		f := f.clone(t)
		test.change(f)
		for _, dir := range []string{requestDir, nextDir} {
			var got []string
			for _, p := range f.evaluateIn(dir).stage(stageEligibility).Problems {
				if strings.Contains(p.Message, "was issued") {
					got = append(got, p.Message)
				}
			}
			if text := strings.Join(got, "\n"); (test.want == "") != (text == "") || !strings.Contains(text, test.want) {
				t.Errorf("%s: %s: problems are %q, want %q", name, dir, text, test.want)
			}
		}
	}
}

// rotate puts a rotation in force, which change makes of the trust root before.
func (f *fixture) rotate(change func(spec *dsse.RootSpec), signers ...string) {
	f.t.Helper()
	f.spec.Version++
	f.spec.Roles = slices.Clone(f.spec.Roles)
	for i := range f.spec.Roles {
		f.spec.Roles[i].Keys = slices.Clone(f.spec.Roles[i].Keys)
	}
	change(&f.spec)
	root, err := dsse.NewRoot(f.spec)
	f.check(err)
	payload, err := json.Marshal(root.Spec())
	f.check(err)
	f.sign(RotationFile(f.spec.Version), dsse.KindTrust, payload, signers...)
}

// TestReleaseKeyRevoked: after the key that signed the grant in force is revoked, or removed
// from the trust root, the next grant is one that a sidecar loads which had the old one in force.
func TestReleaseKeyRevoked(t *testing.T) {
	base := newFixture(t)
	old := base.issued()
	base.put(requestDir+"/issued/1.dsse.json", base.files[GrantFile("weather")].Data)
	for name, change := range map[string]func(f *fixture, release *dsse.RoleSpec){
		"revoked": func(f *fixture, _ *dsse.RoleSpec) { f.spec.Revoked = []string{f.key("ci@corp").Public().KeyID()} },
		"removed": func(_ *fixture, release *dsse.RoleSpec) { release.Keys = release.Keys[1:] },
	} {
		f := base.clone(t)
		fresh := dsse.KeySpec{Identity: "rel@corp", Ed25519: base64.StdEncoding.EncodeToString(f.key("rel@corp").Public())}
		f.rotate(func(spec *dsse.RootSpec) {
			i := slices.IndexFunc(spec.Roles, func(r dsse.RoleSpec) bool { return r.Name == "release" })
			spec.Roles[i].Keys = append(spec.Roles[i].Keys, fresh)
			change(f, &spec.Roles[i])
		}, "ana@corp")
		f.keys["ci@corp"] = f.key("rel@corp")
		f.now = f.now.Add(2 * grantcheck.MaxAhead)
		_, e, err := f.evaluate()
		if err != nil {
			t.Errorf("%s: the request cannot be evaluated: %v", name, err)
			continue
		}
		if text := strings.Join(e.Findings, "\n"); e.Issued != nil || !strings.Contains(text, "no sidecar loads it any more; this request is reviewed as for a first grant, with every permission of its manifest,") {
			t.Errorf("%s: the grant in force is %v with findings %q, want none and a note", name, e.Issued, text)
		}
		f.compose()
		f.approve("security", "bo@corp", nil)
		f.approve("compliance", "cy@corp", nil)
		data, err := f.issue()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		bundle, err := grantcheck.ParseBundle(data)
		f.check(err)
		r, err := Open(f.files)
		f.check(err)
		terms := r.Terms("weather")
		terms.Seen = grantcheck.HighWater{Generation: 1, Digest: old.Digest} // of a sidecar
		if v, err := grantcheck.Check(r.Root, bundle, terms, f.now); err != nil || v.Binding.Generation != 2 {
			t.Errorf("%s: a sidecar refuses the next grant: %v", name, err)
		}
	}
}

// TestNewestKeyRevoked: a key that was revoked since signed the last grant, and one that counts an
// earlier one. The earlier one is put back, as stage 0 demands, and the next grant follows the last.
func TestNewestKeyRevoked(t *testing.T) {
	f := newFixture(t)
	old, next := f.key("ci@corp"), f.key("rel@corp")
	f.rotate(func(spec *dsse.RootSpec) {
		i := slices.IndexFunc(spec.Roles, func(r dsse.RoleSpec) bool { return r.Name == "release" })
		spec.Roles[i].Keys = append(spec.Roles[i].Keys, dsse.KeySpec{Identity: "rel@corp", Ed25519: base64.StdEncoding.EncodeToString(next.Public())})
	}, "ana@corp")
	issue := func(key dsse.PrivateKey, file string) *Issued {
		f.keys["ci@corp"] = key
		f.now = f.now.Add(2 * grantcheck.MaxAhead)
		f.compose()
		f.approve("security", "bo@corp", nil)
		f.approve("compliance", "cy@corp", nil)
		issued := f.issued()
		f.put(requestDir+"/issued/"+file, f.files[GrantFile("weather")].Data)
		return issued
	}
	issue(old, "1.dsse.json")
	last := issue(next, "2.dsse.json")
	f.rotate(func(spec *dsse.RootSpec) { spec.Revoked = []string{next.Public().KeyID()} }, "ana@corp")
	_, e, err := f.evaluate()
	f.check(err)
	const want = "grants/weather.dsse.json is signed by keys that were revoked since, and generation 1 was issued (plugins/weather/1.4.0/issued/1.dsse.json); copy that one to its place"
	if p := e.stage(stageEligibility).Problems; len(p) != 1 || p[0].Message != want {
		t.Errorf("problems are %+v, want %q", p, want)
	}
	f.files[GrantFile("weather")] = f.files[requestDir+"/issued/1.dsse.json"]
	third := issue(old, "3.dsse.json")
	r, err := Open(f.files)
	f.check(err)
	terms := r.Terms("weather")
	terms.Seen = grantcheck.HighWater{Generation: 2, Digest: last.Digest} // of a sidecar
	if v, err := grantcheck.Check(r.Root, third.Bundle, terms, f.now); err != nil || v.Binding.Generation != 3 {
		t.Errorf("a sidecar refuses the next grant: %v", err)
	}
}

// TestVerifyDecision: a decision is verified with what it is of, and one that states another
// person than its signer is refused, as it counts for nothing.
func TestVerifyDecision(t *testing.T) {
	f := newFixture(t)
	r, err := Open(f.files)
	f.check(err)
	const file = requestDir + "/approvals/security" + signedEnding
	v, err := r.VerifyFile(f.files[file].Data, f.now)
	if err != nil || len(v.Details) != 2 || !strings.HasPrefix(v.Details[0], "approve by bo@corp as security of submission sha256:") || !strings.HasPrefix(v.Details[1], "of grant sha256:") {
		t.Errorf("an approval is verified as %+v, %v", v, err)
	}
	f.sign(file, dsse.KindApproval, f.payload(file), "mel@corp")
	if v, err := r.VerifyFile(f.files[file].Data, f.now); err == nil || !strings.Contains(err.Error(), "counts for nothing") {
		t.Errorf("an approval of bo@corp that mel@corp signed is verified as %+v, %v", v, err)
	}
}

package grantcheck_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/granttest"
)

func now() time.Time { return time.Date(2026, 9, 21, 12, 0, 0, 0, time.UTC) }

func digest(s string) string { return dsse.Digest([]byte(s)) }

func artifact() grantcheck.Artifact {
	return grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: digest("program")}
}

func terms() grantcheck.Terms {
	security, compliance := grantcheck.RoleMin{Role: "security", Min: 1}, grantcheck.RoleMin{Role: "compliance", Min: 1}
	return grantcheck.Terms{
		Guardrail: digest("guardrail"),
		Approvals: map[string]grantcheck.Approvers{
			"low": {Roles: []grantcheck.RoleMin{security}}, "moderate": {Roles: []grantcheck.RoleMin{security, compliance}}, "critical": {},
		},
		Evidence:  []grantcheck.EvidenceTerm{{PredicateType: "https://chaperone.dev/attestation/sbom/v1", MaxAge: 30 * 24 * time.Hour}},
		Lifetimes: map[string]time.Duration{"low": 180 * 24 * time.Hour},
	}
}

// change is what one test changes before a grant is signed.
type change struct {
	world  func(*granttest.World)
	draft  func(*granttest.World, *granttest.Draft)
	bundle func(*granttest.World, *grantcheck.Bundle)
	terms  func(*grantcheck.Terms)
	at     time.Time
}

func (c change) check(t *testing.T) (*grantcheck.Verified, error) {
	t.Helper()
	w := granttest.New(t, now())
	d := w.Draft(digest("guardrail"), artifact())
	if c.draft != nil {
		c.draft(w, d)
	}
	b := d.Bundle()
	if c.bundle != nil {
		c.bundle(w, b)
	}
	if c.world != nil { // the trust root changes after all is signed
		c.world(w)
	}
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	read, err := grantcheck.ParseBundle(data)
	if err != nil {
		return nil, err
	}
	demand := terms()
	if c.terms != nil {
		c.terms(&demand)
	}
	at := c.at
	if at.IsZero() {
		at = now()
	}
	return grantcheck.Check(w.Root(), read, demand, at)
}

func TestCheckAccepts(t *testing.T) {
	tests := map[string]change{
		"as issued":     {},
		"two more days": {at: now().Add(48 * time.Hour)},
		"one who may act in two roles where only he approves one of them": {
			draft: func(_ *granttest.World, d *granttest.Draft) {
				d.Binding.Band = "moderate"
				d.Decisions = nil
				d.Approve("security", granttest.Both)
				d.Approve("compliance", granttest.Both)
				d.Approve("security", granttest.Two)
			},
		},
		"a rejection that was withdrawn": {
			draft: func(_ *granttest.World, d *granttest.Draft) {
				d.Decide(grantcheck.DecisionReject, "security", granttest.Two, now().Add(-50*time.Minute))
				d.Decide(grantcheck.DecisionWithdraw, "security", granttest.Two, now().Add(-40*time.Minute))
			},
		},
		"a rejection of another submission": {
			draft: func(_ *granttest.World, d *granttest.Draft) {
				d.Decide(grantcheck.DecisionReject, "security", granttest.Two, now().Add(-50*time.Minute)).Submission = digest("other")
			},
		},
		"the generation that is in force": {
			draft: func(_ *granttest.World, d *granttest.Draft) {
				d.Binding.Generation, d.Binding.Previous = 4, digest("3")
			},
			terms: func(x *grantcheck.Terms) { x.Seen = grantcheck.HighWater{Generation: 3, Digest: digest("3")} },
		},
		"generations that were not seen": {
			draft: func(_ *granttest.World, d *granttest.Draft) {
				d.Binding.Generation, d.Binding.Previous = 7, digest("6")
			},
			terms: func(x *grantcheck.Terms) { x.Seen = grantcheck.HighWater{Generation: 3, Digest: digest("3")} },
		},
		"the artifact": {terms: func(x *grantcheck.Terms) { x.Artifact = artifact() }},
	}
	for name, test := range tests {
		v, err := test.check(t)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if v.Plugin != "weather" || v.Name != "weather" || v.Authors[0] != granttest.Author {
			t.Errorf("%s: verified %+v", name, v)
		}
	}
}

// bad is a change that is refused, with a part of the reason; several are separated by NUL.
type bad struct {
	change
	want string
}

func decide(f func(*grantcheck.Approval)) func(*granttest.World, *granttest.Draft) {
	return func(_ *granttest.World, d *granttest.Draft) { f(&d.Decisions[0]) }
}

func bind(f func(*grantcheck.Binding)) func(*granttest.World, *granttest.Draft) {
	return func(_ *granttest.World, d *granttest.Draft) { f(&d.Binding) }
}

func badGrants() map[string]bad {
	return map[string]bad{
		"grant signed by the author":    {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.GrantBy = granttest.Author }}, "0 of 1 of role release"},
		"grant signed by security":      {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.GrantBy = granttest.Security }}, "0 of 1 of role release"},
		"grant signed by a stranger":    {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.GrantBy = "eve@corp" }}, "0 of 1 of role release"},
		"grant edited":                  {change{bundle: editGrant}, "does not verify"},
		"submission played as grant":    {change{bundle: func(_ *granttest.World, b *grantcheck.Bundle) { b.Grant = b.Submission }}, "grant.v1+json is required"},
		"approval played as grant":      {change{bundle: func(_ *granttest.World, b *grantcheck.Bundle) { b.Grant = b.Approvals[0] }}, "grant.v1+json is required"},
		"revoked key of release":        {change{world: revoke(granttest.Release)}, "revoked keys do not count"},
		"grant without binding":         {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.Spec["binding"] = nil }}, "spec.binding: is missing"},
		"grant without end":             {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.NotAfter = time.Time{} }}, "both notBefore and notAfter are required"},
		"grant of another kind":         {change{bundle: regrant(`"PluginGrant"`, `"PluginGuardrail"`)}, "a PluginGrant of"},
		"grant of another version":      {change{bundle: regrant(`v1alpha1`, `v9`)}, "a PluginGrant of"},
		"duplicate key":                 {change{bundle: regrant(`"spec":{`, `"spec":{"plugin":"other",`)}, "given twice"},
		"duplicate key in another case": {change{bundle: regrant(`"spec":{`, `"spec":{"PLUGIN":"other",`)}, "given twice"},
		"duplicate spec":                {change{bundle: regrant(`"kind":`, `"spec":{},"kind":`)}, "given twice"},
		"unknown field of the binding":  {change{bundle: regrant(`"generation":1`, `"generation":1,"signedBy":"all"`)}, "unknown field"},
		"unknown field of the document": {change{bundle: regrant(`"kind":`, `"status":{},"kind":`)}, "unknown field"},
		"payload goes on":               {change{bundle: regrant(`"apiVersion"`, `"a":1}{"apiVersion"`)}, "given twice\x00goes on after"},
	}
}

func badTimes() map[string]bad {
	return map[string]bad{
		"not begun yet":                {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.NotBefore = now().Add(6 * time.Minute) }}, "in the future"},
		"ended":                        {change{at: now().Add(31 * 24 * time.Hour)}, "the grant ended at 2026-10-21T12:00:00Z"},
		"lifetime beyond the band's":   {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.NotAfter = now().Add(200 * 24 * time.Hour) }}, "the longest lifetime in band low"},
		"submission in the future":     {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.Submission.IssuedAt = now().Add(time.Hour) }}, "submission: its issuedAt"},
		"evidence in the future":       {change{draft: bind(func(b *grantcheck.Binding) { b.Evidence[0].IssuedAt = now().Add(time.Hour) })}, "spec.binding.evidence[0].issuedAt"},
		"approval in the future":       {change{draft: decide(func(a *grantcheck.Approval) { a.IssuedAt = now().Add(6 * time.Minute) })}, "is in the future"},
		"approval without time":        {change{draft: decide(func(a *grantcheck.Approval) { a.IssuedAt = time.Time{} })}, "has no issuedAt"},
		"approval before the evidence": {change{draft: decide(func(a *grantcheck.Approval) { a.IssuedAt = now().Add(-150 * time.Minute) })}, "before what it reviews"},
		"approval ended":               {change{draft: decide(func(a *grantcheck.Approval) { a.ExpiresAt = now() })}, "an approval ended at"},
	}
}

func badBindings() map[string]bad {
	return map[string]bad{
		"guardrail replaced":             {change{terms: func(x *grantcheck.Terms) { x.Guardrail = digest("other") }}, "replaced, added or removed since the review"},
		"guardrail deleted":              {change{terms: func(x *grantcheck.Terms) { x.Guardrail = "" }}, "no signed guardrail applies"},
		"rubric replaced":                {change{terms: func(x *grantcheck.Terms) { x.Rubric = digest("other") }}, "the rubric in force"},
		"other artifact":                 {change{terms: func(x *grantcheck.Terms) { x.Artifact = grantcheck.Artifact{Kind: "file", Digest: digest("evil")} }}, "is to be started is file " + digest("evil")},
		"other kind of artifact":         {change{terms: func(x *grantcheck.Terms) { x.Artifact = grantcheck.Artifact{Kind: "image", Digest: digest("program")} }}, "to be started is image"},
		"band without approvals":         {change{draft: bind(func(b *grantcheck.Binding) { b.Band = "high" })}, "no guardrail states who approves"},
		"band approved by no role":       {change{draft: bind(func(b *grantcheck.Binding) { b.Band = "critical" })}, "no guardrail states who approves"},
		"unknown band":                   {change{draft: bind(func(b *grantcheck.Binding) { b.Band = "tiny" })}, "is not a band"},
		"negative score":                 {change{draft: bind(func(b *grantcheck.Binding) { b.Score = -1 })}, "is not a band"},
		"digest of another algorithm":    {change{draft: bind(func(b *grantcheck.Binding) { b.Rubric = "md5:00" })}, "is not a digest"},
		"submission of another grant":    {change{bundle: otherSubmission}, "that of the submission"},
		"no submission":                  {change{bundle: func(_ *granttest.World, b *grantcheck.Bundle) { b.Submission = nil }}, "has no submission"},
		"submission by release":          {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.AuthoredBy = granttest.Release }}, "0 of 1 of role author"},
		"manifest moved":                 {change{draft: bind(func(b *grantcheck.Binding) { b.Manifest = digest("new manifest") })}, "spec.binding.manifest"},
		"artifact moved":                 {change{draft: bind(func(b *grantcheck.Binding) { b.Artifact.Digest = digest("new program") })}, "spec.binding.artifact.digest"},
		"command that was not submitted": {change{draft: bind(func(b *grantcheck.Binding) { b.Artifact.Command = []string{"weather", "--other"} })}, "spec.binding.artifact.command"},
		"command of an image": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Submission.Artifact.Kind, d.Submission.Artifact.Command = grantcheck.ArtifactImage, []string{"weather"}
			d.Binding.Artifact = d.Submission.Artifact
		}}, "goes with kind file or tree"},
		"artifact of an unknown kind":    {change{draft: bind(func(b *grantcheck.Binding) { b.Artifact.Kind = "url" })}, "is not file, tree or image"},
		"plugin of another submission":   {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.Spec["plugin"] = "stocks" }}, "the submission is for plugin"},
		"evidence not named":             {change{draft: bind(func(b *grantcheck.Binding) { b.Evidence = nil })}, "lacks evidence of type"},
		"evidence without digest":        {change{draft: bind(func(b *grantcheck.Binding) { b.Evidence[0].Digest = "" })}, "has no digest"},
		"generation zero":                {change{draft: bind(func(b *grantcheck.Binding) { b.Generation = 0 })}, "it begins at 1"},
		"lower generation":               {change{terms: func(x *grantcheck.Terms) { x.Seen = grantcheck.HighWater{Generation: 2, Digest: digest("2")} }}, "generation 2 was in force"},
		"same generation, another grant": {change{terms: func(x *grantcheck.Terms) { x.Seen = grantcheck.HighWater{Generation: 1, Digest: digest("1")} }}, "another grant of this generation"},
		"first generation with previous": {change{draft: bind(func(b *grantcheck.Binding) { b.Previous = digest("0") })}, "which follows none"},
		"later generation without one":   {change{draft: bind(func(b *grantcheck.Binding) { b.Generation = 2 })}, "spec.binding.previous"},
		"another previous generation": {
			change{
				draft: bind(func(b *grantcheck.Binding) { b.Generation, b.Previous = 2, digest("a fork") }),
				terms: func(x *grantcheck.Terms) { x.Seen = grantcheck.HighWater{Generation: 1, Digest: digest("1")} },
			}, "generation 1 that was in force is",
		},
	}
}

func badApprovals() map[string]bad {
	return map[string]bad{
		"approval removed": {change{bundle: func(_ *granttest.World, b *grantcheck.Bundle) { b.Approvals = nil }}, "1 more of role security"},
		"approval edited":  {change{bundle: editApproval}, "does not verify"},
		"self-approval": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decisions = nil
			d.Approve("security", granttest.Author)
		}}, "by an author of the submission"},
		"approval by policy": {change{draft: decide(func(a *grantcheck.Approval) { a.Identity = granttest.Policy })}, "0 of 1 of role security"},
		"role not one's own": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Binding.Band = "moderate"
			d.Approve("compliance", granttest.Two)
		}}, "no key of these signed it"},
		"identity not one's own": {change{bundle: func(w *granttest.World, b *grantcheck.Bundle) {
			b.Approvals[0] = w.Sign(dsse.KindApproval, b.Approvals[0].Unverified, granttest.Two)
		}}, "no key of these signed it"},
		"one person for two roles": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Binding.Band, d.Decisions = "moderate", nil
			d.Approve("security", granttest.Both)
			d.Approve("compliance", granttest.Both)
		}}, "1 more of role"},
		"one person twice": {change{
			draft: func(_ *granttest.World, d *granttest.Draft) { d.Approve("security", granttest.Security) },
			terms: func(x *grantcheck.Terms) {
				x.Approvals["low"] = grantcheck.Approvers{Roles: []grantcheck.RoleMin{{Role: "security", Min: 2}}}
			},
			bundle: func(w *granttest.World, b *grantcheck.Bundle) {
				b.Approvals[1] = w.Sign(dsse.KindApproval, b.Approvals[1].Unverified, granttest.Security+"#2")
			},
		}, "1 more of role security"},
		"revoked key of security":   {change{world: revoke(granttest.Security)}, "revoked keys do not count"},
		"revoked key of the author": {change{world: revoke(granttest.Author)}, "submission: "},
		"rejected":                  {change{draft: func(_ *granttest.World, d *granttest.Draft) { d.Decisions[0].Decision = "reject" }}, "rejected by security@corp"},
		"rejected after approval": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decide(grantcheck.DecisionReject, "security", granttest.Two, now().Add(-time.Minute))
		}}, "rejected by security2@corp"},
		"rejected and then approved by the same person": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decide(grantcheck.DecisionReject, "security", granttest.Security, now().Add(-90*time.Minute))
		}}, "rejected by security@corp"},
		"rejection withdrawn by another person": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decide(grantcheck.DecisionReject, "security", granttest.Two, now().Add(-10*time.Minute))
			d.Decide(grantcheck.DecisionWithdraw, "security", granttest.Security, now().Add(-5*time.Minute))
			d.Approve("security", granttest.Both)
		}}, "rejected by security2@corp"},
		"rejection withdrawn before": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decide(grantcheck.DecisionWithdraw, "security", granttest.Two, now().Add(-10*time.Minute))
			d.Decide(grantcheck.DecisionReject, "security", granttest.Two, now().Add(-10*time.Minute))
		}}, "rejected by security2@corp"},
		"rejection withdrawn in the future": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decide(grantcheck.DecisionReject, "security", granttest.Two, now().Add(-10*time.Minute))
			d.Decide(grantcheck.DecisionWithdraw, "security", granttest.Two, now().Add(time.Hour))
		}}, "rejected by security2@corp"},
		"approval withdrawn": {change{draft: func(_ *granttest.World, d *granttest.Draft) {
			d.Decide(grantcheck.DecisionWithdraw, "security", granttest.Security, now().Add(-time.Minute))
		}}, "it was withdrawn"},
		"annotated only":           {change{draft: decide(func(a *grantcheck.Approval) { a.Decision = "annotate" })}, "1 more of role security"},
		"unknown decision":         {change{draft: decide(func(a *grantcheck.Approval) { a.Decision = "APPROVE" })}, "is not approve"},
		"approved another grant":   {change{draft: decide(func(a *grantcheck.Approval) { a.Grant = digest("other") })}, "its grant is"},
		"approved by another rule": {change{draft: decide(func(a *grantcheck.Approval) { a.Guardrail = digest("other") })}, "its guardrail is"},
		"approved another rubric":  {change{draft: decide(func(a *grantcheck.Approval) { a.Rubric = digest("other") })}, "its rubric is"},
		"approved another score":   {change{draft: decide(func(a *grantcheck.Approval) { a.Score = 9 })}, "its score is"},
		"approved another band":    {change{draft: decide(func(a *grantcheck.Approval) { a.Band = "critical" })}, "its band is"},
		"approved less evidence":   {change{draft: decide(func(a *grantcheck.Approval) { a.Evidence = []string{} })}, "its evidence are not those"},
		"approved other evidence":  {change{draft: decide(func(a *grantcheck.Approval) { a.Evidence = []string{digest("other")} })}, "its evidence are not those"},
		"approved an exemption":    {change{draft: decide(func(a *grantcheck.Approval) { a.Exemptions = []string{digest("more")} })}, "its exemptions are not those"},
		"approved another request": {change{draft: decide(func(a *grantcheck.Approval) { a.Submission = digest("other") })}, "it is about submission"},
	}
}

func badExemptions() map[string]bad {
	return map[string]bad{
		"exemption not there": {change{draft: exempt(nil, func(_ *granttest.World, d *granttest.Draft) { d.Exemptions = nil })}, "is not there"},
		"exemption by the author": {change{draft: exempt(nil, func(w *granttest.World, d *granttest.Draft) {
			d.Exemptions[0] = w.Sign(dsse.KindExemption, d.Exemptions[0].Unverified, granttest.Author)
		})}, "0 of 1 of role policy"},
		"exemption of another plugin": {change{draft: exempt(func(s granttest.Object) { s["scope"] = granttest.Object{"plugin": "stocks"} }, nil)}, "for plugin stocks"},
		"exemption without end":       {change{draft: exempt(func(s granttest.Object) { delete(s, "notAfter") }, nil)}, "every exemption ends"},
		"exemption without owner":     {change{draft: exempt(func(s granttest.Object) { delete(s, "owner") }, nil)}, "spec.owner"},
		"exemption with minus uses":   {change{draft: exempt(func(s granttest.Object) { s["maxUses"] = -1 }, nil)}, "spec.maxUses"},
		"control of no rule":          {change{draft: compensated(granttest.Object{"rule": "other", "limits": granttest.Object{"requests": "10/1m"}}, nil)}, "has no rule \"other\""},
		"control not stated":          {change{draft: compensated(granttest.Object{"rule": "read", "limits": granttest.Object{"requests": "10/1m"}}, nil)}, "state nothing, and exemption \"EX-1\" demands requests: 10/1m or less"},
		"control exceeded":            {change{draft: compensated(tenRequests(), granttest.Object{"limits": granttest.Object{"requests": "11/1m"}})}, "state \"requests: 11/1m\""},
		"control only slows":          {change{draft: compensated(tenRequests(), granttest.Object{"limits": granttest.Object{"requests": "10/1m", "onExceeded": "throttle"}})}, "onExceeded: throttle"},
		"control in mode observe":     {change{draft: compensated(tenRequests(), granttest.Object{"limits": granttest.Object{"requests": "10/1m"}, "mode": "observe"})}, "in mode observe"},
		"control with another field":  {change{draft: compensated(granttest.Object{"rule": "read", "unless": "weekends"}, nil)}, "unless"},
		"exemption renamed":           {change{draft: exempt(nil, func(_ *granttest.World, d *granttest.Draft) { d.Binding.Exemptions[0].Name = "EX-2" })}, "and the exemption is"},
	}
}

func TestCheckRefuses(t *testing.T) {
	tests := map[string]bad{}
	for _, table := range []map[string]bad{badGrants(), badTimes(), badBindings(), badApprovals(), badExemptions()} {
		maps.Copy(tests, table)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v, err := test.check(t)
			if err == nil || v != nil {
				t.Fatalf("it was accepted: %+v", v)
			}
			found := false
			for want := range strings.SplitSeq(test.want, "\x00") {
				found = found || strings.Contains(err.Error(), want)
			}
			if !found {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
	t.Logf("%d bad inputs", len(tests))
}

// editGrant changes the payload and keeps the signature.
func editGrant(_ *granttest.World, b *grantcheck.Bundle) {
	b.Grant.Unverified = bytes.Replace(b.Grant.Unverified, []byte("api.weather.example"), []byte("api.evil.example"), 1)
}

func editApproval(_ *granttest.World, b *grantcheck.Bundle) {
	b.Approvals[0].Unverified = bytes.Replace(b.Approvals[0].Unverified, []byte(`"low"`), []byte(`"high"`), 1)
}

// regrant changes the text of the grant and has it signed.
func regrant(old, text string) func(*granttest.World, *grantcheck.Bundle) {
	return func(w *granttest.World, b *grantcheck.Bundle) {
		changed := bytes.Replace(b.Grant.Unverified, []byte(old), []byte(text), 1)
		b.Grant = w.Sign(dsse.KindGrant, changed, granttest.Release)
	}
}

func revoke(identity string) func(*granttest.World) {
	return func(w *granttest.World) {
		w.Spec.Revoked = append(w.Spec.Revoked, w.Key(identity).Public().KeyID())
		for i := range w.Spec.Roles {
			if r := &w.Spec.Roles[i]; len(r.Keys) == 1 { // a role needs somebody
				spare := w.Key("spare@corp").Public()
				r.Keys = append(r.Keys, dsse.KeySpec{Identity: "spare@corp", Ed25519: base64Key(spare)})
			}
		}
	}
}

func base64Key(k dsse.PublicKey) string {
	text, _ := json.Marshal([]byte(k))
	return strings.Trim(string(text), `"`)
}

func otherSubmission(w *granttest.World, b *grantcheck.Bundle) {
	other := bytes.Replace(b.Submission.Unverified, []byte("1.0.0"), []byte("2.0.0"), 1)
	b.Submission = w.Sign(dsse.KindSubmission, other, granttest.Author)
}

// exempt adds an exemption to a draft. change and after may be nil.
func exempt(change func(spec granttest.Object), after func(*granttest.World, *granttest.Draft)) func(*granttest.World, *granttest.Draft) {
	return func(w *granttest.World, d *granttest.Draft) {
		spec := granttest.Object{
			"guardrailRule": "ceilings.tlsMin", "scope": granttest.Object{"plugin": "weather", "permission": "read"}, "allow": granttest.Object{"tlsMin": "1.2"},
			"owner": "payments", "ticket": "SEC-1", "justification": "Until the upgrade.", "notAfter": now().Add(time.Hour),
		}
		if change != nil {
			change(spec)
		}
		e := w.Sign(dsse.KindExemption, granttest.Document("GrantExemption", "EX-1", spec), granttest.Policy)
		d.Exemptions = append(d.Exemptions, e)
		d.Binding.Exemptions = append(d.Binding.Exemptions, grantcheck.Ref{Name: "EX-1", Digest: e.Digest()})
		if after != nil {
			after(w, d)
		}
	}
}

func tenRequests() granttest.Object {
	return granttest.Object{"rule": "read", "limits": granttest.Object{"requests": "10/1m"}}
}

// compensated adds an exemption with a compensating control to a draft, and fields to rule read.
func compensated(control, rule granttest.Object) func(*granttest.World, *granttest.Draft) {
	return exempt(func(s granttest.Object) { s["compensatingControls"] = []granttest.Object{control} }, func(_ *granttest.World, d *granttest.Draft) {
		maps.Copy(d.Spec["rules"].([]granttest.Object)[0], rule)
	})
}

// TestCheckControls has compensating controls that a grant states.
func TestCheckControls(t *testing.T) {
	limited := func(limits string) granttest.Object {
		return granttest.Object{"limits": granttest.Object{"requests": limits}}
	}
	wide := func(w *granttest.World, d *granttest.Draft) {
		compensated(tenRequests(), nil)(w, d)
		d.Spec["limits"] = granttest.Object{"requests": "10/1m"}
	}
	for name, draft := range map[string]func(*granttest.World, *granttest.Draft){
		"as demanded": compensated(tenRequests(), limited("10/1m")), "stricter": compensated(tenRequests(), limited("5/1m")),
		"of the whole grant": wide, "in words": compensated(granttest.Object{"description": "Reviewed weekly."}, nil),
	} {
		if _, err := (change{draft: draft}).check(t); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckExemption(t *testing.T) {
	v, err := change{draft: exempt(func(s granttest.Object) { s["maxUses"] = 5 }, nil)}.check(t)
	if err != nil {
		t.Fatal(err)
	}
	e := v.Exemptions[0]
	if e.Name != "EX-1" || e.Permission != "read" || e.Allow.TLSMin != "1.2" {
		t.Errorf("exemption is %+v", e)
	}
	for _, test := range []struct {
		at   time.Time
		uses int64
		want grantcheck.ExemptionState
	}{
		{now(), 0, grantcheck.ExemptionActive},
		{now(), 4, grantcheck.ExemptionActive},
		{now(), 5, grantcheck.ExemptionUsedUp},
		{now().Add(time.Hour), 0, grantcheck.ExemptionExpired},
	} {
		if got := e.State(test.at, test.uses); got != test.want {
			t.Errorf("at %s after %d uses it is %s, want %s", test.at, test.uses, got, test.want)
		}
	}
	if (grantcheck.Exemption{}).State(now(), 0) != grantcheck.ExemptionExpired {
		t.Error("an exemption without an end is in force")
	}
}

// TestCheckEnds follows when grants end: with the approvals that they need, the longest
// lasting ones of those that are there.
func TestCheckEnds(t *testing.T) {
	v, err := change{draft: func(_ *granttest.World, d *granttest.Draft) {
		d.Decisions[0].ExpiresAt = now().Add(time.Hour)
		d.Approve("security", granttest.Two).ExpiresAt = now().Add(2 * time.Hour)
	}}.check(t)
	if err != nil {
		t.Fatal(err)
	}
	if want := now().Add(2 * time.Hour); !v.NotAfter.Equal(want) {
		t.Errorf("grant ends at %s, want %s", v.NotAfter, want)
	}
	if want := now().Add(-2*time.Hour + 30*24*time.Hour); !v.Stale.Equal(want) {
		t.Errorf("evidence is stale at %s, want %s", v.Stale, want)
	}
	_, err = change{at: now().Add(31 * 24 * time.Hour)}.check(t)
	if ended, ok := errors.AsType[*grantcheck.EndedError](err); !ok || ended.Verified.Name != "weather" {
		t.Errorf("error is %v", err)
	}
}

func TestGuardrailDigest(t *testing.T) {
	a, b := digest("a"), digest("b")
	if grantcheck.GuardrailDigest() != "" || grantcheck.GuardrailDigest(a) != a {
		t.Error("digest of none and of one guardrail")
	}
	if got := grantcheck.GuardrailDigest(a, b); got != grantcheck.GuardrailDigest(b, a) || got == a || got == b {
		t.Errorf("digest of two is %s", got)
	}
}

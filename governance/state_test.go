package governance

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// TestClock: the time limit runs from the latest signed time, and an escalation adds a role
// and never approves.
func TestClock(t *testing.T) {
	f := newFixture(t)
	f.document("guardrails/company.dsse.json", strings.Replace(fixtureGuardrail, "    low: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}",
		"    low: {roles: [{name: security, min: 1}], sla: 2d, escalate: {after: 3d, role: compliance}}", 1), "ana@corp")
	delete(f.files, requestDir+"/approvals/security.dsse.json")
	delete(f.files, requestDir+"/approvals/compliance.dsse.json")
	f.compose()
	start := f.now
	tests := []struct {
		after   time.Duration
		overdue bool
		missing string
	}{
		{0, false, "security"},
		{47 * time.Hour, false, "security"},
		{48 * time.Hour, true, "security"},
		{72*time.Hour - time.Second, true, "security"},
		{72 * time.Hour, true, "security,compliance"},
	}
	for _, test := range tests {
		f.now = start.Add(test.after)
		_, e, err := f.evaluate()
		if err != nil {
			t.Fatal(err)
		}
		s := StatusOf(e)
		var roles []string
		for _, m := range e.Count.Missing {
			roles = append(roles, m.Role)
		}
		if s.Stage != stageApprovals || s.Overdue != test.overdue || !s.Due.Equal(start.Add(48*time.Hour)) || strings.Join(roles, ",") != test.missing {
			t.Errorf("after %v: stage %s, overdue %v, due %v, missing %v; want overdue %v, missing %s", test.after, s.Stage, s.Overdue, s.Due, roles, test.overdue, test.missing)
		}
	}
	f.now = f.now.Add(2 * grantcheck.MaxAhead) // clocks may differ by half of it
	f.approve("security", "bo@corp", nil)
	if _, err := f.issue(); err == nil || !strings.Contains(err.Error(), "1 more of role compliance") {
		t.Errorf("an overdue request is issued without the added role: %v", err)
	}
	f.approve("compliance", "cy@corp", nil)
	if _, err := f.issue(); err != nil {
		t.Error(err)
	}
}

// issued issues the request and puts the grant in force.
func (f *fixture) issued() *Issued {
	f.t.Helper()
	data, err := f.issue()
	f.check(err)
	f.put(GrantFile("weather"), data)
	r, err := Open(f.files)
	f.check(err)
	issued, err := r.Issued("weather")
	f.check(err)
	return issued
}

// TestRenew: what nothing used is left out, unless somebody else than the author keeps it.
func TestRenew(t *testing.T) {
	f := newFixture(t)
	second := strings.Replace(fixtureManifest, "  permissions:\n", "  permissions:\n  - {id: tiles, reason: Shows tiles, to: {hosts: [tiles.weather.example]}, methods: [GET], paths: [/t/*], data: {classes: [public]}}\n"+
		"  - {id: alerts, reason: Shows alerts, to: {hosts: [alerts.weather.example]}, methods: [GET], paths: [/a/*], data: {classes: [public]}}\n", 1)
	f.put(requestDir+"/"+FileManifest, []byte(second))
	f.submit("dev@corp")
	f.compose()
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	first := f.issued()

	annotate := func(name, role, identity, comment string) {
		payload, err := json.Marshal(grantcheck.Approval{Role: role, Identity: identity, Decision: grantcheck.DecisionAnnotate, Submission: first.Object.Spec.Binding.Submission, Comment: comment, IssuedAt: f.now})
		f.check(err)
		f.sign(requestDir+"/approvals/"+name+signedEnding, dsse.KindApproval, payload, identity)
	}
	annotate("a", "security", "bo@corp", KeepComment("tiles", "used in winter"))
	annotate("b", "security", "dev@corp", KeepComment("alerts", "the author's own"))
	annotate("c", "security", "bo@corp", KeepComment("alerts", " "))
	f.now = f.now.Add(time.Hour)
	r, e, err := f.evaluate()
	f.check(err)
	payload, err := r.Renew(e, []string{"tiles", "alerts"}, 0, f.now)
	f.check(err)
	f.put(requestDir+"/"+FileDraft, payload)
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	next := f.issued()
	var rules []string
	for _, rule := range next.Object.Spec.Rules {
		rules = append(rules, rule.ID)
	}
	b := next.Object.Spec.Binding
	if !slices.Equal(rules, []string{"tiles", "read"}) || b.Generation != 2 || b.Previous != first.Digest {
		t.Errorf("renewed rules are %v, generation %d after %s", rules, b.Generation, b.Previous)
	}

	// A permission that a renewal left out does not come back by the next one.
	f.now = f.now.Add(time.Hour)
	r, e, err = f.evaluate()
	f.check(err)
	if payload, err = r.Renew(e, nil, 0, f.now); err != nil || strings.Contains(string(payload), "alerts.weather.example") {
		t.Errorf("the next renewal is %s, %v", payload, err)
	}

	// Nor does it after another version was issued, and a copy of the grant was spoiled.
	f.put(requestDir+"/issued/2.dsse.json", f.files[GrantFile("weather")].Data)
	other := f.clone(t)
	delete(other.files, GrantFile("weather")) // so that the request is not the one of the grant in force
	for name, test := range map[string]struct {
		spoil func(f *fixture)
		want  string
	}{
		"as it was": {func(*fixture) {}, ""},
		"spoiled":   {func(f *fixture) { f.put(requestDir+"/issued/9.dsse.json", []byte("{}")) }, "are not known"},
	} {
		f := other.clone(t)
		test.spoil(f)
		r, e, err := f.evaluate()
		f.check(err)
		left, err := r.leftOut(e)
		if test.want == "" && (err != nil || !slices.Equal(left, []string{"alerts"})) || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: left out are %q, %v", name, left, err)
		}
	}
}

// TestAuthorities: a grant is bound to the content of each caFile, which is beside the manifest.
func TestAuthorities(t *testing.T) {
	f := newFixture(t)
	with := func(name string) {
		f.put(requestDir+"/"+FileManifest, []byte(strings.Replace(fixtureManifest, "api.weather.example]", "api.weather.example], tls: {caFile: "+name+"}", 1)))
		f.submit("dev@corp")
	}
	for name, want := range map[string]string{"ca.pem": "caFile \"ca.pem\", which has to be beside the manifest", "../ca.pem": "not a path below the folder of the manifest", "/etc/ca.pem": "not a path below"} {
		with(name)
		r, e, err := f.evaluate()
		f.check(err)
		if _, err := r.Compose(e, 0, f.now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", name, err, want)
		}
	}
	with("ca.pem")
	f.put(requestDir+"/ca.pem", []byte("reviewed"))
	f.compose()
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	f.put(requestDir+"/ca.pem", []byte("exchanged"))
	if _, err := f.issue(); err == nil || !strings.Contains(err.Error(), "authorities of the grant moved since the review") {
		t.Errorf("issued with another authority: %v", err)
	}
	f.put(requestDir+"/ca.pem", []byte("reviewed"))
	want := []grantcheck.Authority{{File: "ca.pem", Digest: dsse.Digest([]byte("reviewed"))}}
	if got := f.issued().Object.Spec.Binding.Authorities; !slices.Equal(got, want) {
		t.Errorf("authorities are %v, want %v", got, want)
	}
}

// TestPacketEscapes: what an author wrote begins no table, link, HTML or line of a packet.
func TestPacketEscapes(t *testing.T) {
	f := newFixture(t)
	f.put(requestDir+"/"+FileManifest, []byte(strings.Replace(fixtureManifest, "purpose: Shows the forecast",
		`purpose: "| x | [a](javascript:alert(1)) <script>alert(1)</script> ![i](//evil) `+"`code`"+` # Risk 0"`, 1)))
	r, e, err := f.evaluate()
	f.check(err)
	packet, err := r.Review(e)
	f.check(err)
	md, err := packet.Markdown()
	f.check(err)
	html, err := packet.HTML()
	f.check(err)
	for _, bad := range []string{"<script>alert", "[a](javascript", "![i]", "\n# Risk", "| x |"} {
		if strings.Contains(md, bad) {
			t.Errorf("Markdown has %q:\n%s", bad, md)
		}
	}
	for _, bad := range []string{"<script", "<img", "href="} {
		if strings.Contains(html, bad) {
			t.Errorf("HTML has %q", bad)
		}
	}
	if !strings.Contains(html, "&lt;script&gt;") || !strings.Contains(md, `\<script\>`) {
		t.Error("the purpose is not shown")
	}
}

// TestThousandRequests bounds the time of the status of a large repository.
func TestThousandRequests(t *testing.T) {
	f := newFixture(t)
	const plugins = 1000
	for i := range plugins {
		name := fmt.Sprintf("plugin-%d", i)
		text := strings.Replace(fixtureManifest, "name: weather", "name: "+name, 1)
		dir := RequestDir(name, "1.4.0")
		f.put(path.Join(dir, FileManifest), []byte(text))
		payload, err := json.Marshal(grantcheck.Submission{
			Plugin: name, Version: "1.4.0", Manifest: dsse.Digest([]byte(text)),
			Artifact: grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: artifactDigest}, IssuedAt: f.now.Add(-time.Hour),
		})
		f.check(err)
		f.sign(path.Join(dir, FileSubmission), dsse.KindSubmission, payload, "dev@corp")
		f.files[path.Join(dir, "evidence/test.dsse.json")] = f.files[testFile]
	}
	dir := t.TempDir()
	f.check(os.CopyFS(dir, f.files))
	root, err := os.OpenRoot(dir)
	f.check(err)
	defer root.Close()
	start := time.Now()
	r, err := Open(root.FS())
	f.check(err)
	all, err := r.EvaluateAll(t.Context(), f.now)
	f.check(err)
	took := time.Since(start)
	t.Logf("the status of %d requests took %v", len(all), took)
	if len(all) != plugins+1 {
		t.Errorf("got %d requests", len(all))
	}
}

// TestRubricReview reports a rubric that was to be looked at again.
func TestRubricReview(t *testing.T) {
	f := newFixture(t)
	f.document(FileRubric, strings.Replace(fixtureRubric, "generation: 1", "generation: 2, reviewBy: "+f.now.Add(-time.Hour).UTC().Format(time.RFC3339), 1), "ana@corp")
	_, e, err := f.evaluate()
	f.check(err)
	if !slices.ContainsFunc(e.Findings, func(s string) bool { return strings.HasPrefix(s, "the rubric was to be reviewed by ") }) {
		t.Errorf("findings are %q", e.Findings)
	}
}

// TestAuthorityFiles: issue copies a caFile beside the grant, and replaces there only what
// the plugin's own grant in force needed.
func TestAuthorityFiles(t *testing.T) {
	f := newFixture(t)
	old, reviewed := []byte("old"), []byte("reviewed")
	manifest := strings.Replace(fixtureManifest, "api.weather.example]", "api.weather.example], tls: {caFile: certs/ca.pem}", 1)
	f.put(requestDir+"/"+FileManifest, []byte(manifest))
	f.put(requestDir+"/certs/ca.pem", old)
	f.submit("dev@corp")
	files := func() (string, error) {
		t.Helper()
		r, e, err := f.evaluate()
		f.check(err)
		all, err := r.AuthorityFiles(e)
		var out []string
		for _, a := range all {
			out = append(out, a.Name+"="+string(a.Data))
		}
		return strings.Join(out, " "), err
	}
	wants := func(step, want, refusal string) {
		t.Helper()
		got, err := files()
		if got != want || (err == nil) != (refusal == "") || err != nil && !strings.Contains(err.Error(), refusal) {
			t.Errorf("%s: files are %q, %v; want %q, %q", step, got, err, want, refusal)
		}
	}
	f.compose()
	wants("nothing there", "grants/certs/ca.pem=old", "")
	f.put("grants/certs/ca.pem", old)
	wants("the same there", "", "")
	f.put("grants/certs/ca.pem", []byte("another's"))
	wants("a file of nobody", "", "no grant here needs; remove it")
	f.put("grants/certs/ca.pem", old)
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	grant, err := f.issue()
	f.check(err)
	f.put(GrantFile("weather"), grant)

	f.put(requestDir+"/certs/ca.pem", reviewed)
	f.compose()
	wants("the next authority", "grants/certs/ca.pem=reviewed", "")
	f.put(requestDir+"/certs/ca.pem", []byte("exchanged"))
	wants("another than was reviewed", "", "caFile certs/ca.pem moved since the review")
	f.put(requestDir+"/certs/ca.pem", reviewed)
	f.put(GrantFile("stocks"), []byte("{}"))
	wants("another plugin's grant, which cannot be read", "", "the grant of stocks may need")
}

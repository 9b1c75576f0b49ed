package risk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

var asOf = time.Date(2026, 9, 3, 12, 0, 0, 0, time.UTC)

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func testRubric() Rubric { return Rubric{configs.DefaultRubric(), digest("e")} }

// statement returns a verified item about the test's artifact.
func statement(t testing.TB, predicateType string, predicate any, role, identity string) evidence.Item {
	t.Helper()
	raw, err := evidence.Canonical(predicate)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := evidence.Artifact("crm-sync", digest("a"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := evidence.New([]evidence.Subject{subject}, predicateType, raw)
	if err != nil {
		t.Fatal(err)
	}
	return evidence.Item{
		PredicateType: predicateType, Digest: dsse.Digest(payload), Subject: []evidence.Subject{subject}, Predicate: raw,
		IssuedAt: asOf.Add(-time.Hour), ObservedAt: asOf.Add(-time.Hour), Signed: []dsse.Signed{{Role: role, Identity: identity}},
	}
}

func head() evidence.Head { return evidence.Head{IssuedAt: asOf.Add(-time.Hour)} }

func scan(t testing.TB, found ...evidence.Finding) evidence.Item {
	return statement(t, evidence.TypeFindings, evidence.FindingsPredicate{Head: head(), Source: evidence.Source{Tools: []evidence.Tool{{Name: "s"}}}, Findings: found}, "scanner", "ci")
}

func found(id string, s evidence.Severity) evidence.Finding {
	return evidence.Finding{ID: id, Vulnerability: "CVE-" + id, Severity: s}
}

func vex(t testing.TB, id string, s evidence.Status, role, identity string) evidence.Item {
	return statement(t, evidence.TypeVEX, evidence.VEXPredicate{Head: head(), Author: "a", Statements: []evidence.Statement{{Vulnerability: "CVE-" + id, Status: s}}}, role, identity)
}

func trace(t testing.TB, change func(*pilot.Trace)) evidence.Item {
	tr := pilot.Trace{
		IssuedAt: asOf.Add(-time.Hour), Plugin: "crm-sync", Version: "2.4.1", Started: asOf.Add(-3 * time.Hour), Ended: asOf.Add(-2 * time.Hour),
		Declared: []pilot.Use{}, Undeclared: []pilot.Undeclared{}, Coverage: pilot.Coverage{Known: true},
		Mediation: pilot.Mediation{Known: true, Admitted: 10, Handled: 10, CompletenessPPM: 1_000_000}, Verdict: pilot.Passed,
		Log: pilot.Log{Records: 1, First: 1, Last: 1, Head: strings.Repeat("0", 64), Grant: digest("d")},
	}
	if change != nil {
		change(&tr)
	}
	return statement(t, pilot.TraceType, tr, "measurer", "chaperone")
}

func checklist(t testing.TB, failed ...string) evidence.Item {
	s := compliance.Statement{
		IssuedAt: asOf.Add(-time.Hour), Plugin: "crm-sync", Version: "2.4.1", Checklist: compliance.Checklist{Name: "gdpr", Digest: digest("8")},
		Items: []compliance.Result{{ID: "met", Proof: configs.ProofAuto, Outcome: compliance.Proved}},
	}
	for _, id := range failed {
		s.Items = append(s.Items, compliance.Result{ID: id, Proof: configs.ProofAuto, Outcome: compliance.Failed})
	}
	return statement(t, typeChecklist, s, "measurer", "chaperone")
}

// clean returns a request whose evidence is all there and good.
func clean(t testing.TB) *Request {
	return &Request{
		Plugin: "crm-sync", Version: "2.4.1", Submission: digest("b"), Guardrail: digest("f"), AsOf: asOf, AuthorSince: asOf.AddDate(-1, 0, 0),
		Target:   evidence.Target{Artifact: digest("a"), Manifest: digest("c"), Authors: []string{"dev"}},
		Manifest: &configs.PluginManifest{},
		Evidence: []evidence.Item{
			scan(t),
			statement(t, evidence.TypeSBOM, evidence.SBOMPredicate{Head: head(), Components: []evidence.Component{{Name: "a"}}}, "scanner", "ci"),
			statement(t, evidence.TypeProvenance, evidence.ProvenancePredicate{Head: head(), Builder: "b", BuildType: "t", Level: 3}, "scanner", "ci"),
			trace(t, nil), checklist(t),
		},
	}
}

// replace replaces the evidence of a type.
func (r *Request) replace(item evidence.Item) {
	for i := range r.Evidence {
		if r.Evidence[i].PredicateType == item.PredicateType {
			r.Evidence[i] = item
			return
		}
	}
	r.Evidence = append(r.Evidence, item)
}

func (r *Request) remove(predicateType string) {
	r.Evidence = slices.DeleteFunc(r.Evidence, func(i evidence.Item) bool { return i.PredicateType == predicateType })
}

func permission(id string, change func(*configs.Permission)) configs.Permission {
	p := configs.Permission{Rule: authz.Rule{
		ID: id, To: authz.To{Hosts: []string{"api.corp.internal"}}, Methods: []string{"GET"},
		Data: authz.Data{Classes: []authz.DataClass{authz.DataInternal}},
	}}
	if change != nil {
		change(&p)
	}
	return p
}

// scoreCase is a change to a clean request, and the score that follows.
type scoreCase struct {
	change func(*Request)
	score  int
	codes  string // of the addends and stops that count
}

func exposureCases() map[string]scoreCase {
	permissions := func(list ...configs.Permission) func(*Request) {
		return func(r *Request) { r.Manifest.Permissions = list }
	}
	one := func(change func(*configs.Permission)) func(*Request) { return permissions(permission("p", change)) }
	return map[string]scoreCase{
		"clean":         {nil, 0, ""},
		"read internal": {one(nil), 2, "permission"},
		"write confidential": {one(func(p *configs.Permission) {
			p.Methods = []string{"POST"}
			p.Data.Classes = []authz.DataClass{authz.DataConfidential}
		}), 12, "permission"},
		"delete restricted": {one(func(p *configs.Permission) {
			p.Methods = []string{"DELETE"}
			p.Data.Classes = []authz.DataClass{authz.DataRestricted}
		}), 35, "permission"}, // 36, capped
		"any method":    {one(func(p *configs.Permission) { p.Methods = []string{"*"} }), 6, "permission"},
		"tunnel":        {one(func(p *configs.Permission) { p.Methods = nil; p.To.Scheme = "tcp" }), 6, "permission"},
		"no class":      {one(func(p *configs.Permission) { p.Data.Classes = nil }), 12, "permission"},
		"unknown class": {one(func(p *configs.Permission) { p.Data.Classes = []authz.DataClass{"secret"} }), 12, "permission"},
		"worst class": {one(func(p *configs.Permission) {
			p.Data.Classes = []authz.DataClass{authz.DataPublic, authz.DataConfidential}
		}), 6, "permission"},
		"public":        {one(func(p *configs.Permission) { p.Data.Classes = []authz.DataClass{authz.DataPublic} }), 0, ""},
		"internet host": {one(func(p *configs.Permission) { p.To.Hosts = []string{"crm.example"} }), 5, "permission"},
		"known internet host": {func(r *Request) {
			one(func(p *configs.Permission) { p.To.Hosts = []string{"crm.example"} })(r)
			r.Previous = r.Manifest
		}, 2, "permission"},
		"wildcard": {one(func(p *configs.Permission) { p.To.Hosts = []string{"*.corp.internal"} }), 7, "permission"},
		"static credential": {func(r *Request) {
			one(func(p *configs.Permission) { p.Credential = "c" })(r)
			r.Manifest.Credentials = []configs.ManifestCredential{{Name: "c", Kind: configs.CredentialBearer}}
		}, 6, "permission"},
		"short credential": {func(r *Request) {
			one(func(p *configs.Permission) { p.Credential = "c" })(r)
			r.Manifest.Credentials = []configs.ManifestCredential{{Name: "c", Kind: configs.CredentialOAuth2}}
		}, 2, "permission"},
		"undescribed credential": {one(func(p *configs.Permission) { p.Credential = "c" }), 6, "permission"},
		"optional":               {one(func(p *configs.Permission) { p.Optional = true }), 1, "permission"},
		"optional rounds up":     {one(func(p *configs.Permission) { p.Optional = true; p.To.Hosts = []string{"crm.example"} }), 3, "permission"},
		"diminishing":            {permissions(permission("a", func(p *configs.Permission) { p.Methods = []string{"POST"} }), permission("b", func(p *configs.Permission) { p.Methods = []string{"POST"} }), permission("c", nil), permission("d", nil)), 6, "permission permission"}, // 4 + 4/2 + 2/4 + 2/8
		"select": {one(func(p *configs.Permission) {
			p.Methods = nil
			p.Statements = &authz.Statements{Verbs: []string{"select"}}
		}), 2, "permission"},
		"truncate": {one(func(p *configs.Permission) {
			p.Methods = nil
			p.Statements = &authz.Statements{Verbs: []string{"select", "truncate"}}
		}), 6, "permission"},
		"opaque statements": {one(func(p *configs.Permission) {
			p.Methods = nil
			p.Opaque = authz.OpaqueAllow
			p.Statements = &authz.Statements{Verbs: []string{"select"}}
		}), 6, "permission"},
	}
}

func vulnerabilityCases(t *testing.T) map[string]scoreCase {
	return map[string]scoreCase{
		"critical": {func(r *Request) { r.replace(scan(t, found("1", evidence.Critical))) }, 10, "finding_critical"},
		"high":     {func(r *Request) { r.replace(scan(t, found("1", evidence.High))) }, 5, "finding_high"},
		"unknown":  {func(r *Request) { r.replace(scan(t, found("1", evidence.Unknown))) }, 5, "finding_unknown"},
		"medium":   {func(r *Request) { r.replace(scan(t, found("1", evidence.Medium))) }, 2, "finding_medium"},
		"low":      {func(r *Request) { r.replace(scan(t, found("1", evidence.Low))) }, 0, ""},
		"three critical": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.Critical), found("2", evidence.Critical), found("3", evidence.Critical)))
		}, 25, "finding_critical finding_critical finding_critical"},
		"exploited":        {func(r *Request) { f := found("1", evidence.Low); f.Exploited = true; r.replace(scan(t, f)) }, 25, "finding_exploited"},
		"likely exploited": {func(r *Request) { f := found("1", evidence.Low); f.EPSS = 500; r.replace(scan(t, f)) }, 25, "finding_exploited"},
		"less likely":      {func(r *Request) { f := found("1", evidence.Low); f.EPSS = 499; r.replace(scan(t, f)) }, 0, ""},
		"VEX of security": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.Critical)))
			r.replace(vex(t, "1", evidence.NotAffected, "security", "ana"))
		}, 0, ""},
		"VEX of the author": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.High)))
			r.replace(vex(t, "1", evidence.Fixed, "author", "dev"))
		}, 3, "finding_high"},
		"author in security": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.High)))
			r.replace(vex(t, "1", evidence.Fixed, "security", "dev"))
		}, 3, "finding_high"},
		"under investigation": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.High)))
			r.replace(vex(t, "1", evidence.UnderInvestigation, "security", "ana"))
		}, 5, "finding_high"},
		"VEX of another": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.High)))
			r.replace(vex(t, "2", evidence.Fixed, "security", "ana"))
		}, 5, "finding_high"},
		"no scan": {func(r *Request) { r.remove(evidence.TypeFindings) }, 10, "stale_scan"},
		"old scan": {func(r *Request) {
			r.Requirements = []evidence.Requirement{{PredicateType: evidence.TypeFindings, MaxAge: time.Hour}}
		}, 10, "stale_scan"},
		"old scan counts": {func(r *Request) {
			r.replace(scan(t, found("1", evidence.High)))
			r.Requirements = []evidence.Requirement{{PredicateType: evidence.TypeFindings, MaxAge: time.Hour}}
		}, 15, "stale_scan finding_high"},
		"scan of a wrong role": {func(r *Request) {
			r.Requirements = []evidence.Requirement{{PredicateType: evidence.TypeFindings, Role: "security"}}
		}, 10, "stale_scan"},
	}
}

func otherCases(t *testing.T) map[string]scoreCase {
	return map[string]scoreCase{
		"no provenance":        {func(r *Request) { r.remove(evidence.TypeProvenance) }, 10, "provenance_missing"},
		"provenance of author": {func(r *Request) { r.Evidence[2].Signed[0].Identity = "dev" }, 6, "provenance_build_1"},
		"SLSA as it is":        {func(r *Request) { r.Evidence[2].PredicateType = evidence.TypeSLSA }, 3, "provenance_build_2"},
		"no SBOM":              {func(r *Request) { r.remove(evidence.TypeSBOM) }, 5, "sbom_missing"},
		"provenance capped": {func(r *Request) {
			r.remove(evidence.TypeProvenance)
			r.remove(evidence.TypeSBOM)
			r.AuthorSince = time.Time{}
		}, 15, "provenance_missing sbom_missing new_key"},
		"new key":             {func(r *Request) { r.AuthorSince = asOf.AddDate(0, 0, -29) }, 2, "new_key"},
		"key of a month":      {func(r *Request) { r.AuthorSince = asOf.AddDate(0, 0, -30) }, 0, ""},
		"no pilot":            {func(r *Request) { r.remove(pilot.TraceType) }, 13, "mediation unseen"},
		"pilot of the author": {func(r *Request) { r.Evidence[3].Signed[0].Identity = "dev" }, 13, "mediation unseen"},
		"pilot of a scanner":  {func(r *Request) { r.Evidence[3].Signed[0].Role = "scanner" }, 13, "mediation unseen"},
		"undeclared":          {func(r *Request) { r.replace(trace(t, undeclared(3))) }, 4, "undeclared"},
		"many undeclared":     {func(r *Request) { r.replace(trace(t, undeclared(4))) }, 8, "undeclared"},
		"unmediated": {func(r *Request) {
			r.replace(trace(t, func(p *pilot.Trace) { p.Mediation.Unmediated, p.Mediation.CompletenessPPM = 1, 900_000 }))
		}, 10, "mediation"},
		"escape":           {func(r *Request) { r.replace(trace(t, func(p *pilot.Trace) { p.Mediation.Ended = 1 })) }, 10, "mediation"},
		"unseen":           {func(r *Request) { r.replace(trace(t, func(p *pilot.Trace) { p.Coverage.UnseenPPM = 10_001 })) }, 3, "unseen"},
		"coverage unknown": {func(r *Request) { r.replace(trace(t, func(p *pilot.Trace) { p.Coverage.Known = false })) }, 3, "unseen"},
		"slower by 11 %":   {speed(t, 111_000), 3, "regression"},
		"slower by 10 %":   {speed(t, 110_000), 0, ""},
		"slower by 26 %":   {speed(t, 126_000), 6, "regression"},
		"failed controls":  {func(r *Request) { r.replace(checklist(t, "b", "a")) }, 4, "failed_control failed_control"},
		"no checklist":     {func(r *Request) { r.remove(typeChecklist) }, 4, "stale_checklist"},
		"old checklist": {func(r *Request) {
			r.Requirements = []evidence.Requirement{{PredicateType: typeChecklist, MaxAge: time.Hour}}
		}, 4, "stale_checklist"},
		"exemption": {func(r *Request) {
			r.Exemptions = []grantcheck.Exemption{{Name: "E", Plugin: "crm-sync", NotAfter: asOf.Add(time.Hour)}}
		}, 2, "exemption"},
		"expired exemption": {func(r *Request) {
			r.Exemptions = []grantcheck.Exemption{{Name: "E", Plugin: "crm-sync", NotAfter: asOf}}
		}, 0, ""},
		"exemption of others": {func(r *Request) {
			r.Exemptions = []grantcheck.Exemption{{Name: "E", Plugin: "other", NotAfter: asOf.Add(time.Hour)}}
		}, 0, ""},
		"unsigned": {func(r *Request) { r.Submission = "" }, 100, StopUnsigned},
		"never":    {func(r *Request) { r.Stops = []Stop{{Code: StopNever, Text: "metadata"}} }, 100, StopNever},
		"secret":   {func(r *Request) { f := found("1", evidence.None); f.Secret = true; r.replace(scan(t, f)) }, 100, StopSecret},
		"no secret after all": {func(r *Request) {
			f := found("1", evidence.None)
			f.Secret = true
			r.replace(scan(t, f))
			r.replace(vex(t, "1", evidence.NotAffected, "security", "ana"))
		}, 0, ""},
		"other artifact": {func(r *Request) { r.Target.Artifact = digest("0") }, 100, "mediation stale_scan provenance_missing sbom_missing unseen stale_checklist " + strings.Repeat(StopMismatch+" ", 5)},
		"nothing at all": {func(r *Request) { r.Evidence, r.AuthorSince = nil, time.Time{} }, 42, "stale_scan provenance_missing sbom_missing new_key mediation unseen stale_checklist"},
	}
}

func TestScore(t *testing.T) {
	tests := exposureCases()
	maps.Copy(tests, vulnerabilityCases(t))
	maps.Copy(tests, otherCases(t))
	for name, test := range tests {
		req := clean(t)
		if test.change != nil {
			test.change(req)
		}
		result, err := Score(testRubric(), req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if result.Score != test.score || !sameCodes(result, test.codes) {
			text, _ := result.JSON()
			t.Errorf("%s: score %d, want %d with %s:\n%s", name, result.Score, test.score, test.codes, text)
		}
		checkSum(t, name, result)
	}
}

func undeclared(n int) func(*pilot.Trace) {
	return func(p *pilot.Trace) {
		p.Verdict = pilot.Failed
		for i := range n {
			p.Undeclared = append(p.Undeclared, pilot.Undeclared{Host: fmt.Sprint(i), Reason: "observed", Count: 1, Decisions: []string{}})
		}
	}
}

// speed makes latency one of the version before, in microseconds, of 100,000.
func speed(t testing.TB, us int64) func(*Request) {
	performance := func(us int64) pilot.Performance {
		return pilot.Performance{
			IssuedAt: asOf.Add(-time.Hour), Plugin: "crm-sync", Version: "2.4.0", Started: asOf.Add(-3 * time.Hour), Ended: asOf.Add(-2 * time.Hour),
			Memory: pilot.Memory{Samples: 1}, Mediation: pilot.Mediation{Known: true, CompletenessPPM: 1_000_000},
			Latency: pilot.Latencies{Of: "load", Typical: &pilot.Latency{Requests: 1, P50US: us, P99US: us, MaxUS: us}},
			Log:     pilot.Log{Records: 1, First: 1, Last: 1, Head: strings.Repeat("0", 64), Grant: digest("d")},
		}
	}
	return func(r *Request) {
		before := performance(100_000)
		r.PreviousPerformance = &before
		r.replace(statement(t, pilot.PerformanceType, performance(us), "measurer", "chaperone"))
	}
}

// sameCodes compares the codes of what counts, in any order.
func sameCodes(r *Result, want string) bool {
	var got []string
	for _, a := range r.Addends {
		if a.Counted > 0 {
			got = append(got, a.Code)
		}
	}
	for _, s := range r.Stops {
		got = append(got, s.Code)
	}
	codes := strings.Fields(want)
	slices.Sort(got)
	slices.Sort(codes)
	return slices.Equal(got, codes)
}

// checkSum adds what the explanation lists, as a reader would.
func checkSum(t *testing.T, name string, r *Result) {
	t.Helper()
	total := 0
	for _, p := range r.Parts {
		sum := 0
		for _, a := range r.Addends {
			if a.Part == p.Name {
				sum += a.Counted
			}
		}
		if sum != p.Sum || p.Points != min(sum, p.Cap) {
			t.Errorf("%s: addends of %s are %d in all, and the part %+v", name, p.Name, sum, p)
		}
		total += p.Points
	}
	if len(r.Stops) > 0 {
		total = 100
	}
	if total != r.Score {
		t.Errorf("%s: parts are %d in all, and the score %d", name, total, r.Score)
	}
}

func TestBands(t *testing.T) {
	for score, want := range map[int]string{0: "low", 19: "low", 20: "moderate", 39: "moderate", 40: "high", 64: "high", 65: "critical", 100: "critical"} {
		r := &Result{Parts: []Part{{Points: score}}}
		r.finish(configs.DefaultRubric().Bands)
		if r.Band != want || r.Score != score {
			t.Errorf("band of %d is %s, want %s", score, r.Band, want)
		}
	}
	r := &Result{Stops: []Stop{{Code: StopSecret}}}
	r.finish(configs.RubricBands{Moderate: 100, High: 100, Critical: 101})
	if r.Band != "critical" || r.Score != 100 {
		t.Errorf("band of a hard stop is %s, %d", r.Band, r.Score)
	}
}

// drawRequest makes any request.
func drawRequest(t *testing.T, r *rapid.T) *Request {
	req := clean(t)
	severities := []evidence.Severity{evidence.None, evidence.Low, evidence.Medium, evidence.Unknown, evidence.High, evidence.Critical}
	for i := range rapid.IntRange(0, 5).Draw(r, "permissions") {
		req.Manifest.Permissions = append(req.Manifest.Permissions, permission(fmt.Sprint("p", i), func(p *configs.Permission) {
			p.Optional = rapid.Bool().Draw(r, "optional")
			p.Methods = []string{rapid.SampledFrom([]string{"GET", "POST", "DELETE", "*"}).Draw(r, "method")}
			p.Data.Classes = []authz.DataClass{rapid.SampledFrom([]authz.DataClass{"public", "internal", "confidential", "restricted", ""}).Draw(r, "class")}
		}))
	}
	for i := range rapid.IntRange(0, 4).Draw(r, "scans") {
		var list []evidence.Finding
		for j := range rapid.IntRange(0, 4).Draw(r, "findings") {
			list = append(list, found(fmt.Sprint(i%2, j), rapid.SampledFrom(severities).Draw(r, "severity")))
		}
		item := scan(t, list...)
		age := rapid.IntRange(-2, 0).Draw(r, "age")
		item.ObservedAt = item.ObservedAt.Add(time.Duration(age) * time.Hour)
		item.Digest = dsse.Digest(fmt.Append(item.Predicate, age)) // its payload has the time
		req.Evidence = append(req.Evidence, item)
	}
	for range rapid.IntRange(0, 3).Draw(r, "vex") {
		role := rapid.SampledFrom([]string{"security", "author"}).Draw(r, "role")
		status := rapid.SampledFrom([]evidence.Status{evidence.Fixed, evidence.Affected, evidence.NotAffected}).Draw(r, "status")
		req.Evidence = append(req.Evidence, vex(t, fmt.Sprint(rapid.IntRange(0, 1).Draw(r, "of"), rapid.IntRange(0, 3).Draw(r, "n")), status, role, "ana"))
	}
	for i := range rapid.IntRange(0, 3).Draw(r, "exemptions") {
		req.Exemptions = append(req.Exemptions, grantcheck.Exemption{Name: fmt.Sprint("E", i), Plugin: "crm-sync", NotAfter: asOf.Add(time.Duration(i) * time.Hour)})
	}
	return req
}

func scoreJSON(t *testing.T, req *Request) []byte {
	t.Helper()
	result, err := Score(testRubric(), req)
	if err != nil {
		t.Fatal(err)
	}
	out, err := result.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The order of files, permissions and exemptions changes no byte.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		req := drawRequest(t, r)
		before := scoreJSON(t, req)
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 1))
		random.Shuffle(len(req.Evidence), func(i, j int) { req.Evidence[i], req.Evidence[j] = req.Evidence[j], req.Evidence[i] })
		random.Shuffle(len(req.Exemptions), func(i, j int) { req.Exemptions[i], req.Exemptions[j] = req.Exemptions[j], req.Exemptions[i] })
		p := req.Manifest.Permissions
		random.Shuffle(len(p), func(i, j int) { p[i], p[j] = p[j], p[i] })
		if len(req.Evidence) > 0 {
			req.Evidence = append(req.Evidence, req.Evidence[0]) // the same file twice
		}
		if after := scoreJSON(t, req); !bytes.Equal(before, after) {
			r.Fatalf("another order gives other bytes:\n%s\n%s", before, after)
		}
	})
}

// A request that asks for more, or has more findings, is never of a lower score.
func TestMonotonic(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		req := drawRequest(t, r)
		before, err := Score(testRubric(), req)
		if err != nil {
			r.Fatal(err)
		}
		switch rapid.IntRange(0, 2).Draw(r, "more") {
		case 0:
			req.Manifest.Permissions = append(req.Manifest.Permissions, permission("more", func(p *configs.Permission) { p.Data.Classes = nil }))
		case 1:
			item := scan(t, found("more", evidence.High))
			item.Predicate = json.RawMessage(strings.Replace(string(item.Predicate), `"name":"s"`, `"name":"another"`, 1))
			item.Digest = digest("7")
			req.Evidence = append(req.Evidence, item)
		case 2:
			req.Exemptions = append(req.Exemptions, grantcheck.Exemption{Name: "more", Plugin: "crm-sync", NotAfter: asOf.Add(time.Hour)})
		}
		after, err := Score(testRubric(), req)
		if err != nil {
			r.Fatal(err)
		}
		if after.Score < before.Score {
			r.Fatalf("score %d with more, %d before", after.Score, before.Score)
		}
	})
}

func TestVerify(t *testing.T) {
	req := clean(t)
	req.Manifest.Permissions = []configs.Permission{permission("p", nil)}
	req.replace(scan(t, found("1", evidence.High)))
	stored := scoreJSON(t, req)
	later := asOf.Add(100 * 24 * time.Hour)
	if err := Verify(stored, testRubric(), *req, later); err != nil {
		t.Fatal(err)
	}
	refused := 0
	refuse := func(name string, stored []byte, rubric Rubric, req Request, now time.Time, want string) {
		t.Helper()
		if err := Verify(stored, rubric, req, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", name, err, want)
			return
		}
		refused++
	}
	// Each byte edited, but for those of the time: another time at which the same inputs give
	// the same score is a true statement.
	at := bytes.Index(stored, []byte(`"asOf"`))
	for i := range stored {
		if i > at+8 && i < at+28 {
			continue
		}
		edited := bytes.Clone(stored)
		if edited[i]++; edited[i] == 0x7f {
			edited[i] = '!'
		}
		refuse(fmt.Sprintf("byte %d", i), edited, testRubric(), *req, later, "")
	}
	refuse("cut", stored[:len(stored)-1], testRubric(), *req, later, "")
	refuse("space", append(bytes.Clone(stored), ' '), testRubric(), *req, later, "")
	refuse("lower score", bytes.Replace(stored, []byte(`"score":7`), []byte(`"score":1`), 1), testRubric(), *req, later, "it was edited")
	refuse("lower band", bytes.Replace(stored, []byte(`"band":"low"`), []byte(`"band":"none"`), 1), testRubric(), *req, later, "it was edited")
	refuse("key twice", bytes.Replace(stored, []byte(`{`), []byte(`{"score":0,`), 1), testRubric(), *req, later, "twice")
	refuse("future", stored, testRubric(), *req, asOf.Add(-time.Hour), "in the future")
	moved := testRubric()
	moved.Digest = digest("1")
	refuse("other rubric", stored, moved, *req, later, "inputs have moved: rubric")
	downgraded := testRubric()
	downgraded.Vulnerabilities.High = 0
	refuse("downgraded rubric", stored, downgraded, *req, later, "it was edited")
	for name, change := range map[string]func(*Request){
		"evidence deleted":  func(r *Request) { r.Evidence = r.Evidence[1:] },
		"evidence added":    func(r *Request) { r.Evidence = append(r.Evidence, scan(t)) },
		"evidence replaced": func(r *Request) { r.Evidence = append([]evidence.Item{scan(t)}, r.Evidence[1:]...) },
		"other predecessor": func(r *Request) { r.PreviousDigest = digest("1") },
		"other manifest":    func(r *Request) { r.Target.Manifest = digest("1") },
		"other submission":  func(r *Request) { r.Submission = digest("1") },
		"other guardrail":   func(r *Request) { r.Guardrail = digest("1") },
		"guardrail deleted": func(r *Request) { r.Guardrail = "" },
		"exemption added": func(r *Request) {
			r.Exemptions = []grantcheck.Exemption{{Name: "E", Digest: digest("1"), Plugin: "crm-sync"}}
		},
		"submission deleted": func(r *Request) { r.Submission = "" },
	} {
		other := *req
		other.Evidence = slices.Clone(req.Evidence)
		change(&other)
		refuse(name, stored, testRubric(), other, later, "inputs have moved")
	}
	t.Logf("%d edited results and moved inputs refused", refused)
}

func TestReplay(t *testing.T) {
	safe, risky := clean(t), clean(t)
	risky.Version = "3.0.0"
	risky.replace(scan(t, found("1", evidence.Critical)))
	strict := testRubric()
	strict.Vulnerabilities.Critical = 20
	changes, err := Replay(testRubric(), strict, []*Request{risky, safe})
	if err != nil || len(changes) != 1 || changes[0] != (Change{"crm-sync", "3.0.0", 10, "low", 20, "moderate"}) || !changes[0].BandChanges() {
		t.Errorf("changes are %+v, %v", changes, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "list": "[]", "unknown field": `{"also":1}`, "two": "{}{}", "deep": strings.Repeat("[", 1000), "not UTF-8": "{\"plugin\":\"\xff\"}",
		"large": `{"plugin":"` + strings.Repeat("x", maxStored) + `"}`, "number": `{"score":1.5}`, "text": `{"score":"1"}`, "time": `{"asOf":"now"}`,
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"plugin":"a","score":1,"addends":[{"part":"exposure","code":"c","points":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			return
		}
		if _, err := r.JSON(); err != nil {
			t.Error(err)
		}
		if err := Verify(data, testRubric(), *clean(t), asOf); err == nil {
			t.Errorf("%q verifies", data)
		}
	})
}

// BenchmarkScore scores one request with 100 findings and 10 permissions.
func BenchmarkScore(b *testing.B) {
	req := clean(b)
	var list []evidence.Finding
	for i := range 100 {
		list = append(list, found(fmt.Sprint(i), evidence.Medium))
	}
	req.replace(scan(b, list...))
	for i := range 10 {
		req.Manifest.Permissions = append(req.Manifest.Permissions, permission(fmt.Sprint(i), nil))
	}
	for b.Loop() {
		if _, err := Score(testRubric(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// A pilot with few accesses estimates nothing, and none unseen would be the best estimate.
func TestUnseenIsNotKnown(t *testing.T) {
	few := &measured[pilot.Trace]{predicate: &pilot.Trace{Coverage: pilot.Coverage{Accesses: 22}}}
	all := traced(few, configs.BehaviourPoints{UnseenMass: 3})
	if !slices.ContainsFunc(all, func(a Addend) bool {
		return a.Code == "unseen" && strings.Contains(a.Text, "the 22 accesses of the pilot are too few")
	}) {
		t.Errorf("got %+v", all)
	}
}

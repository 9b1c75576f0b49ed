package evidence

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

var (
	testArtifact  = "sha256:" + strings.Repeat("a", 64)
	otherArtifact = "sha256:" + strings.Repeat("b", 64)
	testManifest  = "sha256:" + strings.Repeat("c", 64)
)

// people are the keys of a trust root.
type people struct {
	author, scanner, scanner2, security, stranger, revoked dsse.PrivateKey
	root                                                   *dsse.Root
}

func newPeople(t testing.TB) *people {
	t.Helper()
	p := &people{}
	for _, k := range []*dsse.PrivateKey{&p.author, &p.scanner, &p.scanner2, &p.security, &p.stranger, &p.revoked} {
		var err error
		if *k, err = dsse.GenerateKey(); err != nil {
			t.Fatal(err)
		}
	}
	key := func(identity string, k dsse.PrivateKey) dsse.KeySpec {
		return dsse.KeySpec{Identity: identity, Ed25519: base64.StdEncoding.EncodeToString(k.Public())}
	}
	evidence := []dsse.Kind{dsse.KindEvidence}
	scans := []string{TypeFindings, TypeSBOM, TypeTestResult, TypeSLSA}
	root, err := dsse.NewRoot(dsse.RootSpec{Name: "corp", Version: 1, Revoked: []string{p.revoked.Public().KeyID()}, Roles: []dsse.RoleSpec{
		{Name: "root", Kinds: []dsse.Kind{dsse.KindTrust}, Keys: []dsse.KeySpec{key("ana", p.security)}},
		{Name: "author", Kinds: []dsse.Kind{dsse.KindSubmission, dsse.KindEvidence}, PredicateTypes: []string{TypeVEX, TypeRemediation}, Keys: []dsse.KeySpec{key("dev", p.author)}},
		{Name: "scanner", Kinds: evidence, PredicateTypes: scans, Keys: []dsse.KeySpec{key("ci", p.scanner), key("dev", p.author), key("old", p.revoked)}},
		{Name: "measurer", Threshold: 2, Kinds: evidence, PredicateTypes: []string{prefix + "measured-performance/v1"}, Keys: []dsse.KeySpec{key("ci", p.scanner), key("ci2", p.scanner2)}},
		{Name: RoleSecurity, Kinds: []dsse.Kind{dsse.KindApproval, dsse.KindEvidence}, PredicateTypes: []string{TypeVEX}, Keys: []dsse.KeySpec{key("ana", p.security)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	p.root = root
	return p
}

func sign(t testing.TB, kind dsse.Kind, payload []byte, keys ...dsse.PrivateKey) *dsse.Envelope {
	t.Helper()
	var signers []dsse.Signer
	for _, k := range keys {
		signers = append(signers, k)
	}
	e, err := dsse.Sign(t.Context(), kind, payload, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// statement returns the payload of a predicate about artifacts.
func statement(t testing.TB, predicateType, predicate string, artifacts ...string) []byte {
	t.Helper()
	var subjects []Subject
	for _, a := range artifacts {
		s, err := Artifact("x", a)
		if err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, s)
	}
	payload, err := New(subjects, predicateType, json.RawMessage(predicate))
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

const emptyScan = `{"issuedAt":"2026-09-03T12:00:00Z","source":{"format":"sarif-2.1.0","digest":"","size":0,"tools":[{"name":"s"}]},"findings":[]}`

func TestReadRefuses(t *testing.T) {
	p := newPeople(t)
	scan := statement(t, TypeFindings, emptyScan, testArtifact)
	good := func() *dsse.Envelope { return sign(t, dsse.KindEvidence, scan, p.scanner) }
	if item, err := Read(p.root, good()); err != nil || item.Signed[0].Identity != "ci" || item.Signed[0].Role != "scanner" {
		t.Fatalf("good evidence is %v, %v", item, err)
	}
	raw := func(s string) []byte { return []byte(s) }
	tests := map[string]struct {
		env  *dsse.Envelope
		want string
	}{
		"stranger":           {sign(t, dsse.KindEvidence, scan, p.stranger), "too few identities"},
		"revoked":            {sign(t, dsse.KindEvidence, scan, p.revoked), "revoked"},
		"other kind":         {sign(t, dsse.KindApproval, scan, p.security), "payload type"},
		"grant as evidence":  {sign(t, dsse.KindGrant, scan, p.scanner), "payload type"},
		"other role":         {sign(t, dsse.KindEvidence, scan, p.security), "is signed by role scanner"},
		"type of nobody":     {sign(t, dsse.KindEvidence, statement(t, "https://example.com/x", emptyScan, testArtifact), p.scanner), "no role"},
		"author for scanner": {sign(t, dsse.KindEvidence, statement(t, prefix+"measured-performance/v1", emptyScan, testArtifact), p.author), "role measurer"},
		"one of two":         {sign(t, dsse.KindEvidence, statement(t, prefix+"measured-performance/v1", emptyScan, testArtifact), p.scanner), "role measurer"},
		"statement v0.1":     {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), "Statement/v1", "Statement/v0.1", 1)), p.scanner), "_type"},
		"no JSON":            {sign(t, dsse.KindEvidence, raw("x"), p.scanner), "not JSON"},
		"key twice":          {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), `{`, `{"_type":"x",`, 1)), p.scanner), "twice"},
		"no subject":         {sign(t, dsse.KindEvidence, raw(`{"_type":"`+typeStatement+`","subject":[],"predicateType":"`+TypeFindings+`","predicate":`+emptyScan+`}`), p.scanner), "0 subjects"},
		"digest of sha1":     {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), "sha256", "sha1", 1)), p.scanner), "no sha256 digest"},
		"upper-case digest":  {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), "aaaa", "AAAA", 1)), p.scanner), "no sha256 digest"},
		"no time":            {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), "issuedAt", "issued", 1)), p.scanner), "no time"},
		"time without zone":  {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), "12:00:00Z", "12:00:00", 1)), p.scanner), "zone"},
		"ends before":        {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), `"issuedAt"`, `"expiresAt":"2026-09-03T12:00:00Z","issuedAt"`, 1)), p.scanner), "not after"},
		"predicate text":     {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), emptyScan, `"x"`, 1)), p.scanner), "not an object"},
		"predicate missing":  {sign(t, dsse.KindEvidence, raw(strings.Replace(string(scan), `,"predicate":`+emptyScan, ``, 1)), p.scanner), "not an object"},
	}
	edited := good()
	edited.Unverified = []byte(strings.Replace(string(scan), "aaaa", "aaab", 1))
	tests["edited payload"] = struct {
		env  *dsse.Envelope
		want string
	}{edited, "does not verify"}
	broken := good()
	broken.Signatures[0].Bytes[3] ^= 1
	tests["edited signature"] = struct {
		env  *dsse.Envelope
		want string
	}{broken, "does not verify"}
	retyped := sign(t, dsse.KindApproval, scan, p.scanner)
	retyped.PayloadType = dsse.KindEvidence.PayloadType()
	tests["replayed across kinds"] = struct {
		env  *dsse.Envelope
		want string
	}{retyped, "does not verify"}
	for name, test := range tests {
		if _, err := Read(p.root, test.env); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
	t.Logf("%d bad statements refused", len(tests))
	both := sign(t, dsse.KindEvidence, statement(t, prefix+"measured-performance/v1", emptyScan, testArtifact), p.scanner, p.scanner2)
	if _, err := Read(p.root, both); err != nil {
		t.Errorf("two of two: %v", err)
	}
}

func TestCheck(t *testing.T) {
	p := newPeople(t)
	read := func(predicate string, key dsse.PrivateKey, artifacts ...string) Item {
		item, err := Read(p.root, sign(t, dsse.KindEvidence, statement(t, TypeFindings, predicate, artifacts...), key))
		if err != nil {
			t.Fatal(err)
		}
		return item
	}
	target := Target{Artifact: testArtifact, Manifest: testManifest, Authors: []string{"dev"}}
	req := Requirement{PredicateType: TypeFindings, Role: "scanner", MaxAge: 7 * 24 * time.Hour}
	observed := strings.Replace(emptyScan, `"size":0`, `"size":0,"observedAt":"2026-08-20T12:00:00Z"`, 1)
	expiring := strings.Replace(emptyScan, `{"issuedAt"`, `{"expiresAt":"2026-09-04T00:00:00Z","issuedAt"`, 1)
	tests := map[string]struct {
		item   Item
		target Target
		req    Requirement
		now    time.Time
		want   string // "" if it counts
		stale  bool
	}{
		"good":                     {read(emptyScan, p.scanner, testArtifact), target, req, issued.Add(time.Hour), "", false},
		"with manifest":            {read(emptyScan, p.scanner, testArtifact, testManifest), target, req, issued, "", false},
		"another artifact":         {read(emptyScan, p.scanner, otherArtifact), target, req, issued, "is about " + otherArtifact, false},
		"another artifact too":     {read(emptyScan, p.scanner, testArtifact, otherArtifact), target, req, issued, "is about " + otherArtifact, false},
		"manifest alone":           {read(emptyScan, p.scanner, testManifest), target, req, issued, "is not about the artifact", false},
		"artifact not known":       {read(emptyScan, p.scanner, testArtifact), Target{}, req, issued, "not known", false},
		"author":                   {read(emptyScan, p.author, testArtifact), target, req, issued, "by authors alone", false},
		"other role":               {read(emptyScan, p.scanner, testArtifact), target, Requirement{PredicateType: TypeFindings, Role: "security"}, issued, "not signed by role security", false},
		"other type":               {read(emptyScan, p.scanner, testArtifact), target, Requirement{PredicateType: TypeSBOM}, issued, "is required", false},
		"future":                   {read(emptyScan, p.scanner, testArtifact), target, req, issued.Add(-6 * time.Minute), "in the future", false},
		"clock behind a little":    {read(emptyScan, p.scanner, testArtifact), target, req, issued.Add(-4 * time.Minute), "", false},
		"old":                      {read(emptyScan, p.scanner, testArtifact), target, req, issued.Add(req.MaxAge), "too old", true},
		"not yet old":              {read(emptyScan, p.scanner, testArtifact), target, req, issued.Add(req.MaxAge - time.Second), "", false},
		"old report signed lately": {read(observed, p.scanner, testArtifact), target, req, issued, "too old", true},
		"expired":                  {read(expiring, p.scanner, testArtifact), target, req, issued.Add(12 * time.Hour), "expiresAt", true},
		"expired without maxAge":   {read(expiring, p.scanner, testArtifact), target, Requirement{PredicateType: TypeFindings}, issued.Add(12 * time.Hour), "expiresAt", true},
	}
	for name, test := range tests {
		err := test.item.Check(test.target, test.req, test.now)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
		var stale *StaleError
		if errors.As(err, &stale) != test.stale {
			t.Errorf("%s: stale is %t", name, !test.stale)
		}
	}
	old := tests["old report signed lately"].item
	if ref := old.Ref(); !ref.IssuedAt.Equal(time.Date(2026, 8, 20, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("the age of a reference counts from %s", ref.IssuedAt)
	}
}

func item(predicateType string, predicate any, digest string, signed ...dsse.Signed) Item {
	raw, err := Canonical(predicate)
	if err != nil {
		panic(err)
	}
	i := Item{PredicateType: predicateType, Digest: digest, Predicate: raw, Signed: signed}
	var r reader
	i.times(&r)
	return i
}

func TestBlocking(t *testing.T) {
	now := issued
	finding := Finding{ID: "F-1", Vulnerability: "CVE-1", Aliases: []string{"GHSA-1"}, Severity: High, Component: "pkg:generic/libfoo@1.0?arch=amd64"}
	security := dsse.Signed{Role: RoleSecurity, Identity: "ana"}
	author := dsse.Signed{Role: "author", Identity: "dev"}
	selfish := dsse.Signed{Role: RoleSecurity, Identity: "dev"} // an author who is in role security as well
	vex := func(s Status, by dsse.Signed, at time.Time, change func(*Statement)) VEX {
		v := VEX{Statement: Statement{Vulnerability: "CVE-1", Status: s}, Signed: []dsse.Signed{by}, At: at, Evidence: "sha256:v"}
		if change != nil {
			change(&v.Statement)
		}
		return v
	}
	of := func(products ...string) func(*Statement) {
		return func(s *Statement) { s.Products, s.Components = products, []string{"pkg:generic/libfoo@1.0"} }
	}
	plan := func(finding string, due time.Duration) Plan {
		return Plan{Finding: finding, Plan: "update", Owner: "team", Due: now.Add(due), IssuedAt: now.Add(-time.Hour)}
	}
	exemption := grantcheck.Exemption{GuardrailRule: grantcheck.SeverityRule, Plugin: "crm-sync", Permission: "F-1", NotAfter: now.Add(time.Hour)}
	other := func(change func(*grantcheck.Exemption)) []grantcheck.Exemption {
		e := exemption
		change(&e)
		return []grantcheck.Exemption{e}
	}
	tests := map[string]struct {
		finding   func(*Finding)
		vex       []VEX
		plans     []Plan
		exempt    []grantcheck.Exemption
		threshold Severity
		blocks    bool
	}{
		"bare":                      {blocks: true},
		"medium":                    {finding: func(f *Finding) { f.Severity = Medium }},
		"medium blocks":             {finding: func(f *Finding) { f.Severity = Medium }, threshold: Medium, blocks: true},
		"unknown":                   {finding: func(f *Finding) { f.Severity = Unknown }, blocks: true},
		"severity of no kind":       {finding: func(f *Finding) { f.Severity = "fine" }, blocks: true},
		"critical over critical":    {finding: func(f *Finding) { f.Severity = Critical }, threshold: Critical, blocks: true},
		"high below critical":       {threshold: Critical},
		"suppressed in the source":  {finding: func(f *Finding) { f.Suppressed = true }, blocks: true},
		"not affected":              {vex: []VEX{vex(NotAffected, security, now, nil)}},
		"fixed":                     {vex: []VEX{vex(Fixed, security, now, nil)}},
		"by alias":                  {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Vulnerability = "ghsa-1" })}},
		"by the finding's id":       {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Vulnerability = "F-1" })}},
		"component":                 {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Components = []string{"pkg:generic/libfoo@1.0"} })}},
		"whole artifact":            {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Components = []string{testArtifact} })}},
		"component of the artifact": {vex: []VEX{vex(Fixed, security, now, of("x", testArtifact))}},
		"component of the package":  {vex: []VEX{vex(Fixed, security, now, of("pkg:oci/crm-sync@2.4.1"))}},
		"component of another one":  {vex: []VEX{vex(Fixed, security, now, of("pkg:oci/other@1"))}, blocks: true},
		"other component":           {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Components = []string{"pkg:generic/libbar@1.0"} })}, blocks: true},
		"other version":             {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Components = []string{"pkg:generic/libfoo@1.1"} })}, blocks: true},
		"other vulnerability":       {vex: []VEX{vex(Fixed, security, now, func(s *Statement) { s.Vulnerability = "CVE-2" })}, blocks: true},
		"affected":                  {vex: []VEX{vex(Affected, security, now, nil)}, blocks: true},
		"under investigation":       {vex: []VEX{vex(UnderInvestigation, security, now, nil)}, blocks: true},
		"author's VEX":              {vex: []VEX{vex(NotAffected, author, now, nil)}, blocks: true},
		"author in role security":   {vex: []VEX{vex(NotAffected, selfish, now, nil)}, blocks: true},
		"author over security":      {vex: []VEX{vex(Affected, security, now, nil), vex(NotAffected, author, now.Add(time.Hour), nil)}, blocks: true},
		"newer affected":            {vex: []VEX{vex(NotAffected, security, now, nil), vex(Affected, security, now.Add(time.Second), nil)}, blocks: true},
		"newer fixed":               {vex: []VEX{vex(Fixed, security, now.Add(time.Second), nil), vex(Affected, security, now, nil)}},
		"same time":                 {vex: []VEX{vex(Affected, security, now, nil), vex(Fixed, security, now, nil)}, blocks: true},
		"planned":                   {plans: []Plan{plan("F-1", time.Hour)}},
		"planned for vulnerability": {plans: []Plan{plan("CVE-1", time.Hour)}},
		"due now":                   {plans: []Plan{plan("F-1", 0)}, blocks: true},
		"past due":                  {plans: []Plan{plan("F-1", -time.Hour)}, blocks: true},
		"plan for another":          {plans: []Plan{plan("F-2", time.Hour)}, blocks: true},
		"plan for everything":       {plans: []Plan{plan("", time.Hour)}, blocks: true},
		"exempt":                    {exempt: []grantcheck.Exemption{exemption}},
		"exempt by vulnerability":   {exempt: other(func(e *grantcheck.Exemption) { e.Permission = "CVE-1" })},
		"exemption expired":         {exempt: other(func(e *grantcheck.Exemption) { e.NotAfter = now }), blocks: true},
		"exemption without end":     {exempt: other(func(e *grantcheck.Exemption) { e.NotAfter = time.Time{} }), blocks: true},
		"exemption of a plugin":     {exempt: other(func(e *grantcheck.Exemption) { e.Plugin = "other" }), blocks: true},
		"exemption for all":         {exempt: other(func(e *grantcheck.Exemption) { e.Permission = "" }), blocks: true},
		"exemption of a ceiling":    {exempt: other(func(e *grantcheck.Exemption) { e.GuardrailRule = "ceilings.tlsMin" }), blocks: true},
	}
	for name, test := range tests {
		f := finding
		if test.finding != nil {
			test.finding(&f)
		}
		if test.threshold == "" {
			test.threshold = High
		}
		target := Target{Artifact: testArtifact, PURL: "pkg:oci/crm-sync@2.4.1?arch=amd64", Authors: []string{"dev"}}
		got := Blocking([]Finding{f}, test.vex, test.plans, target, test.threshold, Exempt("crm-sync", test.exempt, now), now)
		if (len(got) == 1) != test.blocks {
			t.Errorf("%s: blocking is %+v, want %t", name, got, test.blocks)
		}
		for _, b := range got {
			if b.Why == "" || !strings.Contains(b.Unblock, "plan") {
				t.Errorf("%s: block %+v does not explain itself", name, b)
			}
		}
	}
}

// A statement that names a finding without clearing it is explained: it is about something else.
func TestBesides(t *testing.T) {
	target := Target{Artifact: testArtifact, PURL: "pkg:oci/crm-sync@2.4.1"}
	for want, test := range map[string]struct {
		component string
		vex       Statement
	}{
		"VEX states fixed in product pkg:oci/other@1, which is not this artifact (pkg:oci/crm-sync@2.4.1)":                {"libfoo", Statement{Products: []string{"pkg:oci/other@1"}, Components: []string{"libfoo"}}},
		"VEX states fixed of component libfoo, and the scan states no component: write it about the artifact (pkg:oci/cr": {"", Statement{Components: []string{"libfoo"}}},
		"VEX states fixed of component libfoo, and the finding is in libbar":                                              {"libbar", Statement{Components: []string{"libfoo"}}},
	} {
		test.vex.Vulnerability, test.vex.Status = "CVE-1", Fixed
		v := VEX{Statement: test.vex, Signed: []dsse.Signed{{Role: RoleSecurity, Identity: "ana"}}, At: issued}
		got := Blocking([]Finding{{ID: "F-1", Vulnerability: "CVE-1", Severity: High, Component: test.component}}, []VEX{v}, nil, target, High, nil, issued)
		if len(got) != 1 || !strings.Contains(got[0].Why, want) {
			t.Errorf("blocking is %+v, want %q", got, want)
		}
	}
}

// The newest plan counts: a later one cannot be outlived by an earlier one.
func TestPlanOrder(t *testing.T) {
	f := Finding{ID: "F-1", Rule: "r", Severity: High}
	early := Plan{Finding: "F-1", Due: issued.Add(48 * time.Hour), IssuedAt: issued}
	late := Plan{Finding: "F-1", Due: issued.Add(24 * time.Hour), IssuedAt: issued.Add(time.Hour)}
	for _, plans := range [][]Plan{{early, late}, {late, early}} {
		if got := Blocking([]Finding{f}, nil, plans, Target{}, High, nil, issued.Add(25*time.Hour)); len(got) != 1 {
			t.Errorf("the newest plan is past due, and nothing blocks")
		}
	}
}

func TestPlansRefuse(t *testing.T) {
	good := Plan{Finding: "F-1", Plan: "update", Owner: "team", Due: issued.Add(time.Hour)}
	for name, change := range map[string]func(*Plan){
		"no finding": func(p *Plan) { p.Finding = "" }, "no plan": func(p *Plan) { p.Plan = " " }, "no owner": func(p *Plan) { p.Owner = "" },
		"no due date": func(p *Plan) { p.Due = time.Time{} }, "due in years": func(p *Plan) { p.Due = issued.AddDate(3, 0, 0) },
	} {
		bad := good
		change(&bad)
		if _, err := NewRemediation([]Plan{bad}, Options{IssuedAt: issued}); err == nil {
			t.Errorf("%s: was made", name)
		}
		i := item(TypeRemediation, RemediationPredicate{Head{IssuedAt: issued}, []Plan{bad}}, "sha256:p")
		if _, err := Plans([]Item{i}); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
	n, err := NewRemediation([]Plan{good}, Options{IssuedAt: issued})
	if err != nil {
		t.Fatal(err)
	}
	i := Item{PredicateType: n.PredicateType, Predicate: n.Predicate, IssuedAt: issued, Digest: "sha256:p"}
	plans, err := Plans([]Item{i})
	if err != nil || len(plans) != 1 || plans[0].Evidence != "sha256:p" || !plans[0].IssuedAt.Equal(issued) {
		t.Errorf("plans are %+v, %v", plans, err)
	}
}

func TestPredicatesRefused(t *testing.T) {
	for name, i := range map[string]Item{
		"unknown field":    {PredicateType: TypeFindings, Predicate: json.RawMessage(`{"findings":[],"also":1}`)},
		"no id":            {PredicateType: TypeFindings, Predicate: json.RawMessage(`{"findings":[{"rule":"r","severity":"high"}]}`)},
		"no rule":          {PredicateType: TypeFindings, Predicate: json.RawMessage(`{"findings":[{"id":"F-1","severity":"high"}]}`)},
		"severity":         {PredicateType: TypeFindings, Predicate: json.RawMessage(`{"findings":[{"id":"F-1","rule":"r","severity":"fine"}]}`)},
		"no severity":      {PredicateType: TypeFindings, Predicate: json.RawMessage(`{"findings":[{"id":"F-1","rule":"r"}]}`)},
		"findings no list": {PredicateType: TypeFindings, Predicate: json.RawMessage(`{"findings":{}}`)},
	} {
		if _, err := Findings([]Item{i}); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
	for name, i := range map[string]Item{
		"status":        {PredicateType: TypeVEX, Predicate: json.RawMessage(`{"statements":[{"vulnerability":"C","status":"fine"}]}`)},
		"vulnerability": {PredicateType: TypeVEX, Predicate: json.RawMessage(`{"statements":[{"status":"fixed"}]}`)},
		"of later":      {PredicateType: TypeVEX, IssuedAt: issued, Predicate: json.RawMessage(`{"statements":[{"vulnerability":"C","status":"fixed","at":"2099-01-01T00:00:00Z"}]}`)},
	} {
		if _, err := Statements([]Item{i}); err == nil {
			t.Errorf("%s: was read", name)
		}
	}
}

// One statement that two people signed, in a file each, is signed by both, in any order.
func TestCurrentUnites(t *testing.T) {
	author, security := dsse.Signed{Role: "author", Identity: "dev"}, dsse.Signed{Role: RoleSecurity, Identity: "ana"}
	a, b := Item{PredicateType: TypeVEX, Digest: "1", Signed: []dsse.Signed{author}}, Item{PredicateType: TypeVEX, Digest: "1", Signed: []dsse.Signed{security}}
	for _, items := range [][]Item{{a, b}, {b, a}, {a, b, a}} {
		got := Current(items)
		if len(got) != 1 || !slices.Equal(got[0].Signed, []dsse.Signed{author, security}) {
			t.Errorf("items are %+v", got)
		}
	}
}

func TestCurrent(t *testing.T) {
	ci, dev := dsse.Signed{Role: "scanner", Identity: "ci"}, dsse.Signed{Role: "scanner", Identity: "dev"}
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	scan := func(c string, at time.Time, by dsse.Signed, replaces ...string) Item {
		return Item{PredicateType: TypeFindings, Digest: digest(c), ObservedAt: at, Signed: []dsse.Signed{by}, Replaces: replaces}
	}
	old := scan("1", issued, ci)
	sbom := scan("2", issued.Add(time.Hour), ci, old.Digest)
	sbom.PredicateType = TypeSBOM
	for name, test := range map[string]struct {
		newer Item
		gone  bool
	}{
		"newer":                {scan("2", issued.Add(time.Hour), ci), false},
		"replaces":             {scan("2", issued.Add(time.Hour), ci, old.Digest), true},
		"of one time":          {scan("2", issued, ci, old.Digest), true},
		"replaces a newer one": {scan("2", issued.Add(-time.Second), ci, old.Digest), false},
		"of somebody else":     {scan("2", issued.Add(time.Hour), dev, old.Digest), false},
		"of another type":      {sbom, false},
		"itself":               {scan("1", issued, ci, old.Digest), false},
	} {
		got := Current([]Item{old, test.newer})
		if gone := !slices.ContainsFunc(got, func(i Item) bool { return i.Digest == old.Digest }); gone != test.gone {
			t.Errorf("%s: replaced is %t", name, gone)
		}
	}
}

// A result of tests that failed counts for nothing.
func TestFailedTests(t *testing.T) {
	target := Target{Artifact: testArtifact}
	subject, err := Artifact("x", testArtifact)
	if err != nil {
		t.Fatal(err)
	}
	for result, want := range map[string]bool{Passed: true, Warned: true, Failed: false, "passed": false, "": false} {
		i := item(TypeTestResult, TestPredicate{Head: Head{IssuedAt: issued}, Result: result, Passed: 1}, "sha256:t")
		i.Subject = []Subject{subject}
		if err := i.Check(target, Requirement{PredicateType: TypeTestResult}, issued); (err == nil) != want {
			t.Errorf("result %q: error is %v", result, err)
		}
	}
	i := item(TypeTestResult, TestPredicate{Head: Head{IssuedAt: issued}, Result: Passed, Passed: 1, Failed: 1}, "sha256:t")
	i.Subject = []Subject{subject}
	if err := i.Check(target, Requirement{PredicateType: TypeTestResult}, issued); err == nil {
		t.Error("a result that contradicts its counts is good")
	}
}

// TestThresholdWithoutAuthors: where two of a role sign together, an author is not one of them.
func TestThresholdWithoutAuthors(t *testing.T) {
	item := func(identities ...string) Item {
		i := Item{need: map[string]int{RoleSecurity: 2}}
		for _, identity := range identities {
			i.Signed = append(i.Signed, dsse.Signed{Role: RoleSecurity, Identity: identity})
		}
		return i
	}
	for _, test := range []struct {
		item Item
		want bool
	}{{item("ana", "bo"), true}, {item("ana", "dev"), false}, {item("ana", "dev", "bo"), true}, {item("ana", "ana"), false}} {
		if as, independent := test.item.SignedAs(RoleSecurity, []string{"dev"}), test.item.Independent([]string{"dev"}); as != test.want || independent != test.want {
			t.Errorf("%v: as the role %t, independent %t, want %t", test.item.Signed, as, independent, test.want)
		}
		v := VEX{Statement: Statement{Vulnerability: "CVE-1", Status: Fixed}, Signed: test.item.Signed, need: test.item.need}
		if got := (&Finding{ID: "F-1", Vulnerability: "CVE-1"}).Judge([]VEX{v}, Target{Authors: []string{"dev"}}).Cleared(); got != test.want {
			t.Errorf("%v: VEX clears a finding: %t, want %t", test.item.Signed, got, test.want)
		}
	}
}

// TestThresholdOfUnited: a statement that one role signed in a file and another in a second one needs
// as many of each as either file alone.
func TestThresholdOfUnited(t *testing.T) {
	p := newPeople(t)
	spec := p.root.Spec()
	const performance = prefix + "measured-performance/v1"
	for i := range spec.Roles {
		if spec.Roles[i].Name == RoleSecurity {
			spec.Roles[i].PredicateTypes = append(spec.Roles[i].PredicateTypes, performance)
		}
	}
	root, err := dsse.NewRoot(spec)
	if err != nil {
		t.Fatal(err)
	}
	payload := statement(t, performance, emptyScan, testArtifact)
	var items []Item
	for _, keys := range [][]dsse.PrivateKey{{p.security}, {p.scanner, p.scanner2}} {
		item, err := Read(root, sign(t, dsse.KindEvidence, payload, keys...))
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	for _, all := range [][]Item{items, {items[1], items[0]}} {
		if got := Current(all); len(got) != 1 || got[0].SignedAs("measurer", []string{"ci2"}) || !got[0].SignedAs("measurer", nil) {
			t.Errorf("%v: one of two who measured is an author, and both are needed", got[0].Signed)
		}
	}
}

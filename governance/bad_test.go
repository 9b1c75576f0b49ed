package governance

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const requestDir = "plugins/weather/1.4.0"

// fixture is a repository in memory whose request is ready to be issued, with every key.
type fixture struct {
	t     testing.TB
	now   time.Time
	files fstest.MapFS
	keys  map[string]dsse.PrivateKey // by identity
	spec  dsse.RootSpec

	command []string // of the artifact that is submitted
}

func (f *fixture) key(identity string) dsse.PrivateKey {
	if k, ok := f.keys[identity]; ok {
		return k
	}
	k, err := dsse.GenerateKey()
	f.check(err)
	f.keys[identity] = k
	return k
}

func (f *fixture) check(err error) {
	if f.t.Helper(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) put(name string, data []byte) {
	f.files[name] = &fstest.MapFile{Data: data, Mode: 0o644}
}

// sign puts a document that identities signed.
func (f *fixture) sign(name string, kind dsse.Kind, payload []byte, identities ...string) {
	f.t.Helper()
	var signers []dsse.Signer
	for _, identity := range identities {
		signers = append(signers, f.key(identity))
	}
	e, err := dsse.Sign(f.t.Context(), kind, payload, signers...)
	f.check(err)
	f.put(name, e.Marshal())
}

// payload returns the payload of a signed file.
func (f *fixture) payload(name string) []byte {
	f.t.Helper()
	e, err := dsse.Parse(f.files[name].Data)
	f.check(err)
	return e.Unverified
}

// document puts a signed document that has a form in YAML.
func (f *fixture) document(name, text, identity string) {
	f.t.Helper()
	doc, err := ParseDocument("document.yaml", []byte(text))
	f.check(err)
	f.sign(name, doc.Kind, doc.Payload, identity)
}

const fixtureGuardrail = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never:
  - {id: metadata, hosts: [metadata.google.internal]}
  ceilings: {grantLifetime: 180d, methods: [GET, POST]}
  lifetimes: {low: 90d, moderate: 90d, high: 30d, critical: 7d}
  evidence:
  - {predicateType: https://chaperone.dev/attestation/test-result/v1, role: scanner, maxAge: 30d}
  approvals:
    low: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}
    moderate: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}
    high: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}
    critical: {roles: [{name: security, min: 2}, {name: compliance, min: 1}]}
`

const fixtureRubric = `apiVersion: chaperone.dev/v1alpha1
kind: RiskRubric
metadata: {name: default}
spec: {generation: 1, vulnerabilities: {staleScan: 0}, provenance: {none: 0, sbomMissing: 0}, behaviour: {mediation: 0}, compliance: {staleChecklist: 0}}
`

const fixtureExemption = `apiVersion: chaperone.dev/v1alpha1
kind: GrantExemption
metadata: {name: ex-1}
spec:
  guardrailRule: ceilings.methods
  scope: {plugin: weather, permission: read}
  allow: {methods: [PUT]}
  owner: platform
  ticket: SEC-1
  justification: Until the vendor moves
  notAfter: 2027-01-31T00:00:00Z
`

const fixtureManifest = `apiVersion: chaperone.dev/v1alpha1
kind: PluginManifest
metadata: {name: weather}
spec:
  version: 1.4.0
  vendor: acme.example
  artifact: {kind: file, digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
  purpose: Shows the forecast
  permissions:
  - {id: read, reason: Shows the forecast on the card, to: {hosts: [api.weather.example]}, methods: [GET], paths: [/v1/*], data: {classes: [public]}}
`

const artifactDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// newFixture returns a repository whose request is ready. mel holds both reviewers' roles.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC), files: fstest.MapFS{}, keys: map[string]dsse.PrivateKey{}}
	var holders []Holder
	for identity, roles := range map[string][]string{
		"dev@corp": {"author", "security"}, "ana@corp": {"root", "policy"}, "bo@corp": {"security", "root"}, "cy@corp": {"compliance"},
		"mel@corp": {"security", "compliance"}, "ci@corp": {"release"}, "scan@corp": {"scanner"}, "pilot@corp": {"measurer"},
	} {
		holders = append(holders, Holder{roles, dsse.KeySpec{Identity: identity, Ed25519: base64.StdEncoding.EncodeToString(f.key(identity).Public())}})
	}
	slices.SortFunc(holders, func(a, b Holder) int { return strings.Compare(a.Key.Identity, b.Key.Identity) })
	spec, _, err := NewTrust("corp", holders, nil)
	f.check(err)
	f.trust(spec)
	f.document("guardrails/company.dsse.json", fixtureGuardrail, "ana@corp")
	f.document("exemptions/ex-1.dsse.json", fixtureExemption, "ana@corp")
	f.document(FileRubric, fixtureRubric, "ana@corp")
	f.put(requestDir+"/"+FileManifest, []byte(fixtureManifest))
	f.submit("dev@corp")
	f.test("scan@corp", f.now)
	f.compose()
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	return f
}

// trust writes trust.yaml as JSON, which is YAML too.
func (f *fixture) trust(spec configs.TrustRoot) {
	f.t.Helper()
	f.spec = spec.Root("corp")
	data, err := configs.RenderObject(&configs.Object[configs.TrustRoot]{Metadata: configs.Metadata{Name: "corp"}, Spec: spec})
	f.check(err)
	f.put(FileTrust, data)
}

func (f *fixture) submit(identity string) {
	f.t.Helper()
	payload, err := json.Marshal(grantcheck.Submission{
		Plugin: "weather", Version: "1.4.0", Manifest: dsse.Digest(f.files[requestDir+"/"+FileManifest].Data),
		Artifact: grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: artifactDigest, Command: f.command}, IssuedAt: f.now.Add(-time.Hour),
	})
	f.check(err)
	f.sign(requestDir+"/"+FileSubmission, dsse.KindSubmission, payload, identity)
}

const testFile = requestDir + "/evidence/test.dsse.json"

// test puts the result of tests.
func (f *fixture) test(identity string, at time.Time) { f.testOf(identity, artifactDigest, at) }

func (f *fixture) testOf(identity, artifact string, at time.Time) {
	f.t.Helper()
	subject, err := evidence.Artifact("weather", artifact)
	f.check(err)
	predicate := fmt.Sprintf(`{"issuedAt":%q,"source":{"format":"junit","digest":%q,"size":1,"tools":[]},"result":"PASSED","passed":1,"warned":0,"skipped":0,"failed":0}`, at.Format(time.RFC3339), artifactDigest)
	payload, err := evidence.New([]evidence.Subject{subject}, evidence.TypeTestResult, json.RawMessage(predicate))
	f.check(err)
	f.sign(testFile, dsse.KindEvidence, payload, identity)
}

func (f *fixture) evaluate() (*Repository, *Evaluation, error) {
	r, err := Open(f.files)
	if err != nil {
		return nil, nil, err
	}
	q, err := r.Request(requestDir)
	if err != nil {
		return nil, nil, err
	}
	e, err := r.Evaluate(f.t.Context(), q, f.now)
	return r, e, err
}

func (f *fixture) compose() {
	f.t.Helper()
	r, e, err := f.evaluate()
	f.check(err)
	payload, err := r.Compose(e, 0, f.now)
	f.check(err)
	f.put(requestDir+"/"+FileDraft, payload)
}

// approve puts an approval, which change may alter before it is signed.
func (f *fixture) approve(role, identity string, change func(*grantcheck.Approval)) {
	f.t.Helper()
	_, e, err := f.evaluate()
	f.check(err)
	asked := e.asked()
	a := grantcheck.Approval{
		Role: role, Identity: identity, Decision: grantcheck.DecisionApprove, Submission: asked.Submission, Grant: asked.Grant, Guardrail: asked.Guardrail,
		Rubric: asked.Rubric, Exemptions: asked.Exemptions, Evidence: asked.Evidence, Score: asked.Score, Band: asked.Band, IssuedAt: f.now,
	}
	if change != nil {
		change(&a)
	}
	payload, err := json.Marshal(a)
	f.check(err)
	f.sign(requestDir+"/approvals/"+role+signedEnding, dsse.KindApproval, payload, identity)
}

// issue tries everything up to the issued grant.
func (f *fixture) issue() ([]byte, error) {
	r, e, err := f.evaluate()
	if err != nil {
		return nil, err
	}
	if err := e.Refusal(); err != nil {
		return nil, err
	}
	grant, err := dsse.Sign(context.WithoutCancel(f.t.Context()), dsse.KindGrant, e.Request.Draft, f.key("ci@corp"))
	if err != nil {
		return nil, err
	}
	return r.Issue(e, grant, f.now)
}

// clone returns a copy whose files may be changed.
func (f *fixture) clone(t testing.TB) *fixture {
	out := *f
	out.t, out.files, out.keys = t, fstest.MapFS{}, maps.Clone(f.keys)
	for name, file := range f.files {
		copied := *file
		copied.Data = bytes.Clone(file.Data)
		out.files[name] = &copied
	}
	return &out
}

// badInput changes a repository that is ready; want is a part of the refusal.
type badInput struct {
	name   string
	change func(f *fixture)
	want   string
}

// signedFiles are the signed files of the fixture, with their kinds and rightful signers.
func signedFiles() map[string]struct {
	kind   dsse.Kind
	signer string
} {
	type signed = struct {
		kind   dsse.Kind
		signer string
	}
	return map[string]signed{
		"guardrails/company.dsse.json":                 {dsse.KindGuardrail, "ana@corp"},
		"exemptions/ex-1.dsse.json":                    {dsse.KindExemption, "ana@corp"},
		FileRubric:                                     {dsse.KindRubric, "ana@corp"},
		requestDir + "/" + FileSubmission:              {dsse.KindSubmission, "dev@corp"},
		testFile:                                       {dsse.KindEvidence, "scan@corp"},
		requestDir + "/approvals/security.dsse.json":   {dsse.KindApproval, "bo@corp"},
		requestDir + "/approvals/compliance.dsse.json": {dsse.KindApproval, "cy@corp"},
	}
}

// badSignatures are what can be wrong with each signed file by itself.
func badSignatures(base *fixture) []badInput {
	var out []badInput
	kinds := []dsse.Kind{dsse.KindGrant, dsse.KindGuardrail, dsse.KindRevocation, dsse.KindApproval, dsse.KindSubmission, dsse.KindEvidence, dsse.KindTrust, dsse.KindExemption, dsse.KindRubric, dsse.KindSidecar, dsse.KindNotice, dsse.KindChecklist}
	for name, file := range signedFiles() {
		add := func(what string, change func(f *fixture), want string) {
			out = append(out, badInput{name + ": " + what, change, want})
		}
		add("deleted", func(f *fixture) { delete(f.files, name) }, "")
		add("empty", func(f *fixture) { f.put(name, nil) }, "not JSON")
		add("a list", func(f *fixture) { f.put(name, []byte("[]")) }, "not the expected JSON")
		add("goes on", func(f *fixture) { f.put(name, append(f.files[name].Data, "{}"...)) }, "goes on")
		add("payload twice", func(f *fixture) {
			f.put(name, bytes.Replace(f.files[name].Data, []byte("{"), []byte(`{"payload":"e30=",`), 1))
		}, "given twice")
		add("payload type in another case", func(f *fixture) {
			f.put(name, bytes.Replace(f.files[name].Data, []byte("{"), []byte(`{"PayloadType":"x",`), 1))
		}, "given twice")
		add("deep", func(f *fixture) { f.put(name, []byte(strings.Repeat(`{"a":`, 100_000)+"1")) }, "")
		add("huge", func(f *fixture) { f.put(name, bytes.Repeat([]byte(" "), maxFile+1)) }, "at most")
		add("a link", func(f *fixture) {
			f.files[name] = &fstest.MapFile{Data: []byte("../../../etc/passwd"), Mode: fs.ModeSymlink}
		}, "not a regular file")
		add("a folder", func(f *fixture) { delete(f.files, name); f.put(name+"/x", nil) }, "not a regular file")
		add("a pipe", func(f *fixture) { f.files[name].Mode = fs.ModeNamedPipe }, "not a regular file")
		add("payload edited", func(f *fixture) {
			e, err := dsse.Parse(f.files[name].Data)
			f.check(err)
			e.Unverified = bytes.Replace(e.Unverified, []byte("2"), []byte("3"), 1)
			f.put(name, e.Marshal())
		}, "does not verify")
		add("signature edited", func(f *fixture) {
			e, err := dsse.Parse(f.files[name].Data)
			f.check(err)
			e.Signatures[0].Bytes[7] ^= 1
			f.put(name, e.Marshal())
		}, "does not verify")
		add("signed by a stranger", func(f *fixture) { f.sign(name, file.kind, f.payload(name), "eve@corp") }, "too few identities")
		add("signed by a stranger under the id of the key", func(f *fixture) {
			payload := f.payload(name)
			f.sign(name, file.kind, payload, "eve@corp")
			e, err := dsse.Parse(f.files[name].Data)
			f.check(err)
			e.Signatures[0].KeyID = f.key(file.signer).Public().KeyID()
			f.put(name, e.Marshal())
		}, "does not verify")
		for identity := range base.keys {
			if identity != file.signer {
				add("signed by "+identity, func(f *fixture) { f.sign(name, file.kind, f.payload(name), identity) }, "")
			}
		}
		for _, kind := range kinds {
			if kind != file.kind {
				add("signed as "+string(kind), func(f *fixture) { f.sign(name, kind, f.payload(name), file.signer) }, "")
			}
		}
		add("an unknown field", func(f *fixture) {
			f.sign(name, file.kind, bytes.Replace(f.payload(name), []byte("{"), []byte(`{"extra":1,`), 1), file.signer)
		}, "")
		add("key revoked", func(f *fixture) {
			spec := configs.TrustRoot{Version: 1, Roles: f.spec.Roles, Revoked: []string{f.key(file.signer).Public().KeyID()}}
			if file.signer == "ana@corp" || file.signer == "dev@corp" || file.signer == "scan@corp" || file.signer == "cy@corp" {
				spec.Roles = withSpare(f, spec.Roles)
			}
			f.trust(spec)
		}, "")
	}
	return out
}

// withSpare adds a key of a spare person to every role, so that a key of it can be revoked.
func withSpare(f *fixture, roles []dsse.RoleSpec) []dsse.RoleSpec {
	var out []dsse.RoleSpec
	for _, role := range roles {
		role.Keys = append(slices.Clone(role.Keys), dsse.KeySpec{Identity: "spare@corp", Ed25519: base64.StdEncoding.EncodeToString(f.key("spare@corp").Public())})
		out = append(out, role)
	}
	return out
}

// badApprovals are approvals that are signed by the right key and do not count.
func badApprovals() []badInput {
	other := dsse.Digest([]byte("other"))
	var out []badInput
	for name, test := range map[string]struct {
		change func(a *grantcheck.Approval)
		want   string
	}{
		"other submission":           {func(a *grantcheck.Approval) { a.Submission = other }, "about submission"},
		"no submission":              {func(a *grantcheck.Approval) { a.Submission = "" }, "about submission"},
		"other grant":                {func(a *grantcheck.Approval) { a.Grant = other }, "its grant is"},
		"no grant":                   {func(a *grantcheck.Approval) { a.Grant = "" }, "its grant is"},
		"other guardrail":            {func(a *grantcheck.Approval) { a.Guardrail = other }, "its guardrail is"},
		"no guardrail":               {func(a *grantcheck.Approval) { a.Guardrail = "" }, "its guardrail is"},
		"other rubric":               {func(a *grantcheck.Approval) { a.Rubric = other }, "its rubric is"},
		"lower score":                {func(a *grantcheck.Approval) { a.Score-- }, "its score is"},
		"higher score":               {func(a *grantcheck.Approval) { a.Score++ }, "its score is"},
		"other band":                 {func(a *grantcheck.Approval) { a.Band = "critical" }, "its band is"},
		"evidence left out":          {func(a *grantcheck.Approval) { a.Evidence = nil }, "its evidence"},
		"evidence added":             {func(a *grantcheck.Approval) { a.Evidence = append(a.Evidence, other) }, "its evidence"},
		"evidence twice":             {func(a *grantcheck.Approval) { a.Evidence = append(a.Evidence, a.Evidence...) }, "its evidence"},
		"exemption left out":         {func(a *grantcheck.Approval) { a.Exemptions = nil }, "its exemptions"},
		"exemption added":            {func(a *grantcheck.Approval) { a.Exemptions = append(a.Exemptions, other) }, "its exemptions"},
		"expired":                    {func(a *grantcheck.Approval) { a.ExpiresAt = a.IssuedAt }, "expired"},
		"in the future":              {func(a *grantcheck.Approval) { a.IssuedAt = a.IssuedAt.Add(6 * time.Minute) }, "in the future"},
		"before the evidence":        {func(a *grantcheck.Approval) { a.IssuedAt = a.IssuedAt.Add(-time.Second) }, "before what it reviews"},
		"without a time":             {func(a *grantcheck.Approval) { a.IssuedAt = time.Time{} }, "no issuedAt"},
		"other role":                 {func(a *grantcheck.Approval) { a.Role = "release" }, ""},
		"role owner":                 {func(a *grantcheck.Approval) { a.Role = "owner" }, ""},
		"no role":                    {func(a *grantcheck.Approval) { a.Role = "" }, ""},
		"other identity":             {func(a *grantcheck.Approval) { a.Identity = "mel@corp" }, "no key of these signed it"},
		"no identity":                {func(a *grantcheck.Approval) { a.Identity = "" }, "no key of these signed it"},
		"rejection":                  {func(a *grantcheck.Approval) { a.Decision = grantcheck.DecisionReject }, "rejected it"},
		"rejection of another grant": {func(a *grantcheck.Approval) { a.Decision, a.Grant = grantcheck.DecisionReject, other }, "rejected it"},
		"rejection of the future": {func(a *grantcheck.Approval) {
			a.Decision, a.IssuedAt = grantcheck.DecisionReject, a.IssuedAt.Add(time.Hour)
		}, "rejected it"},
		"withdrawal":       {func(a *grantcheck.Approval) { a.Decision = grantcheck.DecisionWithdraw }, "has to approve"},
		"annotation":       {func(a *grantcheck.Approval) { a.Decision = grantcheck.DecisionAnnotate }, "has to approve"},
		"APPROVE":          {func(a *grantcheck.Approval) { a.Decision = "APPROVE" }, "is not approve"},
		"unknown decision": {func(a *grantcheck.Approval) { a.Decision = "maybe" }, "is not approve"},
	} {
		for _, role := range []string{"security", "compliance"} {
			out = append(out, badInput{"approval of " + role + ": " + name, func(f *fixture) {
				f.approve(role, map[string]string{"security": "bo@corp", "compliance": "cy@corp"}[role], test.change)
			}, test.want})
		}
	}
	return append(out,
		badInput{"the author approves", func(f *fixture) { f.approve("security", "dev@corp", nil) }, "by an author of the submission"},
		badInput{"one person twice", func(f *fixture) { f.approve("security", "mel@corp", nil); f.approve("compliance", "mel@corp", nil) }, "more of role"},
		badInput{"the same file twice", func(f *fixture) {
			f.put(requestDir+"/approvals/compliance.dsse.json", f.files[requestDir+"/approvals/security.dsse.json"].Data)
		}, "1 more of role compliance"},
	)
}

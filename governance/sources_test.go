package governance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// TestOtherSource: another source of a credential, as the role admin instead of readonly, voids
// approvals, is a difference in the status, and is no patch.
func TestOtherSource(t *testing.T) {
	const readonly, admin = "credentials:\n- {name: db, vault: {path: secret/data/readonly}, inject: {header: X-Key, value: \"{token}\"}}\n", "secret/data/admin"
	f := newFixture(t)
	f.edit(requestDir+"/"+FileManifest, "data: {classes: [public]}}", "data: {classes: [public]}, credential: db}\n  credentials: [{name: db, kind: header, purpose: Reads}]")
	f.put(requestDir+"/"+FileCredentials, []byte(readonly))
	f.submit("dev@corp")
	f.compose()
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	moved := f.clone(t)
	moved.put(requestDir+"/"+FileCredentials, []byte(strings.Replace(readonly, "secret/data/readonly", admin, 1)))
	if _, err := moved.issue(); err == nil || !strings.Contains(err.Error(), "credentials, limits or authorities of the grant moved since the review") {
		t.Errorf("issued with another source: %v", err)
	}
	f.issued()
	for version, refused := range map[string]bool{"1.4.1": true, "1.5.0": false} {
		f := f.clone(t)
		text := strings.Replace(string(f.files[requestDir+"/"+FileManifest].Data), "version: 1.4.0", "version: "+version, 1)
		dir := RequestDir("weather", version)
		f.put(dir+"/"+FileManifest, []byte(text))
		f.put(dir+"/"+FileCredentials, []byte(strings.Replace(readonly, "secret/data/readonly", admin, 1)))
		e := f.evaluateIn(dir)
		shown := func(texts []string) bool {
			return slices.ContainsFunc(texts, func(s string) bool {
				return strings.Contains(s, "source of credential db") && strings.Contains(s, admin)
			})
		}
		var problems []string
		for _, p := range e.stage(stageEligibility).Problems {
			problems = append(problems, p.Message)
		}
		if !shown(StatusOf(e).Differences) || shown(problems) != refused {
			t.Errorf("%s: differences %q, problems %q", version, e.Differences, problems)
		}
	}
}

// TestRejectionDeleted: an approval counts only beside the rejections that were there when it was
// signed.
func TestRejectionDeleted(t *testing.T) {
	f := newFixture(t)
	decide := func(decision grantcheck.Decision, identity, comment string) string {
		r, e, err := f.evaluate()
		f.check(err)
		payload, err := r.Decide(e, Ruling{Role: "security", Identity: identity, Decision: decision, Comment: comment, Digest: e.Draft}, f.now)
		f.check(err)
		file := requestDir + "/approvals/" + string(decision) + signedEnding
		f.sign(file, dsse.KindApproval, payload, identity)
		return file
	}
	delete(f.files, requestDir+"/approvals/security.dsse.json")
	rejection := decide(grantcheck.DecisionReject, "mel@corp", "Asks for too much")
	approval := decide(grantcheck.DecisionApprove, "bo@corp", "")
	var a grantcheck.Approval
	f.check(json.Unmarshal(f.payload(approval), &a))
	if want := []string{dsse.Digest(f.payload(rejection))}; !slices.Equal(a.Rejections, want) {
		t.Fatalf("the approval states %q, want %q", a.Rejections, want)
	}
	if _, err := f.issue(); err == nil || !strings.Contains(err.Error(), "rejected it") {
		t.Errorf("issued in spite of a rejection: %v", err)
	}
	gone := f.clone(t)
	delete(gone.files, rejection)
	if _, err := gone.issue(); err == nil || !strings.Contains(err.Error(), "was there when it was signed, is missing") {
		t.Errorf("issued once the rejection is deleted: %v", err)
	}
	broken := f.clone(t)
	e, err := envelope(broken.files, rejection)
	f.check(err)
	e.Signatures[0].Bytes[0] ^= 1
	broken.put(rejection, e.Marshal())
	if _, err := broken.issue(); err == nil || !strings.Contains(err.Error(), "was there when it was signed, is missing") {
		t.Errorf("issued once the signature of the rejection is changed: %v", err)
	}
	f.now = f.now.Add(1)
	decide(grantcheck.DecisionWithdraw, "mel@corp", "Asks for less now")
	if _, err := f.issue(); err != nil {
		t.Errorf("not issued once the rejection is withdrawn: %v", err)
	}
}

// TestIssueLeavesOutForeignDecisions: files that somebody put beside the approvals do not make a
// grant that no sidecar loads.
func TestIssueLeavesOutForeignDecisions(t *testing.T) {
	f := newFixture(t)
	const many = 300 // more than a grant's file may have
	signed := f.files[requestDir+"/approvals/security.dsse.json"].Data
	e, err := dsse.Parse(signed)
	f.check(err)
	e.Signatures[0].Bytes[0] ^= 1
	for i := range many {
		f.put(fmt.Sprintf("%s/approvals/copy-%d%s", requestDir, i, signedEnding), signed)
		f.put(fmt.Sprintf("%s/approvals/foreign-%d%s", requestDir, i, signedEnding), e.Marshal())
	}
	data, err := f.issue()
	f.check(err)
	bundle, err := grantcheck.ParseBundle(data)
	f.check(err)
	if len(bundle.Approvals) != 2 {
		t.Errorf("the grant has %d approvals", len(bundle.Approvals))
	}
	budget := folderBudget{used: maxFolder - 1}
	if err := budget.take(entry{path: "file"}, e); err == nil {
		t.Error("the files of a folder have no bound")
	}
}

package governance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const (
	checklistFile    = "checklists/gdpr.dsse.json"
	fixtureChecklist = `apiVersion: chaperone.dev/v1alpha1
kind: ComplianceChecklist
metadata: {name: gdpr}
spec: {items: [{id: eu, control: GDPR-44, title: Data stays in the EU, proof: auto, query: {regions: [eu]}}]}
`
)

// checked puts a statement with the outcome of the checklist's item.
func (f *fixture) checked(outcome compliance.Outcome) {
	f.t.Helper()
	predicate, err := json.Marshal(compliance.Statement{
		IssuedAt: f.now, Plugin: "weather", Version: "1.4.0", Checklist: compliance.Checklist{Name: "gdpr", Digest: dsse.Digest(f.payload(checklistFile))},
		Items: []compliance.Result{{ID: "eu", Control: "GDPR-44", Title: "Data stays in the EU", Proof: "auto", Outcome: outcome, Detail: "permission read"}},
	})
	f.check(err)
	subject, err := evidence.Artifact("weather", artifactDigest)
	f.check(err)
	payload, err := evidence.New([]evidence.Subject{subject}, compliance.Type, predicate)
	f.check(err)
	f.sign(requestDir+"/evidence/checklist.dsse.json", dsse.KindEvidence, payload, "pilot@corp")
}

// TestChecklistRemoved: somebody who may write files removes a checklist, or puts another one
// in its place, so that an item which failed is judged no more.
func TestChecklistRemoved(t *testing.T) {
	f := newFixture(t)
	f.document(checklistFile, fixtureChecklist, "ana@corp")
	f.checked(compliance.Failed)
	problems := func(f *fixture) string {
		_, e, err := f.evaluate()
		f.check(err)
		return fmt.Sprint(e.stage(stageCompliance).Problems)
	}
	if got := problems(f); !strings.Contains(got, "gdpr/eu (GDPR-44): failed") {
		t.Errorf("a failed item does not block: %s", got)
	}
	removed := f.clone(t)
	delete(removed.files, checklistFile)
	if got := problems(removed); !strings.Contains(got, "is about checklist gdpr, which is not in checklists/") {
		t.Errorf("a removed checklist is not noticed: %s", got)
	}

	// After the review, the checklist is an input of the grant as others are.
	f.checked(compliance.Proved)
	f.compose()
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	for name, change := range map[string]func(f *fixture){
		"removed": func(f *fixture) {
			delete(f.files, checklistFile)
		},
		"another": func(f *fixture) {
			f.document(checklistFile, strings.Replace(fixtureChecklist, "regions: [eu]", "regions: [eu, us]", 1), "ana@corp")
		},
	} {
		f := f.clone(t)
		change(f)
		delete(f.files, requestDir+"/evidence/checklist.dsse.json")
		if _, e, err := f.evaluate(); err != nil || e.Refusal() == nil || !slices.ContainsFunc(e.Moved, func(m Moved) bool { return m.Input == "checklist" }) {
			t.Errorf("%s: the checklist is no moved input: %v, %v", name, e.Moved, err)
		}
	}

	// Of the next version it is a difference to the grant in force.
	f.issued()
	f.now = f.now.Add(time.Hour)
	f.next()
	delete(f.files, checklistFile)
	if got := f.evaluateIn(nextDir).Differences; !slices.Contains(got, "checklist gdpr, which the grant in force is bound to, is not there any more") {
		t.Errorf("a removed checklist is no difference: %q", got)
	}
}

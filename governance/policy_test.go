package governance

import (
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const (
	guardrailFile = "guardrails/company.dsse.json"
	laxGuardrail  = "  generation: 1\n  ceilings: {grantLifetime: 180d, methods: [GET, POST, PUT]}"
	laxRubric     = "{generation: 1, bands: {moderate: 90, high: 95, critical: 99},"
)

func guardrailOf(generation string) string {
	return strings.Replace(fixtureGuardrail, "  ceilings: {", "  generation: "+generation+"\n  ceilings: {", 1)
}

func rubricOf(generation string) string {
	return strings.Replace(fixtureRubric, "{generation: 1,", "{generation: "+generation+",", 1)
}

// TestOlderPolicy: somebody who may write files puts an older guardrail or rubric back, whose
// signature is right as well.
func TestOlderPolicy(t *testing.T) {
	base := newFixture(t)
	base.document(guardrailFile, guardrailOf("2"), "ana@corp")
	base.document(FileRubric, rubricOf("2"), "ana@corp")
	base.compose()
	stated := func(a *grantcheck.Approval) {
		_, e, err := base.evaluate()
		base.check(err)
		a.Policy = e.policy
	}
	base.approve("security", "bo@corp", stated)
	base.approve("compliance", "cy@corp", stated)
	issued := base.clone(t)
	issued.issued()

	older := map[string]func(f *fixture){
		"guardrail of generation 1": func(f *fixture) {
			f.document(guardrailFile, strings.Replace(fixtureGuardrail, "  ceilings: {grantLifetime: 180d, methods: [GET, POST]}", laxGuardrail, 1), "ana@corp")
		},
		"guardrail without a generation": func(f *fixture) { f.document(guardrailFile, fixtureGuardrail, "ana@corp") },
		"another guardrail of generation 2": func(f *fixture) {
			f.document(guardrailFile, strings.Replace(guardrailOf("2"), "180d", "170d", 1), "ana@corp")
		},
		"guardrail under another file's name": func(f *fixture) {
			delete(f.files, guardrailFile)
			f.document("guardrails/a.dsse.json", guardrailOf("1"), "ana@corp")
		},
		"rubric of generation 1": func(f *fixture) {
			f.document(FileRubric, strings.Replace(fixtureRubric, "{generation: 1,", laxRubric, 1), "ana@corp")
		},
		"rubric of generation 1 and another name": func(f *fixture) {
			f.document(FileRubric, strings.Replace(rubricOf("1"), "name: default", "name: other", 1), "ana@corp")
		},
	}
	for name, change := range older {
		t.Run("issued/"+name, func(t *testing.T) {
			f := issued.clone(t)
			change(f)
			if _, err := Open(f.files); err == nil || !strings.Contains(err.Error(), "generation 2 was in force") && !strings.Contains(err.Error(), "of generation 2 was in force") {
				t.Errorf("opened: %v", err)
			}
		})
		t.Run("approved/"+name, func(t *testing.T) {
			f := base.clone(t)
			change(f)
			f.compose() // by the older policy
			_, e, err := f.evaluate()
			f.check(err)
			if err := e.Refusal(); err == nil || !strings.Contains(err.Error(), "of a later policy") {
				t.Errorf("refusal is %v", err)
			}
		})
	}
	gone := issued.clone(t)
	gone.document(guardrailFile, strings.Replace(guardrailOf("2"), "name: company", "name: other", 1), "ana@corp")
	if _, e, err := gone.evaluate(); err != nil || !slices.Contains(e.Differences, "guardrail company, which the grant in force is bound to, is not there any more") {
		t.Errorf("a removed guardrail is not a difference: %v, %v", e, err)
	}
	next := issued.clone(t)
	next.document(guardrailFile, guardrailOf("3"), "ana@corp")
	next.document(FileRubric, rubricOf("3"), "ana@corp")
	if _, err := Open(next.files); err != nil {
		t.Errorf("a later policy is refused: %v", err)
	}
}

// TestNewerThan: a document takes the place of a signed one only with a higher generation.
func TestNewerThan(t *testing.T) {
	f := newFixture(t)
	r, err := Open(f.files)
	f.check(err)
	sign := func(text string) *dsse.Envelope {
		f.document("out.dsse.json", text, "ana@corp")
		e, err := envelope(f.files, "out.dsse.json")
		f.check(err)
		return e
	}
	for _, test := range []struct {
		name, was, is string
		ok            bool
	}{
		{"same guardrail", fixtureGuardrail, fixtureGuardrail, true},
		{"first generation", fixtureGuardrail, guardrailOf("1"), true},
		{"next generation", guardrailOf("1"), guardrailOf("2"), true},
		{"no generation", fixtureGuardrail, strings.Replace(fixtureGuardrail, "180d", "170d", 1), false},
		{"generation before", guardrailOf("2"), guardrailOf("1"), false},
		{"rubric, same generation", fixtureRubric, strings.Replace(rubricOf("1"), "default", "other", 1), false},
		{"rubric, next generation", fixtureRubric, rubricOf("2"), true},
		{"exemption", fixtureExemption, strings.Replace(fixtureExemption, "SEC-1", "SEC-2", 1), true},
	} {
		if err := NewerThan(r.Root, "file", sign(test.was), sign(test.is)); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

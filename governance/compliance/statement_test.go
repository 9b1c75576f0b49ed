package compliance

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

func statement(at time.Time, items ...Result) Statement {
	return Statement{IssuedAt: at, Plugin: "reader", Version: "1.0.0", Checklist: Checklist{"company", "sha256:1"}, Items: items}
}

// TestParse refuses statements that no check makes.
func TestParse(t *testing.T) {
	at := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	proved := Result{ID: "a", Proof: configs.ProofAuto, Outcome: Proved}
	attested := Result{ID: "b", Proof: configs.ProofAttested, Outcome: Attested, Attestation: &Attestation{}}
	for name, c := range map[string]struct {
		change func(s *Statement)
		want   string
	}{
		"good":                      {func(*Statement) {}, ""},
		"no time":                   {func(s *Statement) { s.IssuedAt = time.Time{} }, "issuedAt is missing"},
		"no plugin":                 {func(s *Statement) { s.Plugin = "" }, "names no plugin"},
		"no version":                {func(s *Statement) { s.Version = "" }, "names no plugin, version"},
		"no checklist":              {func(s *Statement) { s.Checklist.Digest = "" }, "or checklist"},
		"no items":                  {func(s *Statement) { s.Items = nil }, "it has no items"},
		"an item twice":             {func(s *Statement) { s.Items[1].ID = "a" }, "is in it twice"},
		"auto, but attested":        {func(s *Statement) { s.Items[0].Outcome, s.Items[0].Attestation = Attested, &Attestation{} }, "auto items are proved or failed"},
		"auto, with a document":     {func(s *Statement) { s.Items[0].Attestation = &Attestation{} }, "auto items are proved or failed"},
		"attested, but proved":      {func(s *Statement) { s.Items[1].Outcome = Proved }, "attested ones rest on a document"},
		"attested by no document":   {func(s *Statement) { s.Items[1].Attestation = nil }, "rest on a document"},
		"another result":            {func(s *Statement) { s.Items[0].Outcome = "waived" }, `has result "waived"`},
		"another proof":             {func(s *Statement) { s.Items[0].Proof = "trust me" }, `of proof "trust me"`},
		"a name that forges a line": {func(s *Statement) { s.Items[0].ID, s.Items[0].Outcome = "x\n\x1b[31m", "" }, `"x\\u000a\\u001b[31m"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := statement(at, proved, attested)
			c.change(&s)
			data, _ := json.Marshal(s)
			if _, err := Parse(data); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("the error is %v, want %q", err, c.want)
			}
		})
	}
	for _, text := range []string{"", "{", "[]", "null", `{"items": "a"}`} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// TestMerge takes the newest statement about each item that counts.
func TestMerge(t *testing.T) {
	at := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	auto := func(o Outcome) Result { return Result{ID: "a", Proof: configs.ProofAuto, Outcome: o} }
	paper := Result{ID: "b", Proof: configs.ProofAttested, Outcome: Attested, Attestation: &Attestation{Role: "compliance", Identity: "cy@corp"}}
	cy := []dsse.Signed{{Role: "compliance", Identity: "cy@corp"}}
	items := []configs.ChecklistItem{{ID: "a", Proof: configs.ProofAuto}, {ID: "b", Proof: configs.ProofAttested}}
	list := Checklist{"company", "sha256:1"}
	older := statement(at, auto(Proved))
	older.Checklist.Digest = "sha256:0"
	for name, c := range map[string]struct {
		statements []Signed
		a, b       Outcome
	}{
		"nothing":                  {nil, Missing, Missing},
		"both, by two people":      {[]Signed{{Statement: statement(at, auto(Proved))}, {Statement: statement(at, paper), By: cy}}, Proved, Attested},
		"a proof that fails later": {[]Signed{{Statement: statement(at, auto(Proved))}, {Statement: statement(at.Add(time.Hour), auto(Failed))}}, Failed, Missing},
		"a fault that is fixed":    {[]Signed{{Statement: statement(at.Add(time.Hour), auto(Proved))}, {Statement: statement(at, auto(Failed))}}, Proved, Missing},
		"an older checklist":       {[]Signed{{Statement: older}}, Missing, Missing},
		"attested for another":     {[]Signed{{Statement: statement(at, paper), By: []dsse.Signed{{Role: "compliance", Identity: "eve@corp"}}}}, Missing, Missing},
		"attested in another role": {[]Signed{{Statement: statement(at, paper), By: []dsse.Signed{{Role: "measurer", Identity: "cy@corp"}}}}, Missing, Missing},
		"attested by nobody":       {[]Signed{{Statement: statement(at, paper)}}, Missing, Missing},
		"the proof of another":     {[]Signed{{Statement: statement(at, Result{ID: "a", Proof: configs.ProofAttested, Outcome: Attested, Attestation: paper.Attestation}), By: cy}}, Missing, Missing},
	} {
		got := Merge(list, items, c.statements)
		if len(got) != 2 || got[0].Outcome != c.a || got[1].Outcome != c.b || Done(got) != (c.a == Proved && c.b == Attested) {
			t.Errorf("%s: %+v; want %s and %s", name, got, c.a, c.b)
		}
	}
}

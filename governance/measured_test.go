package governance

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// measure puts a measurement of a version, which used an amount of memory.
func (f *fixture) measure(file, version string, memory int64) {
	f.t.Helper()
	p := pilot.Performance{
		IssuedAt: f.now, Plugin: "weather", Version: version, Started: f.now.Add(-time.Hour), Ended: f.now.Add(-time.Minute),
		Memory: pilot.Memory{RSSP95Bytes: memory, RSSMaxBytes: memory, Samples: 100}, CPU: pilot.CPU{TotalUS: 5000, Requests: 1},
		Mediation: pilot.Mediation{Known: true, Admitted: 100, Handled: 100, CompletenessPPM: 1_000_000},
		Log:       pilot.Log{Records: 300, First: 1, Last: 300, Head: "head", Grant: artifactDigest},
	}
	predicate, err := json.Marshal(p)
	f.check(err)
	subject, err := evidence.Artifact("weather", artifactDigest)
	f.check(err)
	payload, err := evidence.New([]evidence.Subject{subject}, pilot.PerformanceType, predicate)
	f.check(err)
	f.sign(file, dsse.KindEvidence, payload, "pilot@corp")
}

// TestMeasurementRemoved: without the measurement of the version in force, a regression of the
// next one would not be seen.
func TestMeasurementRemoved(t *testing.T) {
	f := newFixture(t)
	f.document("guardrails/company.dsse.json", strings.Replace(fixtureGuardrail, "  evidence:", "  performance: {regression: 10%}\n  evidence:", 1), "ana@corp")
	const file = requestDir + "/evidence/performance.dsse.json"
	f.measure(file, "1.4.0", 100<<20)
	f.compose()
	f.approve("security", "bo@corp", nil)
	f.approve("compliance", "cy@corp", nil)
	f.issued()
	f.next()
	f.measure(nextDir+"/evidence/performance.dsse.json", "1.4.1", 200<<20)
	problems := func(f *fixture) string {
		var out []string
		for _, p := range f.evaluateIn(nextDir).stage(stagePerformance).Problems {
			out = append(out, p.Message)
		}
		return strings.Join(out, "\n")
	}
	if got := problems(f); !strings.Contains(got, "of the previous version") {
		t.Fatalf("the regression is not seen: %q", got)
	}
	gone := f.clone(t)
	delete(gone.files, file)
	if got := problems(gone); !strings.Contains(got, "is missing in "+requestDir+"/evidence") {
		t.Errorf("without the measurement: %q", got)
	}
	other := f.clone(t)
	other.measure(file, "1.4.0", 199<<20)
	if got := problems(other); !strings.Contains(got, "is missing in") {
		t.Errorf("with another measurement: %q", got)
	}
	revoked := f.clone(t)
	spec := configs.TrustRoot{Version: 1, Roles: withSpare(revoked, revoked.spec.Roles), Revoked: []string{revoked.key("pilot@corp").Public().KeyID()}}
	revoked.trust(spec)
	e := revoked.evaluateIn(nextDir)
	if !slices.ContainsFunc(e.Findings, func(s string) bool { return strings.Contains(s, "does not verify any more") }) {
		t.Errorf("with a revoked key the findings are %q", e.Findings)
	}
}

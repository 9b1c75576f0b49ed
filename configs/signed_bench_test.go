package configs

import (
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/granttest"
)

// mostAdded bounds what the verification of a signed grant adds to the start of a sidecar.
const mostAdded = 5 * time.Millisecond

// BenchmarkLoadSigned loads a grant of 50 rules with ten approvals, and in the same run
// the same grant without signatures, the floor. added-ms is the difference of the fastest
// ones.
func BenchmarkLoadSigned(b *testing.B) {
	f := newSignedFiles(b)
	rules := make([]granttest.Object, 50)
	for i := range rules {
		rules[i] = granttest.Object{
			"id": "rule-" + string(rune('a'+i/26)) + string(rune('a'+i%26)), "reason": "Shows the forecast.",
			"to": granttest.Object{"hosts": []string{"api.weather.example"}}, "methods": []string{"GET"}, "paths": []string{"/v1/*"},
		}
	}
	f.draft.Spec["rules"] = rules
	for range 9 {
		f.draft.Approve("security", granttest.Two)
	}
	if _, err := f.load(); err != nil {
		b.Fatal(err)
	}
	floor := newSignedFiles(b)
	floor.draft.Spec["rules"] = rules
	floor.skip = true
	delete(floor.sidecar, "trust")
	delete(floor.sidecar, "guardrails")
	floor.Write(floor.path("grants/weather.yaml"), floor.unsigned())
	if _, err := floor.load(); err != nil {
		b.Fatal(err)
	}
	fastest := map[*signedFiles]time.Duration{floor: time.Hour, f: time.Hour} // others use the machine
	for b.Loop() {
		for _, files := range []*signedFiles{floor, f} {
			began := time.Now()
			if _, err := Load(files.path("sidecar.yaml"), now); err != nil {
				b.Fatal(err)
			}
			fastest[files] = min(fastest[files], time.Since(began))
		}
	}
	added := fastest[f] - fastest[floor]
	b.ReportMetric(float64(fastest[floor].Microseconds())/1000, "floor-ms")
	b.ReportMetric(float64(added.Microseconds())/1000, "added-ms")
	if added > mostAdded {
		b.Errorf("signatures add %s to a load, want at most %s", added, mostAdded)
	}
}

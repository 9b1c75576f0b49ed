package manifest

import "testing"

// BenchmarkCheck checks one manifest under one guardrail with two conditions.
func BenchmarkCheck(b *testing.B) {
	file, guardrail := manifestOf(b), guardrailOf(b)
	guardrail.Rules, _ = CompileRules(guardrail.Spec.Rules)
	for b.Loop() {
		if r := Check(b.Context(), Input{File: file, Now: testNow, Guardrails: []Guardrail{guardrail}}); r.Refused() {
			b.Fatal(r.Findings)
		}
	}
}

func BenchmarkSecrets(b *testing.B) {
	data := []byte(goodManifest)
	for b.Loop() {
		secrets(data)
	}
}

func BenchmarkCompileRules(b *testing.B) {
	guardrail := guardrailOf(b)
	for b.Loop() {
		CompileRules(guardrail.Spec.Rules)
	}
}

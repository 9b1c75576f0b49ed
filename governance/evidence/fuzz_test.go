package evidence

import (
	"bytes"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// fuzzFormat checks a format: a report is refused, or gives the same printable predicates
// twice, which can be signed and read again.
func fuzzFormat(f *testing.F, suffix string) {
	f.Helper()
	for name, data := range samples(f) {
		if strings.HasSuffix(name, suffix) {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := Normalise(data, Options{IssuedAt: made})
		if err != nil {
			if text := err.Error(); printable.Text(text) != text {
				t.Errorf("error %q has control characters", text)
			}
			return
		}
		again, err := Normalise(data, Options{IssuedAt: made})
		if err != nil || len(again) != len(found) {
			t.Fatalf("the second reading is %v", err)
		}
		for i, n := range found {
			if !bytes.Equal(n.Predicate, again[i].Predicate) {
				t.Errorf("the second reading is %s, the first %s", again[i].Predicate, n.Predicate)
			}
			if text := string(n.Predicate); printable.Text(text) != text {
				t.Errorf("predicate %q has control characters", text)
			}
			readAgain(t, n)
		}
	})
}

// readAgain reads a predicate as a statement of a signed document.
func readAgain(t *testing.T, n Normalised) {
	t.Helper()
	subject, err := Artifact("", testArtifact)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := New([]Subject{subject}, n.PredicateType, n.Predicate)
	if err != nil {
		t.Fatalf("predicate %s cannot be signed: %v", n.Predicate, err)
	}
	item, err := parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	items := []Item{item}
	if _, err := Findings(items); err != nil {
		t.Error(err)
	}
	if _, err := Statements(items); err != nil {
		t.Error(err)
	}
}

func FuzzSARIF(f *testing.F) { fuzzFormat(f, ".sarif") }

func FuzzCycloneDX(f *testing.F) { fuzzFormat(f, ".cdx.json") }

func FuzzSPDX(f *testing.F) { fuzzFormat(f, ".spdx.json") }

func FuzzOpenVEX(f *testing.F) { fuzzFormat(f, ".openvex.json") }

func FuzzJUnit(f *testing.F) { fuzzFormat(f, ".xml") }

func FuzzGoTest(f *testing.F) { fuzzFormat(f, "gotest.json") }

func FuzzInToto(f *testing.F) { fuzzFormat(f, ".intoto.json") }

func FuzzStatement(f *testing.F) {
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + strings.Repeat("a", 64) + `"}}],"predicateType":"t","predicate":{"issuedAt":"2026-09-01T00:00:00Z"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		item, err := parse(data)
		if err != nil {
			return
		}
		if _, err := New(item.Subject, item.PredicateType, item.Predicate); err != nil {
			t.Errorf("%q was read, and made again is %v", data, err)
		}
	})
}

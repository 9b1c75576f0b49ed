package evidence

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

func updateFlag() *bool { return flag.Bool("update", false, "write the golden files") }

var update = updateFlag()

// issued is the time of statements in tests, and made that of reading a report.
var (
	issued = time.Date(2026, 9, 3, 12, 0, 0, 0, time.UTC)
	made   = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
)

// samples returns a report of each format by name: those of testdata/formats.txtar, and
// outputs of real tools.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	archive, err := txtar.ParseFile("testdata/formats.txtar")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, f := range archive.Files {
		out[f.Name] = f.Data
	}
	for _, name := range []string{"golangci.sarif", "golangci.junit.xml", "pytest.junit.xml", "gotest.json", "gomod.cdx.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = data
	}
	return out
}

// normaliseSample reads a report and returns its predicates in lines.
func normaliseSample(t testing.TB, data []byte) string {
	t.Helper()
	found, err := Normalise(data, Options{IssuedAt: made, ValidFor: 7 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, n := range found {
		out.WriteString(n.PredicateType + " artifacts " + strings.Join(n.Artifacts, ",") + ": " + n.Summary + "\n")
		if err := json.Indent(&out, n.Predicate, "", " "); err != nil {
			t.Fatal(err)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func TestFormats(t *testing.T) {
	golden := &txtar.Archive{Comment: []byte("The predicates of each report. Written by: go test ./governance/evidence -update\n")}
	const path = "testdata/predicates.txtar"
	want := map[string]string{}
	if old, err := txtar.ParseFile(path); err == nil {
		for _, f := range old.Files {
			want[f.Name] = string(f.Data)
		}
	}
	all := samples(t)
	for _, name := range sortedNames(all) {
		got := normaliseSample(t, all[name])
		golden.Files = append(golden.Files, txtar.File{Name: name, Data: []byte(got)})
		if diff := cmp.Diff(want[name], got); diff != "" && !*update {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if again := normaliseSample(t, all[name]); again != got {
			t.Errorf("%s gives other bytes the second time", name)
		}
		for line := range strings.Lines(got) {
			if line = strings.TrimSuffix(line, "\n"); printable.Text(line) != line {
				t.Errorf("%s: %q has control characters", name, line)
			}
		}
	}
	if *update {
		if err := os.WriteFile(path, txtar.Format(golden), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func sortedNames(all map[string][]byte) []string {
	var names []string
	for name := range all {
		names = append(names, name)
	}
	return distinct(names)
}

// A report does not become younger by being signed again.
func TestObservedAt(t *testing.T) {
	want := map[string]string{
		"security.sarif": "2026-09-01T10:00:00Z", "scanned.cdx.json": "2026-09-01T09:00:00Z", "two.spdx.json": "2026-09-01T08:00:00Z",
		"two.openvex.json": "2026-09-02T10:00:00Z", "nested.junit.xml": "2026-09-01T07:00:00Z", "events.gotest.json": "2026-09-01T06:00:00Z",
		"vulns.intoto.json": "2026-09-01T05:01:00Z", "slsa.intoto.json": "2026-09-01T04:00:00Z",
	}
	all := samples(t)
	for name, at := range want {
		found, err := Normalise(all[name], Options{IssuedAt: made})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range found {
			subject, err := Artifact("crm-sync", testArtifact)
			if err != nil {
				t.Fatal(err)
			}
			payload, err := New([]Subject{subject}, n.PredicateType, n.Predicate)
			if err != nil {
				t.Fatal(err)
			}
			item, err := parse(payload)
			if err != nil || item.ObservedAt.Format(time.RFC3339) != at || !item.IssuedAt.Equal(made) {
				t.Errorf("%s: observed %s, issued %s (%v); want %s, %s", name, item.ObservedAt, item.IssuedAt, err, at, made)
			}
		}
	}
}

// Findings in another order of results, and twice, are the same bytes but for the digest of
// the source.
func TestOrder(t *testing.T) {
	a := `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"s"}},"results":[{"ruleId":"a","level":"note","message":{"text":"1"}},{"ruleId":"b","message":{"text":"2"}}]}]}`
	b := `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"s"}},"results":[{"ruleId":"b","message":{"text":"2"}},{"ruleId":"a","level":"note","message":{"text":"1"}},{"ruleId":"b","message":{"text":"2"}}]}]}`
	read := func(s string) []Finding {
		found, err := Normalise([]byte(s), Options{IssuedAt: made})
		if err != nil {
			t.Fatal(err)
		}
		var p FindingsPredicate
		if err := json.Unmarshal(found[0].Predicate, &p); err != nil {
			t.Fatal(err)
		}
		return p.Findings
	}
	if diff := cmp.Diff(read(a), read(b)); diff != "" || len(read(a)) != 2 {
		t.Errorf("findings differ: %s", diff)
	}
}

// A finding has the severity of its rule, whichever part of the tool describes it and however
// the result names that part, and a contradiction makes it no smaller.
func TestSARIFSeverities(t *testing.T) {
	with := func(result string) string {
		return `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"s"},"extensions":[{"name":"other"},` +
			`{"name":"pack","guid":"11111111-ABCD","rules":[{"id":"a","properties":{"security-severity":"9.8"}}]}]},"results":[{` + result + `}]}]}`
	}
	for name, test := range map[string]struct {
		text string
		want Severity
	}{
		"by index":                {with(`"rule":{"id":"a","toolComponent":{"index":1}}`), Critical},
		"by GUID":                 {with(`"rule":{"id":"a","toolComponent":{"guid":"11111111-abcd"}}`), Critical},
		"by name":                 {with(`"rule":{"id":"a","toolComponent":{"name":"pack"}}`), Critical},
		"below its rule":          {with(`"rule":{"id":"a/b","toolComponent":{"index":1}}`), Critical},
		"of the driver":           {with(`"rule":{"id":"a","toolComponent":{"name":"s"}}`), Medium},
		"informational":           {with(`"ruleId":"b","kind":"informational"`), None},
		"informational and error": {with(`"ruleId":"b","kind":"informational","level":"error"`), High},
	} {
		found, err := Normalise([]byte(test.text), Options{IssuedAt: made})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var p FindingsPredicate
		if err := json.Unmarshal(found[0].Predicate, &p); err != nil || len(p.Findings) != 1 || p.Findings[0].Severity != test.want {
			t.Errorf("%s: findings are %+v (%v), want one of severity %s", name, p.Findings, err, test.want)
		}
	}
}

// readFindingsOf returns the findings of results of one tool.
func readFindingsOf(t *testing.T, results ...string) []Finding {
	t.Helper()
	found, err := Normalise([]byte(sarifWith(`"results":[`+strings.Join(results, ",")+`]`)), Options{IssuedAt: made})
	if err != nil {
		t.Fatal(err)
	}
	var p FindingsPredicate
	if err := json.Unmarshal(found[0].Predicate, &p); err != nil {
		t.Fatal(err)
	}
	return p.Findings
}

// Two results of a rule in one file are two findings, also where their tool gives both one
// fingerprint: a person who judges one of them has not judged the other.
func TestSARIFIdentities(t *testing.T) {
	at := func(fingerprints string, line, column int) string {
		return fmt.Sprintf(`{"ruleId":"a","message":{"text":"m"},%s"locations":[{"physicalLocation":{"artifactLocation":{"uri":"x.go"},"region":{"startLine":%d,"startColumn":%d}}}]}`, fingerprints, line, column)
	}
	for name, test := range map[string]struct {
		fingerprints string
		moves        bool // with its line
	}{
		"none":        {``, true},
		"without log": {`"fingerprints":{"matchBasedId/v1":"requires login"},`, true},
		"empty":       {`"partialFingerprints":{"commitSha":"","email":""},`, true},
		"of a commit": {`"partialFingerprints":{"commitSha":"c0ffee","email":""},`, false},
	} {
		one, moved := readFindingsOf(t, at(test.fingerprints, 3, 1)), readFindingsOf(t, at(test.fingerprints, 9, 1))
		if len(one) != 1 || (one[0].ID != moved[0].ID) != test.moves {
			t.Errorf("%s: the id of a result that moves changes: %t, want %t", name, one[0].ID != moved[0].ID, test.moves)
		}
		for _, other := range []string{at(test.fingerprints, 9, 1), at(test.fingerprints, 3, 7)} {
			two := readFindingsOf(t, at(test.fingerprints, 3, 1), other, other)
			if again := readFindingsOf(t, other, at(test.fingerprints, 3, 1)); len(two) != 2 || !slices.EqualFunc(two, again, func(a, b Finding) bool { return a.ID == b.ID }) {
				t.Errorf("%s: findings are %+v and in another order %+v, want two", name, two, again)
			}
		}
	}
}

// A writer that leaves nothing out has fields without a value.
func TestSARIFWithoutValues(t *testing.T) {
	const text = `{"version":"2.1.0","inlineExternalProperties":[],"runs":[{"tool":{"driver":{"name":"s"}},"results":[],"externalPropertyFileReferences":{"results":null,"driver":null,"extensions":[],"invocations":[]}}]}`
	if _, err := Normalise([]byte(text), Options{IssuedAt: made}); err != nil {
		t.Error(err)
	}
}

// A failure counts wherever it is written: of a suite's preparation too, and below an element
// that is not known.
func TestJUnitFailures(t *testing.T) {
	for name, text := range map[string]string{
		"of a suite":  `<testsuites><testsuite name="a" errors="1"><testcase name="t"/><error message="setup"/></testsuite></testsuites>`,
		"of all":      `<testsuites><testsuite name="a"><testcase name="t"/></testsuite><failure/></testsuites>`,
		"one below":   `<testsuite name="a"><testcase name="t"><details><failure/></details></testcase></testsuite>`,
		"of its test": `<testsuite name="a" failures="1"><testcase name="t"><failure/></testcase></testsuite>`,
	} {
		found, err := Normalise([]byte(text), Options{IssuedAt: made})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var p TestPredicate
		if err := json.Unmarshal(found[0].Predicate, &p); err != nil || p.Failed != 1 || p.Result != Failed {
			t.Errorf("%s: it is %s with %d failed (%v), want FAILED with 1", name, p.Result, p.Failed, err)
		}
	}
}

// A time without a zone may be of one in the east.
func TestJUnitZone(t *testing.T) {
	const refused = ""
	for timestamp, want := range map[string]string{
		"2026-12-01T11:00:00": "2026-12-01T11:00:00Z", "2026-12-01T12:30:00.25": "2026-12-01T12:00:00Z", "2026-12-02T02:00:00": "2026-12-01T12:00:00Z",
		"2026-12-02T02:00:01": refused, "2026-12-01T12:30:00Z": refused, "2026-12-01T21:30:00+09:00": refused, "2026-12-01T20:30:00+09:00": "2026-12-01T11:30:00Z",
	} {
		found, err := Normalise([]byte(`<testsuite name="a" timestamp="`+timestamp+`"><testcase name="t"/></testsuite>`), Options{IssuedAt: made})
		got := refused
		if err == nil {
			var p TestPredicate
			if err := json.Unmarshal(found[0].Predicate, &p); err != nil || p.Source.ObservedAt == nil {
				t.Fatalf("%s: %+v, %v", timestamp, p, err)
			}
			got = p.Source.ObservedAt.Format(time.RFC3339)
		}
		if got != want {
			t.Errorf("%s: observed at %q, want %q (%v)", timestamp, got, want, err)
		}
	}
}

// A build that failed is a failure, also where the package that failed with it is not there.
func TestGoTestBuildFailure(t *testing.T) {
	const text = `{"Action":"build-fail","ImportPath":"p [p.test]"}
{"Action":"run","Package":"q","Test":"T"}
{"Action":"pass","Package":"q","Test":"T"}
`
	found, err := Normalise([]byte(text), Options{IssuedAt: made})
	if err != nil {
		t.Fatal(err)
	}
	var p TestPredicate
	if err := json.Unmarshal(found[0].Predicate, &p); err != nil || p.Result != Failed || p.Failed != 1 {
		t.Errorf("it is %s with %d failed (%v), want FAILED with 1", p.Result, p.Failed, err)
	}
}

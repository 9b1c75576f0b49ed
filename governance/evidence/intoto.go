package evidence

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Types of in-toto that are read.
const (
	typeStatement  = "https://in-toto.io/Statement/v1"
	typeStatement0 = "https://in-toto.io/Statement/v0.1"
	typeInTotoTest = "https://in-toto.io/attestation/test-result/v0.1"
	typeInTotoVuln = "https://in-toto.io/attestation/vulns/v0.2"
	mediaInToto    = "application/vnd.in-toto+json"
)

type (
	inTotoStatement struct {
		Type          string          `json:"_type"`
		Subject       []Subject       `json:"subject"`
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}
	// Subject is a resource that a statement is about (in-toto ResourceDescriptor v1).
	Subject struct {
		Name   string            `json:"name,omitempty"`
		Digest map[string]string `json:"digest"`
	}
	inTotoTest struct {
		Result string   `json:"result"`
		Passed []string `json:"passedTests"`
		Warned []string `json:"warnedTests"`
		Failed []string `json:"failedTests"`
	}
	inTotoVulns struct {
		Scanner struct {
			URI     string        `json:"uri"`
			Version string        `json:"version"`
			Result  *[]inTotoVuln `json:"result"`
		} `json:"scanner"`
		Metadata struct {
			Finished string `json:"scanFinishedOn"`
		} `json:"metadata"`
	}
	inTotoVuln struct {
		ID       string `json:"id"`
		Severity []struct {
			Method string          `json:"method"`
			Score  json.RawMessage `json:"score"`
		} `json:"severity"`
	}
	slsaProvenance struct {
		Build struct {
			Type      string `json:"buildType"`
			Materials []struct {
				URI    string            `json:"uri"`
				Digest map[string]string `json:"digest"`
			} `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		Run struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
			Metadata struct {
				Finished string `json:"finishedOn"`
			} `json:"metadata"`
		} `json:"runDetails"`
	}
)

// readEnvelope reads the statement in an envelope. Its signature proves nothing here, since
// the trust root has no such key: the signature of the person who adds the evidence counts.
func readEnvelope(data []byte, source Source, o Options) ([]Normalised, error) {
	e, err := dsse.Parse(data)
	if err != nil {
		return nil, err
	}
	if e.PayloadType != mediaInToto {
		return nil, fmt.Errorf("its payload type is %s; %s is supported", quote(e.PayloadType), mediaInToto)
	}
	return readInToto(e.Unverified, source, o)
}

func readInToto(data []byte, source Source, o Options) ([]Normalised, error) {
	var s inTotoStatement
	if err := decode(data, &s); err != nil {
		return nil, err
	}
	if s.Type != typeStatement && s.Type != typeStatement0 {
		return nil, fmt.Errorf("_type is %s; %s is supported", quote(s.Type), typeStatement)
	}
	var r reader
	artifacts := r.subjects(s.Subject)
	if r.err != nil {
		return nil, r.err
	}
	read := map[string]func(*reader, json.RawMessage, []string, Source, Options) (Normalised, error){
		typeInTotoTest: readInTotoTest, typeInTotoVuln: readInTotoVulns, TypeSLSA: readSLSA,
	}[s.PredicateType]
	if read == nil {
		return nil, fmt.Errorf("predicateType is %s; %s, %s and %s are supported", quote(s.PredicateType), typeInTotoTest, typeInTotoVuln, TypeSLSA)
	}
	out, err := read(&r, s.Predicate, artifacts, source, o)
	if err == nil {
		err = r.err
	}
	if err != nil {
		return nil, err
	}
	return []Normalised{out}, nil
}

// subjects returns the SHA-256 digests of a statement's subjects.
func (r *reader) subjects(list []Subject) []string {
	var out []string
	for _, s := range list {
		if value := s.Digest["sha256"]; value != "" {
			out = append(out, r.sha256("sha256", value))
		}
	}
	if len(out) == 0 {
		r.fail("it has no subject with a sha256 digest: it is about no artifact")
	}
	return out
}

func readInTotoTest(_ *reader, raw json.RawMessage, artifacts []string, source Source, o Options) (Normalised, error) {
	var in inTotoTest
	if err := decode(raw, &in); err != nil {
		return Normalised{}, err
	}
	source.Format = "in-toto-test-result-v0.1"
	p := TestPredicate{Head: o.head(), Source: source, Passed: len(in.Passed), Warned: len(in.Warned), Failed: len(in.Failed)}
	switch in.Result { // the lists are optional, the result is not
	case Passed:
		p.Passed = max(p.Passed, 1)
	case Warned:
		p.Warned = max(p.Warned, 1)
	case Failed:
		p.Failed = max(p.Failed, 1)
	default:
		return Normalised{}, fmt.Errorf("result is %s; PASSED, WARNED and FAILED are those of test-result v0.1", quote(in.Result))
	}
	if in.Result != Failed && len(in.Failed) > 0 {
		return Normalised{}, fmt.Errorf("result is %s, but %d tests failed", in.Result, len(in.Failed))
	}
	if p.Passed+p.Warned+p.Failed > maxTests {
		return Normalised{}, fmt.Errorf("it has more than %d tests", maxTests)
	}
	for _, name := range in.Failed {
		p.FailedTests = append(p.FailedTests, text(name))
	}
	return testPredicate(p, artifacts)
}

func readInTotoVulns(r *reader, raw json.RawMessage, artifacts []string, source Source, o Options) (Normalised, error) {
	var in inTotoVulns
	if err := decode(raw, &in); err != nil {
		return Normalised{}, err
	}
	if in.Scanner.Result == nil {
		return Normalised{}, fmt.Errorf("scanner.result is missing: the scanner did not scan")
	}
	source.Format = "in-toto-vulns-v0.2"
	source.Tools = []Tool{{r.required("scanner.uri", in.Scanner.URI), r.name("scanner.version", in.Scanner.Version)}}
	source.observed(r.time("metadata.scanFinishedOn", in.Metadata.Finished))
	var found []Finding
	for i := range *in.Scanner.Result {
		f := (*in.Scanner.Result)[i].finding(r)
		if r.err != nil {
			return Normalised{}, fmt.Errorf("scanner.result[%d]: %w", i, r.err)
		}
		found = append(found, f)
	}
	return findingsPredicate(o.head(), source, found, artifacts)
}

func (v *inTotoVuln) finding(r *reader) Finding {
	f := Finding{Vulnerability: r.required("id", v.ID)}
	f.ID = findingID(f.Vulnerability, "")
	for _, s := range v.Severity {
		method := strings.ToLower(s.Method)
		switch {
		case method == "epss":
			f.EPSS = max(f.EPSS, r.permille("severity.score of EPSS", number(r, "severity.score", s.Score)))
			continue
		case method == "kev":
			f.Exploited = f.Exploited || isTrue(r, "severity.score of KEV", s.Score)
			continue
		}
		var word string
		if json.Unmarshal(s.Score, &word) == nil && ofWord(word) != Unknown {
			f.Severity = worse(f.Severity, ofWord(word))
			continue
		}
		score := r.tenths("severity.score", number(r, "severity.score", s.Score))
		f.CVSS = max(f.CVSS, score)
		f.Severity = worse(f.Severity, ofScore(score))
	}
	if f.Severity == "" {
		f.Severity = Unknown
	}
	return f
}

func readSLSA(r *reader, raw json.RawMessage, artifacts []string, source Source, o Options) (Normalised, error) {
	var in slsaProvenance
	if err := decode(raw, &in); err != nil {
		return Normalised{}, err
	}
	source.Format = "slsa-provenance-v1"
	source.observed(r.time("runDetails.metadata.finishedOn", in.Run.Metadata.Finished))
	out := ProvenancePredicate{
		Head: o.head(), Source: source, Level: max(o.Level, 1),
		Builder: r.required("runDetails.builder.id", in.Run.Builder.ID), BuildType: r.required("buildDefinition.buildType", in.Build.Type),
	}
	if len(in.Build.Materials) > maxComponents {
		return Normalised{}, fmt.Errorf("it has %d resolvedDependencies; at most %d are allowed", len(in.Build.Materials), maxComponents)
	}
	for _, m := range in.Build.Materials {
		out.Materials = append(out.Materials, r.name("resolvedDependencies.uri", m.URI))
	}
	out.Materials = sorted(out.Materials)
	slices.Sort(artifacts)
	return makePredicate(TypeProvenance, out, artifacts, "provenance by "+text(out.Builder))
}

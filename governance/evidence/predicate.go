package evidence

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The predicate types of in-toto statements that this package makes or reads.
const (
	prefix = "https://chaperone.dev/attestation/"

	TypeFindings    = prefix + "findings/v1"
	TypeSBOM        = prefix + "sbom/v1"
	TypeVEX         = prefix + "vex/v1"
	TypeTestResult  = prefix + "test-result/v1"
	TypeRemediation = prefix + "remediation/v1"
	TypeProvenance  = prefix + "provenance/v1"

	// TypeSLSA is SLSA's own predicate, accepted as it is.
	TypeSLSA = "https://slsa.dev/provenance/v1"
)

// Head is what every predicate of this project begins with.
type Head struct {
	IssuedAt  time.Time  `json:"issuedAt"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
	// Replaces are digests of older statements of the same type and signer.
	Replaces []string `json:"replaces,omitempty"`
}

// Source is the report that a predicate was made from.
type Source struct {
	// Format is as in sarif-2.1.0.
	Format string `json:"format"`
	// Digest is sha256:HEX of the file.
	Digest string `json:"digest"`
	// Size is in bytes.
	Size int `json:"size"`
	// ObservedAt is when the tool ran, if the report states it. The age of the evidence counts
	// from it.
	ObservedAt *time.Time `json:"observedAt,omitempty"`
	Tools      []Tool     `json:"tools"`
}

// Tool is a program that made a report.
type Tool struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// FindingsPredicate is the predicate of [TypeFindings].
type FindingsPredicate struct {
	Head
	Source   Source    `json:"source"`
	Findings []Finding `json:"findings"`
}

// Finding is one fault that a scanner reports.
type Finding struct {
	// ID is stable over scans: F- and 20 hexadecimal digits.
	ID string `json:"id"`
	// Rule is the scanner's rule, as in G304. Vulnerability is as in CVE-2026-1234. One of them
	// is given.
	Rule          string   `json:"rule,omitempty"`
	Vulnerability string   `json:"vulnerability,omitempty"`
	Aliases       []string `json:"aliases,omitempty"`
	Severity      Severity `json:"severity"`
	// CVSS is the highest score stated, in tenths.
	CVSS int `json:"cvssTenths,omitempty"`
	// EPSS is the probability of exploitation in thousandths.
	EPSS int `json:"epssPermille,omitempty"`
	// Exploited is set for a vulnerability that is exploited in the wild, as in CISA's KEV.
	Exploited bool `json:"exploited,omitempty"`
	// Component is a package URL or the source's name of a component.
	Component string `json:"component,omitempty"`
	// Location is as in cmd/main.go:12.
	Location string `json:"location,omitempty"`
	Message  string `json:"message,omitempty"`
	// Suppressed records that the source suppresses the finding. It changes nothing: an author
	// suppresses in the code that is scanned.
	Suppressed bool `json:"suppressed,omitempty"`
	// Secret is set for a secret that the artifact contains.
	Secret bool `json:"secret,omitempty"`

	// Evidence is the digest of the statement. Only [Findings] sets it.
	Evidence string `json:"-"`
}

// SBOMPredicate is the predicate of [TypeSBOM].
type SBOMPredicate struct {
	Head
	Source     Source      `json:"source"`
	Components []Component `json:"components"`
}

// Component is a part of the artifact.
type Component struct {
	Name     string   `json:"name"`
	Version  string   `json:"version,omitempty"`
	PURL     string   `json:"purl,omitempty"`
	Digest   string   `json:"digest,omitempty"`
	Licenses []string `json:"licenses,omitempty"`
}

// VEXPredicate is the predicate of [TypeVEX].
type VEXPredicate struct {
	Head
	Source     Source      `json:"source"`
	Author     string      `json:"author"`
	Statements []Statement `json:"statements"`
}

// Statement is the judgement of one vulnerability (OpenVEX, section Status Labels).
type Statement struct {
	Vulnerability string   `json:"vulnerability"`
	Aliases       []string `json:"aliases,omitempty"`
	// Products are the ways in which the one product is named that has Components as its parts:
	// the artifact's digest or package URL. An empty list stands for any product.
	Products []string `json:"products,omitempty"`
	// Components are package URLs or names. An empty list stands for the whole artifact.
	Components    []string   `json:"components,omitempty"`
	Status        Status     `json:"status"`
	Justification string     `json:"justification,omitempty"`
	Impact        string     `json:"impact,omitempty"`
	Action        string     `json:"action,omitempty"`
	At            *time.Time `json:"at,omitempty"`
}

// Status is a status of OpenVEX.
type Status string

// The statuses.
const (
	NotAffected        Status = "not_affected"
	Affected           Status = "affected"
	Fixed              Status = "fixed"
	UnderInvestigation Status = "under_investigation"
)

// TestPredicate is the predicate of [TypeTestResult].
type TestPredicate struct {
	Head
	Source Source `json:"source"`
	// Result is PASSED, WARNED or FAILED, as in in-toto's test-result v0.1.
	Result  string `json:"result"`
	Passed  int    `json:"passed"`
	Warned  int    `json:"warned"`
	Skipped int    `json:"skipped"`
	Failed  int    `json:"failed"`
	// FailedTests are names, at most the first 1,000 in their order.
	FailedTests []string `json:"failedTests,omitempty"`
}

// The results of tests.
const (
	Passed  = "PASSED"
	Warned  = "WARNED"
	Failed  = "FAILED"
	maxList = 1000
)

// ProvenancePredicate is the predicate of [TypeProvenance].
type ProvenancePredicate struct {
	Head
	Source    Source   `json:"source"`
	Builder   string   `json:"builder"`
	BuildType string   `json:"buildType"`
	Materials []string `json:"materials,omitempty"`
	// Level is the level of SLSA's Build track that the signer verified, 1 to 3.
	Level int `json:"level"`
}

// RemediationPredicate is the predicate of [TypeRemediation].
type RemediationPredicate struct {
	Head
	Plans []Plan `json:"plans"`
}

// Plan states how and when a finding will be remediated.
type Plan struct {
	// Finding is the finding's id, or a vulnerability in all its components.
	Finding string    `json:"finding"`
	Plan    string    `json:"plan"`
	Owner   string    `json:"owner"`
	Due     time.Time `json:"due"`

	// IssuedAt and Evidence are those of the statement. Only [Plans] sets them.
	IssuedAt time.Time `json:"-"`
	Evidence string    `json:"-"`
}

// Normalised is a predicate made from a report.
type Normalised struct {
	PredicateType string
	Predicate     json.RawMessage
	// Artifacts are the digests that the report states for its subject. If there are any, one
	// of them has to be the artifact's.
	Artifacts []string
	// Summary is one line for people.
	Summary string
}

// Options are those of [Normalise].
type Options struct {
	// IssuedAt is the time that the predicate states.
	IssuedAt time.Time
	// ValidFor is the time until the evidence expires; never, if 0.
	ValidFor time.Duration
	// Level is the level of SLSA's Build track that was verified; 1 if 0.
	Level int
	// Replaces are digests of older statements that the new ones replace.
	Replaces []string
}

func (o Options) head() Head {
	h := Head{IssuedAt: o.IssuedAt.UTC().Truncate(time.Second), Replaces: sorted(slices.Clone(o.Replaces))}
	if o.ValidFor > 0 {
		end := h.IssuedAt.Add(o.ValidFor).Truncate(time.Second)
		h.ExpiresAt = &end
	}
	return h
}

// make writes a predicate.
func makePredicate(predicateType string, predicate any, artifacts []string, summary string) (Normalised, error) {
	raw, err := Canonical(predicate)
	if err != nil {
		return Normalised{}, err
	}
	slices.Sort(artifacts)
	return Normalised{predicateType, raw, slices.Compact(artifacts), summary}, nil
}

// findingsPredicate writes findings, sorted, each id once. Two equal reports of a finding
// in one place are one.
func findingsPredicate(h Head, s Source, found []Finding, artifacts []string) (Normalised, error) {
	if len(found) > maxFindings {
		return Normalised{}, fmt.Errorf("it has %d findings; at most %d are allowed", len(found), maxFindings)
	}
	byID := make(map[string]Finding, len(found))
	for _, f := range found {
		if other, again := byID[f.ID]; again {
			f = mergeFinding(other, f)
		}
		byID[f.ID] = f
	}
	out := make([]Finding, 0, len(byID))
	counts := map[Severity]int{}
	for _, f := range byID {
		out = append(out, f)
		counts[f.Severity]++
	}
	slices.SortFunc(out, func(a, b Finding) int { return cmp.Compare(a.ID, b.ID) })
	summary := []string{fmt.Sprintf("%d findings", len(out))}
	for _, s := range []Severity{Critical, High, Unknown, Medium, Low, None} {
		if counts[s] > 0 {
			summary = append(summary, fmt.Sprintf("%d %s", counts[s], s))
		}
	}
	return makePredicate(TypeFindings, FindingsPredicate{h, s, out}, artifacts, strings.Join(summary, ", "))
}

// mergeFinding returns the worse of two reports with one id. Its other fields are those of
// the smaller report, so that the order of reports changes nothing.
func mergeFinding(a, b Finding) Finding {
	x, _ := Canonical(a)
	y, _ := Canonical(b)
	if string(y) < string(x) {
		a, b = b, a
	}
	a.Severity = worse(a.Severity, b.Severity)
	a.CVSS, a.EPSS = max(a.CVSS, b.CVSS), max(a.EPSS, b.EPSS)
	a.Exploited, a.Secret = a.Exploited || b.Exploited, a.Secret || b.Secret
	a.Suppressed = a.Suppressed && b.Suppressed
	a.Aliases = sorted(append(slices.Clone(a.Aliases), b.Aliases...))
	return a
}

// sorted returns the list sorted, each entry once, and nil if it is empty.
func sorted(list []string) []string {
	slices.Sort(list)
	list = slices.DeleteFunc(slices.Compact(list), func(s string) bool { return s == "" })
	if len(list) == 0 {
		return nil
	}
	return list
}

func sbomPredicate(h Head, s Source, components []Component, artifacts []string) (Normalised, error) {
	if len(components) > maxComponents {
		return Normalised{}, fmt.Errorf("it has %d components; at most %d are allowed", len(components), maxComponents)
	}
	if len(components) == 0 {
		return Normalised{}, fmt.Errorf("it lists no component; an empty bill of materials proves nothing")
	}
	slices.SortFunc(components, compareComponents)
	components = slices.CompactFunc(components, func(a, b Component) bool { return compareComponents(a, b) == 0 })
	return makePredicate(TypeSBOM, SBOMPredicate{h, s, components}, artifacts, fmt.Sprintf("%d components", len(components)))
}

func compareComponents(a, b Component) int {
	return cmp.Or(cmp.Compare(a.PURL, b.PURL), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.Digest, b.Digest), slices.Compare(a.Licenses, b.Licenses))
}

func testPredicate(p TestPredicate, artifacts []string) (Normalised, error) {
	if total := p.Passed + p.Warned + p.Failed; total == 0 {
		return Normalised{}, fmt.Errorf("no test ran (%d were skipped); a report without tests proves nothing", p.Skipped)
	}
	switch {
	case p.Failed > 0:
		p.Result = Failed
	case p.Warned > 0:
		p.Result = Warned
	default:
		p.Result = Passed
	}
	p.FailedTests = sorted(p.FailedTests)
	p.FailedTests = p.FailedTests[:min(len(p.FailedTests), maxList)]
	return makePredicate(TypeTestResult, p, artifacts,
		fmt.Sprintf("tests %s: %d passed, %d failed, %d warned, %d skipped", p.Result, p.Passed, p.Failed, p.Warned, p.Skipped))
}

package evidence

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The parts of SARIF 2.1.0 (OASIS, 27 March 2020) that state findings. Section numbers are
// those of the specification.
type (
	sarifLog struct {
		Version string          `json:"version"`
		Runs    []sarifRun      `json:"runs"`
		Inline  json.RawMessage `json:"inlineExternalProperties"`
	}
	sarifRun struct {
		Tool struct {
			Driver     sarifComponent   `json:"driver"`
			Extensions []sarifComponent `json:"extensions"`
		} `json:"tool"`
		Invocations []struct {
			ExecutionSuccessful *bool               `json:"executionSuccessful"`
			StartFailure        string              `json:"processStartFailureMessage"`
			EndTimeUTC          string              `json:"endTimeUtc"`
			Notifications       []sarifNotification `json:"toolExecutionNotifications"`
		} `json:"invocations"`
		Results  *[]sarifResult `json:"results"`
		External *struct {
			Results     json.RawMessage `json:"results"`
			Driver      json.RawMessage `json:"driver"`
			Extensions  json.RawMessage `json:"extensions"`
			Invocations json.RawMessage `json:"invocations"`
		} `json:"externalPropertyFileReferences"`
	}
	sarifNotification struct {
		Level string `json:"level"`
	}
	sarifComponent struct {
		Name            string      `json:"name"`
		Version         string      `json:"version"`
		SemanticVersion string      `json:"semanticVersion"`
		GUID            string      `json:"guid"`
		Rules           []sarifRule `json:"rules"`
	}
	sarifComponentName struct {
		Name  string `json:"name"`
		Index *int   `json:"index"`
		GUID  string `json:"guid"`
	}
	sarifRule struct {
		ID      string `json:"id"`
		Default *struct {
			Level string `json:"level"`
		} `json:"defaultConfiguration"`
		Properties sarifProperties `json:"properties"`
	}
	sarifResult struct {
		RuleID    string `json:"ruleId"`
		RuleIndex *int   `json:"ruleIndex"`
		Rule      *struct {
			ID    string              `json:"id"`
			Index *int                `json:"index"`
			Tool  *sarifComponentName `json:"toolComponent"`
		} `json:"rule"`
		Kind    string `json:"kind"`
		Level   string `json:"level"`
		Message struct {
			Text string `json:"text"`
			ID   string `json:"id"`
		} `json:"message"`
		Locations []struct {
			Physical struct {
				Artifact struct {
					URI string `json:"uri"`
				} `json:"artifactLocation"`
				Region struct {
					StartLine   int `json:"startLine"`
					StartColumn int `json:"startColumn"`
				} `json:"region"`
			} `json:"physicalLocation"`
		} `json:"locations"`
		Fingerprints map[string]string `json:"fingerprints"`
		Partial      map[string]string `json:"partialFingerprints"`
		Suppressions []struct {
			Status string `json:"status"`
		} `json:"suppressions"`
		Baseline   string          `json:"baselineState"`
		Properties sarifProperties `json:"properties"`
	}
	// sarifProperties are properties by the convention of GitHub code scanning, and those that
	// scanners of dependencies add.
	sarifProperties struct {
		SecuritySeverity json.RawMessage `json:"security-severity"`
		EPSS             json.RawMessage `json:"epss"`
		KEV              json.RawMessage `json:"kev"`
		PURL             json.RawMessage `json:"purl"`
		Tags             []string        `json:"tags"`
	}
)

// vulnerabilityID is an id of CVE, GitHub, Go, or another database of OSV.
var vulnerabilityID = regexp.MustCompile(`^(?:CVE-\d{4}-\d{4,}|GHSA(?:-[0-9a-z]{4}){3}|GO-\d{4}-\d{4,}|(?:PYSEC|RUSTSEC|OSV|MAL)-\d{4}-\d+)`)

func readSARIF(data []byte, source Source, o Options) ([]Normalised, error) {
	var log sarifLog
	if err := decode(data, &log); err != nil {
		return nil, err
	}
	if log.Version != "2.1.0" {
		return nil, fmt.Errorf("version is %s; 2.1.0 is supported", quote(log.Version))
	}
	switch {
	case len(log.Runs) == 0:
		return nil, fmt.Errorf("it has no run: no tool ran")
	case stated(log.Inline):
		return nil, fmt.Errorf("it has inlineExternalProperties (section 3.13.5), which may be results and rules of its runs; write them into the runs")
	}
	source.Format = "sarif-2.1.0"
	var r reader
	var found []Finding
	places := &distinguisher{first: map[string]string{}, several: map[string]bool{}}
	for i := range log.Runs {
		run := &log.Runs[i]
		checkRun(&r, run, i, &source)
		if r.err != nil {
			return nil, r.err
		}
		for j := range *run.Results {
			f, counts := run.finding(&r, &(*run.Results)[j])
			if r.err != nil {
				return nil, fmt.Errorf("runs[%d].results[%d]: %w", i, j, r.err)
			}
			if counts {
				found = append(found, f)
				places.add(f.ID, (*run.Results)[j].place())
			}
		}
	}
	places.distinguish(found)
	source.Tools = sortTools(source.Tools)
	out, err := findingsPredicate(o.head(), source, found, nil)
	if err != nil {
		return nil, err
	}
	return []Normalised{out}, nil
}

// stated reports whether a field is there, and neither null nor an empty list, as writers that
// leave nothing out have it.
func stated(raw json.RawMessage) bool {
	return !slices.Contains([]string{"", "null", "[]"}, string(raw))
}

// checkRun refuses a run whose findings are not all here, and notes its tool and time.
func checkRun(r *reader, run *sarifRun, i int, source *Source) {
	driver := run.Tool.Driver
	version := driver.SemanticVersion
	if version == "" {
		version = driver.Version
	}
	source.Tools = append(source.Tools, Tool{r.required(fmt.Sprintf("runs[%d].tool.driver.name", i), driver.Name), r.name("version", version)})
	switch {
	case run.External != nil && (stated(run.External.Results) || stated(run.External.Driver) || stated(run.External.Extensions) || stated(run.External.Invocations)):
		r.fail("runs[%d]: its results, rules or invocations are in another file (externalPropertyFileReferences); merge them into this one", i)
	case run.Results == nil:
		r.fail("runs[%d] has no list of results: the tool did not scan (section 3.14.23)", i)
	}
	for j, in := range run.Invocations {
		if in.ExecutionSuccessful != nil && !*in.ExecutionSuccessful {
			r.fail("runs[%d].invocations[%d]: executionSuccessful is false: the scan failed, and may have missed findings", i, j)
		}
		if in.StartFailure != "" {
			r.fail("runs[%d].invocations[%d]: processStartFailureMessage is stated: the tool did not start", i, j)
		}
		// A tool that went on after an error states that it succeeded.
		k := slices.IndexFunc(in.Notifications, func(n sarifNotification) bool { return n.Level == "error" })
		if k >= 0 && in.ExecutionSuccessful == nil {
			r.fail("runs[%d].invocations[%d].toolExecutionNotifications[%d] is an error, and executionSuccessful is not stated: the scan may have missed findings", i, j, k)
		}
		source.observed(r.time("endTimeUtc", in.EndTimeUTC))
	}
}

// observed notes a time of the source; the earliest counts.
func (s *Source) observed(at *time.Time) {
	if at != nil && (s.ObservedAt == nil || at.Before(*s.ObservedAt)) {
		s.ObservedAt = at
	}
}

// finding returns the finding of a result. A result that is no fault does not count
// (section 3.27.9), nor does one that a later run no longer has (section 3.27.24).
func (run *sarifRun) finding(r *reader, in *sarifResult) (f Finding, counts bool) {
	switch in.Kind {
	case "pass", "notApplicable":
		if in.Level == "error" || in.Level == "warning" { // another reader goes by the level alone
			r.fail("kind is %s and level %s, which contradict each other (section 3.27.10)", in.Kind, in.Level)
		}
		return f, false
	case "", "fail", "open", "review", "informational":
	default:
		r.fail("kind %s is not one of SARIF 2.1.0", quote(in.Kind))
	}
	switch in.Baseline {
	case "absent":
		return f, false
	case "", "new", "unchanged", "updated":
	default:
		r.fail("baselineState %s is not one of SARIF 2.1.0", quote(in.Baseline))
	}
	rule := run.rule(r, in)
	f = Finding{Rule: r.name("ruleId", rule.ID), Message: text(in.Message.Text)}
	if f.Rule == "" {
		f.Rule = "unnamed"
	}
	if f.Message == "" {
		f.Message = text(in.Message.ID)
	}
	if f.Vulnerability = vulnerabilityOf(f.Rule); f.Vulnerability == f.Rule {
		f.Rule = ""
	}
	f.rate(r, in, rule)
	uri, line := "", 0
	if len(in.Locations) > 0 {
		uri, line = in.Locations[0].Physical.Artifact.URI, in.Locations[0].Physical.Region.StartLine
		if f.Location = text(uri); line > 0 {
			f.Location += ":" + strconv.Itoa(line)
		}
	}
	f.Suppressed = len(in.Suppressions) > 0
	f.Secret = slices.Contains(secretScanners(), strings.ToLower(run.Tool.Driver.Name)) || slices.Contains(rule.Properties.Tags, "secret")
	f.ID = findingID(run.Tool.Driver.Name, f.Rule, f.Vulnerability, uri, in.identity(line))
	return f, true
}

// secretScanners are tools whose every result is a secret. Others tag such a rule "secret".
func secretScanners() []string {
	return []string{"gitleaks", "trufflehog", "ggshield", "detect-secrets"}
}

// identity returns what distinguishes a result from others of its rule in its file: the
// tool's fingerprints, or else the line and the message.
func (in *sarifResult) identity(line int) string {
	all := fingerprints(in.Fingerprints)
	if len(all) == 0 {
		all = fingerprints(in.Partial)
	}
	if len(all) == 0 {
		return strconv.Itoa(line) + " " + in.Message.Text + in.Message.ID
	}
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&out, "%d:%s=%d:%s;", len(key), key, len(all[key]), all[key])
	}
	return out.String()
}

// fingerprints returns fingerprints without those that identify nothing: gitleaks writes empty ones for
// a file that is in no repository, and Semgrep one text for every result of a user without a login.
func fingerprints(all map[string]string) map[string]string {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" || value == "requires login" })
	return out
}

// place returns where a result is, and what it states.
func (in *sarifResult) place() string {
	var out strings.Builder
	for _, l := range in.Locations[:min(len(in.Locations), 1)] {
		fmt.Fprintf(&out, "%d:%d ", l.Physical.Region.StartLine, l.Physical.Region.StartColumn)
	}
	return out.String() + in.Message.Text + in.Message.ID
}

// distinguisher separates findings whose tool gave them one identity, as some scanners do by
// fingerprints of a commit or of equal lines: who judges one of them must not judge all.
type distinguisher struct {
	places  []string          // of each finding, in their order
	first   map[string]string // place of the first finding with an id
	several map[string]bool   // ids in several places
}

func (d *distinguisher) add(id, place string) {
	d.places = append(d.places, place)
	if first, again := d.first[id]; !again {
		d.first[id] = place
	} else if first != place {
		d.several[id] = true
	}
}

// distinguish sets an id of its own for each place of findings that share one.
func (d *distinguisher) distinguish(found []Finding) {
	for i := range found {
		if f := &found[i]; d.several[f.ID] {
			f.ID = findingID(f.ID, d.places[i])
		}
	}
}

// component returns the part of the tool that has a result's rule, by its index, GUID or name
// (section 3.54); nil for one that is not there: its rule may state a severity.
func (run *sarifRun) component(r *reader, name *sarifComponentName) *sarifComponent {
	extensions := run.Tool.Extensions
	if name.Index != nil && *name.Index >= 0 {
		if *name.Index >= len(extensions) {
			r.fail("rule.toolComponent.index is %d; the run has %d extensions", *name.Index, len(extensions))
			return nil
		}
		return &extensions[*name.Index]
	}
	is := func(c *sarifComponent) bool {
		return name.GUID != "" && strings.EqualFold(c.GUID, name.GUID) || name.GUID == "" && name.Name != "" && c.Name == name.Name
	}
	for i := range extensions {
		if is(&extensions[i]) {
			return &extensions[i]
		}
	}
	if name.GUID == "" && name.Name == "" || is(&run.Tool.Driver) {
		return &run.Tool.Driver
	}
	r.fail("rule.toolComponent %s %s is neither the tool nor one of its %d extensions", quote(name.Name), quote(name.GUID), len(extensions))
	return nil
}

// rule returns the description of a result's rule (section 3.52.3).
func (run *sarifRun) rule(r *reader, in *sarifResult) sarifRule {
	id, index, component := in.RuleID, in.RuleIndex, &run.Tool.Driver
	if in.Rule != nil {
		if id == "" {
			id = in.Rule.ID
		}
		if index == nil {
			index = in.Rule.Index
		}
		if in.Rule.Tool != nil {
			if component = run.component(r, in.Rule.Tool); component == nil {
				return sarifRule{}
			}
		}
	}
	if index != nil && *index >= 0 {
		if *index >= len(component.Rules) {
			r.fail("ruleIndex is %d; the tool has %d rules", *index, len(component.Rules))
			return sarifRule{}
		}
		rule := component.Rules[*index]
		// A result may name a rule below the one of its description (section 3.27.5).
		if id != "" && id != rule.ID && !strings.HasPrefix(id, rule.ID+"/") {
			r.fail("ruleId is %s, but ruleIndex is that of %s", quote(id), quote(rule.ID))
		}
		if id != "" {
			rule.ID = id
		}
		return rule
	}
	for _, name := range []string{id, id[:max(strings.LastIndexByte(id, '/'), 0)]} { // the latter is above, see section 3.27.5
		for _, rule := range component.Rules {
			if rule.ID == name && name != "" {
				rule.ID = id
				return rule
			}
		}
	}
	return sarifRule{ID: id}
}

// rate sets the severity: a score for security if the result or its rule has one, or else
// the level (section 3.27.10).
func (f *Finding) rate(r *reader, in *sarifResult, rule sarifRule) {
	for _, p := range []sarifProperties{in.Properties, rule.Properties} {
		f.EPSS = max(f.EPSS, r.permille("epss", number(r, "epss", p.EPSS)))
		f.Exploited = f.Exploited || isTrue(r, "kev", p.KEV)
		var purl string
		if json.Unmarshal(p.PURL, &purl) == nil && f.Component == "" {
			f.Component = r.name("purl", purl)
		}
		if p.SecuritySeverity != nil && f.Severity == "" {
			// Scanners of images write 0.0 for a severity that they do not know.
			if f.CVSS = r.tenths("security-severity", number(r, "security-severity", p.SecuritySeverity)); f.CVSS > 0 {
				f.Severity = ofScore(f.CVSS)
			}
		}
	}
	level := in.Level
	if level == "" && rule.Default != nil {
		level = rule.Default.Level
	}
	byLevel := ofLevel(r, level)
	switch {
	case in.Kind == "open" || in.Kind == "review":
		byLevel = Unknown // a person has to look at it
	case in.Kind == "informational" && in.Level == "":
		byLevel = None
	}
	if f.Severity == "" {
		f.Severity = byLevel
	}
}

func ofLevel(r *reader, level string) Severity {
	switch level {
	case "error":
		return High
	case "warning", "":
		return Medium
	case "note":
		return Low
	case "none":
		return None
	}
	r.fail("level %s is not one of SARIF 2.1.0", quote(level))
	return Unknown
}

// number reads a number that may be written as a string. It is 0 if absent.
func number(r *reader, field string, raw json.RawMessage) float64 {
	if raw == nil || string(raw) == "null" {
		return 0
	}
	s := string(raw)
	if s[0] == '"' {
		if json.Unmarshal(raw, &s) != nil {
			s = ""
		}
	}
	out, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil {
		r.fail("%s %s is not a number", field, quote(s))
	}
	return out
}

// isTrue reads a truth that may be written as a string.
func isTrue(r *reader, field string, raw json.RawMessage) bool {
	switch strings.ToLower(strings.Trim(string(raw), `"`)) {
	case "", "null", "false", "no", "0":
		return false
	case "true", "yes", "1":
		return true
	}
	r.fail("%s %s is neither true nor false", field, quote(string(raw)))
	return true
}

// vulnerabilityOf returns the id of a vulnerability that a rule is named by, as scanners of
// dependencies do, also with a package behind it, as in CVE-2026-1234-libfoo.
func vulnerabilityOf(rule string) string {
	return vulnerabilityID.FindString(rule)
}

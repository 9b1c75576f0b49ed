package evidence

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// The parts of CycloneDX 1.4 to 1.7 (ECMA-424) that are read, which are the same in all of them.
type (
	cdxBOM struct {
		BOMFormat   string `json:"bomFormat"`
		SpecVersion string `json:"specVersion"`
		Metadata    struct {
			Timestamp string          `json:"timestamp"`
			Tools     json.RawMessage `json:"tools"` // a list until 1.4, an object since 1.5
			Component *cdxComponent   `json:"component"`
		} `json:"metadata"`
		Components      []cdxComponent      `json:"components"`
		Vulnerabilities *[]cdxVulnerability `json:"vulnerabilities"`
	}
	cdxComponent struct {
		Ref        string         `json:"bom-ref"`
		Group      string         `json:"group"`
		Name       string         `json:"name"`
		Version    string         `json:"version"`
		PURL       string         `json:"purl"`
		Hashes     []cdxHash      `json:"hashes"`
		Licenses   []cdxLicense   `json:"licenses"`
		Components []cdxComponent `json:"components"`
	}
	cdxHash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	cdxLicense struct {
		Expression string `json:"expression"`
		License    struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"license"`
	}
	cdxTool struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	cdxVulnerability struct {
		ID         string `json:"id"`
		References []struct {
			ID string `json:"id"`
		} `json:"references"`
		Ratings []struct {
			Source struct {
				Name string `json:"name"`
			} `json:"source"`
			Score    *float64 `json:"score"`
			Severity string   `json:"severity"`
			Method   string   `json:"method"`
		} `json:"ratings"`
		Description string `json:"description"`
		Affects     []struct {
			Ref string `json:"ref"`
		} `json:"affects"`
		Analysis *struct {
			State         string `json:"state"`
			Justification string `json:"justification"`
			Detail        string `json:"detail"`
		} `json:"analysis"`
		Properties []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"properties"`
	}
)

func readCycloneDX(data []byte, source Source, o Options) ([]Normalised, error) {
	var bom cdxBOM
	if err := decode(data, &bom); err != nil {
		return nil, err
	}
	if bom.BOMFormat != "CycloneDX" || !slices.Contains([]string{"1.4", "1.5", "1.6", "1.7"}, bom.SpecVersion) {
		return nil, fmt.Errorf("bomFormat is %s and specVersion %s; CycloneDX 1.4 to 1.7 are supported", quote(bom.BOMFormat), quote(bom.SpecVersion))
	}
	var r reader
	source.Format = "cyclonedx-" + bom.SpecVersion
	source.observed(r.time("metadata.timestamp", bom.Metadata.Timestamp))
	source.Tools = cdxTools(&r, bom.Metadata.Tools)
	b := cdxReader{reader: &r, refs: map[string]string{}}
	var artifacts []string
	if c := bom.Metadata.Component; c != nil {
		if digest := b.refer(c); digest != "" {
			artifacts = append(artifacts, digest)
		}
		b.collect(c.Components)
	}
	b.collect(bom.Components)
	if r.err != nil {
		return nil, r.err
	}
	var out []Normalised
	if len(b.components) > 0 || bom.Vulnerabilities == nil {
		sbom, err := sbomPredicate(o.head(), source, b.components, artifacts)
		if err != nil {
			return nil, err
		}
		out = append(out, sbom)
	}
	if bom.Vulnerabilities == nil { // a bill of materials that was not scanned
		return out, nil
	}
	found, err := b.findings(*bom.Vulnerabilities)
	if err != nil {
		return nil, err
	}
	findings, err := findingsPredicate(o.head(), source, found, artifacts)
	if err != nil {
		return nil, err
	}
	return append(out, findings), nil
}

// cdxTools reads either form of metadata.tools.
func cdxTools(r *reader, raw json.RawMessage) []Tool {
	var list []cdxTool
	var object struct {
		Components []cdxTool `json:"components"`
		Services   []cdxTool `json:"services"`
	}
	switch {
	case raw == nil:
	case json.Unmarshal(raw, &list) == nil:
	case json.Unmarshal(raw, &object) == nil:
		list = append(object.Components, object.Services...)
	default:
		r.fail("metadata.tools is neither a list of tools nor an object")
	}
	out := []Tool{}
	for _, t := range list {
		out = append(out, Tool{r.name("metadata.tools.name", t.Name), r.name("metadata.tools.version", t.Version)})
	}
	return sortTools(out)
}

// cdxReader collects components, and the name of each for its bom-ref.
type cdxReader struct {
	*reader
	refs       map[string]string
	components []Component
}

// refer notes a component's name for findings by its reference, and returns its SHA-256.
func (b *cdxReader) refer(c *cdxComponent) (digest string) {
	name := b.name("purl", c.PURL)
	if name == "" {
		if name = c.Name; c.Group != "" {
			name = c.Group + "/" + name
		}
		if c.Version != "" {
			name += "@" + c.Version
		}
		name = b.required("component name", name)
	}
	if c.Ref != "" {
		if other, again := b.refs[c.Ref]; again && other != name {
			b.fail("bom-ref %s is that of two components", quote(c.Ref))
		}
		b.refs[c.Ref] = name
	}
	for _, h := range c.Hashes {
		if found := b.sha256(h.Algorithm, h.Content); found != "" {
			digest = found
		}
	}
	return digest
}

func (b *cdxReader) collect(list []cdxComponent) {
	for i := range list {
		c := &list[i]
		digest := b.refer(c)
		name := c.Name
		if c.Group != "" {
			name = c.Group + "/" + name
		}
		out := Component{
			Name: b.required("component name", name), Version: b.name("version", c.Version),
			PURL: b.name("purl", c.PURL), Digest: digest,
		}
		for _, l := range c.Licenses {
			out.Licenses = append(out.Licenses, text(l.Expression), text(l.License.ID), text(l.License.Name))
		}
		out.Licenses = sorted(out.Licenses)
		b.components = append(b.components, out)
		b.collect(c.Components)
	}
}

// findings returns a finding for each vulnerability and component that it affects.
func (b *cdxReader) findings(list []cdxVulnerability) ([]Finding, error) {
	var out []Finding
	for i := range list {
		v := &list[i]
		f := b.finding(v)
		if b.err != nil {
			return nil, fmt.Errorf("vulnerabilities[%d]: %w", i, b.err)
		}
		components := []string{""}
		if len(v.Affects) > 0 {
			components = nil
		}
		for _, a := range v.Affects {
			name, known := b.refs[a.Ref]
			if !known {
				name = b.name("affects.ref", a.Ref) // of another document
			}
			components = append(components, name)
		}
		if len(out)+len(components) > maxFindings {
			return nil, fmt.Errorf("it has more than %d findings", maxFindings)
		}
		for _, c := range distinct(components) {
			f.Component, f.ID = c, findingID(f.Vulnerability, c)
			out = append(out, f)
		}
	}
	return out, b.err
}

func (b *cdxReader) finding(v *cdxVulnerability) Finding {
	f := Finding{Vulnerability: b.required("id", v.ID), Message: text(v.Description)}
	for _, ref := range v.References {
		f.Aliases = append(f.Aliases, b.name("references.id", ref.ID))
	}
	f.Aliases = sorted(f.Aliases)
	for _, rating := range v.Ratings {
		word := ofWord(rating.Severity)
		switch {
		case strings.EqualFold(rating.Source.Name, "epss"):
			if rating.Score != nil {
				f.EPSS = max(f.EPSS, b.permille("ratings.score of EPSS", *rating.Score))
			}
			continue
		case rating.Score != nil && strings.HasPrefix(rating.Method, "CVSS"):
			score := b.tenths("ratings.score", *rating.Score)
			f.CVSS, word = max(f.CVSS, score), worse(word, ofScore(score))
		}
		f.Severity = worse(f.Severity, word)
	}
	for _, p := range v.Properties {
		switch name := strings.ToLower(p.Name); {
		case name == "epss" || strings.HasSuffix(name, ":epss"):
			f.EPSS = max(f.EPSS, b.permille(p.Name, number(b.reader, "property epss", json.RawMessage(jsonString(p.Value)))))
		case name == "kev" || strings.HasSuffix(name, ":kev"):
			f.Exploited = f.Exploited || isTrue(b.reader, "property kev", json.RawMessage(jsonString(p.Value)))
		}
	}
	if f.Severity == "" {
		f.Severity = Unknown
	}
	if a := v.Analysis; a != nil { // a judgement of the document's author, which a VEX statement has to confirm
		f.Suppressed = slices.Contains([]string{"resolved", "resolved_with_pedigree", "false_positive", "not_affected"}, a.State)
	}
	return f
}

func jsonString(s string) []byte {
	raw, _ := json.Marshal(s) // a string always encodes
	return raw
}

// distinct returns the list sorted, each entry once; an empty entry stays.
func distinct(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}
